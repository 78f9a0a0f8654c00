"""How long a compiled program would take: a prediction, never a measurement.

A matrix product takes the compiler's estimate of its cycles, or what its
FLOPs at peak or its bytes of main memory take if that is longer; all else
takes its bytes. Collectives run beside the computation, each along one axis
of links in both directions.

Against published training runs of dense models with head size 128, the
estimator that this one was written after was off by −7 to +18 %. Softmaxes
and other work of the vector unit, launches, the network between slices and
what the host does are not modelled.
"""

import dataclasses

from miniplm_jax.plan import hlo
from miniplm_jax.trainer import metrics


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a chip can do.

  Attributes:
    hbm_gib: main memory that the compiler lets a program use.
    hbm_bandwidth: bytes/s, from the vendor's product pages.
    clock: Hz, at which the matrix units reach the peak.
    link_bandwidth: bytes/s of one link to another chip, one way.
  """

  hbm_gib: float
  hbm_bandwidth: float
  clock: float
  link_bandwidth: float


# By device kind; the peak FLOP/s are in `trainer/metrics.py`.
CHIPS = {
  "TPU v4": Chip(30.75, 1228e9, 1.05e9, 45e9),
  "TPU v5 lite": Chip(15.75, 819e9, 1.5e9, 45e9),
  "TPU v5": Chip(95.74, 2765e9, 1.75e9, 90e9),
  "TPU v6 lite": Chip(31.25, 1640e9, 1.75e9, 90e9),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Predicted seconds of one run of a program.

  Attributes:
    computing: on the chip.
    collective: of all collectives.
    exposed: of the collectives beside which nothing is scheduled.
  """

  computing: float
  collective: float
  exposed: float

  @property
  def seconds(self) -> float:
    """What the slower of computation and collectives takes."""
    return max(self.computing, self.collective)


def step_seconds(step: hlo.Step, device_kind: str) -> float:
  """Of one run of a step."""
  chip = CHIPS[device_kind]
  seconds = step.moved / chip.hbm_bandwidth
  if step.flops:
    by_peak = step.slowness * step.flops / metrics.peak_flops(device_kind)
    seconds = max(seconds, by_peak, step.cycles / chip.clock)
  return seconds


def estimate(program: hlo.Program, device_kind: str) -> Estimate:
  """Predicts the time of a program on one device and its neighbours."""
  both_ways = 2 * CHIPS[device_kind].link_bandwidth

  def seconds(collectives):
    return sum(c.times * c.nbytes for c in collectives) / both_ways

  return Estimate(
    sum(s.times * step_seconds(s, device_kind) for s in program.steps),
    seconds(program.collectives),
    seconds(c for c in program.collectives if not c.is_overlapped),
  )
