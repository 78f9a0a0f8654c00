"""Exact top of any number of values in bounded memory.

Two histograms over order-preserving integer keys find the value at which a
budget is spent; one more pass finds the tie. Nothing is sorted and nothing
is held but a chunk and 1 MB a group of rows.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# row_id int64, ascending over all chunks; value float32, finite. If there are
# several groups of rows: group, int. If rows do not count 1 each: weight,
# positive int.
Columns = Mapping[str, np.ndarray]
_READ = ("row_id", "value", "weight")  # beside group
Chunks = Callable[[], Iterable[Columns]]

_BINS = 1 << 16
_MOST = float(np.finfo(np.float32).max)


class Cut(NamedTuple):
  """Where rows end: value > threshold, or equal and id ≤ last_tie."""

  # The value of the last row that fits; of the first that does not, if that
  # one is heavier than what is left of the budget.
  threshold: float
  # Largest row id within, among those of exactly that value; −1 is none.
  last_tie: int
  kept: int  # rows within
  weight: int  # of these rows


@dataclasses.dataclass(frozen=True)
class Cutoff:
  """Which rows are kept; see `keeps`."""

  threshold: float  # see `Cut`; of the rows without a quota that ends elsewhere
  last_tie: int  # likewise
  kept: int  # rows that are kept, of all groups
  rows: int  # of D, kept or not
  # Threshold and last_tie by domain that has a quota.
  groups: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=dict
  )


def keeps(cutoff: Cutoff, columns: Columns) -> np.ndarray:
  """Bool [n]: which of these rows are kept.

  Their group is 0, or 1 + the place of a row's domain in `cutoff.groups`.
  """
  return within(
    [(cutoff.threshold, cutoff.last_tie), *cutoff.groups.values()], columns
  )


def within(cuts: Sequence[Sequence[float]], columns: Columns) -> np.ndarray:
  """Bool [n]: which rows are within the cut of their group."""
  threshold, last_tie = (
    np.array([cut[i] for cut in cuts], dtype)
    for i, dtype in enumerate((np.float32, np.int64))
  )
  if len(cuts) > 1:
    threshold, last_tie = (a[columns["group"]] for a in (threshold, last_tie))
  value = columns["value"]
  tie = (value == threshold) & (columns["row_id"] <= last_tie)
  return (value > threshold) | tie


def sort_key(value: np.ndarray) -> np.ndarray:
  """float32 → uint32 of the same order; −0 equals +0; no NaN."""
  bits = (value.astype(np.float32) + np.float32(0)).view(np.uint32)
  sign = (bits.view(np.int32) >> 31).view(np.uint32)
  return bits ^ (sign | np.uint32(0x80000000))


def _value_of(key: int) -> float:
  """The inverse of `sort_key`."""
  bits = key ^ 0x80000000 if key >> 31 else key ^ 0xFFFFFFFF
  return float(np.uint32(bits).view(np.float32))


def find(chunks: Chunks, budgets: Sequence[int]) -> list[Cut]:
  """Finds the longest prefix of each group whose weight its budget allows.

  Rows stand in the order of value, from the highest, then of row id, from
  the lowest.

  Args:
    chunks: gives the same rows each time it is called.
    budgets: by group; one that exceeds its group keeps all of it.
  """
  high = _histogram(chunks, len(budgets))
  budget = np.minimum(np.array(budgets, np.int64), high.sum(1))
  top, above = _reach(high, budget)
  low = _histogram(chunks, len(budgets), top)
  bottom, above_low = _reach(low, budget - above)
  keys = (top << 16 | bottom).astype(np.uint32)
  return _ties(chunks, keys, above + above_low, budget)


def _histogram(chunks, groups: int, top: np.ndarray | None = None):
  """Weight [groups, bins] by upper bits, or by lower bits in each top bin."""
  histogram = np.zeros(groups * _BINS, np.int64)
  top = None if top is None else top.astype(np.uint32)
  for columns in chunks():
    key = sort_key(columns["value"])
    group, weight = columns.get("group", 0), columns.get("weight")
    place = key >> 16
    if top is not None:
      inside = np.flatnonzero(place == top[group])
      place = key[inside] & 0xFFFF
      group = group if groups == 1 else group[inside]
      weight = None if weight is None else weight[inside]
    if groups > 1:
      # Not all bins of all groups a chunk: there may be many groups.
      place = group * np.int64(_BINS) + place
      np.add.at(
        histogram, place, 1 if weight is None else weight.astype(np.int64)
      )
      continue
    # float64 if weighted, but whole numbers below 2⁵³
    counts = np.bincount(place, weight, minlength=histogram.size)
    histogram += counts.astype(np.int64, copy=False)
  return histogram.reshape(groups, _BINS)


def _reach(histogram: np.ndarray, budget: np.ndarray):
  """The bin from the top that reaches each budget, and the weight above it."""
  from_top = np.cumsum(histogram[:, ::-1], axis=1)
  place = np.argmax(from_top >= budget[:, None], axis=1)
  from_top -= histogram[:, ::-1]
  above = np.take_along_axis(from_top, place[:, None], axis=1)[:, 0]
  return _BINS - 1 - place, above


def _ties(chunks, keys, above, budget) -> list[Cut]:
  """Cuts, from the key at which each group's budget is spent."""
  groups, room = len(keys), budget - above
  last_tie = np.full(groups, -1, np.int64)
  used = np.zeros(groups, np.int64)  # by ties, also by those beyond the room
  fitting, kept = used.copy(), above.copy()
  is_weighted = False
  for columns in chunks():
    key, group = sort_key(columns["value"]), columns.get("group", 0)
    is_weighted = "weight" in columns
    if is_weighted:
      higher = np.broadcast_to(group, key.shape)[key > keys[group]]
      fitting += np.bincount(higher, minlength=groups)
    tied = np.flatnonzero(key == keys[group])
    for g in np.unique(group[tied]) if groups > 1 else (0,):
      ties = tied if groups == 1 else tied[group[tied] == g]
      weight = columns["weight"][ties] if is_weighted else np.ones_like(ties)
      weight = used[g] + np.cumsum(weight, dtype=np.int64)
      fits = int(np.searchsorted(weight, room[g], "right"))
      if fits:
        last_tie[g] = columns["row_id"][ties[fits - 1]]
        fitting[g] += fits
        kept[g] = above[g] + weight[fits - 1]
      used[g] = weight[-1] if len(weight) else used[g]
    if not is_weighted and np.all(used >= room):
      break
  if not is_weighted:
    fitting = kept
  return [
    Cut(_value_of(int(k)), int(tie), int(n), int(w)) if w else NOTHING
    for k, tie, n, w in zip(keys, last_tie, fitting, kept)
  ]


