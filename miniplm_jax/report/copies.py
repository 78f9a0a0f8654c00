"""Rows of D that are there more than once, by the hash of their ids."""

import dataclasses

import numpy as np

from miniplm_jax.core import fields
from miniplm_jax.corpus.kept_rows import among
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.selection import index

_MOST = 5_000_000  # rows whose hashes are held at a time
_SHOWN = 5  # largest groups that are shown


@dataclasses.dataclass(frozen=True)
class Copies:
  """Rows with equal ids."""

  rows: int
  kept: int  # of these
  row_id: int  # the first of them


@dataclasses.dataclass(frozen=True)
class Duplicates:
  """Exact duplicates in D and among the kept rows."""

  # 1 looks at all rows; n, at those of every n-th hash, where all copies of a
  # row are together.
  every: int
  rows: int  # that were looked at
  kept: int  # of these
  groups: int  # contents that are there more than once
  surplus: int  # rows that could go, one of each content being left
  kept_groups: int  # contents that were kept more than once
  kept_surplus: int  # kept rows that could go
  left_out: int  # rows left out that are copies of a kept row
  largest: list[Copies]


def find(corpus: Corpus, rows: np.ndarray, most: int = _MOST) -> Duplicates:
  """Compares the hashes of D's rows; holds 16 bytes of each that it looks at.

  Args:
    rows: the kept ids, ascending.
    most: above so many rows of D, only every n-th hash is looked at.
  """
  every = fields.stride(index.size_of_d(corpus), most)
  pieces = []
  for d in index.columns_of_d(corpus, ("hash",)):
    # By hash and not by row: copies stay together.
    is_read = d["hash"] % np.uint64(every) == 0
    pieces.append((d["row_id"][is_read], d["hash"][is_read]))
  ids, hashes = map(np.concatenate, zip(*pieces))
  kept = among(ids, rows)
  _, first, group, count = np.unique(
    hashes, return_index=True, return_inverse=True, return_counts=True
  )
  kept_count = np.bincount(group, kept, len(count)).astype(np.int64)
  order = np.lexsort((ids[first], -count))[:_SHOWN]
  return Duplicates(
    every=every,
    rows=len(ids),
    kept=int(kept.sum()),
    groups=int((count > 1).sum()),
    surplus=int((count - 1).sum()),
    kept_groups=int((kept_count > 1).sum()),
    kept_surplus=int(np.maximum(kept_count - 1, 0).sum()),
    left_out=int((count - kept_count)[kept_count > 0].sum()),
    largest=[
      Copies(int(count[i]), int(kept_count[i]), int(ids[first[i]]))
      for i in order
      if count[i] > 1
    ],
  )
