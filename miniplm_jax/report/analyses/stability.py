"""Do other teachers and references rank the rows of D alike?"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from miniplm_jax.report import page
from miniplm_jax.report.analyses import ranking
from miniplm_jax.report.analyses.inventory import Inventory, Skipped

TITLE = "Stability of the scores"
DEFINITION = (
  "Each pair of a teacher and a reference gives every row of D a score, log p "
  "− log p_ref in nats per token; two such pairs are compared on the same "
  "evenly spaced rows of D: Pearson, Spearman, and the share of rows of which "
  "both say the same, kept or not, when each keeps its highest α."
)
_ROWS = 1_000_000  # at most, of D: a standard error of 0.001 at most


def measure(found: Inventory) -> dict[str, Any]:
  """All pairs of pairs of finished tables.

  Raises:
    Skipped: there are not two different scores.
  """
  whole = found.corpus.counts["split train"]

  def of_all(names):
    return [n for n in names if found.scores[n].made.counts["rows"] == whole]

  both = itertools.product(of_all(found.teachers), of_all(found.references))
  made = [(p, r) for p, r in both if p != r]
  if len(made) < 2:
    raise Skipped(
      "one teacher with one reference has nothing to differ from: "
      "see config.score.more"
    )
  names = dict.fromkeys(itertools.chain(*made))
  tables = {name: _means(found.scores[name].made) for name in names}
  scores = {f"{p} − {r}": tables[r] - tables[p] for p, r in made}
  return {
    "alpha": found.alpha,
    "pairs": list(scores),
    "compared": [
      {"first": a, "second": b}
      | ranking.compare(scores[a], scores[b], found.alpha)
      for a, b in itertools.combinations(scores, 2)
    ],
  }


def _means(made) -> np.ndarray:
  """Mean NLL per token of evenly spaced rows, float64 [n], in row order."""
  from miniplm_jax.score import table

  every, start, means = -(-made.counts["rows"] // _ROWS), 0, []
  for columns in table.parts(made):
    here = slice(-start % every, None, every)
    start += len(columns["row_id"])
    nll, count = (columns[name][here] for name in ("nll_sum", "n_tokens"))
    means.append(nll / np.float64(count))
  return np.concatenate(means)


def section(found: Mapping[str, Any]) -> page.Section:
  """The table, and rank correlations as a map."""
  header = ["score", "compared with", "rows", "Pearson", "Spearman"]
  header += [f"agreement at α = {found['alpha']:g}", "by chance"]
  rows = [
    [
      line["first"],
      line["second"],
      f"{line['rows']:,}",
      f"{line['pearson']:.3f}",
      f"{line['spearman']:.3f}",
      f"{line['agreement']:.1%}",
      f"{line['chance']:.0%}",
    ]
    for line in found["compared"]
  ]
  names = found["pairs"]
  values = np.eye(len(names))
  for line in found["compared"]:
    i, j = names.index(line["first"]), names.index(line["second"])
    values[i, j] = values[j, i] = line["spearman"]
  size = 2.6 + 0.6 * len(names)
  figure, ax = page.axes("Rank correlation of scores", "", "", size + 1.4, size)
  page.heat(ax, values, names, names, "{:.2f}")
  return page.Section(
    TITLE,
    [DEFINITION],
    table=(header, rows),
    left=2,
    pictures=[
      (page.picture(figure), "Spearman between scores, teacher − reference.")
    ],
  )
