"""Does the proxy rank rows as teacher and reference do?

Measured on the rows of D that both scored and the proxy did not learn from:
all others, if all of D was scored.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation import proxy_training as training
from miniplm_jax.score import fidelity, table


@dataclasses.dataclass(frozen=True)
class Heldout:
  """Rows that the proxy did not learn from.

  Attributes:
    row_ids: int64 [n].
    true: float32 [n], log p − log p_ref, nats per token.
    predicted: float32 [n], the same as the proxy says.
    learned: how many rows it did learn from.
    of_d: rows of D.
  """

  row_ids: np.ndarray
  true: np.ndarray
  predicted: np.ndarray
  learned: int
  of_d: int


def heldout(
  config,
  corpus: Corpus,
  inputs: Mapping[str, Manifest],
  parts: Iterable[table.Columns],
) -> Heldout:
  """Both scores of those rows.

  Args:
    config: the configuration.
    corpus: of the rows.
    inputs: manifests of the tables of "teacher" and "reference".
    parts: of the proxy's table, in row order.
  """
  row_ids, true = training.true_scores(inputs["teacher"], inputs["reference"])
  other = ~training.in_sample(config, corpus, row_ids)
  ids, values = zip(
    *(
      (c["row_id"], c["diff_sum"] / c["n_tokens"].astype(np.float32))
      for c in parts
    )
  )
  ids, values = np.concatenate(ids), np.concatenate(values)
  return Heldout(
    row_ids=row_ids[other],
    true=true[other],
    predicted=values[np.searchsorted(ids, row_ids[other])],
    learned=int(np.count_nonzero(~other)),
    of_d=len(ids),
  )


def report(found: Heldout, alpha: float) -> dict[str, Any]:
  """The figures of `score.fidelity.report`, and Pearson's correlation.

  Args:
    found: at least one row.
    alpha: the share that selection keeps.
  """
  true, predicted = np.float64(found.true), np.float64(found.predicted)
  return fidelity.report(true, predicted, alpha=alpha) | {
    "pearson": fidelity.pearson(true, predicted),
    "learned_rows": found.learned,
    "rows_of_d": found.of_d,
  }


def in_words(report: Mapping[str, Any]) -> str:
  """A `report`, for the log."""
  alpha = report["alpha"]
  return (
    f"on {report['rows']:,} rows that it did not learn from: Spearman "
    f"{report['spearman']:.4f}, Pearson {report['pearson']:.4f}, "
    f"{report['agreement'][str(alpha)]:.1%} of the highest {alpha:.0%} "
    f"(chance {alpha:.0%})"
  )
