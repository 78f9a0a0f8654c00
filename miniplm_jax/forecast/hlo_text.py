"""The text of a compiled program, as computations of linked instructions."""

import collections
import dataclasses
import functools
import math
import re
from typing import NamedTuple

_BITS = re.compile(r"\d+")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-<>]+)")
_LINE = re.compile(r"^\s+(ROOT )?%([\w.\-<>]+) = (.*)$")


class Array(NamedTuple):
  """A type: bf16[16,1024]; `is_hbm` where it lies in main memory."""

  dtype: str
  shape: tuple[int, ...]
  is_hbm: bool
  stored: tuple[int, ...]  # the shape with the padding of its layout

  @property
  def nbytes(self) -> int:
    """Without the padding of its layout."""
    return math.prod(self.shape) * self._bits // 8

  @property
  def stored_bytes(self) -> int:
    """With it: 64 columns take the memory of 128."""
    return math.prod(self.stored) * self._bits // 8

  @property
  def _bits(self) -> int:
    if self.dtype == "pred":
      return 8
    match = _BITS.search(self.dtype)
    return int(match[0]) if match else 0  # a token has no size

  def __str__(self):
    return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
  """Instructions in their order; `program` has all computations by name."""

  name: str
  program: "dict[str, Computation]" = dataclasses.field(repr=False)
  instructions: "dict[str, Instruction]" = dataclasses.field(
    default_factory=dict, repr=False
  )

  @functools.cached_property
  def root(self) -> "Instruction":
    """What it returns."""
    return next(i for i in self.instructions.values() if i.is_root)

  @functools.cached_property
  def parameters(self) -> "list[Instruction]":
    """What it is given, by number."""
    parameters = [i for i in self.instructions.values() if i.op == "parameter"]
    return sorted(parameters, key=lambda i: int(i.argument))

  @functools.cached_property
  def users(self) -> "dict[str, list[Instruction]]":
    """Its instructions by the names of their operands."""
    users = collections.defaultdict(list)
    for instruction in self.instructions.values():
      for operand in set(instruction.operands):
        users[operand.name].append(instruction)
    return users


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
  """A line of HLO: %name = type op(argument), attributes."""

  computation: Computation  # that it stands in
  name: str
  type: str
  op: str
  argument: str
  attributes: str
  is_root: bool

  @functools.cached_property
  def operands(self) -> "list[Instruction]":
    """What it takes, of the same computation."""
    names = _NAME.findall(self.argument)
    return [self.computation.instructions[name] for name in names]

  @functools.cached_property
  def arrays(self) -> list[Array]:
    """The parts of its type; one unless that is a tuple."""
    return arrays(self.type)

  @property
  def nbytes(self) -> int:
    """Of all parts."""
    return sum(a.nbytes for a in self.arrays)

  def stored_bytes(self, is_hbm: bool) -> int:
    """Of those parts that lie in main memory, or of those that do not."""
    return sum(a.stored_bytes for a in self.arrays if a.is_hbm == is_hbm)

  @property
  def source(self) -> str:
    """The operation in JAX that it comes from."""
    match = re.search(r'op_name="([^"]*)"', self.attributes)
    return match[1] if match else ""

  def named(self, *keys: str) -> Computation | None:
    """The computation that one of the attributes names."""
    names = "|".join(keys)
    match = re.search(rf"\b(?:{names})=%?([\w.\-<>]+)", self.attributes)
    return self.computation.program.get(match[1]) if match else None

  @functools.cached_property
  def called(self) -> Computation | None:
    """The computation of a fusion, a call or an asynchronous start."""
    return self.named("calls", "to_apply", "called_computation")

  @property
  def branches(self) -> list[Computation]:
    """The computations of a conditional."""
    match = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
    if match:
      names = _NAME.findall(match[1])
      return [self.computation.program[name] for name in names]
    both = self.named("true_computation"), self.named("false_computation")
    return [branch for branch in both if branch]


def arrays(type_text: str) -> list[Array]:
  """All arrays in a type."""
  found = []
  for dtype, sizes, layout in _ARRAY.findall(type_text):
    shape = integers(sizes)
    is_hbm = not re.search(r"S\([1-9]", layout)
    found.append(Array(dtype, shape, is_hbm, _stored(shape, layout)))
  return found


def integers(text: str) -> tuple[int, ...]:
  """Those of a list with commas, which may be empty."""
  return tuple(int(n) for n in text.split(",") if n)


def _stored(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
  """Pads the minor dimensions to whole tiles: {1,0:T(8,128)(2,1)}."""
  match = re.match(r"([\d,]*):T\(([\d,]+)\)", layout)
  stored = list(shape)
  if match:
    tile = reversed(integers(match[2]))
    for dimension, size in zip(integers(match[1]), tile):
      stored[dimension] = -(-stored[dimension] // size) * size
  return tuple(stored)


def parse(text: str) -> Computation:
  """The computation that is the first to run, with those that it runs."""
  program = {}
  for line in text.splitlines():
    if line.endswith("{") and not line.startswith(" ") and "->" in line:
      name = re.match(r"(?:ENTRY )?%?([\w.\-<>]+)", line)[1]
      current = program[name] = Computation(name, program)
      if line.startswith("ENTRY"):
        entry = current
    elif match := _LINE.match(line):
      root, name, rest = match.groups()
      current.instructions[name] = _instruction(current, name, rest, bool(root))
  return entry


def _instruction(
  computation: Computation, name: str, rest: str, is_root: bool
) -> Instruction:
  end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
  type_text, rest = rest[:end], rest[end:].lstrip()
  start = rest.index("(")
  end = _closing(rest, start)
  op, argument, attributes = rest[:start], rest[start + 1 : end - 1], rest[end:]
  return Instruction(
    computation, name, type_text, op, argument, attributes, is_root
  )


def _closing(text: str, start: int) -> int:
  """The place after the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == "(") - (text[place] == ")")
    if depth == 0:
      return place + 1
  raise ValueError(f"unbalanced parentheses in {text[:200]!r}")
