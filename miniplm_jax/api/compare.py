"""Students beside each other: what they saw, what they cost, what they know."""

import collections
import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any

from etils import epy

from miniplm_jax.api.artifacts import ToPandas
from miniplm_jax.api.students import Run, Student
from miniplm_jax.core.errors import UserError
from miniplm_jax.training import comparable

with epy.lazy_imports():
  import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Comparison(ToPandas):
  """A line for each student, or for each group that differs in its seed."""

  lines: list[dict[str, Any]]

  def to_arrow(self) -> "pa.Table":
    """A table of name, rows, steps, tokens, flops, seeds, loss, loss_std.

    The loss is held out, the mean over rows of nats per token; its standard
    deviation is that over seeds, null for one.
    """
    return pa.Table.from_pylist(self.lines)

  def __repr__(self) -> str:
    width = max(len(line["name"]) for line in self.lines)
    return "\n".join(
      f"{line['name']:{width}}  {line['steps']:9,} steps  "
      f"{line['flops']:.2e} FLOPs  loss {line['loss']:.4f}"
      + (f" ± {line['loss_std']:.4f}" if line["seeds"] > 1 else "")
      for line in self.lines
    )


def compare(students: Run | Iterable[Student]) -> Comparison:
  """Compares the held-out losses of students, best first.

  Args:
    students: trained and evaluated on the same held-out rows.

  Raises:
    UserError: one is not evaluated, or was evaluated on other rows.
  """
  if isinstance(students, Run):
    students = students.students.values()
  is_several = isinstance(students, Iterable)
  students = list(students) if is_several else []
  if not students or not all(isinstance(one, Student) for one in students):
    hint = "give a list of students, as train returns them, or a Run"
    raise UserError("these are no students to compare", "compare", hint)
  rows = {student.evaluated and _rows(student) for student in students}
  if len(rows - {None}) > 1:
    names = ", ".join(student.name for student in students)
    hint = "evaluate all on the same rows"
    raise UserError("evaluated on different held-out rows", names, hint)
  groups = collections.defaultdict(list)
  for student in students:
    groups[_settings(student)].append(student)
  lines = [_line(group) for group in groups.values()]
  return Comparison(sorted(lines, key=lambda line: line["loss"]))


def _rows(student: Student) -> str:
  """The digest of the rows that it was evaluated on, and which count."""
  manifest = student.evaluated
  ignored = manifest.settings.get("ignore_domains", ())
  return repr((manifest.details.get(comparable.LOSS), sorted(ignored)))


def _settings(student: Student) -> str:
  """All that decides the model but the seed."""
  settings = dict(student.settings)
  settings["train"] = settings["train"] | {"seed": None}
  return repr((settings, sorted(student.manifest.inputs.items())))


def _line(group: list[Student]) -> dict[str, Any]:
  first, losses = group[0], [one.evaluation.loss for one in group]
  counts = first.manifest.counts
  return {
    "name": first.name,
    "rows": first.settings["rows"],
    "steps": counts["steps"],
    "tokens": counts["tokens"],
    "flops": first.manifest.details["train_flops"],
    "seeds": len(group),
    "loss": statistics.mean(losses),
    "loss_std": statistics.stdev(losses) if len(losses) > 1 else None,
  }
