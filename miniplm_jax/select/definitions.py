"""What a row is worth, from (Σ nll, tokens) of teacher and reference."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from miniplm_jax.select import noise

# Columns of the score tables and the index, as `ScoredRows.columns` has them.
Columns = dict[str, np.ndarray]
Score = Callable[[Columns, int], np.ndarray]


def mean_diff(c: Columns, unused_seed: int) -> np.ndarray:
  """nll_ref − nll_teacher, each a mean per token (released code)."""
  return _mean(c, "reference") - _mean(c, "teacher")


def sum_diff(c: Columns, unused_seed: int) -> np.ndarray:
  """Log p(x) − log p_ref(x) of the whole row (as the paper writes it)."""
  return c["reference_nll"] - c["teacher_nll"]


def bits_per_byte_diff(c: Columns, unused_seed: int) -> np.ndarray:
  """`sum_diff` in bits per byte of text: no token counts more than it says."""
  return sum_diff(c, 0) / (math.log(2) * c["n_bytes"].astype(np.float64))


def zscore_by_domain(c: Columns, unused_seed: int) -> np.ndarray:
  """`mean_diff` from its domain's mean, in standard deviations over D.

  0 in a domain whose rows all score alike, as where there is but one.
  """
  from_mean = mean_diff(c, 0).astype(np.float64) - c["domain_mean"]
  std = c["domain_std"]
  return np.divide(from_mean, std, out=np.zeros_like(from_mean), where=std > 0)


def difficulty(c: Columns, unused_seed: int) -> np.ndarray:
  """−log p_ref, mean per token: what the reference finds hard."""
  return _mean(c, "reference")


def teacher_preference(c: Columns, unused_seed: int) -> np.ndarray:
  """Log p, mean per token: what the teacher finds easy."""
  return -_mean(c, "teacher")


def proxy(c: Columns, unused_seed: int) -> np.ndarray:
  """Log p − log p_ref, mean per token, as the proxy predicts it."""
  return c["proxy_diff"] / c["proxy_tokens"].astype(np.float32)


def random(c: Columns, seed: int) -> np.ndarray:
  """A seeded hash of the row id in [0, 1): rows without regard to content."""
  # 24 bits fill a float32 and never round up to 1
  return np.floor(noise.uniform(c["row_id"], seed, stream=0) * 2**24) / 2**24


def _mean(c: Columns, model: str) -> np.ndarray:
  # float32 as released; the count is exact in it
  return c[f"{model}_nll"] / c[f"{model}_tokens"].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Definition:
  """A way to rank rows, of the scores that `methods.DEFINITIONS` names.

  Attributes:
    score: (columns, seed) → [n], rounded to float32; the highest are kept.
    label: of the score, with its unit.
    standardized: the score whose mean and deviation by domain it needs, as
      columns domain_mean and domain_std.
    per: the column that it is divided by; rows that have none of it have no
      score, and are left out.
  """

  score: Score
  label: str
  standardized: Score | None = None
  per: str = ""


DEFINITIONS = {
  "mean_diff": Definition(mean_diff, "log p − log p_ref, nats per token"),
  "sum_diff": Definition(sum_diff, "log p − log p_ref, nats per row"),
  "bits_per_byte_diff": Definition(
    bits_per_byte_diff, "log p − log p_ref, bits per byte", per="n_bytes"
  ),
  "zscore_by_domain": Definition(
    zscore_by_domain,
    "log p − log p_ref per token, standard deviations from the domain's mean",
    standardized=mean_diff,
  ),
  "difficulty": Definition(difficulty, "−log p_ref, nats per token"),
  "teacher_preference": Definition(teacher_preference, "log p, nats per token"),
  "proxy": Definition(proxy, "predicted log p − log p_ref, nats per token"),
  "random": Definition(random, "a random number in [0, 1)"),
}
