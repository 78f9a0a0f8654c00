"""Random numbers that belong to numbers, as a row's id: hashes of a counter.

Any part of the corpus, in any order, gives a row the same number. They are
SplitMix64's (Steele, Lea, Flood 2014).
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # what its counter goes up by
_STEPS = (
  (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
  (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def mix(bits):
  """uint64 → uint64, one to one; every input bit moves every output bit."""
  with np.errstate(over="ignore"):  # modulo 2⁶⁴ is meant
    for shift, factor in _STEPS:
      bits = (bits ^ (bits >> shift)) * factor
    return bits ^ (bits >> np.uint64(31))


def uniform(row_id: np.ndarray, seed: int, stream: int) -> np.ndarray:
  """float64 [n] in (0, 1), of 2⁵³ values, for int64 [n]; any int64 is a seed.

  Streams, one a purpose, are independent.
  """
  start = mix(np.array([seed], np.int64).view(np.uint64) * GOLDEN)
  start = mix(start + np.uint64(stream))
  bits = mix((row_id.astype(np.uint64) + np.uint64(1)) * GOLDEN + start)
  return ((bits >> np.uint64(11)) + 0.5) * 2.0**-53


def drawn(row_id: np.ndarray, seed: int, share: float) -> np.ndarray:
  """Whether each row is drawn, with this probability: bool [n]."""
  return uniform(row_id, seed, stream=2) < share


def gumbel(row_id: np.ndarray, seed: int) -> np.ndarray:
  """float64 [n], standard Gumbel: the top K of log w + it is drawn by w.

  Without replacement (Vieira 2014; Kool et al. 2019, arXiv 1903.06059).
  """
  return -np.log(-np.log(uniform(row_id, seed, stream=1)))
