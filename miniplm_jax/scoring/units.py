"""Units of work: which rows of D one part of a score table holds.

All rows are scored, or a seeded sample by their content.
"""

import dataclasses
import re

import numpy as np

from miniplm_jax.core import code as code_lib
from miniplm_jax.core import files
from miniplm_jax.core.noise import GOLDEN, mix
from miniplm_jax.corpus.store import Corpus, shard_names

_NAME = re.compile(r"part-(\d+)-(\d+)\.parquet")
# What decides a score, given weights and rows.
_CODE = ("scoring/scorer.py", "models/regressor.py", "models/huggingface.py")


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
  """A fixed range of corpus rows inside one shard; it is scored as a whole."""

  first: int  # row id that the range starts with
  end: int  # row id that it ends before
  # Fingerprint of the corpus shard that the range lies in: a corpus that grew
  # by shards at its end has the old units unchanged.
  shard: str
  rows: np.ndarray  # those of the range that are scored, int64, ascending

  @property
  def name(self) -> str:
    """File name of its part; names sort like rows."""
    return f"part-{self.first:012d}-{self.end:012d}.parquet"

  @property
  def facts(self) -> dict[str, int | str]:
    """Returns what a part says of its unit."""
    return {"first": self.first, "end": self.end, "shard": self.shard}


def units_of(
  corpus: Corpus, rows_per_part: int, rows: np.ndarray | None = None
) -> list[Unit]:
  """All units that have rows to score, in row order.

  A unit spans so many rows of the corpus at most. `rows` are the ids of those
  to score, ascending; None is D.
  """
  if rows is None:
    rows = corpus.rows_of("train")
  counts, parts = corpus.manifest.counts, corpus.manifest.counts["parts"]
  units, start = [], 0
  for shard, count in enumerate(counts["rows_by_part"]):
    written = [corpus.manifest.files[n] for n in shard_names(shard, parts)]
    fingerprint = files.digest([facts["sha256"] for facts in written])
    for first in range(start, start + count, rows_per_part):
      end = min(first + rows_per_part, start + count)
      inside = rows[slice(*np.searchsorted(rows, [first, end]))]
      if len(inside):
        units.append(Unit(first, end, fingerprint, inside))
    start += count
  return units


def sampled_rows(corpus: Corpus, share: float, seed: int) -> np.ndarray:
  """int64 ids of a share of D, ascending; a smaller share is a part of it."""
  rows = corpus.rows_of("train")
  if share >= 1:
    return rows
  hash_R = corpus.hashes[rows]
  return rows[point(hash_R, seed) < share]


def point(hash_R: np.ndarray, seed: int) -> np.ndarray:
  """A number in [0, 1) for each row, a function of its content and the seed.

  The index's hash decides a row's split by its top bits, so it is mixed first
  (SplitMix64): the numbers of one split, or of another seed, are as good as
  independent. Equal rows have equal numbers.
  """
  return (_next(_next(np.uint64(seed)) ^ hash_R) >> 11) * 2.0**-53


def _next(x):
  """SplitMix64's number after x."""
  with np.errstate(over="ignore"):  # modulo 2⁶⁴ is meant
    return mix(x + GOLDEN)


def range_of(name: str) -> tuple[int, int] | None:
  """The rows that a file name speaks of; None if it is not a part's."""
  match = _NAME.fullmatch(name)
  return (int(match[1]), int(match[2])) if match else None


def code() -> str:
  """Which version of the code decides a score, with the libraries'."""
  return code_lib.fingerprint(_CODE, "jax", "qwix")
