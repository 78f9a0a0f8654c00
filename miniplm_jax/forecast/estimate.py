"""How long a compiled program would take: a prediction, never a measurement.

A step of the program takes the largest of what it moves in main memory and in
VMEM, its FLOPs at the peak, and the compiler's cycles. These are credible for
matrix products (3 to 14 % above the peak at 4,096 and 8,192 on v5e). Of all
else they are 2.6 to 13.4 times, in the middle 4.3 times, what a simulation of
the instructions says (docs/tpu_steps.md). Hence a range. Optimistic: products
at the peak, and a tenth of other cycles. Pessimistic: all cycles. Middle: a
quarter of other cycles, and products halfway between both ends: when it
was decided, a published run of 32B was 24 % too slow with their cycles and one
of 16B 4 %, halfway 12 % and −2 % (docs/tpu_calibration.md has them as of now).

In each computation of the program (a loop's body, say) collectives run beside
the steps if the compiler scheduled them so, and else after them; so does
copying ahead. What slices exchange runs beside everything. Launches and what
the host does are not modeled. docs/tpu_calibration.md has what was measured
of this.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from miniplm_jax.forecast import hlo
from miniplm_jax.forecast.links import Network
from miniplm_jax.training import flops as flops_lib

VERSION = "4"  # another one makes other times of the same program
# VMEM has about 22 times the bandwidth of main memory ("How to scale your
# model", on v5e).
_VMEM = 22


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


class Range(NamedTuple):
  """Seconds of something; the middle is what is most likely."""

  optimistic: float
  middle: float
  pessimistic: float


# What the compiler's cycles of steps without a product are divided by.
_DIVISORS = Range(10, 4, 1)


@dataclasses.dataclass(frozen=True)
class TimeEstimate:
  """Predicted seconds of one run of a program."""

  seconds: Range
  collective: float  # of all collectives inside a slice
  exposed: float  # of the collectives beside which nothing is scheduled


def operation_seconds(operation: hlo.Operation, device_kind: str) -> Range:
  """Predicts the time of one run of an operation."""
  chip = CHIPS[device_kind]
  moved = operation.moved + operation.moved_vmem / _VMEM
  at_peak = operation.slowness * operation.flops
  least = max(
    moved / chip.hbm_bandwidth, at_peak / flops_lib.peak_flops(device_kind)
  )
  cycles = operation.cycles / chip.clock
  if operation.flops:
    most = max(least, cycles)
    return Range(least, (least + most) / 2, most)
  return Range(*(max(least, cycles / divisor) for divisor in _DIVISORS))


def estimate(
  schedule: hlo.Schedule, devices: Sequence[jax.Device], slices: int = 1
) -> TimeEstimate:
  """Predicts the time of a program.

  Args:
    schedule: of one device.
    devices: all of the program, in its order.
    slices: among which a sum takes 2 (n − 1) / n times its bytes.
  """
  parts = by_computation(schedule, devices).values()
  chip = CHIPS[devices[0].device_kind]
  between = sum(
    c.times * c.nbytes
    for c in schedule.collectives
    if c.kind == hlo.BETWEEN_SLICES
  )
  between *= 2 * (slices - 1) / slices / chip.network_bandwidth
  total = np.sum([part.seconds for part in parts], 0)
  return TimeEstimate(
    Range(*np.maximum(total, between).tolist()),
    sum(part.collective for part in parts),
    sum(part.exposed for part in parts),
  )


def by_computation(
  schedule: hlo.Schedule, devices: Sequence[jax.Device]
) -> dict[str, TimeEstimate]:
  """The same of each computation (a loop's body, say), in all of its runs.

  Without what slices exchange, beside which everything runs.
  """
  kind = devices[0].device_kind
  chip = CHIPS[kind]
  network = Network.of(devices, chip.link_bandwidth)
  busy = collections.defaultdict(lambda: np.zeros(3))
  copied, hidden, exposed = (collections.Counter() for _ in range(3))
  for o in schedule.operations:
    place = o.instruction.computation.name
    busy[place] += o.times * np.array(operation_seconds(o, kind))
    copied[place] += o.times * (o.moved + o.copied) / chip.hbm_bandwidth
  for c in schedule.collectives:
    if c.kind == hlo.BETWEEN_SLICES:
      continue
    group = hidden if c.is_overlapped else exposed
    seconds = network.seconds(c.kind, c.nbytes, c.members)
    group[c.computation] += c.times * seconds
  return {
    place: TimeEstimate(
      Range(
        *np.maximum(seconds, max(copied[place], hidden[place])) + exposed[place]
      ),
      hidden[place] + exposed[place],
      exposed[place],
    )
    for place, seconds in busy.items()
  }
