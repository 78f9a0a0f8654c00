"""Do two scores put the rows in one order: do rounded weights, a proxy?

Selection keeps the α of the rows that score highest. What rounding does to
the scores matters where it changes which rows these are.
"""

from typing import Any

import numpy as np

from miniplm_jax.core import fields
from miniplm_jax.core.errors import UserError

_RATIOS = 0.1, 0.3, 0.5


def report(
  exact: np.ndarray,
  rounded: np.ndarray,
  *,
  alpha: float,
) -> dict[str, Any]:
  """Compares two scores of the same rows.

  Args:
    exact: float [n], nats per token, n at least 1.
    rounded: likewise.
    alpha: the share that selection keeps, by which `check` judges; a few
      others are compared, too.

  Returns:
    `rows`; `spearman`, the rank correlation; `agreement` by ratio, the share
    of the highest rows by `exact` that are among the highest by `rounded`;
    `alpha`; `mean_difference` and `max_difference`, absolute. All of it can
    stand in a manifest.
  """
  exact, rounded = np.float64(exact), np.float64(rounded)
  difference = np.abs(exact - rounded)
  return {
    "rows": len(exact),
    "spearman": spearman(exact, rounded),
    "alpha": alpha,
    "agreement": {
      str(ratio): agreement(exact, rounded, ratio)
      for ratio in sorted({*_RATIOS, alpha})
    },
    "mean_difference": float(difference.mean()),
    "max_difference": float(difference.max()),
  }


def in_words(compared: dict[str, Any]) -> str:
  """A `report`, for the log."""
  share = compared["agreement"][str(compared["alpha"])]
  return (
    f"on {compared['rows']} rows, rounded weights give a rank correlation of "
    f"{compared['spearman']:.4f} and {share:.1%} of the highest "
    f"{compared['alpha']:.0%}; scores differ by "
    f"{compared['mean_difference']:.2g} nats per token, at most "
    f"{compared['max_difference']:.2g}"
  )


def check(
  compared: dict[str, Any],
  least_spearman: float,
  least_agreement: float,
  where: str,
):
  """Raises UserError if scores would select other rows.

  A figure of a `report` is below its bound, or not a number.
  """
  alpha, rank = compared["alpha"], compared["spearman"]
  share = compared["agreement"][str(alpha)]
  # Not `<`, which a NaN would pass.
  if not (rank >= least_spearman and share >= least_agreement):
    raise UserError(
      f"of {compared['rows']} rows, rounded weights give a rank correlation of "
      f"{rank:.4f} (least {least_spearman}) and {share:.4f} of the "
      f"highest {alpha} (least {least_agreement})",
      where,
      "score with weights that are not rounded",
    )


def pearson(a: np.ndarray, b: np.ndarray) -> float:
  """The correlation of float64 [n] and [n]; 0 where all values are equal."""
  a, b = a - a.mean(), b - b.mean()
  scale = np.linalg.norm(a) * np.linalg.norm(b)
  return float(a @ b / scale) if scale else 0.0


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Pearson's correlation of the ranks; 0 where all values are equal."""
  # Not scipy's `spearmanr`, which has no value where all are equal.
  return pearson(ranks(a), ranks(b))


def agreement(a: np.ndarray, b: np.ndarray, ratio: float) -> float:
  """Share of the highest rows of `a` among those of `b`, 1 if none are."""
  kept = fields.of(ratio, len(a))  # as `select` counts them
  top, other = (np.argsort(-x, kind="stable")[:kept] for x in (a, b))
  return len(np.intersect1d(top, other)) / kept if kept else 1.0


def ranks(values: np.ndarray) -> np.ndarray:
  """float64 [n], from 1; equal values have the mean of theirs.

  As scipy's, which takes as long to load as the rest of a selection.
  """
  _, place, times = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(times) - (times - 1) / 2)[place]
