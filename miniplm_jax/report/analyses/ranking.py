"""Does the reference rank rows as the student itself would? Appendix D.4.

Difference Sampling stands on log p_ref in the place of the student's log q.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from miniplm_jax.core import fields
from miniplm_jax.evaluate import heldout
from miniplm_jax.report import page
from miniplm_jax.report.analyses.inventory import Inventory, Skipped
from miniplm_jax.score import fidelity

TITLE = "Reference against student"
DEFINITION = (
  "On the held-out rows, two scores of each row: log p − log p_ref and log p − "
  "log q of the student, nats per token. Pearson and Spearman (ranks, ties "
  "share their mean) between them; agreement is the share of the rows of which "
  "both say the same, kept or not, when each keeps its highest α. By chance "
  "that is α² + (1 − α)². The paper (Appendix D.4, 200M student) has 0.743, "
  "0.774, 80.6 % for a reference of 45M, 0.826, 0.840, 87.4 % of 104M and "
  "0.856, 0.879, 89.5 % of 200M."
)
_POINTS = 2000  # rows that the picture shows


def compare(a: np.ndarray, b: np.ndarray, alpha: float) -> dict[str, Any]:
  """How far two scores of the same rows agree.

  Args:
    a: float [n], n at least 1, the higher the better.
    b: float [n].
    alpha: share of the rows that each keeps, ⌊α·n⌋ of them.

  Returns:
    `rows`, `pearson`, `spearman`, `agreement` and `chance`.
  """
  a, b = np.float64(a), np.float64(b)
  n, kept = len(a), fields.of(alpha, len(a))
  # Of the kept rows that differ, each has one beside it that was not kept.
  differ = 2 * kept * (1 - fidelity.agreement(a, b, alpha))
  return {
    "rows": n,
    "pearson": fidelity.pearson(a, b),
    "spearman": fidelity.spearman(a, b),
    "agreement": 1 - differ / n,
    "chance": alpha**2 + (1 - alpha) ** 2,
  }


def measure(found: Inventory) -> dict[str, Any]:
  """All pairs of a reference and a student that were evaluated on one corpus.

  Raises:
    Skipped: there is no teacher, reference or student with held-out rows.
  """

  def means(made) -> dict[str, np.ndarray] | None:
    columns = heldout.read_rows(made.evaluation) if made.evaluation else None
    if columns is None:
      return None
    mean = columns["nll_sum"] / np.float64(columns["n_tokens"])
    return {"row_id": columns["row_id"], "mean": mean}

  scorers = {
    name: mean
    for name in (*found.teachers, *found.references)
    if (mean := means(found.scores[name]))
  }
  students = {
    name: mean
    for name, made in found.students.items()
    if not made.reads_other_tokens and (mean := means(made))
  }
  teachers = [name for name in found.teachers if name in scorers]
  references = [name for name in found.references if name in scorers]
  for what, names in (
    ("teacher", teachers),
    ("reference", references),
    ("student", students),
  ):
    if not names:
      raise Skipped(
        f"no {what} has held-out rows: run --stages=evaluate, with --force if "
        "an earlier version did"
      )
  p, pairs = scorers[teachers[0]], []
  for reference in references:
    for student, q in students.items():
      p_ref = scorers[reference]
      ids = p["row_id"]
      for other in (p_ref, q):
        ids = np.intersect1d(ids, other["row_id"], assume_unique=True)
      if not len(ids):
        continue
      p_, ref_, q_ = (
        m["mean"][np.searchsorted(m["row_id"], ids)] for m in (p, p_ref, q)
      )
      scores = ref_ - p_, q_ - p_
      every = -(-len(ids) // _POINTS)
      pairs.append(
        {
          "reference": reference,
          "parameters": found.scores[reference].parameters,
          "student": student,
          **compare(*scores, found.alpha),
          "points": [s[::every].tolist() for s in scores],
        }
      )
  if not pairs:
    raise Skipped("models were evaluated on different rows")
  return {"teacher": teachers[0], "alpha": found.alpha, "pairs": pairs}


def section(found: Mapping[str, Any]) -> page.Section:
  """The table, and the rows of the first pair."""
  header = ["reference", "parameters", "student", "rows", "Pearson", "Spearman"]
  header += [f"agreement at α = {found['alpha']:g}", "by chance"]
  rows = [
    [
      pair["reference"],
      number(pair["parameters"]),
      pair["student"],
      f"{pair['rows']:,}",
      f"{pair['pearson']:.3f}",
      f"{pair['spearman']:.3f}",
      f"{pair['agreement']:.1%}",
      f"{pair['chance']:.0%}",
    ]
    for pair in found["pairs"]
  ]
  first = found["pairs"][0]
  figure, ax = page.axes(
    "Score by reference and by student",
    f"log p − log p_ref of {page.plain(first['reference'])} (nats per token)",
    f"log p − log q of {page.plain(first['student'])}",
  )
  ax.scatter(*first["points"], s=5, alpha=0.5, color=page.COLORS[0], lw=0)
  for place, line in zip(first["points"], (ax.axvline, ax.axhline)):
    line(
      np.quantile(place, 1 - found["alpha"]), color=page.INK, lw=0.8, ls="--"
    )
  caption = (
    f"Held-out rows, at most {_POINTS:,} of them; behind the dashed lines each "
    f"keeps its highest α. Both hold log p of {found['teacher']}."
  )
  return page.Section(
    TITLE,
    [DEFINITION],
    table=(header, rows),
    pictures=[(page.picture(figure), caption)],
  )


def number(count: int | None) -> str:
  """A count with commas, or that it is not known."""
  return "not known" if count is None else f"{count:,}"
