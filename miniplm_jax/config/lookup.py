"""Config files by path, or by the name of one that the package carries."""

import pathlib
import re
import runpy
from collections.abc import Sequence

from ml_collections import ConfigDict

from miniplm_jax.core.errors import UserError

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
  raise UserError(f"no config file {path}", "here or in the package", hint)


def arguments(argv: Sequence[str]) -> list[str]:
  """Returns a command line whose --config is the path of a file."""
  found, is_name = [], False
  for argument in argv:
    match = re.fullmatch("(--?config=)(.*)", argument)
    start, name = match.groups() if match else ("", argument)
    found.append(start + located(name) if match or is_name else argument)
    is_name = argument in ("-config", "--config")
  return found


def load(name: str) -> ConfigDict:
  """Returns what `get_config` of a config file does, see `located`."""
  path, *argument = located(name).split(":", 1)
  return runpy.run_path(path)["get_config"](*argument)
