"""Units of work: which rows one part of a score table holds."""

import dataclasses
import re

import numpy as np

from miniplm_jax.core import code as code_lib
from miniplm_jax.core import files
from miniplm_jax.corpus.store import Corpus, shard_names

_NAME = re.compile(r"part-(\d+)-(\d+)\.parquet")
# What decides a score, given weights and rows.
_CODE = ("score/scorer.py", "models/regressor.py", "models/huggingface.py")


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
  """A fixed range of corpus rows inside one shard; it is scored as a whole.

  Attributes:
    first: row id that the range starts with.
    end: row id that it ends before.
    shard: fingerprint of the corpus shard that the range lies in. A corpus
      that grew by shards at its end has the old units unchanged.
    rows: those of the range that are scored, int64, ascending.
  """

  first: int
  end: int
  shard: str
  rows: np.ndarray

  @property
  def name(self) -> str:
    """File name of its part; names sort like rows."""
    return f"part-{self.first:012d}-{self.end:012d}.parquet"

  @property
  def facts(self) -> dict[str, int | str]:
    """What a part says of its unit."""
    return {"first": self.first, "end": self.end, "shard": self.shard}


def units_of(
  corpus: Corpus, rows_per_part: int, rows: np.ndarray | None = None
) -> list[Unit]:
  """All units that have rows to score, in row order.

  Args:
    corpus: in whose shards they lie.
    rows_per_part: rows of the corpus that a unit spans at most.
    rows: ids of the rows to score, ascending; None is D.
  """
  if rows is None:
    rows = corpus.rows_of("train")
  counts, parts = corpus.manifest.counts, corpus.manifest.counts["parts"]
  found, start = [], 0
  for shard, count in enumerate(counts["rows_by_part"]):
    written = [corpus.manifest.files[n] for n in shard_names(shard, parts)]
    fingerprint = files.digest([facts["sha256"] for facts in written])
    for first in range(start, start + count, rows_per_part):
      end = min(first + rows_per_part, start + count)
      here = rows[slice(*np.searchsorted(rows, [first, end]))]
      if len(here):
        found.append(Unit(first, end, fingerprint, here))
    start += count
  return found


def range_of(name: str) -> tuple[int, int] | None:
  """The rows that a file name speaks of; None if it is not a part's."""
  found = _NAME.fullmatch(name)
  return (int(found[1]), int(found[2])) if found else None


def code() -> str:
  """Which version of the code decides a score, with the libraries'."""
  return code_lib.fingerprint(_CODE, "jax", "qwix")
