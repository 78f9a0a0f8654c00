"""Formulas over score tables, such as `reference - teacher`.

A name is a score table: the mean NLL of a row, in nats per token. Besides:

  NAME.sum, NAME.tokens   Σ NLL in nats, and over how many tokens it is
  table("a-name")         a table whose name is no identifier, likewise .sum
  tokens, bytes           ids of the row, UTF-8 bytes of its text
  field("name")           a number of the corpus's documents, or of another file
  + - * / ( ) 0.5         and the functions of `FUNCTIONS`

The text is parsed as an expression and interpreted here; none of it is run as
Python. Rows stream by, part by part: what must know all rows before it can say
anything of one (`z`, `rank`, `band`) has a pass over D of its own.
"""

import ast
import dataclasses
import functools
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epy

from miniplm_jax.core.errors import UserError
from miniplm_jax.criteria.nodes import (
  FUNCTIONS,
  Call,
  Column,
  Columns,
  Field,
  Function,
  Known,
  Node,
  Number,
  OfTable,
)

with epy.lazy_imports():  # the config parses formulas and reads no rows
  import numpy as np

_MOST = 4096  # characters; Python's parser nests about 200 parentheses
_WHERE = "config.select.definition"
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COLUMNS = {"tokens": "corpus_tokens", "bytes": "n_bytes"}


@dataclasses.dataclass(frozen=True)
class Formula:
  """A criterion that was parsed; see `parse`."""

  text: str  # with the layout that all who mean it share
  root: Node

  @functools.cached_property
  def tables(self) -> tuple[str, ...]:
    """Names of the score tables that it reads.

    Teacher and reference come first, as in the messages and manifests of all
    versions; then the others in the order of the text.
    """
    names = [n.table for n in self.root.walk() if isinstance(n, OfTable)]
    first = [name for name in ("teacher", "reference") if name in names]
    return tuple(dict.fromkeys(first + names))

  @functools.cached_property
  def columns(self) -> tuple[str, ...]:
    """Columns that it reads beside them."""
    nodes = (n for n in self.root.walk() if isinstance(n, Column))
    return tuple(dict.fromkeys(n.column for n in nodes))

  @functools.cached_property
  def fields(self) -> tuple[str, ...]:
    """Names of the fields that it reads."""
    nodes = (n for n in self.root.walk() if isinstance(n, Field))
    return tuple(dict.fromkeys(n.name for n in nodes))

  @property
  def is_random(self) -> bool:
    """Whether the seed counts."""
    return any(map(_is_random, self.root.walk()))


class Evaluator:
  """A formula over the rows of D."""

  def __init__(self, formula: Formula, seed: int):
    self._root, self._seed = formula.root, seed
    nodes = dict.fromkeys(formula.root.walk())
    # By how many passes each needs before its own.
    self._depth: dict[Node, int] = {}
    for node in nodes:
      below = [self._depth[n] for n in node.arguments]
      own = isinstance(node, Call) and node.statistic is not None
      self._depth[node] = max(below, default=0) + own
    self._known = Known(seed)
    self._values = None  # float32 [rows of D], once a pass has found them

  def over(
    self, rows: Callable[[], Iterable[Columns]], n: int
  ) -> Iterator[Columns]:
    """One pass over D.

    What knows all rows is found out before the first one, a pass a level; its
    values are kept in a file for the passes that follow. Files are temporary, 4
    bytes a row, and as many for each `rank` until the first pass ends.

    Args:
      rows: gives all of D, n rows, part by part, each time.

    Yields:
      Each part, and its score, float32; NaN where there is no finite value.
    """
    if not self._depth[self._root]:
      yield from ({**columns, "score": self(columns)} for columns in rows())
      return
    values, is_first, first = self._values, self._values is None, 0
    if is_first:
      # What is mapped stays, without a name, as long as somebody has it.
      with tempfile.TemporaryDirectory(prefix="miniplm_jax_") as folder:
        folder = pathlib.Path(folder)
        self._find_out(rows, n, folder)
        values = np.memmap(folder / "values", np.float32, "w+", shape=max(n, 1))
    for columns in rows():
      end = first + len(columns["row_id"])
      if is_first:
        values[first:end] = self(columns)
      yield {**columns, "score": np.array(values[first:end])}
      first = end
    self._values, self._known = values, Known(self._seed)

  def _find_out(self, rows, n: int, folder: pathlib.Path):
    """What must be known of all rows, a pass a level."""
    known = {}
    for depth in range(1, self._depth[self._root] + 1):
      level = {
        node: node.statistic(folder, n)
        for node, its in self._depth.items()
        if its == depth and isinstance(node, Call) and node.statistic
      }
      for columns in rows():
        for node, statistic in level.items():
          group = columns["domain"] if node.by else None
          statistic.add(self._value(node.arguments[0], columns), group)
      for statistic in level.values():
        statistic.finish()
      known |= level
      self._known = Known(self._seed, known)

  def __call__(self, columns: Columns) -> Any:
    """float32 [n], of a formula that needs to know these rows alone."""
    with np.errstate(all="ignore"):
      value = np.asarray(self._value(self._root, columns)).astype(np.float32)
    return np.where(np.isfinite(value), value, np.float32(np.nan))

  def _value(self, node: Node, columns: Columns) -> Any:
    with np.errstate(all="ignore"):  # what is not finite is met by the caller
      values = [self._value(n, columns) for n in node.arguments]
      return node.value(columns, values, self._known)


