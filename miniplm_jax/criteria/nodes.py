"""What formulas are made of: tables, columns, numbers, and the functions.

A new function is an entry of `FUNCTIONS`.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epy

with epy.lazy_imports():  # the config parses formulas and reads no rows
  import numpy as np

  from miniplm_jax.core import noise
  from miniplm_jax.criteria import statistics

# Arrays [n] by name: NAME_nll float32, or NAME_diff of predictions, and
# NAME_tokens int32 of each table; row_id, domain (a code), n_bytes and
# corpus_tokens; "field NAME" float32.
Columns = Mapping[str, Any]
FIELD = "field "  # before the name of a column that field(…) reads


@dataclasses.dataclass(frozen=True)
class Node:
  """A part of a formula; equal parts are evaluated with one statistic."""

  arguments: tuple["Node", ...] = ()

  def walk(self) -> Iterator["Node"]:
    """All parts, the arguments of each before it."""
    for argument in self.arguments:
      yield from argument.walk()
    yield self

  def value(self, columns: Columns, values: Sequence[Any], known: "Known"):
    """Its value [n], or a number.

    Args:
      columns: of n rows.
      values: of its arguments.
      known: what passes over D have found out.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Number(Node):
  """A constant."""

  number: float = 0.0

  def value(self, columns, values, known):
    """The number, as Python's, so that float32 stays float32."""
    return self.number


@dataclasses.dataclass(frozen=True)
class OfTable(Node):
  """What a score table says of a row."""

  table: str = ""
  what: str = "mean"  # or sum, or tokens

  def value(self, columns, values, known):
    """float32; the mean as released, the count being exact in float32."""
    tokens = columns[f"{self.table}_tokens"].astype(np.float32)
    if self.what == "tokens":
      return tokens
    is_nll = f"{self.table}_nll" in columns
    total = columns[f"{self.table}_{'nll' if is_nll else 'diff'}"]
    return total if self.what == "sum" else total / tokens


@dataclasses.dataclass(frozen=True)
class Column(Node):
  """What the corpus says of a row."""

  column: str = ""

  def value(self, columns, values, known):
    """float64: bytes and ids are whole numbers, above 2²⁴ too."""
    return columns[self.column].astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Field(Node):
  """A number that a row has of its documents, or from elsewhere."""

  name: str = ""

  def value(self, columns, values, known):
    """float32; NaN of a row that has none."""
    return columns[FIELD + self.name]


@dataclasses.dataclass(frozen=True)
class Call(Node):
  """A function, or an operator, of its arguments."""

  function: str = ""
  by: str = ""  # a column whose values are groups of their own
  errors: tuple[float, ...] = ()  # of the tables that are its arguments

  def value(self, columns, values, known):
    """As the function says."""
    return FUNCTIONS[self.function].apply(self, columns, values, known)

  @property
  def statistic(self) -> Callable | None:
    """What makes the statistic that it needs of all rows."""
    return FUNCTIONS[self.function].statistic


