"""What a compiled TPU program does, read from its scheduled HLO text.

XLA's own cost analysis counts the body of a loop once; here bodies count as
often as they run. Of a conditional, the costlier branch is taken to run.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

from miniplm_jax.forecast import kernel, matmul
from miniplm_jax.forecast.hlo_text import Array, Instruction, parse

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-broadcast",
  "collective-permute",
)
# Of several slices: hosts exchange it over their network.
BETWEEN_SLICES = "between slices"
_CYCLES = re.compile(r'"window_config":\{[^{}]*"estimated_cycles":"(\d+)"')

# No work of their own.
_FREE = frozenset(
  (
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "iota",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
  )
)
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
_VIEWS = frozenset(("bitcast", "get-tuple-element", "reshape"))
_COPIES = frozenset(("bitcast", "copy", "convert", "copy-start", "copy-done"))


@dataclasses.dataclass(frozen=True)
class Operation:
  """An instruction of the schedule, and what one run of it takes."""

  computation: str  # that it stands in
  instruction: Instruction
  times: int  # how often it runs
  flops: int  # of its matrix products
  cycles: int  # the compiler's estimate; 0 where it makes none
  moved: int  # bytes read from and written to main memory
  # Time of a Pallas kernel over that of its FLOPs at the peak; else 1.
  slowness: float = 1.0


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of the schedule."""

  kind: str  # one of `KINDS`, or `BETWEEN_SLICES`
  times: int  # how often it runs
  nbytes: int  # of its result on one device, each time
  is_overlapped: bool  # other work is scheduled beside it