def parse(text: str) -> Formula:
  """Reads a formula.

  Raises:
    UserError: it is no expression, or there is no such name or function; says
      where, and what there is.
  """
  try:
    if len(text) > _MOST:
      raise _RefusedError(f"it has {len(text):,} characters; {_MOST:,} may be")
    tree = ast.parse(text.strip(), mode="eval").body
    formula = Formula(ast.unparse(tree), _node(tree))
  except _RefusedError as e:
    raise UserError(f"{e}", f"{_WHERE}={text[:99]}", e.hint) from None
  except (
    SyntaxError,
    ValueError,
    RecursionError,
    MemoryError,
    OverflowError,
  ) as e:
    what = f"it is no formula: {getattr(e, 'msg', e)}"
    raise UserError(what, f"{_WHERE}={text[:99]}", _HINT) from None
  if not _is_of_rows(formula.root):
    what = "it is the same for all rows"
    raise UserError(what, f"{_WHERE}={text[:99]}", _HINT)
  return formula


def renamed(text: str, table: str, new: str) -> str:
  """The formula with a table under a new name."""

  class Renaming(ast.NodeTransformer):
    def visit_Name(self, node):
      return _table(new) if node.id == table else node

    def visit_Call(self, node):
      is_it = ast.unparse(node) == ast.unparse(_table(table))
      return _table(new) if is_it else self.generic_visit(node)

  tree = Renaming().visit(ast.parse(text.strip(), mode="eval"))
  return ast.unparse(tree)


def _table(name: str) -> ast.expr:
  return ast.Call(ast.Name("table"), [ast.Constant(name)], [])


_HINT = "write one such as reference - teacher; docs/selection.md has more"


class _RefusedError(Exception):
  """A part of a formula that cannot be; with what to do."""

  def __init__(self, what: str, hint: str = _HINT):
    super().__init__(what)
    self.hint = hint


def _node(tree: ast.expr) -> Node:
  """The node of a piece of Python's syntax."""
  match tree:
    case ast.Constant(value=float() | int() as number) if not isinstance(
      number, bool
    ):
      return Number(number=_finite(float(number)))
    case ast.UnaryOp(op=ast.UAdd(), operand=operand):
      return _node(operand)
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      operand = _node(operand)
      if isinstance(operand, Number):
        return Number(number=-operand.number)
      return Call((operand,), "negative")
    case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
      return Call((_node(left), _node(right)), _OPERATORS[type(op)])
    case ast.Name(id=name) if name in _COLUMNS:
      return Column(column=_COLUMNS[name])
    case ast.Attribute(value=value, attr="sum" | "tokens" as what):
      node = _node(value)
      if isinstance(node, OfTable) and node.what == "mean":
        return dataclasses.replace(node, what=what)
    case ast.Name(id=name) if name not in FUNCTIONS and name != "domain":
      return OfTable(table=name)
    case ast.Call(func=ast.Name(id=name)):
      return _call(name, tree)
  raise _RefusedError(f"{ast.unparse(tree)} cannot stand in a formula")


def _finite(number: float) -> float:
  if not math.isfinite(number):
    raise _RefusedError(f"{number} is too large for a number")
  return number


def _call(name: str, tree: ast.Call) -> Node:
  if name in ("table", "field"):
    match tree:
      case ast.Call(args=[ast.Constant(value=str() as text)], keywords=[]):
        return OfTable(table=text) if name == "table" else Field(name=text)
    raise _RefusedError(f'write {name}("its name")')
  function = FUNCTIONS.get(name) if name.isidentifier() else None
  if function is None or name == "negative":
    names = ", ".join(n for n in FUNCTIONS if n[0].isalpha())
    hint = f"there are {names.replace('negative, ', '')}, table and field"
    raise _RefusedError(f"there is no function {name}", hint)
  arguments = tuple(map(_node, tree.args))
  options = {keyword.arg: keyword.value for keyword in tree.keywords}
  if len(options) < len(tree.keywords):
    raise _RefusedError(f"{name} has a name twice: {function.usage}")
  errors, by = (), ""
  if name == "rank_correlation" and not arguments and None not in options:
    arguments = tuple(OfTable(table=table, what="sum") for table in options)
    errors = tuple(_constant(value, function) for value in options.values())
  elif options:
    by = options.pop("by", None)
    is_domain = isinstance(by, ast.Name) and by.id == "domain"
    if options or not (function.has_groups and is_domain):
      raise _RefusedError(f"it is {function.usage}")
    by = "domain"
  elif name == "rank_correlation":
    raise _RefusedError(f"it is {function.usage}")
  if not function.least <= len(arguments) <= function.most:
    or_more = (
      f"{function.least} or more" if function.most > 9 else function.most
    )
    raise _RefusedError(
      f"{name} has {len(arguments)} arguments, not {or_more}: {function.usage}"
    )
  for value in tree.args[len(tree.args) - function.constants :]:
    _constant(value, function)
  if function.refuses and function.refuses(arguments, errors):
    raise _RefusedError(f"{ast.unparse(tree)} says nothing: {function.usage}")
  if function.statistic and not _is_of_rows(arguments[0]):
    raise _RefusedError(f"{ast.unparse(tree)} is the same for all rows")
  return Call(arguments, name, by, errors)


def _is_of_rows(node: Node) -> bool:
  """Whether it may differ from row to row."""
  parts = list(node.walk())
  has_columns = any(isinstance(n, OfTable | Column | Field) for n in parts)
  return has_columns or any(_is_random(n) for n in parts)


def _is_random(node: Node) -> bool:
  return isinstance(node, Call) and node.function == "random"


def _constant(tree: ast.expr, function: Function) -> float:
  node = _node(tree)
  if not isinstance(node, Number):
    raise _RefusedError(
      f"{ast.unparse(tree)} is no number: it is {function.usage}"
    )
  return node.number
