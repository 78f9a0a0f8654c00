"""Which rows of D are scored: all, or a seeded sample by content."""

import numpy as np

from miniplm_jax.core.splitmix import GOLDEN, mix
from miniplm_jax.corpus.store import Corpus


def point(hash_R: np.ndarray, seed: int) -> np.ndarray:
  """A number in [0, 1) for each row, a function of its content and the seed.

  The index's hash decides a row's split by its top bits, so it is mixed first
  (SplitMix64): the numbers of one split, or of another
  seed, are as good as independent. Equal rows have equal numbers.

  Args:
    hash_R: uint64, of the corpus's index.
    seed: 0 or more.
  """
  return (_next(_next(np.uint64(seed)) ^ hash_R) >> 11) * 2.0**-53


def _next(x):
  """SplitMix64's number after x."""
  with np.errstate(over="ignore"):  # modulo 2⁶⁴ is meant
    return mix(x + GOLDEN)


def rows(corpus: Corpus, share: float, seed: int) -> np.ndarray:
  """int64 ids of a share of D, ascending; a smaller share is a part of it."""
  found = corpus.rows_of("train")
  if share >= 1:
    return found
  hash_R = corpus.index["hash"].to_numpy()[found]
  return found[point(hash_R, seed) < share]
