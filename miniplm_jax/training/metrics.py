"""Metrics of a run: JSON lines, and where they are shown.

They have seconds in them, so they are no part of a manifest's fingerprint.
TensorBoard always shows them, Weights & Biases if it is asked for.
"""

import json
import os
import pathlib
import secrets
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import errors, files, gs, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import MANIFEST

NAME = "metrics.jsonl"


class Metrics:
  """Writes `metrics.jsonl` and the boards; one process does."""

  def __init__(self, directory: epath.Path, first_step: int, wandb_run: Any):
    """Continues after `first_step`; later lines, of a killed run, go.

    A run of wandb, if there is one, shows them beside TensorBoard.
    """
    self._board, self._wandb = TensorBoard(directory, first_step), wandb_run
    self._lines = [m for m in read(directory) if m["step"] <= first_step]
    self._directory = directory
    write(directory, self._lines)

  def write(self, step: int, values: Mapping[str, float]):
    """Adds values after `step` steps."""
    self._lines.append({"step": step, **values})
    self._board.write(step, values)
    if self._wandb:  # steps that it has, of a killed run, it drops
      self._wandb.log(dict(values), step=step)

  def drop(self, prefix: str) -> bool:
    """Leaves out what has such names; returns whether there was any."""
    lines = [
      {k: v for k, v in line.items() if not k.startswith(prefix)}
      for line in self._lines
    ]
    is_changed = lines != self._lines
    self._lines = [line for line in lines if line.keys() != {"step"}]
    write(self._directory, self._lines)
    return is_changed

  def save(self):
    """Puts all lines on disk; called with every checkpoint."""
    write(self._directory, self._lines)
    self._board.flush()

  def close(self):
    """Saves and closes the boards."""
    write(self._directory, self._lines)
    self._board.close()
    if self._wandb:
      self._wandb.finish()


def curve(
  lines: Sequence[Mapping[str, float]], key: str
) -> tuple[list[float], list[float]]:
  """Steps and values of the lines of `read` that have it."""
  having = [line for line in lines if key in line]
  return [line["step"] for line in having], [line[key] for line in having]


def read(directory: epath.Path) -> list[dict[str, float]]:
  """The lines of `metrics.jsonl`; empty if there is none.

  Raises:
    UserError: they are damaged, or not those of the finished run.
  """
  path = directory / NAME
  if not path.exists():
    return []
  trained = manifest.read(directory.parent / MANIFEST)
  written = trained and trained.details.get("metrics")  # since schema 2
  if written and files.describe(path) != written:
    raise UserError(
      "the metrics are not those that the run wrote",
      str(path),
      "restore the file, or remove it: curves are then left out",
    )
  lines = []
  for number, text in enumerate(path.read_bytes().splitlines(), 1):
    hint = "restore the file, or mend that line"
    with errors.parsing(f"{path} line {number}", hint):
      values = json.loads(text)
      lines.append({"step": values["step"], **values})
      # Not bool, null or words: they would be plotted, and compared.
      if not {type(x) for x in values.values()} <= {int, float}:
        raise ValueError("not all values are numbers")
  return lines


def write(directory: epath.Path, lines: Sequence[Mapping[str, float]]):
  """Writes `metrics.jsonl` anew."""
  text = "".join(json.dumps(line) + "\n" for line in lines)
  files.write_bytes(directory / NAME, text.encode())


class TensorBoard:
  """Event files."""

  def __init__(self, directory: epath.Path, first_step: int):
    """Goes on after `first_step`; later points, of a killed run, go."""
    # Without TensorFlow: importing that costs 6 s. And without its thread,
    # which dies when the disk is full, and whose queue then waits for ever.
    # And without PyTorch, which it takes where there is one: 1.5 s, 200 MB.
    hidden = sys.modules.setdefault("torch", None) is None
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import SessionLog

    if hidden:
      del sys.modules["torch"]
    # What tensorboardX writes to gs:// it writes again as the process ends.
    self._directory, self._scratch = directory, None
    if not gs.is_local(directory):
      self._scratch = tempfile.TemporaryDirectory()
    folder = self._scratch.name if self._scratch else os.fspath(directory)
    with errors.naming(directory):
      self._writer = EventsWriter(os.path.join(folder, "events"))
    if first_step:
      start = SessionLog(status=SessionLog.START)
      self._add(first_step + 1, session_log=start)

  def write(self, step: int, values: Mapping[str, float]):
    """Adds values after `step` steps."""
    from tensorboardX.summary import scalar

    for name, value in values.items():
      self._add(step, summary=scalar(name, value))

  def _add(self, step: int, **what):
    from tensorboardX.proto.event_pb2 import Event

    with errors.naming(self._directory):
      event = Event(step=step, wall_time=time.time(), **what)
      self._writer.write_event(event)

  def flush(self):
    """Puts on disk what was written."""
    with errors.naming(self._directory):
      self._writer.flush()
      self._upload()

  def close(self):
    """Flushes and ends."""
    with errors.naming(self._directory):
      self._writer.close()
      self._upload()

  def _upload(self):
    """Puts event files where they belong, if that is not on a disk."""
    if self._scratch:
      for path in pathlib.Path(self._scratch.name).iterdir():
        gs.upload(path, self._directory / path.name)


def wandb_run(
  project: str, name: str, directory: epath.Path, config: Mapping[str, Any]
) -> Any:
  """A `wandb.Run`, a new one or that of an earlier start.

  WANDB_MODE and its other variables hold. The run's id is kept in the
  directory, and the config listed beside the run.

  Raises:
    UserError: wandb is not installed or cannot start.
  """
  where = f"config.run.wandb_project={project}"
  hint = "pip install wandb, or leave the project empty"
  wandb = errors.library("wandb", "wandb cannot be imported", where, hint)
  try:
    return wandb.init(
      project=project,
      name=name,
      id=_id(directory / "wandb.json"),
      resume="allow",
      config=dict(config),
      dir=str(directory) if gs.is_local(directory) else None,
    )
  except Exception as e:
    raise UserError(
      f"wandb did not start ({e})",
      where,
      "run `wandb login`, set WANDB_MODE=offline, or leave the project empty",
    ) from e


def _id(path: epath.Path) -> str:
  """The run's id: new with --force, which removes the file."""
  if not path.exists():
    files.write_json(path, {"id": secrets.token_hex(4)})
  hint = "remove it: then what follows is another run of wandb"
  with errors.parsing(path, hint):
    return json.loads(path.read_bytes())["id"]
