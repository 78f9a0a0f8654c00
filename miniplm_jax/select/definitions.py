"""What a row is worth, from (Σ nll, tokens) of teacher and reference."""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

# Names of the score tables that a definition reads.
Columns = dict[str, np.ndarray]


def mean_diff(c: Columns, unused_seed: int) -> np.ndarray:
  """nll_ref − nll_teacher, each a mean per token (released code)."""
  return _mean(c, "reference") - _mean(c, "teacher")


def sum_diff(c: Columns, unused_seed: int) -> np.ndarray:
  """Log p(x) − log p_ref(x) of the whole row (as the paper writes it)."""
  return c["reference_nll"] - c["teacher_nll"]


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
  key = seed.to_bytes(8, "little", signed=True)

  def one(row_id: int) -> int:
    data = int(row_id).to_bytes(8, "little")
    digest = hashlib.blake2b(data, digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") >> 40  # 24 bits fill a float32

  values = [one(i) for i in c["row_id"]]
  return np.asarray(values, np.float32) / np.float32(2**24)


def _mean(c: Columns, model: str) -> np.ndarray:
  # float32 as released; the count is exact in it
  return c[f"{model}_nll"] / c[f"{model}_tokens"].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Definition:
  """A way to rank rows.

  Attributes:
    score: (columns, seed) → float32 [n]; the highest are kept.
    label: of the score, with its unit.
    reads: the models whose log-probs it needs.
  """

  score: Callable[[Columns, int], np.ndarray]
  label: str
  reads: tuple[str, ...]


_BOTH = "teacher", "reference"
DEFINITIONS = {
  "mean_diff": Definition(
    mean_diff, "log p − log p_ref, nats per token", _BOTH
  ),
  "sum_diff": Definition(sum_diff, "log p − log p_ref, nats per row", _BOTH),
  "difficulty": Definition(
    difficulty, "−log p_ref, nats per token", ("reference",)
  ),
  "teacher_preference": Definition(
    teacher_preference, "log p, nats per token", ("teacher",)
  ),
  "proxy": Definition(
    proxy, "predicted log p − log p_ref, nats per token", ("proxy",)
  ),
  "random": Definition(random, "a random number in [0, 1)", ()),
}
