"""Metrics of a run: JSON lines, and the boards that show them.

They have seconds in them, so they are no part of a manifest's fingerprint.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import errors, files, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.training.boards import TensorBoard

NAME = "metrics.jsonl"
# Metrics of the wall clock: two runs of the same steps differ in them.
OF_THE_CLOCK = ("train/tokens_per_second", "train/mfu", "train/goodput")


class Metrics:
  """Writes `metrics.jsonl` and the boards; one process does."""

  def __init__(self, directory: epath.Path, first_step: int, wandb_run: Any):
    """Continues after `first_step`; later lines, of a killed run, go.

    A run of wandb, if there is one, shows them beside TensorBoard.
    """
    self._board, self._wandb = TensorBoard(directory, first_step), wandb_run
    self._lines = [m for m in read(directory) if m["step"] <= first_step]
    self._path = directory / NAME
    self._flush()

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
    self._flush()
    return is_changed

  def _flush(self):
    text = "".join(json.dumps(line) + "\n" for line in self._lines)
    files.write_bytes(self._path, text.encode())

  def save(self):
    """Puts all lines on disk; called with every checkpoint."""
    self._flush()
    self._board.flush()

  def close(self):
    """Saves and closes the boards."""
    self._flush()
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
