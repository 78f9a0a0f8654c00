"""Runs the notebook from start to end, in a fresh folder.

  python -m notebooks.execute --set STEPS=20 --set TEACHER=./teacher \
    --link teacher=../models/teacher --out=done.ipynb

As on Colab, except that the code is this copy of it and that parameters can be
others.
"""

import argparse
import ast
import os
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "miniplm_tpu_demo.ipynb"


def parameterised(source: str, values: dict[str, str]) -> str:
  """A cell of constants with other values.

  Args:
    source: of the cell: lines `NAME = value`.
    values: Python literals, or text, by name.

  Raises:
    KeyError: there is no such constant.
  """
  lines, left = source.splitlines(), dict(values)
  for i, line in enumerate(lines):
    if (name := line.partition(" = ")[0]) in left:
      lines[i] = f"{name} = {_literal(left.pop(name))}"
  if left:
    raise KeyError(f"no parameter {', '.join(left)} in the notebook")
  return "\n".join(lines)


def _literal(text: str) -> str:
  try:
    return repr(ast.literal_eval(text))
  except (ValueError, SyntaxError):
    return repr(text)


def execute(
  values: dict[str, str],
  links: dict[str, pathlib.Path],
  out: pathlib.Path,
  keep_parameters: bool = False,
):
  """Runs it and writes it with its outputs.

  Args:
    values: parameters that differ.
    links: what lies in the folder that it runs in, by name.
    out: the notebook that is written, also if a cell fails.
    keep_parameters: write the parameters as they were.

  Raises:
    CellExecutionError: a cell failed.
  """
  import nbclient
  import nbformat

  # Its kernel, and what that starts, is this Python.
  folder = str(pathlib.Path(sys.executable).parent)
  os.environ["PATH"] = folder + os.pathsep + os.environ.get("PATH", "")
  page = nbformat.read(NOTEBOOK, as_version=4)
  cell = next(c for c in page.cells if c.cell_type == "code")
  before, cell.source = cell.source, parameterised(cell.source, values)
  with tempfile.TemporaryDirectory() as scratch:
    for name, target in {"miniplm": ROOT, **links}.items():
      pathlib.Path(scratch, name).symlink_to(target.resolve())
    client = nbclient.NotebookClient(
      page,
      kernel_name="python3",
      resources={"metadata": {"path": scratch}},
      coalesce_streams=True,
    )
    try:
      client.execute()
    finally:
      if keep_parameters:
        cell.source = before
      for c in page.cells:
        c.metadata.pop("execution", None)  # times, which differ
      nbformat.write(page, out)


def main(argv: list[str]):
  """The command line; see above."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  pairs = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
  parser.add_argument("--set", help="a parameter", **pairs)
  parser.add_argument("--link", help="a file or folder beside it", **pairs)
  parser.add_argument("--out", type=pathlib.Path, default=NOTEBOOK)
  parser.add_argument(
    "--keep_parameters",
    action="store_true",
    help="write the parameters as they were",
  )
  given = parser.parse_args(argv)
  values, links = (
    dict(pair.split("=", 1) for pair in found)
    for found in (given.set, given.link)
  )
  links = {name: pathlib.Path(path) for name, path in links.items()}
  execute(values, links, given.out, given.keep_parameters)


if __name__ == "__main__":
  main(sys.argv[1:])