@dataclasses.dataclass(frozen=True)
class Known:
  """What is known of all rows, and the seed of `random`."""

  seed: int = 0
  statistics: Mapping[Node, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Function:
  """A function of formulas."""

  # (the call, columns, values of its arguments, what is known) → values
  apply: Callable[[Call, Columns, Sequence[Any], Known], Any]
  usage: str
  least: int = 1  # arguments
  most: float = math.inf
  # What all rows are added to before: of (folder, rows of D).
  statistic: Callable[[pathlib.Path, int], Any] | None = None
  constants: int = 0  # how many of the last arguments are numbers
  has_groups: bool = False  # it takes by=domain
  # (arguments, errors) → whether it could only be a slip.
  refuses: Callable[[Sequence[Node], Sequence[float]], bool] | None = None


def _plain(usage: str, least: int, most: float, function: Callable) -> Function:
  """A function of the values alone, row by row."""
  return Function(lambda _, c, v, k: function(*v), usage, least, most)


def _statistic(call: Call, columns: Columns, values, known: Known):
  """The value by what is known of all rows."""
  group = columns["domain"] if call.by else None
  return known.statistics[call].value(values[0], group)


def _band(call: Call, columns: Columns, values, known: Known):
  low, high = values[1:]
  rank = _statistic(call, columns, values, known)
  return -abs(rank - (low + high) / 2)


def _rank_agreement(*values):
  pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
  return sum(0.5 + 0.5 * np.sign(a - b) for a, b in pairs) / len(pairs)


def _rank_correlation(call: Call, columns, values, known):
  from scipy import stats  # as long to load as the rest together

  ranks = stats.rankdata(np.stack(np.broadcast_arrays(*values)), axis=0)
  errors = stats.rankdata(call.errors)
  ranks, errors = ranks - ranks.mean(0), errors - errors.mean()
  scale = np.sqrt((ranks**2).sum(0) * (errors**2).sum())
  total = errors @ ranks
  return np.divide(total, scale, out=np.zeros_like(total), where=scale > 0)


def _is_no_range(arguments: Sequence[Node], _, least=-math.inf, most=math.inf):
  """Whether the last two are numbers, and none between them."""
  low, high = arguments[-2:]
  if not (isinstance(low, Number) and isinstance(high, Number)):
    return False
  return not least <= low.number < high.number <= most


def _random(call: Call, columns: Columns, values, known: Known):
  # 24 bits fill a float32 and never round up to 1
  drawn = noise.uniform(columns["row_id"], known.seed, stream=0)
  return np.floor(drawn * 2**24) / 2**24


FUNCTIONS = {
  "+": _plain("a + b", 2, 2, lambda a, b: a + b),
  "-": _plain("a - b", 2, 2, lambda a, b: a - b),
  "*": _plain("a * b", 2, 2, lambda a, b: a * b),
  "/": _plain("a / b", 2, 2, lambda a, b: np.divide(a, b)),
  "negative": _plain("-a", 1, 1, lambda a: -a),
  "log": _plain("log(a), natural", 1, 1, lambda a: np.log(a)),
  "exp": _plain("exp(a)", 1, 1, lambda a: np.exp(a)),
  "abs": _plain("abs(a)", 1, 1, lambda a: abs(a)),
  "min": _plain(
    "min(a, b, …)", 2, math.inf, lambda *a: functools.reduce(np.minimum, a)
  ),
  "max": _plain(
    "max(a, b, …)", 2, math.inf, lambda *a: functools.reduce(np.maximum, a)
  ),
  "clip": dataclasses.replace(
    _plain("clip(a, low, high)", 3, 3, lambda *a: np.clip(*a)),
    refuses=_is_no_range,
  ),
  "z": Function(
    _statistic,
    "z(a), z(a, by=domain): standard deviations from the mean over D",
    most=1,
    statistic=lambda *_: statistics.Standardized(),
    has_groups=True,
  ),
  "rank": Function(
    _statistic,
    "rank(a): the share of D's rows that are lower, ties half",
    most=1,
    statistic=lambda folder, rows: statistics.Ranks(folder, rows),
  ),
  "band": Function(
    _band,
    "band(a, low, high): the nearer rank(a) is to the middle of low and high, "
    "shares in 0 to 1, the higher",
    least=3,
    most=3,
    statistic=lambda folder, rows: statistics.Ranks(folder, rows),
    constants=2,
    refuses=functools.partial(_is_no_range, least=0, most=1),
  ),
  "rank_agreement": dataclasses.replace(
    _plain(
      "rank_agreement(worst, …, best): the share of pairs of these models that "
      "the row ranks so",
      2,
      math.inf,
      _rank_agreement,
    ),
    refuses=lambda models, _: len(set(models)) < len(models),
  ),
  "rank_correlation": Function(
    _rank_correlation,
    "rank_correlation(NAME=error, …): Spearman's, over models, of a row's "
    "Σ NLL and a benchmark's error",
    least=3,
    refuses=lambda _, errors: len(set(errors)) == 1,
  ),
  "random": Function(_random, "random(): in [0, 1), by seed and row", 0, 0),
}
