"""Do other teachers and references rank the rows of D alike?"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.report.analyses import ranking
from miniplm_jax.report.analyses.base import Analysis, NoInputs
from miniplm_jax.report.inventory import Inventory
from miniplm_jax.report.page import Section, Table
from miniplm_jax.scoring import table as table_lib

_ROWS = 1_000_000  # at most, of D: a standard error of 0.001 at most


def measure(workdir: Inventory) -> dict[str, Any]:
  """Compares all pairs of pairs of finished tables.

  Raises:
    NoInputs: there are not two different scores.
  """
  whole = workdir.corpus.counts["split train"]

  def of_all(names):
    scores = workdir.scores
    return [n for n in names if scores[n].table.counts["rows"] == whole]

  both = itertools.product(of_all(workdir.teachers), of_all(workdir.references))
  models = [(p, r) for p, r in both if p != r]
  if len(models) < 2:
    raise NoInputs(
      "one teacher with one reference has nothing to differ from: "
      "see config.score.more"
    )
  names = dict.fromkeys(itertools.chain(*models))
  tables = {name: _means(workdir.scores[name].table) for name in names}
  scores = {f"{p} − {r}": tables[r] - tables[p] for p, r in models}
  return {
    "alpha": workdir.alpha,
    "pairs": list(scores),
    "compared": [
      {"first": a, "second": b}
      | ranking.compare(scores[a], scores[b], workdir.alpha)
      for a, b in itertools.combinations(scores, 2)
    ],
  }


def _means(table: Manifest) -> np.ndarray:
  """Mean NLL per token of evenly spaced rows, float64 [n], in row order."""
  every, start, means = -(-table.counts["rows"] // _ROWS), 0, []
  for columns in table_lib.parts(table):
    drawn = slice(-start % every, None, every)
    start += len(columns["row_id"])
    nll, count = (columns[name][drawn] for name in ("nll_sum", "n_tokens"))
    means.append(nll / np.float64(count))
  return np.concatenate(means)


def render(figures: Mapping[str, Any]) -> Section:
  """The table."""
  return Section(
    table=Table.of(
      figures["compared"],
      ("score", "", lambda line: line["first"]),
      ("compared with", "", lambda line: line["second"]),
      *ranking.agreement_columns(figures["alpha"]),
    )
  )


ANALYSIS = Analysis(
  "Stability of the scores",
  "Each pair of a teacher and a reference gives every row of D a score, log p "
  "− log p_ref in nats per token; two such pairs are compared on the same "
  "evenly spaced rows of D: Pearson, Spearman, and the share of rows of which "
  "both say the same, kept or not, when each keeps its highest α.",
  measure,
  render,
)
