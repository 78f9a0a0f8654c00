"""What formulas must know of all rows before they can say one's value.

Each is filled by `add` over all parts, closed by `finish`, and then gives the
value of any row. A row whose value is not finite counts nowhere and has none.
"""

import math
import pathlib
from fractions import Fraction

import numpy as np

# float32 = mantissa · 2^(exponent − 24), exponents from −148 to 128.
_LEAST, _BINS = -148, 277


class Moments:
  """Σ x and Σ x² of float32 values by domain, as integers by exponent.

  7 KB a domain. Exact, so in any order the same, up to 2³⁸ values, of which 2²⁸
  at a time.
  """

  def __init__(self):
    # mantissas, and their squares' upper and lower 24 bits
    self._sums = np.zeros((3, 0, _BINS), np.int64)
    self._counts = np.zeros(0, np.int64)

  def add(self, domain: np.ndarray, x: np.ndarray):
    """Adds finite float32 [n] of domains int [n], from 0."""
    domains = max(int(domain.max(initial=-1)) + 1, len(self._counts))
    more = domains - len(self._counts)
    self._sums = np.pad(self._sums, ((0, 0), (0, more), (0, 0)))
    self._counts = np.pad(self._counts, (0, more))
    self._counts += np.bincount(domain, minlength=domains)
    mantissa, exponent = np.frexp(x)
    mantissa = mantissa.astype(np.float64) * 2**24
    upper, lower = np.divmod(mantissa * mantissa, 2.0**24)
    place = domain.astype(np.int64) * _BINS + (exponent - _LEAST)
    for sums, values in zip(self._sums, (mantissa, upper, lower)):
      # float64, but whole numbers below 2⁵³
      flat = np.bincount(place, weights=values, minlength=domains * _BINS)
      sums += flat.reshape(domains, _BINS).astype(np.int64)

  def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
    """float64 [domains] each; the deviation is the population's."""
    mean, std = [], []
    unit = Fraction(1, 2 ** (24 - _LEAST))
    for count, *sums in zip(self._counts.tolist(), *self._sums.tolist()):
      count = count or 1  # a domain that has no value: 0 and 0
      first = sum(s << b for b, s in enumerate(sums[0]))
      second = sum(
        ((upper << 24) + lower) << 2 * b
        for b, (upper, lower) in enumerate(zip(sums[1], sums[2]))
      )
      mean.append(float(unit * Fraction(first, count)))
      variance = Fraction(count * second - first * first, count * count)
      std.append(math.sqrt(unit * unit * variance))
    return np.array(mean), np.array(std)

  def between(self) -> float:
    """η², the share of the variance that lies between domains."""
    (mean, std), n = self.mean_and_std(), self._counts
    between = np.sum(n * (mean - np.average(mean, weights=n)) ** 2)
    total = between + np.sum(n * std**2)
    return float(between / total) if total else 0.0


class Standardized:
  """Standard deviations from the mean of all rows, or of one's group."""

  def __init__(self):
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
