"""The text of a compiled program, as computations of instructions."""

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

  @property
  def nbytes(self) -> int:
    """Without the padding of its layout."""
    if self.dtype == "pred":
      bits = 8
    else:
      match = _BITS.search(self.dtype)
      bits = int(match[0]) if match else 0  # a token has no size
    return math.prod(self.shape) * bits // 8

  def __str__(self):
    return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of HLO: %name = type op(argument), attributes."""

  name: str
  type: str
  op: str
  argument: str
  attributes: str
  is_root: bool

  @functools.cached_property
  def operands(self) -> list[str]:
    """Names of the operands."""
    return _NAME.findall(self.argument)

  @functools.cached_property
  def arrays(self) -> list[Array]:
    """The parts of its type; one unless that is a tuple."""
    return arrays(self.type)

  @property
  def nbytes(self) -> int:
    """Of all parts."""
    return sum(a.nbytes for a in self.arrays)

  @property
  def hbm_bytes(self) -> int:
    """Of those parts that lie in main memory."""
    return sum(a.nbytes for a in self.arrays if a.is_hbm)

  @property
  def source(self) -> str:
    """The operation in JAX that it comes from."""
    match = re.search(r'op_name="([^"]*)"', self.attributes)
    return match[1] if match else ""

  def named(self, *keys: str) -> str | None:
    """The computation that one of the attributes names."""
    names = "|".join(keys)
    match = re.search(rf"\b(?:{names})=%?([\w.\-<>]+)", self.attributes)
    return match[1] if match else None

  @property
  def called(self) -> str | None:
    """The computation of a fusion, a call or an asynchronous start."""
    return self.named("calls", "to_apply", "called_computation")

  @property
  def branches(self) -> list[str]:
    """The computations of a conditional."""
    match = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
    if match:
      return _NAME.findall(match[1])
    both = self.named("true_computation"), self.named("false_computation")
    return [name for name in both if name]


def arrays(type_text: str) -> list[Array]:
  """All arrays in a type."""
  return [
    Array(
      dtype,
      tuple(int(n) for n in shape.split(",") if n),
      not re.search(r"S\([1-9]", layout),
    )
    for dtype, shape, layout in _ARRAY.findall(type_text)
  ]


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """The computations, and the name of the first to run."""
  computations, entry, current = {}, "", {}
  for line in text.splitlines():
    if line.endswith("{") and not line.startswith(" ") and "->" in line:
      name = re.match(r"(?:ENTRY )?%?([\w.\-<>]+)", line)[1]
      current = computations[name] = {}
      if line.startswith("ENTRY"):
        entry = name
    elif match := _LINE.match(line):
      root, name, rest = match.groups()
      current[name] = _instruction(name, rest, bool(root))
  return computations, entry


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
  end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
  type_text, rest = rest[:end], rest[end:].lstrip()
  start = rest.index("(")
  end = _closing(rest, start)
  return Instruction(
    name,
    type_text,
    rest[:start],
    rest[start + 1 : end - 1],
    rest[end:],
    is_root,
  )


def _closing(text: str, start: int) -> int:
  """The place after the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == "(") - (text[place] == ")")
    if depth == 0:
      return place + 1
  raise ValueError(f"unbalanced parentheses in {text[:200]!r}")
