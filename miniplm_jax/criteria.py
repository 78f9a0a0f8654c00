"""The criteria: what a row is worth, from (Σ nll, tokens) of the models.

The one list of the ways to rank rows, select.definition in the config. A new
one is an entry of `CRITERIA`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from etils import epy

with epy.lazy_imports():  # the config reads the names
  import numpy as np

  from miniplm_jax.core import noise

# Columns of the score tables and the index, as `ScoredRows.columns` has them:
# by name, arrays [n].
Columns = dict[str, Any]
Score = Callable[[Columns, int], Any]
BOTH = "teacher", "reference"


def mean_diff(c: Columns, unused_seed: int) -> Any:
  """nll_ref − nll_teacher, each a mean per token (released code)."""
  return _mean(c, "reference") - _mean(c, "teacher")


def sum_diff(c: Columns, unused_seed: int) -> Any:
  """Log p(x) − log p_ref(x) of the whole row (as the paper writes it)."""
  return c["reference_nll"] - c["teacher_nll"]


def bits_per_byte_diff(c: Columns, unused_seed: int) -> Any:
  """`sum_diff` in bits per byte of text: no token counts more than it says."""
  return sum_diff(c, 0) / (math.log(2) * c["n_bytes"].astype(np.float64))


def zscore_by_domain(c: Columns, unused_seed: int) -> Any:
  """`mean_diff` from its domain's mean, in standard deviations over D.

  0 in a domain whose rows all score alike, as where there is but one.
  """
  from_mean = mean_diff(c, 0).astype(np.float64) - c["domain_mean"]
  std = c["domain_std"]
  return np.divide(from_mean, std, out=np.zeros_like(from_mean), where=std > 0)


def random(c: Columns, seed: int) -> Any:
  """A seeded hash of the row id in [0, 1): rows without regard to content."""
  # 24 bits fill a float32 and never round up to 1
  return np.floor(noise.uniform(c["row_id"], seed, stream=0) * 2**24) / 2**24


def _mean(c: Columns, model: str) -> Any:
  # float32 as released; the count is exact in it
  return c[f"{model}_nll"] / c[f"{model}_tokens"].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Criterion:
  """A way to rank rows."""

  # (columns, seed) → [n], rounded to float32; the highest are kept.
  score: Score
  label: str  # of the score, with its unit
  reads: tuple[str, ...] = BOTH  # whose score tables
  formula: str = ""  # for the card of a selection
  # The score whose mean and deviation by domain it needs, as columns
  # domain_mean and domain_std.
  standardized: Score | None = None
  # The column that it is divided by; rows that have none of it have no score,
  # and are left out.
  per: str = ""


CRITERIA = {
  "mean_diff": Criterion(
    mean_diff,
    "log p − log p_ref, nats per token",
    formula="r(x) = (log p(x) − log p_ref(x)) / n, p the teacher, p_ref the "
    "reference, n the scored tokens of row x",
  ),
  "sum_diff": Criterion(
    sum_diff,
    "log p − log p_ref, nats per row",
    formula="r(x) = log p(x) − log p_ref(x), p the teacher, p_ref the "
    "reference, summed over row x",
  ),
  "bits_per_byte_diff": Criterion(
    bits_per_byte_diff,
    "log p − log p_ref, bits per byte",
    formula="r(x) = (log2 p(x) − log2 p_ref(x)) / b, p the teacher, p_ref the "
    "reference, b the UTF-8 bytes of the scored text of row x",
    per="n_bytes",
  ),
  "zscore_by_domain": Criterion(
    zscore_by_domain,
    "log p − log p_ref per token, standard deviations from the domain's mean",
    formula="r(x) = (d(x) − m) / s, d(x) = (log p(x) − log p_ref(x)) / n, p "
    "the teacher, p_ref the reference, n the scored tokens of row x, m and s "
    "mean and standard deviation of d over the rows of x's domain",
    standardized=mean_diff,
  ),
  "difficulty": Criterion(  # what the reference finds hard
    lambda c, _: _mean(c, "reference"),
    "−log p_ref, nats per token",
    reads=("reference",),
    formula="r(x) = −log p_ref(x) / n, p_ref the reference, n the scored "
    "tokens of row x",
  ),
  "teacher_preference": Criterion(  # what the teacher finds easy
    lambda c, _: -_mean(c, "teacher"),
    "log p, nats per token",
    reads=("teacher",),
    formula="r(x) = log p(x) / n, p the teacher, n the scored tokens of row x",
  ),
  "proxy": Criterion(
    lambda c, _: c["proxy_diff"] / c["proxy_tokens"].astype(np.float32),
    "predicted log p − log p_ref, nats per token",
    reads=("proxy",),
  ),
  "random": Criterion(random, "a random number in [0, 1)", reads=()),
}
