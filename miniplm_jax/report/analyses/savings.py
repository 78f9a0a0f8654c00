"""What does it save to reach a baseline's loss by another method?"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from miniplm_jax.core.workdir import GENERATED
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.report import plots
from miniplm_jax.report.analyses.base import Analysis, NoInputs
from miniplm_jax.report.by_domain import Paired
from miniplm_jax.report.inventory import Inventory, Student, same_rows
from miniplm_jax.report.page import UNKNOWN, Section, Table
from miniplm_jax.training import comparable

with epy.lazy_imports():  # it imports JAX
  from miniplm_jax.training import batches


# Of a learning curve: what one of fewer reaches is a bound.
LEAST_POINTS = 3


def reached(spent: np.ndarray, loss: np.ndarray, target: float) -> float | None:
  """Where a curve is first at `target` or below; None is nowhere.

  Args:
    spent: float [n], ascending.
    loss: float [n], nats; straight lines join the points.

  Returns:
    What was spent there; at most so much if that is the first point.
  """
  below = np.flatnonzero(loss <= target)
  if not len(below):
    return None
  i = int(below[0])
  if i == 0:
    return float(spent[0])
  part = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
  return float(spent[i - 1] + part * (spent[i] - spent[i - 1]))


def measure(workdir: Inventory) -> dict[str, Any]:
  """Each student against each other one of the same shape, beginning and seed.

  Raises:
    NoInputs: no two students have curves that compare and reach apart.
  """
  curves = {
    name: curve
    for name, student in workdir.students.items()
    if not student.reads_other_tokens
    and len((curve := student.curve())[0]) >= LEAST_POINTS
  }
  students = {name: workdir.students[name] for name in curves}
  students, left_out = same_rows(students, "training")
  measured = any(student.evaluation for student in students.values())
  corpus = Corpus(workdir.corpus) if measured else None
  pairs = []
  for method, baseline in itertools.permutations(students, 2):
    a, b = students[method], students[baseline]
    kinds = [
      (one["model"], one["train"].get("seed"), each.begins_with)
      for each in (a, b)
      if (one := each.training.settings)
    ]
    if kinds[0] == kinds[1] and _differ({method: a, baseline: b}, corpus):
      pairs.append(_pair(students, curves, method, baseline))
  if not pairs:
    raise NoInputs(
      "it takes two students of one shape, seed and student.init with curves "
      f"of {LEAST_POINTS} points on the same held-out rows (run.eval_every), "
      "and losses that are shown to differ"
    )
  return {
    "pairs": pairs,
    "left_out": left_out,
    "curves": {
      name: {
        "FLOPs": (curves[name][0] * student.per_step("FLOPs")).tolist(),
        "loss": curves[name][1].tolist(),
      }
      for name, student in students.items()
    },
  }


def _differ(pair: Mapping[str, Student], corpus: Corpus | None) -> bool:
  """Whether losses differ by more than chance over rows; or it is not known."""
  if not corpus or None in [each.evaluation for each in pair.values()]:
    return True
  by_row = Paired.of(pair, corpus)
  return not by_row or by_row.difference.shown != 0


def _pair(students, curves, method: str, baseline: str) -> dict[str, Any]:
  """All that a method saves; None of what it does not reach, or not known."""
  a, b = students[method], students[baseline]
  steps, losses = curves[baseline]
  target = float(losses[-1])
  needed = reached(*curves[method], target)

  def saved(spent) -> float | None:
    ours, theirs = spent(a, needed or 0), spent(b, int(steps[-1]))
    known = needed and ours is not None and theirs is not None
    return theirs / ours if known else None

  def with_offline(student, step):
    offline = student.offline_flops
    known = offline is not None
    return step * student.per_step("FLOPs") + offline if known else None

  return {
    "method": method,
    "baseline": baseline,
    "target": target,
    "step": needed,
    "is_bound": needed == float(curves[method][0][0]),
    "FLOPs": saved(lambda s, step: step * s.per_step("FLOPs")),
    "FLOPs with offline": saved(with_offline),
    "rows": saved(lambda s, step: step * s.per_step("rows")),
    "different rows": saved(different),
  }


def different(student: Student, step: float) -> float | None:
  """How many rows a student has met after so many steps; None: not known."""
  read = step * student.per_step("rows")
  weights = student.training.settings["train"].get("domain_weights")
  if not weights:
    return min(read, student.training.counts["rows"])
  domains = student.selection.counts.get("domains")
  # What is generated may be of some of the selection's rows.
  if not domains or GENERATED in student.training.inputs:
    return None
  # Each domain begins anew when its own rows have been read.
  kept = {name: counts["kept"] for name, counts in domains.items()}
  return sum(
    min(read * float(share), kept[name])
    for name, share in batches.shares(kept, weights).items()
  )


def render(figures: Mapping[str, Any]) -> Section:
  """The table of what is reached, and the curves with the targets."""
  kinds = ("FLOPs", "FLOPs with offline", "rows", "different rows")
  columns = ("method", "baseline", ("target", ".4f"), ("at step", ">"))
  columns += tuple((f"saving, {kind}", ">") for kind in kinds)
  pairs = [p for p in figures["pairs"] if p["step"] is not None]
  rows = []
  for p in sorted(pairs, key=lambda p: -p["FLOPs"]):
    is_bound = p.get("is_bound", False)
    step = f"{'≤ ' * is_bound}{p['step']:,.0f}"
    saved = (
      UNKNOWN if p[kind] is None else f"{'≥ ' * is_bound}{p[kind]:.2f} ×"
      for kind in kinds
    )
    rows.append((p["method"], p["baseline"], p["target"], step, *saved))
  missed = ", ".join(
    f"{p['method']} that of {p['baseline']}"
    for p in figures["pairs"]
    if p["step"] is None
  )
  figure, ax = plots.axes(
    "Held-out loss by FLOPs of training", "FLOPs", "nats per token"
  )
  curves = figures["curves"]
  plots.curves(ax, {n: (c["FLOPs"], c["loss"]) for n, c in curves.items()})
  for style, curve in zip(plots.LINES, curves.values()):
    ax.axhline(curve["loss"][-1], lw=0.7, ls=":", color=style["color"])
  caption = "Learning curves; dotted, where each one ends."
  return Section(
    table=Table(columns, rows),
    notes=[f"Not reached: {missed}."] * bool(missed)
    + comparable.in_words(figures.get("left_out", ())),
    pictures=[(plots.picture(figure), caption)],
  )


ANALYSIS = Analysis(
  "Savings at equal quality",
  "The target is the last held-out loss of the baseline's learning curve. A "
  "method reaches it where its own curve, joined by straight lines between its "
  "points, of which it has three or more, is first as low. The saving is what "
  "the baseline spent in all over what the method had spent there: FLOPs of "
  "training (a teacher that reads along and padding are in them); these with "
  "what came before training; rows read; and different rows read, which many "
  "epochs over few rows do not add to. A curve whose first point is as low may "
  "have been so before: then the step is an upper bound (≤) and what is saved "
  "a lower one (≥). Both are of one seed, begin from nothing, or with the same "
  "weights (student.init), and end at losses that differ by more than chance "
  "over held-out rows. The paper has 2.2 × in FLOPs against Vanilla KD at "
  "500M, and 2.4 × in data.",
  measure,
  render,
)
