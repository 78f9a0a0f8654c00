"""Mean and standard deviation by domain, exact, so in any order the same."""

import math
from fractions import Fraction

import numpy as np

# float32 = mantissa · 2^(exponent − 24), exponents from −148 to 128.
_LEAST, _BINS = -148, 277


class Moments:
  """Σ x and Σ x² of float32 values, as integers by exponent.

  7 KB a domain. Exact up to 2³⁸ values, of which 2²⁸ at a time.
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