NOTHING = Cut(_MOST, -1, 0, 0)


def divide(
  chunks: Chunks, total: int, shares: Sequence[tuple[int, int]]
) -> tuple[list[Cut], int]:
  """The best rows of all, with at least and at most so much of each group.

  What the least budgets allow is kept first. The best of the rest follow,
  up to each group's largest budget, until the total is spent.

  Args:
    chunks: with a column group.
    shares: least and largest budget by group.

  Returns:
    The cut of each group (its kept and weight are not those of the group),
    and how many rows are kept.
  """

  def twice():
    for c in chunks():
      group = c["group"]
      doubled = {k: np.concatenate([c[k], c[k]]) for k in _READ if k in c}
      yield doubled | {"group": np.concatenate([group, group + len(shares)])}

  least, most = zip(*shares)
  cuts = find(twice, [*least, *most])
  least, most = cuts[: len(shares)], cuts[len(shares) :]

  def rest():
    for c in chunks():
      free = np.flatnonzero(within(most, c) & ~within(least, c))
      yield {k: c[k][free] for k in _READ if k in c}

  (best,) = find(rest, [total - sum(cut.weight for cut in least)])
  cuts = [
    min(max(best, low, key=_depth), high, key=_depth)
    for low, high in zip(least, most)
  ]
  return cuts, best.kept + sum(cut.kept for cut in least)


def _depth(cut: Cut) -> tuple[float, int]:
  """Orders cuts by how many rows they take in."""
  return -cut.threshold, cut.last_tie
