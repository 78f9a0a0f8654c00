"""Criteria beside each other, paired by seed and by held-out row.

C criteria, S seeds, R held-out rows, P points of a learning curve.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from miniplm_jax.core.errors import UserError
from miniplm_jax.report.analyses.savings import reached

DRAWS = 2000  # of the bootstrap
_SEED, _ENDS = 10, (0.025, 0.975)
_LEAST_ROWS = 20  # of which a bootstrap can say something
BASELINE = "baseline"  # what is said of it
# How far students are from the teacher, in bits per byte: what is compared.
DIVERGENCES = "reverse_kl", "forward_nll"


def resample(loss_CxSxR: np.ndarray) -> np.ndarray:
  """Mean losses, float64 [DRAWS, C], of a bootstrap of seeds, then of rows.

  Each draw takes the same seeds and rows of all criteria, which keeps them
  paired, and the same rows of all seeds (Owen 2007, the pigeonhole bootstrap).
  Of S seeds S − 1 are drawn, for an unbiased variance (Rao and Wu 1988), and
  how far they are from the mean is widened by the quantile of Student's t over
  the normal's: of 3 seeds that differ more than rows do, plain percentiles held
  the truth 76 times of 100, these 94. One seed is not drawn.
  """
  from scipy import stats

  criteria, seeds, rows = loss_CxSxR.shape
  rng, wider = np.random.default_rng(_SEED), 1.0
  if seeds > 1:
    wider = stats.t.ppf(_ENDS[1], seeds - 1) / stats.norm.ppf(_ENDS[1])
  mean_CxS, draws = loss_CxSxR.mean(2), np.empty((DRAWS, criteria))
  for draw in draws:
    own = rng.integers(seeds, size=max(seeds - 1, 1))
    times_R = np.bincount(rng.integers(rows, size=rows), minlength=rows)
    of_seeds = mean_CxS[:, own].mean(1) - mean_CxS.mean(1)
    of_both = (loss_CxSxR[:, own] @ times_R.astype(float) / rows).mean(1)
    draw[:] = of_both + (wider - 1) * of_seeds
  return draws


def losses(
  loss: Mapping[str, np.ndarray], baseline: str, oracle: str, where: str
) -> dict[str, dict[str, Any]]:
  """What held-out losses come to, in nats.

  Args:
    loss: by criterion, float64 [S, R]; seeds and rows are the same of all.
    baseline: with which the others are compared.
    oracle: whose gain is the largest there can be; "" if none is known.
    where: of what they are, for an error.

  Returns:
    By criterion `loss`, `delta` (less the baseline's) and `recovered` (the gain
    over it as a share of the oracle's, if that is shown to gain), each with
    `_low` and `_high` of its 95 % interval; `loss_by_seed`, `delta_by_seed`;
    `shown`, in words.

  Raises:
    UserError: there are too few rows, or a loss is not finite.
  """
  loss_CxSxR = np.stack([*loss.values()])
  if (rows := loss_CxSxR.shape[2]) < _LEAST_ROWS:
    hint = "give more: raise corpus.heldout_share or evaluate.max_rows"
    raise UserError(f"{rows} held-out rows are too few", where, hint)
  if not np.isfinite(loss_CxSxR).all():
    raise UserError("a held-out loss is not finite", where, "train otherwise")
  # Of each the mean, then the draws: float64 [1 + DRAWS].
  both = np.vstack([loss_CxSxR.mean((1, 2)), resample(loss_CxSxR)])
  of = dict(zip(loss, both.T))
  best = of[baseline] - of[oracle or baseline]
  made = {}
  for name, loss_SxR in loss.items():
    delta = of[name] - of[baseline]
    one = _bounded("loss", of[name]) | _bounded("delta", delta)
    one["shown"] = "better" if delta[0] < 0 else "worse"
    if one["delta_low"] <= 0 <= one["delta_high"]:
      one["shown"] = BASELINE if name == baseline else "no difference shown"
    if np.quantile(best[1:], _ENDS[0]) > 0:
      one |= _bounded("recovered", -delta / best)
    one["loss_by_seed"] = loss_SxR.mean(1).tolist()
    one["delta_by_seed"] = (loss_SxR - loss[baseline]).mean(1).tolist()
    made[name] = one
  return made


def _bounded(key: str, values: np.ndarray) -> dict[str, float]:
  """A mean, and bounds by the draws that follow it."""
  low, high = np.quantile(values[1:], _ENDS).tolist()
  return {key: float(values[0]), f"{key}_low": low, f"{key}_high": high}


def over_seeds(
  key: str, by_seed: Mapping[str, np.ndarray], baseline: str
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Means over seeds of what is one figure a student, and of the differences.

  Args:
    by_seed: by criterion, float64 [S].
    baseline: less whose figure of the same seed, `KEY_delta` is.

  Yields:
    A criterion; `KEY` and `KEY_delta`, each with `_low` and `_high` of its 95 %
    interval by Student's t, None of one seed; `KEY_by_seed`.
  """
  from scipy import stats

  for name, values in by_seed.items():
    delta = values - by_seed[baseline]
    made = {f"{key}_by_seed": values.tolist()}
    for own, each in (key, values), (f"{key}_delta", delta):
      mean, low, high = float(each.mean()), None, None
      if len(each) > 1:
        reach = stats.t.ppf(_ENDS[1], len(each) - 1) * stats.sem(each)
        low, high = float(mean - reach), float(mean + reach)
      made |= {own: mean, f"{own}_low": low, f"{own}_high": high}
    yield name, made


def to_target(
  steps: Sequence[int], loss: Mapping[str, Any], baseline: str
) -> dict[str, dict[str, Any]]:
  """Where learning curves reach the end of the baseline's.

  Args:
    steps: of the points [P], the same of all students.
    loss: by criterion, float64 [S, P] in nats.

  Returns:
    By criterion `target`, the mean of the baseline's last losses; `at`, by seed
    the share of the baseline's tokens after which the curve is first as low,
    see `reached`, or None; how many have `reached` it; and if all have,
    `tokens`, the mean, with `_low` and `_high`, the least and the largest.
  """
  spent = np.array(steps) / steps[-1]
  target = np.mean(loss[baseline], 0)[-1]
  made = {}
  for name, loss_SxP in loss.items():
    at = [reached(spent, one, target) for one in loss_SxP]
    made[name] = {"target": float(target), "at": at}
    made[name]["reached"] = len(at) - at.count(None)
    if None not in at:
      ends = {"tokens_low": min(at), "tokens_high": max(at)}
      made[name] |= {"tokens": float(np.mean(at)), **ends}
  return made