class Schedule:
  """What a compiled program does, in its order.

  Attributes:
    operations: what runs.
    collectives: those of the operations.
    loops: how often each loop runs; None where that could not be read.
  """

  def __init__(self, text: str):
    """Reads `compiled.as_text()`."""
    self._computations, entry = parse(text)
    self._users: dict[str, dict[str, list[Instruction]]] = {}
    self.loops: dict[str, int | None] = {}
    self.operations = list(self._walk(entry, 1))
    self.collectives = list(self._find_collectives())

  @property
  def flops(self) -> int:
    """Of all matrix products."""
    return sum(s.flops * s.times for s in self.operations)

  def buffers(self) -> dict[Array, str]:
    """Every array that exists in the schedule, largest first.

    Returns:
      For each, the JAX operation that it comes from. What is only formed
      inside a fusion, tile by tile, is not a buffer.
    """
    buffers = {}
    for computation in dict.fromkeys(s.computation for s in self.operations):
      for instruction in self._computations[computation].values():
        for array in instruction.arrays:
          if not buffers.get(array):
            buffers[array] = instruction.source
    return dict(sorted(buffers.items(), key=lambda x: -x[0].nbytes))

  def _walk(self, computation: str, times: int) -> Iterator[Operation]:
    for instruction in self._computations[computation].values():
      op = instruction.op
      if op == "while":
        trips = self._trips(computation, instruction)
        self.loops[instruction.name] = trips
        yield from self._walk(instruction.named("body"), times * (trips or 1))
      elif op == "conditional":
        walks = [list(self._walk(b, times)) for b in instruction.branches]
        yield from max(walks, key=_cost)
      elif op == "call":
        yield from self._walk(instruction.called, times)
      elif op not in _FREE:
        yield self._operation_of(computation, instruction, times)

  def _operation_of(self, computation, instruction, times) -> Operation:
    cycles = _CYCLES.search(instruction.attributes)
    moved = self._moved(computation, instruction)
    if kernel.is_kernel(instruction.op, instruction.attributes):
      names = self._computations[computation]
      operands = [names[o].arrays[0] for o in instruction.operands]
      flops, slowness = kernel.cost(instruction.name, operands)
      return Operation(
        computation, instruction, times, flops, 0, moved, slowness
      )
    return Operation(
      computation,
      instruction,
      times,
      sum(self._flops(*x) for x in self._inside(computation, instruction)),
      int(cycles[1]) if cycles else 0,
      moved,
    )

  def _inside(self, computation, instruction):
    """(computation, instruction) of it and of all that is fused into it."""
    yield computation, instruction
    is_end = instruction.op.endswith(("-done", "-update"))
    if instruction.op in ("fusion", "async-start", "call") and not is_end:
      for inner in self._computations.get(instruction.called, {}).values():
        yield from self._inside(instruction.called, inner)

  def _flops(self, computation: str, instruction: Instruction) -> int:
    if instruction.op not in ("dot", "convolution"):
      return 0
    names = self._computations[computation]
    left, right = (names[o].arrays[0].shape for o in instruction.operands[:2])
    return matmul.flops(instruction, left, right)

  def _trips(self, computation: str, loop: Instruction) -> int | None:
    """How often a loop that counts up to a constant runs."""
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)', loop.attributes)
    if known:
      return int(known[1])
    compared = self._compared(loop.named("condition"), {})
    if compared is None:
      return None
    direction, index, limit = compared
    start = self._element(computation, loop.operands[0], index)
    start = self._value(computation, start, {})
    body = self._computations[loop.named("body")]
    root = next(name for name, i in body.items() if i.is_root)
    step = self._increment(
      loop.named("body"), self._element(loop.named("body"), root, index), {}
    )
    if not isinstance(start, int) or not step:
      return None
    trips = -(-(limit - start + (direction == "LE")) // step)
    return max(trips, 0)

  def _compared(self, computation, arguments):
    """(direction, index of the counter, limit) of a loop's condition."""
    for instruction in self._computations[computation].values():
      comparison = None
      if instruction.op == "compare":
        sides = [
          self._value(computation, o, arguments) for o in instruction.operands
        ]
        direction = re.search(r"direction=(\w+)", instruction.attributes)[1]
        if isinstance(sides[0], _Element) and isinstance(sides[1], int):
          comparison = direction, sides[0].index, sides[1]
      elif instruction.op in ("fusion", "call"):
        comparison = self._compared(
          instruction.called,
          self._arguments(computation, instruction, arguments),
        )
      if comparison:
        return comparison
    return None

  def _arguments(self, computation, instruction, arguments):
    """Values of a called computation's parameters, by number."""
    return {
      i: self._value(computation, o, arguments)
      for i, o in enumerate(instruction.operands)
    }

  def _element(self, computation, name, index) -> str | None:
    """The name of an element of a tuple."""
    instruction = self._computations[computation].get(name)
    if instruction is None or instruction.op != "tuple":
      return None
    return instruction.operands[index]

  def _value(self, computation, name, arguments):
    """A constant, an element of the loop's state, or None."""
    instruction = self._computations[computation].get(name)
    while instruction and instruction.op in _COPIES:
      name = instruction.operands[0]
      instruction = self._computations[computation].get(name)
    if instruction is None:
      return None
    if instruction.op == "constant":
      match = re.fullmatch(r"-?\d+", instruction.argument)
      return int(match[0]) if match else None
    if instruction.op == "get-tuple-element":
      return _Element(int(re.search(r"index=(\d+)", instruction.attributes)[1]))
    if instruction.op == "parameter":
      return arguments.get(int(instruction.argument))
    return None

  def _increment(self, computation, name, arguments) -> int | None:
    """What a loop's counter grows by."""
    instruction = self._computations[computation].get(name)
    if instruction is None:
      return None
    if instruction.op in _COPIES:
      return self._increment(computation, instruction.operands[0], arguments)
    if instruction.op == "add":
      values = [
        self._value(computation, o, arguments) for o in instruction.operands
      ]
      return next((v for v in values if isinstance(v, int)), None)
    if instruction.op == "fusion":
      inner = self._computations[instruction.called]
      root = next(name for name, i in inner.items() if i.is_root)
      arguments = self._arguments(computation, instruction, arguments)
      return self._increment(instruction.called, root, arguments)
    return None

  def _find_collectives(self) -> Iterator[Collective]:
    begun = set()
    for operation in self.operations:
      if operation.instruction.op == "recv":
        # What arrives, beside which the compiler schedules other work.
        nbytes = operation.instruction.arrays[0].nbytes
        yield Collective(BETWEEN_SLICES, operation.times, nbytes, True)
        continue
      for where, inner in self._inside(
        operation.computation, operation.instruction
      ):
        kind = inner.op.removesuffix("-start")
        if kind not in KINDS:
          continue
        overlapped = operation.instruction.op != kind
        if overlapped:
          # It stands in several fusions, its start, steps and end. Channels
          # alone do not tell: all of shard_map's collectives have number 1.
          channel = re.search(r"channel_id=(\d+)", inner.attributes)
          key = (
            operation.computation,
            kind,
            channel and channel[1],
            inner.source,
          )
          if key in begun:
            continue
          begun.add(key)
        nbytes = inner.nbytes
        if inner.op != kind and kind != "all-reduce":
          # The type of a start holds what goes in beside what comes out.
          names = self._computations[where]
          nbytes -= sum(names[o].nbytes for o in inner.operands)
        yield Collective(kind, operation.times, nbytes, overlapped)

  def _moved(self, computation: str, instruction: Instruction) -> int:
    """Bytes to and from main memory; what runs in the background is free."""
    op, names = instruction.op, self._computations[computation]
    kind = op.removesuffix("-start")
    if kind in KINDS or op.endswith(("-start", "-done", "-update")):
      return 0
    read = [names[o].hbm_bytes for o in instruction.operands]
    written = instruction.hbm_bytes
    if op == "fusion":
      inner = self._computations[instruction.called]
      parameters = {
        int(i.argument): i.name for i in inner.values() if i.op == "parameter"
      }
      root = next(name for name, i in inner.items() if i.is_root)
      return sum(
        self._read(instruction.called, parameters[n], full)
        for n, full in enumerate(read)
        if full
      ) + min(written, self._written(instruction.called, root))
    if op in _SLICES:
      return 2 * written
    if op == "dynamic-update-slice":
      return 2 * read[1]
    return sum(read) + written

  def _read(self, computation: str, name: str, full: int) -> int:
    """Bytes that a fused computation reads of an operand of `full` bytes."""
    if computation not in self._users:
      users = self._users[computation] = collections.defaultdict(list)
      for instruction in self._computations[computation].values():
        for operand in set(instruction.operands):
          users[operand].append(instruction)
    total = 0
    for user in self._users[computation][name]:
      place = user.operands.index(name)
      if user.op in _SLICES and place == 0:
        total += user.nbytes
      elif user.op == "dynamic-update-slice" and place == 0:
        pass
      elif user.op in _VIEWS:
        total += self._read(computation, user.name, full)
      elif user.op == "fusion":
        parameter = next(
          i.name
          for i in self._computations[user.called].values()
          if i.op == "parameter" and int(i.argument) == place
        )
        total += self._read(user.called, parameter, full)
      else:
        return full
    return min(total, full)

  def _written(self, computation: str, name: str) -> int:
    """Bytes that a fused computation writes: of an update, what is new."""
    names = self._computations[computation]
    instruction = names[name]
    if instruction.op == "dynamic-update-slice":
      return names[instruction.operands[1]].nbytes
    if instruction.op == "bitcast":
      return self._written(computation, instruction.operands[0])
    if instruction.op == "tuple":
      return sum(self._written(computation, o) for o in instruction.operands)
    return instruction.nbytes


class _Element(NamedTuple):
  """An element of a loop's state."""

  index: int


def _cost(operations: list[Operation]) -> tuple[int, int]:
  flops = sum(s.flops * s.times for s in operations)
  return flops, sum(s.moved * s.times for s in operations)
