"""A penalty on what kept rows have already.

Rows are kept one after another, each time that of the highest value, as by
maximal marginal relevance (Carbonell and Goldstein 1998): its score, less
`weight` times the share of its runs of 5 ids that the rows kept so far have.
MMR takes the most similar of those rows; what they have together can be looked
up in one table, of any number of them. In 10⁷ rows of 1,024 ids some 1 in 64
runs, by their hash, stand for all.
"""

import heapq
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from miniplm_jax.core import distributed
from miniplm_jax.core.noise import GOLDEN, mix
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.selection import index

_RUN = 5  # ids, as the shingles of `duplicates`
_BITS = 31  # of a hash; a bit for each is 256 MB
_MOST = 1 << 28  # runs that are looked up; more have only some of them
_BLOCK = 1 << 13  # rows that compete at a time
_BATCH = 512  # rows that are read at a time


class Ranked(NamedTuple):
  """Which rows are kept: those whose value is `last` or more."""

  values: np.ndarray  # float32 by row id; what others have is lower
  last: float  # value of the row that was kept last
  kept: int  # rows


def rank(
  chunks: Callable[[], Iterable[Mapping[str, np.ndarray]]],
  corpus: Corpus,
  weight: float,
  budget: int,
  in_tokens: bool,
  before: Iterable[np.ndarray],
  folder: pathlib.Path,
) -> Ranked:
  """Keeps the row of the highest value, again and again.

  Of equal values the lowest row id comes first. The last row is the one before
  the first that the budget does not allow. A value only falls as more is kept,
  so that most need not be known (Minoux 1978): those of the rows that may be
  next are computed, 2¹³ at a time.

  Args:
    chunks: gives row_id, and as value the score.
    weight: what a row loses that is all there.
    budget: rows, or ids of rows if it is `in_tokens`.
    before: row ids of what was kept before.
    folder: of temporary files, 8 bytes for each row of the corpus.
  """
  n = len(corpus)
  # The score, and of a kept row its value; at most what it is worth by now,
  # −∞ of rows that are kept or not to be.
  values = np.memmap(folder / "values", np.float32, "w+", shape=n)
  bounds = np.memmap(folder / "bounds", np.float32, "w+", shape=n)
  bounds[:] = -np.inf
  for columns in chunks():
    values[columns["row_id"]] = bounds[columns["row_id"]] = columns["value"]
  seen = _Seen(corpus)
  for row_ids in before:
    for _, runs in seen.read(row_ids):
      seen.add(runs)

  def negative_of(row, runs):
    value = float(values[row]) - weight * seen.share(runs)
    return -float(np.float32(value))

  last, kept, is_full = 0.0, 0, False
  while not is_full:
    rows, limit = _highest(bounds)
    if not len(rows):
      break
    runs_of, known_at = dict(zip(rows.tolist(), seen.read(rows))), kept
    heap = [(negative_of(row, runs), row) for row, (_, runs) in runs_of.items()]
    heapq.heapify(heap)
    while heap and heap[0] < limit and not is_full:
      negative, row = heapq.heappop(heap)
      length, runs = runs_of[row]
      if kept > known_at:
        now = negative_of(row, runs), row
        if now > min([limit, *heap[:1]]):
          heapq.heappush(heap, now)
          continue
        negative = now[0]
      cost = length if in_tokens else 1
      is_full = cost > budget
      if not is_full:
        budget -= cost
        seen.add(runs)
        kept, last = kept + 1, -negative
        values[row], bounds[row] = last, -np.inf
    for negative, row in heap:
      bounds[row] = -negative
  values[bounds > -np.inf] = np.finfo(np.float32).min
  return Ranked(values, last, kept)


def _highest(bounds: np.ndarray) -> tuple[np.ndarray, tuple[float, int]]:
  """The ids of the 2¹³ highest, ascending; and what comes next in their order.

  That is (−bound, row id): any of them that is less comes before all others.
  """
  most = min(_BLOCK, len(bounds))
  lowest = np.partition(np.asarray(bounds), -most)[-most]
  if lowest == -np.inf:
    return np.flatnonzero(bounds > lowest), (np.inf, 0)
  above, ties = (
    np.flatnonzero(f(bounds, lowest)) for f in (np.greater, np.equal)
  )
  tied, others = np.split(ties, [most - len(above)])
  # Others are lower, if none ties.
  first = int(others[0]) if len(others) else len(bounds)
  return np.sort(np.concatenate([above, tied])), (-float(lowest), first)


class _Seen:
  """Which runs of ids are in rows that are kept, by their hash."""

  # For a run's hash: of each place, odd.
  _FACTORS = mix(GOLDEN * np.arange(1, _RUN + 1, dtype=np.uint64))
  _FACTORS |= np.uint64(1)

  def __init__(self, corpus: Corpus):
    self._corpus = corpus
    self._bits = np.zeros(1 << (_BITS - 3), np.uint8)
    runs = index.size_of_d(corpus) * corpus.max_length
    # The runs that are looked up are those whose hash ends in so many zeros.
    self._zeros = np.uint64((1 << ((runs - 1) // _MOST).bit_length()) - 1)

  def read(self, row_ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields of each row how many ids it has, and its runs' hashes, uint32."""
    for first in range(0, len(row_ids), _BATCH):
      distributed.raise_if_stopped()
      rows = self._corpus.read(row_ids[first : first + _BATCH])
      rows = [row.ids for row in rows]
      yield from zip(map(len, rows), self._runs(rows))

  def _runs(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The hashes of each row's runs; a shorter row is one run."""
    short = np.full(_RUN, -1)
    rows = [np.append(ids, short[len(ids) :]) for ids in rows]
    ids = np.concatenate(rows).astype(np.int64).view(np.uint64)
    ends = np.cumsum([len(row) for row in rows])
    hashes = np.zeros(len(ids) - _RUN + 1, np.uint64)
    for i, factor in enumerate(self._FACTORS):
      hashes += ids[i : i + len(hashes)] * factor
    hashes = mix(hashes)
    is_run = hashes & self._zeros == 0
    is_run[(ends[:-1, None] - np.arange(1, _RUN)).ravel()] = False  # of two
    places = np.flatnonzero(is_run)
    found = (hashes[places] >> np.uint64(64 - _BITS)).astype(np.uint32)
    return np.split(found, np.searchsorted(places, ends[:-1]))

  def share(self, runs: np.ndarray) -> float:
    """How much of them is there."""
    if not len(runs):
      return 0.0
    return float(np.mean(self._bits[runs >> 3] >> (runs & 7) & 1))

  def add(self, runs: np.ndarray):
    """Notes them."""
    bit = np.left_shift(1, runs & 7).astype(np.uint8)
    np.bitwise_or.at(self._bits, runs >> 3, bit)
