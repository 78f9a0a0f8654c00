"""Command lines: config files by path or name, and the fields of flags."""

import contextlib
import functools
import pathlib
import re
import runpy
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from miniplm_jax.config.root import Config
from miniplm_jax.core.errors import UserError, did_you_mean, shortened
from miniplm_jax.core.fields import Section, rules_of, sections_of
from miniplm_jax.models.architecture import FAMILIES, Architecture

# In a clone a link to its configs/, of which the wheel has the files.
_CARRIED = pathlib.Path(__file__).parents[1] / "configs"


def located(name: str) -> str:
  """Returns the path of a config file, with the colon and what follows it.

  A file that is there is itself. Of others NAME, NAME.py and configs/NAME.py
  are that of the package, wherever one is; else it raises UserError.
  """
  path, colon, argument = name.partition(":")
  if pathlib.Path(path).is_file():
    return name
  stem = path.removeprefix("./").removeprefix("configs/").removesuffix(".py")
  names = sorted(file.stem for file in _CARRIED.glob("*.py"))
  if stem in names:
    return f"{_CARRIED / stem}.py{colon}{argument}"
  hint = f"give its path, or one of {', '.join(names)}"
  hint = did_you_mean(stem, names, hint)
  raise UserError(f"no config file {path}", "here or in the package", hint)


@functools.cache
def advice(kind: type[Section] = Config, name="config") -> dict[str, str]:
  """Returns what fields take, by name: config.train.steps; of sections ""."""
  if issubclass(kind, Architecture):  # a config file chooses its family
    kinds, found = list(FAMILIES.values()), {f"{name}.family": ""}
  else:
    kinds, found = [kind], {}
  for kind in kinds:
    found |= {f"{name}.{k}": rule.advice for k, rule in rules_of(kind).items()}
    for key, part in sections_of(kind).items():
      found |= advice(part, f"{name}.{key}")
  return {name: ""} | found


@contextlib.contextmanager
def blaming(argv: Sequence[str], where: str) -> Iterator[str]:
  """Lets a UserError of the config `where` name the flags that it is about."""
  try:
    yield where
  except UserError as e:
    # config.select.ratio, rows, tokens is …; of a shape config.student.model: …
    named = re.match(r"(config\.(?:\w+\.)*)([\w, ]+?)(?: is |: )", e.what)
    names = [named[1] + n for n in named[2].split(", ")] if named else []
    pattern = rf"--?({'|'.join(names)})\b"
    given = " ".join(a for a in argv if names and re.match(pattern, a))
    if given and e.where == where:
      UserError.__init__(e, e.what, shortened(given), e.hint)
    raise


def _refuse_unknown(argument: str):
  match = re.match(r"--?config\.([\w.]+)", argument)
  if not match or f"config.{match[1]}" in advice():
    return
  name, names = match[1], [n.removeprefix("config.") for n in advice()]
  word = name.rpartition(".")[2]
  same = [n for n in names if n.rpartition(".")[2] == word]
  otherwise = did_you_mean(name, names, "all are in miniplm_jax/config")
  hint = did_you_mean(name, same, otherwise, cutoff=0)
  raise UserError(f"config has no field {name}", shortened(argument), hint)


def arguments(argv: Sequence[str]) -> list[str]:
  """Returns a command line whose --config is the path of a file.

  Raises:
    UserError: there is no such file, or a flag is of a field that is none.
  """
  found, is_name = [], False
  for argument in argv:
    _refuse_unknown(argument)
    match = re.fullmatch("(--?config=)(.*)", argument)
    start, name = match.groups() if match else ("", argument)
    found.append(start + located(name) if match or is_name else argument)
    is_name = argument in ("-config", "--config")
  return found


def load(name: str) -> ConfigDict:
  """Returns what `get_config` of a config file does, see `located`."""
  path, *argument = located(name).split(":", 1)
  return runpy.run_path(path)["get_config"](*argument)
