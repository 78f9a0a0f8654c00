"""How long collectives take over the links between the chips of a slice."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import numpy as np

from miniplm_jax.forecast.hlo_text import integers

_HOP = 1e-6  # seconds from a chip to the next, "How to scale your model"
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")
_IOTA = re.compile(
  r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
)
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


def members(attributes: str) -> tuple[int, ...]:
  """The first group of a collective, by what its HLO says.

  Returns:
    Numbers of devices in the program; none is "all of them".
  """
  if match := _LISTED.search(attributes):
    return integers(match[1])
  if match := _IOTA.search(attributes):
    groups, sizes = integers(match[1]), integers(match[2])
    order = integers(match[3]) if match[3] else range(len(sizes))
    devices = np.arange(np.prod(sizes)).reshape(sizes).transpose(order)
    return tuple(devices.reshape(groups)[0].tolist())
  if match := _MESH.search(attributes):
    axes = dict(axis.split("=") for axis in match[1].split(","))
    devices = np.arange(np.prod([int(n) for n in axes.values()]))
    devices = devices.reshape([int(n) for n in axes.values()])
    inside = match[2].split(",")
    first = tuple(slice(None) if axis in inside else 0 for axis in axes)
    return tuple(devices[first].flatten().tolist())
  return ()


@dataclasses.dataclass(frozen=True)
class Network:
  """The links of a slice: a grid, or a torus where its axes are closed."""

  places: np.ndarray  # [devices, axes]: where the program's devices are
  bandwidth: float  # bytes/s of one link, one way

  @classmethod
  def of(cls, devices: Sequence[jax.Device], bandwidth: float) -> "Network":
    """That of one slice, or of the first of several."""
    return cls(np.array([d.coords for d in devices]), bandwidth)

  def seconds(self, kind: str, nbytes: int, members: Sequence[int]) -> float:
    """Predicts the time of a collective.

    Of what n members gather, (n − 1) / n come to each by its links: one along
    an axis, two where its ends are joined (so two of a square, as in a ring
    through it, both ways). What everyone sends to everyone has to cross the
    middle of the longest axis.

    Args:
      kind: as HLO names it.
      nbytes: of the result on one device.
      members: their numbers; none is "all of them".
    """
    places = self.places[list(members)] if members else self.places
    spans, is_closed = _sides(places), self._closed(_sides(places))
    n = len(places)
    if max(spans) == 1:  # alone in its slice
      return 0.0
    links = sum(1 + c for c, span in zip(is_closed, spans) if span > 1)
    if kind == "collective-permute":
      load = nbytes
    elif kind in ("all-to-all", "ragged-all-to-all"):
      longest = int(np.argmax(spans))
      load = nbytes * spans[longest] / 4 / (1 + is_closed[longest])
    else:
      whole = nbytes * n if kind == "reduce-scatter" else nbytes
      turns = 2 if kind == "all-reduce" else 1
      load = turns * whole * (n - 1) / n / links
    return load / self.bandwidth + _HOP * sum(span - 1 for span in spans)

  def _closed(self, spans: Sequence[int]) -> list[bool]:
    """Whether the two ends of each axis are joined, of the whole slice.

    v5e and v6e (two axes): those of 16 chips. v4 and v5p: all, where every
    side is a multiple of 4.
    """
    sides = _sides(self.places)
    cubes = all(side % 4 == 0 for side in sides)
    return [
      span == side and (side == 16 or cubes) for span, side in zip(spans, sides)
    ]


def _sides(places: np.ndarray) -> list[int]:
  return [len(set(axis)) for axis in places.T.tolist()]
