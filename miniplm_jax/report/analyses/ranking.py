"""Does the reference rank rows as the student itself would? Appendix D.4.

Difference Sampling stands on log p_ref in the place of the student's log q.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from miniplm_jax.core import fields
from miniplm_jax.evaluation import heldout
from miniplm_jax.report import plots
from miniplm_jax.report.analyses.base import Analysis, NoInputs
from miniplm_jax.report.inventory import Inventory
from miniplm_jax.report.page import Section, Table, or_unknown
from miniplm_jax.scoring import fidelity

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


def measure(workdir: Inventory) -> dict[str, Any]:
  """All pairs of a reference and a student that were evaluated on one corpus.

  Raises:
    NoInputs: there is no teacher, reference or student with held-out rows.
  """
  scorers = {
    name: means
    for name in (*workdir.teachers, *workdir.references)
    if (evaluation := workdir.scores[name].evaluation)
    if (means := heldout.row_means(evaluation))
  }
  students = {
    name: means
    for name, student in workdir.students.items()
    if student.evaluation and not student.reads_other_tokens
    if (means := heldout.row_means(student.evaluation))
  }
  teachers = [name for name in workdir.teachers if name in scorers]
  references = [name for name in workdir.references if name in scorers]
  for what, names in (
    ("teacher", teachers),
    ("reference", references),
    ("student", students),
  ):
    if not names:
      raise NoInputs(
        f"no {what} has held-out rows: run --stages=evaluate, with --force if "
        "an earlier version did"
      )
  pairs = []
  for reference, student in itertools.product(references, students):
    each = scorers[teachers[0]], scorers[reference], students[student]
    ids = functools.reduce(np.intersect1d, (row_ids for row_ids, _ in each))
    if not len(ids):
      continue
    p, p_ref, q = (mean[np.searchsorted(own, ids)] for own, mean in each)
    scores = p_ref - p, q - p
    every = -(-len(ids) // _POINTS)
    pairs.append(
      {
        "reference": reference,
        "parameters": workdir.scores[reference].parameters,
        "student": student,
        **compare(*scores, workdir.alpha),
        "points": [s[::every].tolist() for s in scores],
      }
    )
  if not pairs:
    raise NoInputs("models were evaluated on different rows")
  return {"teacher": teachers[0], "alpha": workdir.alpha, "pairs": pairs}


def agreement_columns(alpha: float) -> list[tuple]:
  """Columns of what `compare` returns, for `Table.of`."""
  return [
    ("rows", ",", lambda of: of["rows"]),
    ("Pearson", ".3f", lambda of: of["pearson"]),
    ("Spearman", ".3f", lambda of: of["spearman"]),
    (f"agreement at α = {alpha:g}", ".1%", lambda of: of["agreement"]),
    ("by chance", ".0%", lambda of: of["chance"]),
  ]


def render(figures: Mapping[str, Any]) -> Section:
  """The table, and the rows of the first pair."""
  pairs, alpha = figures["pairs"], figures["alpha"]
  table = Table.of(
    pairs,
    ("reference", "", lambda pair: pair["reference"]),
    ("parameters", ",", lambda pair: or_unknown(pair["parameters"])),
    ("student", "", lambda pair: pair["student"]),
    *agreement_columns(alpha),
  )
  first = pairs[0]
  figure, ax = plots.axes(
    "Score by reference and by student",
    f"log p − log p_ref of {plots.plain(first['reference'])} (nats per token)",
    f"log p − log q of {plots.plain(first['student'])}",
  )
  ax.scatter(*first["points"], s=5, alpha=0.5, color=plots.COLORS[0], lw=0)
  for scores, line in zip(first["points"], (ax.axvline, ax.axhline)):
    line(np.quantile(scores, 1 - alpha), color=plots.INK, lw=0.8, ls="--")
  caption = (
    f"Held-out rows, at most {_POINTS:,} of them; behind the dashed lines each "
    f"keeps its highest α. Both hold log p of {figures['teacher']}."
  )
  return Section(
    table=table,
    pictures=[(plots.picture(figure), caption)],
  )


ANALYSIS = Analysis(
  "Reference against student",
  "On the held-out rows, two scores of each row: log p − log p_ref and log p − "
  "log q of the student, nats per token. Pearson and Spearman (ranks, ties "
  "share their mean) between them; agreement is the share of the rows of which "
  "both say the same, kept or not, when each keeps its highest α. By chance "
  "that is α² + (1 − α)². The paper (Appendix D.4, 200M student) has 0.743, "
  "0.774, 80.6 % for a reference of 45M, 0.826, 0.840, 87.4 % of 104M and "
  "0.856, 0.879, 89.5 % of 200M.",
  measure,
  render,
)
