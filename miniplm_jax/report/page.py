"""What reports are made of: sections, tables, pictures; and an HTML page.

There is one kind of table: for a page, for a Markdown file, for the terminal.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.manifest import code_version

# A title, and how the column's numbers are written (a format specification,
# ">" as they are). A title alone is a column of words.
Column = str | tuple[str, str]
UNKNOWN = "not known"


@dataclasses.dataclass(frozen=True)
class Bar:
  """A cell with a small bar before its text."""

  share: float  # length of the bar, 0 to 1
  text: str
  mark: float | None = None  # a line on the bar, 0 to 1

  def __str__(self) -> str:
    return self.text


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells under titles.

  A cell is a number, which its column says how to write; a text or a `Bar`,
  which stand as they are; or None, which is shown as a dash.
  """

  columns: Sequence[Column]
  rows: Sequence[Sequence[Any]]
  has_total: bool = False  # the last row adds the others up

  @classmethod
  def of(
    cls,
    items: Iterable[Any],
    *columns: tuple[str, str, Callable[[Any], Any]],
    has_total: bool = False,
  ) -> Self:
    """A row for each item; a column is a title, a form, and item → cell."""
    rows = [[cell(item) for *_, cell in columns] for item in items]
    return cls([column[:2] for column in columns], rows, has_total)

  @classmethod
  def of_texts(
    cls, titles: Sequence[str], rows: Sequence[Sequence[Any]], words: int = 1
  ) -> Self:
    """A table whose cells are texts; the first `words` columns hold words."""
    numbers = [(title, ">") for title in titles[words:]]
    return cls([*titles[:words], *numbers], rows)

  @property
  def _pairs(self) -> list[tuple[str, str]]:
    return [(c, "") if isinstance(c, str) else c for c in self.columns]

  @property
  def titles(self) -> list[str]:
    """What stands above the columns."""
    return [title for title, _ in self._pairs]

  @property
  def is_words(self) -> list[bool]:
    """Which columns hold words: they begin at the left, numbers end right."""
    return [not form for _, form in self._pairs]

  def cells(self) -> list[list[Any]]:
    """The rows, each cell a text or a `Bar`."""
    pairs = self._pairs
    return [
      [_shown(cell, form) for cell, (_, form) in zip(row, pairs, strict=True)]
      for row in self.rows
    ]

  def markdown(self) -> str:
    """For a Markdown file; no line end stands after it."""
    lines = [self.titles, ["---"] * len(self.columns), *self.cells()]
    return "\n".join(
      f"| {' | '.join(map(_markdown, line))} |" for line in lines
    )

  def text(self) -> str:
    """For a terminal, columns aligned."""
    columns = zip(self.titles, *(map(str, row) for row in self.cells()))
    aligned = []
    for column, words in zip(columns, self.is_words):
      width = max(map(len, column))
      side = "<" if words else ">"
      aligned.append([f"{cell:{side}{width}}" for cell in column])
    header, *lines = map("  ".join, zip(*aligned))
    return "\n".join([header, "─" * len(header), *lines])


def _shown(cell: Any, form: str) -> Any:
  if cell is None:
    return "–"
  if isinstance(cell, str | Bar):
    return cell
  return format(cell, form)


def _markdown(cell: Any) -> str:
  """A cell that cannot end its column, nor its line."""
  return " ".join(str(cell).split()).replace("|", "\\|")


def or_unknown(value: Any) -> Any:
  """The value, or that it is not known."""
  return UNKNOWN if value is None else value


@dataclasses.dataclass(frozen=True)
class Tile:
  """A figure that is worth large print, with what it is and a remark."""

  label: str
  value: str
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Fold:
  """Texts under a title that opens and closes."""

  title: str
  # (caption, text), shown as they are: samples of a corpus.
  texts: Sequence[tuple[str, str]]
  note: str = ""  # smaller, behind the title
  open: bool = False  # at first


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading with what stands under it, in this order."""

  title: str = ""
  text: Sequence[str] = ()  # paragraphs
  tiles: Sequence[Tile] = ()
  table: Table | None = None
  notes: Sequence[str] = ()  # paragraphs in small print
  pictures: Sequence[tuple[str, str]] = ()  # inline PNG data, caption
  folds: Sequence[Fold] = ()

  def markdown(self) -> str:
    """Its heading, paragraphs and table, for a Markdown file."""
    tables = [self.table.markdown()] if self.table else []
    return "\n\n".join([f"## {self.title}", *self.text, *tables])


def write(
  path: epath.Path,
  title: str,
  lead: Sequence[str],
  sections: Sequence[Section],
  doubts: Sequence[str] = (),
  todo: Sequence[str] = (),
):
  """Writes the page, whole or not at all; it needs no other file.

  Its lead are paragraphs, which doubts and a list of what to do next follow.
  """
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("miniplm_jax", "report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  template = environment.get_template("page.html")
  text = template.render(
    title=title,
    lead=lead,
    doubts=doubts,
    todo=todo,
    sections=sections,
    footer=f"Made by miniplm_jax {code_version()}.",
  )
  files.write_bytes(path, text.encode())
