"""What all functions of the library do first: arguments, and errors in Python.

Below, errors name flags of the command line; here they name arguments.
"""

import functools
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from miniplm_jax.config import RunConfig
from miniplm_jax.core import errors, gs
from miniplm_jax.core import execute as execute_lib
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.claims import Board
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import shown
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import FOLDERS, Workdir
from miniplm_jax.models.ref import ROLES


def _call(match: re.Match) -> str:
  """The function that makes what a stage makes."""
  stage = "train" if match[1] in ROLES else match[1]
  return f"{stage}(…, force=True)"


# Patterns of flags, and what is said instead.
_IN_PYTHON = {
  r"--stages=(\w+) --force(, and with it all that this stage makes)?": _call,
  r",? or (run|drop|leave out) --stages\S*": "",
  r"--config\.workdir or name": "folder (to=) or name",
  r"--config\.workdir": "folder (to=)",
  r"--config\.run\.(\w+)=(\w+)": r"run=RunConfig(\1=\2)",
  r"--config\.(\w+\.)*": "",
  r"--prompt=": "the prompt ",
}
# Lets a UserError say what to do in Python's words: a context, or a decorator.
in_python = functools.partial(errors.rewording, _IN_PYTHON)


def execute(steps: Sequence[Step], run: RunConfig, force: bool):
  """Claims, resumes, skips, refuses or remakes steps of one workdir."""
  root = root_of(steps[0].manifest.parent)
  for step in steps:
    old = manifest_lib.read(step.manifest)
    if old and old.stage != step.stage:
      refuse_taken(step.manifest.parent, old.stage)
  with Board(Workdir(root).claims, run.lease_seconds) as board:
    execute_lib.execute(steps, force, board)


def refuse_taken(folder: epath.Path, stage: str):
  """Raises UserError: what another stage made lies there."""
  what = f"there lies what stage {stage} has made"
  raise UserError(what, str(folder), "give another folder")


def root_of(folder: epath.Path) -> epath.Path:
  """The workdir of an artifact's folder: DIR of DIR/corpus, DIR/scores/x."""
  above = gs.absolute(folder).parent
  return above.parent if above.name in FOLDERS else above


def folder_of(to: epath.PathLike) -> epath.Path:
  """The folder that is to be made, or opened."""
  folder = epath.Path(path_of(to, "to")).expanduser()
  if folder.is_file():
    raise UserError("there lies a file", str(folder), "give a folder")
  return folder


def path_of(
  path: Any,
  name: str,
  hint: str = "give one path; of several files their folder or a glob",
) -> str:
  """One path, glob, name or hub id, as a config has it."""
  if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
    raise UserError(f"{name} is {shown(path)}", type(path).__name__, hint)
  return os.fspath(path)


def several(texts: str | Iterable[str]) -> list[str]:
  """Several texts, if it is one."""
  return [texts] if isinstance(texts, str) else list(texts)


def texts_of(texts: str | Iterable[str]) -> list[str]:
  """One or more texts."""
  items = several(texts) if isinstance(texts, Iterable) else []
  if not items or not all(isinstance(item, str) for item in items):
    hint = "give a text, or a list of texts"
    raise UserError(f"no texts: {shown(texts)}", type(texts).__name__, hint)
  for item in items:
    try:
      item.encode()
    except UnicodeEncodeError as e:
      raise UserError("no valid Unicode", shown(item), "leave it out") from e
  return items


def of_kind(value: Any, kind: type, name: str, hint: str):
  """Refuses an argument that is something else."""
  if not isinstance(value, kind):
    raise UserError(f"{name} is {shown(value)}", type(value).__name__, hint)
