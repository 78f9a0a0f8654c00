"""What formulas must know of all rows before they can say one's value.

Each is filled by `add` over all parts, closed by `finish`, and then gives the
value of any row. A row whose value is not finite counts nowhere and has none.
"""

import pathlib

import numpy as np

from miniplm_jax.criteria.moments import Moments


class Standardized:
  """Standard deviations from the mean of all rows, or of one's group."""

  def __init__(self):
    """No row is there yet."""
    self._moments = Moments()

  def add(self, values: np.ndarray, group: np.ndarray | None):
    """Adds float32 [n], with the group of each, int [n]."""
    values = np.asarray(values, np.float32)
    is_finite = np.isfinite(values)
    group = np.zeros(values.shape, np.int64) if group is None else group
    self._moments.add(group[is_finite], values[is_finite])

  def finish(self):
    """All rows are there."""
    self._mean, self._std = self._moments.mean_and_std()

  def value(self, values: np.ndarray, group: np.ndarray | None) -> np.ndarray:
    """float64 [n]; 0 where all of the group are alike."""
    group = 0 if group is None else group
    values = np.asarray(values, np.float32).astype(np.float64)
    from_mean, std = values - self._mean[group], self._std[group]
    return np.divide(
      from_mean, std, out=np.zeros_like(from_mean), where=std > 0
    )


class Ranks:
  """The share of rows that are lower, those as high counted half: in (0, 1).

  Exact: the float32 values of all rows are sorted in a file, so memory holds
  what the system can spare for it, and a part of the rows.
  """

  def __init__(self, folder: pathlib.Path, rows: int):
    """No row is there yet; the file has 4 bytes for each of `rows`."""
    path = folder / f"ranks-{len(list(folder.iterdir()))}"
    self._sorted = np.memmap(path, np.float32, "w+", shape=max(rows, 1))
    self._n = 0

  def add(self, values: np.ndarray, group: None):
    """Adds float32 [n]."""
    values = np.asarray(values, np.float32)
    values = values[np.isfinite(values)]
    self._sorted[self._n : self._n + len(values)] = values
    self._n += len(values)

  def finish(self):
    """All rows are there."""
    self._sorted = self._sorted[: self._n]
    self._sorted.sort()

  def value(self, values: np.ndarray, group: None) -> np.ndarray:
    """float64 [n]; NaN of what is not finite."""
    values = np.asarray(values, np.float32)
    if not self._n:
      return np.full(len(values), np.nan)
    order = np.argsort(values)  # neighbors are looked up near each other
    ordered = values[order]
    lower = np.searchsorted(self._sorted, ordered, "left")
    # Each value is among them, mostly once: of these it is not searched twice.
    upper = lower + 1
    following = np.minimum(upper, self._n - 1)
    tied = np.flatnonzero(self._sorted[following] == ordered)
    upper[tied] = np.searchsorted(self._sorted, ordered[tied], "right")
    rank = np.empty(len(values))
    rank[order] = (lower + upper) / (2 * self._n)
    return np.where(np.isfinite(values), rank, np.nan)
