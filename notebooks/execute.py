r"""Runs the notebook from start to end and stores what came out.

  python -m notebooks.execute --set=STEPS=30 --set=TEACHER=models/SmolLM2-135M \
    --out=executed.ipynb

--set replaces a constant of the cell that is tagged `parameters`, for this run
alone: the stored cell is as before, its output says what was changed. The run
has a folder of its own. A value that is a folder here is linked into that one,
under its name, so that outputs hold no path of this machine.
"""

import ast
import os
import pathlib
import sys
import tempfile
import time

from absl import app, flags

from miniplm_jax.core import errors
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import duration, log, show

HERE = pathlib.Path(__file__).parent
NOTEBOOK = HERE / "miniplm_tpu_demo.ipynb"

_SET = flags.DEFINE_multi_string("set", [], "NAME=VALUE of a parameter.")
_OUT = flags.DEFINE_string("out", None, "Where the notebook goes.")
_FOLDER = flags.DEFINE_string(
  "folder", "", "Empty or new, where it runs; by default one that is removed."
)


def main(unused_argv) -> int:
  """Returns the exit status."""
  show()
  try:
    if not _OUT.value:
      raise UserError("there is no --out", "command line", "give a file")
    with tempfile.TemporaryDirectory() as scratch:
      folder = pathlib.Path(_FOLDER.value or f"{scratch}/work").absolute()
      folder.mkdir(parents=True, exist_ok=True)
      if any(folder.iterdir()):
        raise UserError("the folder is not empty", str(folder), "name another")
      values = dict(_parse(text) for text in _SET.value)
      _execute(folder, values, f"{scratch}/kernel")
  except (UserError, OSError) as e:
    print(f"error: {errors.one_line(e)}", file=sys.stderr)
    return 1
  return 0


def _parse(text: str) -> tuple[str, object]:
  """(name, value): a Python literal, or else the text as it is."""
  name, sign, value = text.partition("=")
  if not sign:
    raise UserError("there is no =", f"--set={text}", "give NAME=VALUE")
  try:
    return name, ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return name, value


def _execute(folder: pathlib.Path, values: dict[str, object], sockets: str):
  import nbformat
  from nbclient import NotebookClient
  from nbclient.exceptions import CellExecutionError
  from traitlets.config import Config

  notebook = nbformat.read(NOTEBOOK, as_version=4)
  (parameters,) = [c for c in notebook.cells if c.metadata.get("tags")]
  source = parameters.source
  parameters.source += _changes(source, _linked(folder, values))
  start = time.monotonic()

  def done(cell, cell_index, **unused):
    passed = duration(time.monotonic() - start)
    log("notebook", f"cell {cell_index + 1}/{len(notebook.cells)}, {passed}")

  client = NotebookClient(
    notebook,
    timeout=None,
    kernel_name="python3",
    # Over TCP every user of the machine could listen, and the kernel warns.
    config=Config(ConnectionFileMixin={"transport": "ipc", "ip": sockets}),
    resources={"metadata": {"path": str(folder)}},
    record_timing=False,
    coalesce_streams=True,
    on_cell_executed=done,
  )
  try:
    client.execute()
  except CellExecutionError as e:
    raise UserError(
      f"a cell failed, {e.ename}: {e.evalue[-500:]}",
      str(NOTEBOOK),
      "run it in Jupyter to see more",
    ) from e
  parameters.source = source
  # That of the machine is nothing to others.
  notebook.metadata.language_info = {"name": "python"}
  nbformat.write(notebook, _OUT.value)
  log("notebook", f"done in {duration(time.monotonic() - start)}: {_OUT.value}")


def _linked(folder: pathlib.Path, values: dict[str, object]):
  """The values, and the code's folder; folders by their names in `folder`."""
  found = {"REPOSITORY": str(HERE.parent)} | values
  for name, value in found.items():
    if isinstance(value, str) and os.path.isdir(value):
      # The code's own folder may have any name.
      link = "code" if name == "REPOSITORY" else pathlib.Path(value).name
      (folder / link).symlink_to(pathlib.Path(value).resolve())
      found[name] = link
  return found


def _changes(source: str, values: dict[str, object]) -> str:
  """Code that sets the values and says so.

  Raises:
    UserError: the cell has no such constant.
  """
  known = {
    target.id
    for line in ast.parse(source).body
    if isinstance(line, ast.Assign)
    for target in line.targets
  }
  for name in values:
    if name not in known:
      raise UserError(
        f"the notebook has no parameter {name}",
        f"--set={name}=…",
        f"choose from {', '.join(sorted(known))}",
      )
  lines = [f"{name} = {value!r}" for name, value in values.items()]
  shown = "\n  ".join(["Changed for this run:", *lines])
  return "\n".join(["", *lines, f"print({shown!r})"])


if __name__ == "__main__":
  app.run(lambda argv: sys.exit(main(argv)))
