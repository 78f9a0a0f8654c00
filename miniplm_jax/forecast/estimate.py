"""How long a compiled program would take: a prediction, never a measurement.

A matrix product takes the compiler's estimate of its cycles, or what its
FLOPs at peak or its bytes of main memory take if that is longer; all else
takes its bytes. Collectives run beside the computation, each along one axis
of links in both directions, and beside those what slices exchange.

Against published training runs of dense models with head size 128, the
estimator that this one was written after was off by −7 to +18 %. Softmaxes
and other work of the vector unit, launches and what the host does are not
modeled. The network between slices is taken at the rate on its data sheet,
and has been compared with nothing.
"""

import dataclasses

from miniplm_jax.forecast import hlo
from miniplm_jax.training import flops as flops_lib


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a chip can do."""

  hbm_gib: float  # main memory that the compiler lets a program use
  hbm_bandwidth: float  # bytes/s, from the vendor's product pages
  clock: float  # Hz, at which the matrix units reach the peak
  link_bandwidth: float  # bytes/s of one link to another chip, one way
  network_bandwidth: float  # bytes/s to another slice: a host's, by its chips


# By device kind; the peak FLOP/s are in `training/flops.py`. Between slices:
# 6.4 and 25.6 Tbit/s for 256 chips of v5e and v6e in the vendor's
# documentation; 200 Gbit/s for a host of 4 chips is assumed of the others.
CHIPS = {
  "TPU v4": Chip(30.75, 1228e9, 1.05e9, 45e9, 6.25e9),
  "TPU v5 lite": Chip(15.75, 819e9, 1.5e9, 45e9, 3.125e9),
  "TPU v5": Chip(95.74, 2765e9, 1.75e9, 90e9, 6.25e9),
  "TPU v6 lite": Chip(31.25, 1640e9, 1.75e9, 90e9, 12.5e9),
}


@dataclasses.dataclass(frozen=True)
class TimeEstimate:
  """Predicted seconds of one run of a program."""

  computing: float  # on the chip
  collective: float  # of all collectives inside a slice
  exposed: float  # of the collectives beside which nothing is scheduled
  network: float = 0.0  # of what slices exchange

  @property
  def seconds(self) -> float:
    """What the slowest of computation, collectives and network takes."""
    return max(self.computing, self.collective, self.network)


def operation_seconds(operation: hlo.Operation, device_kind: str) -> float:
  """Predicts the time of one run of an operation."""
  chip = CHIPS[device_kind]
  seconds = operation.moved / chip.hbm_bandwidth
  if operation.flops:
    flops = operation.slowness * operation.flops
    at_peak = flops / flops_lib.peak_flops(device_kind)
    seconds = max(seconds, at_peak, operation.cycles / chip.clock)
  return seconds


def estimate(
  schedule: hlo.Schedule, device_kind: str, slices: int = 1
) -> TimeEstimate:
  """Predicts the time of a program on one device and its neighbors.

  Args:
    schedule: of one device.
    device_kind: a key of `CHIPS`.
    slices: among which a sum takes 2 (n − 1) / n times its bytes.
  """
  chip = CHIPS[device_kind]
  inside = [c for c in schedule.collectives if c.kind != hlo.BETWEEN_SLICES]
  between = [c for c in schedule.collectives if c.kind == hlo.BETWEEN_SLICES]

  def nbytes(collectives):
    return sum(c.times * c.nbytes for c in collectives)

  both_ways = 2 * chip.link_bandwidth
  return TimeEstimate(
    sum(
      o.times * operation_seconds(o, device_kind) for o in schedule.operations
    ),
    nbytes(inside) / both_ways,
    nbytes(c for c in inside if not c.is_overlapped) / both_ways,
    2 * (slices - 1) / slices * nbytes(between) / chip.network_bandwidth,
  )
