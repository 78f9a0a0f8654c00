"""Random numbers that belong to a row: a counter-based hash of its id.

Any part of the corpus, in any order, gives a row the same number.
"""

import numpy as np

# SplitMix64 (Steele, Lea, Flood 2014): the row id is its counter.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STEPS = (
  (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
  (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def mix(bits: np.ndarray) -> np.ndarray:
  """uint64 → uint64, one to one; every input bit moves every output bit."""
  for shift, factor in _STEPS:
    bits = (bits ^ (bits >> shift)) * factor
  return bits ^ (bits >> np.uint64(31))


def uniform(row_id: np.ndarray, seed: int, stream: int) -> np.ndarray:
  """float64 [n] in (0, 1), of 2⁵³ values; streams are independent.

  Args:
    row_id: int64 [n].
    seed: any int64.
    stream: what it is for.
  """
  start = mix(np.array([seed], np.int64).view(np.uint64) * _GOLDEN)
  start = mix(start + np.uint64(stream))
  bits = mix((row_id.astype(np.uint64) + np.uint64(1)) * _GOLDEN + start)
  return ((bits >> np.uint64(11)) + 0.5) * 2.0**-53


def gumbel(row_id: np.ndarray, seed: int) -> np.ndarray:
  """float64 [n], standard Gumbel: the top K of log w + it is drawn by w.

  Without replacement (Vieira 2014; Kool et al. 2019, arXiv 1903.06059).
  """
  return -np.log(-np.log(uniform(row_id, seed, stream=1)))
