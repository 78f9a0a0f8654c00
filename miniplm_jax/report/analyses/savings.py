"""What does it save to reach a baseline's loss by another method?"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from miniplm_jax.core.workdir import GENERATED
from miniplm_jax.report import page
from miniplm_jax.report.analyses.inventory import Inventory, Skipped, Student
from miniplm_jax.training import comparable

TITLE = "Savings at equal quality"
DEFINITION = (
  "The target is the last held-out loss of the baseline's learning curve. A "
  "method reaches it where its own curve, joined by straight lines between its "
  "points, is first as low. The saving is what the baseline spent in all over "
  "what the method had spent there: FLOPs of training (a teacher that reads "
  "along and padding are in them); these with what came before training; rows "
  "read; and different rows read, which many epochs over few rows do not add "
  "to. A curve whose first point is as low may have been so before: then the "
  "step is an upper bound (≤) and what is saved a lower one (≥). Both begin "
  "from nothing, or with the same weights (student.init). The paper has 2.2 × "
  "in FLOPs against Vanilla KD at 500M, and 2.4 × in data."
)


def reached(spent: np.ndarray, loss: np.ndarray, target: float) -> float | None:
  """Where a curve is first at `target` or below; None is nowhere.

  Args:
    spent: float [n], ascending.
    loss: float [n]; straight lines join the points.
    target: nats.

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


def measure(found: Inventory) -> dict[str, Any]:
  """Each student against each other one of the same shape and beginning.

  Raises:
    Skipped: there are no two students with curves that compare.
  """
  curves = {
    name: curve
    for name, student in found.students.items()
    if not student.reads_other_tokens and len((curve := student.curve())[0])
  }
  left_out = comparable.left_out({n: found.students[n].made for n in curves})
  curves = {n: curve for n, curve in curves.items() if n not in left_out}
  pairs = []
  for method, baseline in itertools.permutations(curves, 2):
    a, b = found.students[method], found.students[baseline]
    if a.made.settings["model"] == b.made.settings["model"] and (
      a.begins_with == b.begins_with
    ):
      pairs.append(_pair(found.students, curves, method, baseline))
  if not pairs:
    raise Skipped(
      "it takes two students of one shape and student.init with curves on the "
      "same held-out rows"
    )
  return {
    "pairs": pairs,
    "left_out": left_out,
    "curves": {
      name: {
        "FLOPs": (steps * found.students[name].per_step("FLOPs")).tolist(),
        "loss": loss.tolist(),
      }
      for name, (steps, loss) in curves.items()
    },
  }


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
  from miniplm_jax.training import batches

  read = step * student.per_step("rows")
  weights = student.made.settings["train"].get("domain_weights")
  if not weights:
    return min(read, student.made.counts["rows"])
  domains = student.selection.counts.get("domains")
  # What is generated may be of some of the selection's rows.
  if not domains or GENERATED in student.made.inputs:
    return None
  # Each domain begins anew when its own rows have been read.
  kept = {name: counts["kept"] for name, counts in domains.items()}
  return sum(
    min(read * float(share), kept[name])
    for name, share in batches.shares(kept, weights).items()
  )


def section(found: Mapping[str, Any]) -> page.Section:
  """The table of what is reached, and the curves with the targets."""
  kinds = ("FLOPs", "FLOPs with offline", "rows", "different rows")
  header = ["method", "baseline", "target", "at step"]
  header += [f"saving, {kind}" for kind in kinds]
  got = [p for p in found["pairs"] if p["step"] is not None]
  rows = [
    [
      p["method"],
      p["baseline"],
      f"{p['target']:.4f}",
      f"{'≤ ' * p.get('is_bound', False)}{p['step']:,.0f}",
      *(
        "not known"
        if p[k] is None
        else f"{'≥ ' * p.get('is_bound', False)}{p[k]:.2f} ×"
        for k in kinds
      ),
    ]
    for p in sorted(got, key=lambda p: -p["FLOPs"])
  ]
  missed = [p for p in found["pairs"] if p["step"] is None]
  words = ", ".join(f"{p['method']} that of {p['baseline']}" for p in missed)
  figure, ax = page.axes(
    "Held-out loss by FLOPs of training", "FLOPs", "nats per token"
  )
  for style, (name, curve) in zip(page.LINES, found["curves"].items()):
    ax.plot(curve["FLOPs"], curve["loss"], **style, label=page.plain(name))
    ax.axhline(curve["loss"][-1], lw=0.7, ls=":", color=style["color"])
  page.legend(ax)
  return page.Section(
    TITLE,
    [DEFINITION],
    table=(header, rows),
    left=2,
    notes=([f"Not reached: {words}."] if words else [])
    + comparable.in_words(found.get("left_out", ())),
    pictures=[
      (page.picture(figure), "Learning curves; dotted, where each one ends.")
    ],
  )
