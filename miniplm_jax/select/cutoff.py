"""Exact top-K of any number of scores in bounded memory.

Two histograms over order-preserving integer keys find the K-th largest
score; one count finds the tie. Nothing is sorted and nothing is held but a
chunk.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

Chunks = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Cutoff:
  """Which rows are kept: score > threshold, or equal and id ≤ last_tie.

  Attributes:
    threshold: the K-th largest score, float32.
    last_tie: largest kept row id among those with exactly that score; −1
      keeps none of them.
    kept: K.
    rows: how many there were.
  """

  threshold: float
  last_tie: int
  kept: int
  rows: int

  def kept_of(self, row_id: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Those of some row ids that are kept, by their scores."""
    tie = (score == self.threshold) & (row_id <= self.last_tie)
    return row_id[(score > self.threshold) | tie]


def sort_key(score: np.ndarray) -> np.ndarray:
  """float32 → uint32 of the same order; −0 equals +0; no NaN."""
  bits = (score.astype(np.float32) + np.float32(0)).view(np.uint32)
  sign = (bits.view(np.int32) >> 31).view(np.uint32)
  return bits ^ (sign | np.uint32(0x80000000))


def find(chunks: Chunks, ratio: float) -> Cutoff:
  """The cutoff that keeps int(ratio · rows) rows; ties go to lower ids.

  Args:
    chunks: gives (row ids int64, ascending over all chunks; scores float32)
      each time it is called.
    ratio: in (0, 1].
  """
  high = np.zeros(1 << 16, np.int64)
  for _, score in chunks():
    high += np.bincount(sort_key(score) >> 16, minlength=1 << 16)
  rows = int(high.sum())
  kept = int(ratio * rows)
  if kept == 0:
    return Cutoff(float("inf"), -1, 0, rows)
  top, above = _bin_of_rank(high, kept)
  low = np.zeros(1 << 16, np.int64)
  for _, score in chunks():
    key = sort_key(score)
    low += np.bincount(
      key[key >> 16 == top] & np.uint32(0xFFFF), minlength=1 << 16
    )
  bottom, above_low = _bin_of_rank(low, kept - above)
  threshold = (top << 16) | bottom
  ties = kept - above - above_low  # at least 1: the K-th is one of them
  for row_id, score in chunks():
    tied = row_id[sort_key(score) == threshold]
    if ties <= len(tied):
      found = score[sort_key(score) == threshold][0]
      return Cutoff(float(found), int(tied[ties - 1]), kept, rows)
    ties -= len(tied)
  raise AssertionError("the chunks changed between passes")


def _bin_of_rank(histogram: np.ndarray, rank: int) -> tuple[int, int]:
  """(the bin that holds the rank-th largest, how many lie above it)."""
  from_top = np.cumsum(histogram[::-1])
  place = int(np.searchsorted(from_top, rank))
  above = int(from_top[place - 1]) if place else 0
  return len(histogram) - 1 - place, above
