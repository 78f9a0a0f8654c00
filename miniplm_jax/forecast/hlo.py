"""What a compiled TPU program does, read from its scheduled HLO text.

XLA's own cost analysis counts the body of a loop once; here bodies count as
often as they run. Of a conditional, the costlier branch is taken to run.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from miniplm_jax.forecast import kernel, links, matmul
from miniplm_jax.forecast.hlo_text import Array, Computation, Instruction, parse

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
# Custom calls that only name memory: a buffer that is written later, slices
# that were copied side by side, a promise about indices.
_FREE_CALL = re.compile(
  r'custom_call_target="(AllocateBuffer|ConcatBitcast|AssumeGather\w*)"'
)
# What libtpu calls a fusion that is a reduce-scatter.
_REDUCE_SCATTER = "all-reduce-scatter"
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
_VIEWS = frozenset(("bitcast", "get-tuple-element", "reshape"))
_COPIES = frozenset(("bitcast", "copy", "convert", "copy-start", "copy-done"))


@dataclasses.dataclass(frozen=True)
class Operation:
  """An instruction of the schedule, and what one run of it takes."""

  instruction: Instruction
  times: int  # how often it runs
  flops: int  # of its matrix products
  cycles: int  # the compiler's estimate; 0 where it makes none
  moved: int  # bytes read from and written to main memory
  moved_vmem: int  # and those of what lies in VMEM
  copied: int = 0  # bytes of main memory that it begins to copy meanwhile
  # Time of a Pallas kernel over that of its FLOPs at the peak; else 1.
  slowness: float = 1.0


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of the schedule."""

  kind: str  # one of `KINDS`, or `BETWEEN_SLICES`
  times: int  # how often it runs
  nbytes: int  # of its result on one device, each time
  is_overlapped: bool  # other work of its computation is scheduled beside it
  computation: str  # the name of that
  members: tuple[int, ...] = ()  # devices of a group; () is all of them


class Schedule:
  """What a compiled program does, in its order.

  Attributes:
    operations: what runs.
    collectives: those of the operations.
    loops: how often each loop runs; None where that could not be read.
  """

  def __init__(self, text: str):
    """Reads `compiled.as_text()`."""
    self.loops: dict[str, int | None] = {}
    self.operations = list(self._walk(parse(text), 1))
    self.collectives = list(_collectives(self.operations))

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
    run = dict.fromkeys(s.instruction.computation for s in self.operations)
    for computation in run:
      for instruction in computation.instructions.values():
        for array in instruction.arrays:
          if not buffers.get(array):
            buffers[array] = instruction.source
    return dict(sorted(buffers.items(), key=lambda x: -x[0].nbytes))

  def _walk(self, computation: Computation, times: int) -> Iterator[Operation]:
    for instruction in computation.instructions.values():
      op = instruction.op
      if op == "while":
        trips = self.loops[instruction.name] = _trips(instruction)
        yield from self._walk(instruction.named("body"), times * (trips or 1))
      elif op == "conditional":
        walks = [list(self._walk(b, times)) for b in instruction.branches]
        yield from max(walks, key=_cost)
      elif op == "call":
        yield from self._walk(instruction.called, times)
      elif op not in _FREE and not _FREE_CALL.search(instruction.attributes):
        yield _operation(instruction, times)


def _cost(operations: list[Operation]) -> tuple[int, int]:
  flops = sum(s.flops * s.times for s in operations)
  return flops, sum(s.moved * s.times for s in operations)


def _operation(instruction: Instruction, times: int) -> Operation:
  moved = _moved(instruction, True), _moved(instruction, False)
  if kernel.is_kernel(instruction):
    flops, slowness = kernel.cost(instruction)
    return Operation(instruction, times, flops, 0, *moved, slowness=slowness)
  flops = sum(map(matmul.flops, _inside(instruction)))
  match = _CYCLES.search(instruction.attributes)
  cycles = int(match[1]) if match else 0
  copied = 0
  if instruction.op in ("copy-start", "slice-start"):
    # The type of a start holds what goes in beside what comes out.
    copied = _stored(instruction) - sum(map(_stored, instruction.operands))
  return Operation(instruction, times, flops, cycles, *moved, copied)


def _inside(instruction: Instruction) -> Iterator[Instruction]:
  """It, and all that is fused into it."""
  yield instruction
  is_end = instruction.op.endswith(("-done", "-update"))
  if instruction.op in ("fusion", "async-start", "call") and not is_end:
    called = instruction.called
    for inner in called.instructions.values() if called else ():
      yield from _inside(inner)


