"""Random numbers that belong to a row: a counter-based hash of its id.

Any part of the corpus, in any order, gives a row the same number.
"""

import numpy as np

from miniplm_jax.core.splitmix import GOLDEN, mix


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