class _Value(NamedTuple):
  """An instruction, where its computation is given these parameters."""

  instruction: Instruction
  given: "Sequence[_Value]" = ()

  def operands(self) -> "list[_Value]":
    """What it takes."""
    return [_Value(o, self.given) for o in self.instruction.operands]

  def origin(self) -> "_Value":
    """What it is a copy of, through fusions and calls."""
    op = self.instruction.op
    if op in _COPIES:
      return self.operands()[0].origin()
    if op in ("fusion", "call"):
      return _Value(self.instruction.called.root, self.operands()).origin()
    if op == "parameter" and self.given:
      return self.given[int(self.instruction.argument)].origin()
    return self

  def integer(self) -> int | None:
    """The constant that it is, if it is one."""
    instruction = self.origin().instruction
    if instruction.op != "constant":
      return None
    match = re.fullmatch(r"-?\d+", instruction.argument)
    return int(match[0]) if match else None


def _trips(loop: Instruction) -> int | None:
  """How often a loop that counts up to a constant runs."""
  known = re.search(r'known_trip_count"?:\{"n":"(\d+)', loop.attributes)
  if known:
    return int(known[1])
  comparison = _Value(loop.named("condition").root).origin()
  before = _Value(loop.operands[0]).origin()
  after = _Value(loop.named("body").root).origin()
  values = comparison, before, after
  if [v.instruction.op for v in values] != ["compare", "tuple", "tuple"]:
    return None
  counter, limit = comparison.operands()
  counter, limit = counter.origin().instruction, limit.integer()
  if counter.op != "get-tuple-element" or limit is None:
    return None
  index = int(re.search(r"index=(\d+)", counter.attributes)[1])
  start = before.operands()[index].integer()
  sum_ = after.operands()[index].origin()
  steps = [o.integer() for o in sum_.operands()]
  step = next((n for n in steps if n is not None), None)
  if sum_.instruction.op != "add" or start is None or not step:
    return None
  is_closed = "direction=LE" in comparison.instruction.attributes
  return max(-(-(limit - start + is_closed) // step), 0)


def _collectives(operations: Sequence[Operation]) -> Iterator[Collective]:
  begun = set()
  for operation in operations:
    outer, times = operation.instruction, operation.times
    name = outer.computation.name
    if outer.op == "recv":
      # What arrives, beside which the compiler schedules other work.
      nbytes = outer.arrays[0].nbytes
      yield Collective(BETWEEN_SLICES, times, nbytes, True, name)
      continue
    for inner in _inside(outer):
      kind = inner.op.removesuffix("-start")
      if kind not in KINDS:
        continue
      place = name, links.members(inner.attributes)
      if inner.computation.name.startswith(_REDUCE_SCATTER):
        yield Collective("reduce-scatter", times, outer.nbytes, False, *place)
        continue
      overlapped = outer.op != kind
      if overlapped:
        # It stands in several fusions, its start, steps and end. Channels
        # alone do not tell: all of shard_map's collectives have number 1.
        channel = re.search(r"channel_id=(\d+)", inner.attributes)
        number = channel and channel[1]
        key = name, kind, number, inner.source
        if key in begun:
          continue
        begun.add(key)
      nbytes = inner.nbytes
      if inner.op != kind and kind != "all-reduce":
        # The type of a start holds what goes in beside what comes out.
        nbytes -= sum(o.nbytes for o in inner.operands)
      yield Collective(kind, times, nbytes, overlapped, *place)


def _moved(instruction: Instruction, is_hbm: bool) -> int:
  """Bytes to and from a memory; what runs in the background is free."""
  op = instruction.op
  kind = op.removesuffix("-start")
  if kind in KINDS or op.endswith(("-start", "-done", "-update")):
    return 0
  read = [o.stored_bytes(is_hbm) for o in instruction.operands]
  written = instruction.stored_bytes(is_hbm)
  if op == "fusion":
    inner = instruction.called
    return sum(
      _read(parameter, full)
      for parameter, full in zip(inner.parameters, read)
      if full
    ) + min(written, _written(inner.root))
  if op in _SLICES:
    return 2 * written
  if op == "dynamic-update-slice":
    return 2 * read[1]
  return sum(read) + written


def _stored(value: Instruction) -> int:
  return value.stored_bytes(True) + value.stored_bytes(False)


def _read(value: Instruction, full: int) -> int:
  """Bytes that a fused computation reads of a value of `full` bytes."""
  total = 0
  for user in value.computation.users[value.name]:
    place = user.operands.index(value)
    if user.op in _SLICES and place == 0:
      total += _stored(user)
    elif user.op == "dynamic-update-slice" and place == 0:
      pass
    elif user.op in _VIEWS:
      total += _read(user, full)
    elif user.op == "fusion":
      total += _read(user.called.parameters[place], full)
    else:
      return full
  return min(total, full)


def _written(value: Instruction) -> int:
  """Bytes that a fused computation writes: of an update, what is new."""
  if value.op == "dynamic-update-slice":
    return _stored(value.operands[1])
  if value.op == "bitcast":
    return _written(value.operands[0])
  if value.op == "tuple":
    return sum(map(_written, value.operands))
  return _stored(value)
