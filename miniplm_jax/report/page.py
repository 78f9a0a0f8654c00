"""One self-contained HTML page of sections, tables and pictures."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.manifest import code_version

# Color-blind safe (Okabe and Ito), in this order everywhere.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Of many lines in one picture: colors, then the same with another dash.
LINES = tuple(
  {"color": color, "linestyle": dash}
  for dash in ("-", "--", ":")
  for color in COLORS
)
GRAY = "#8C949E"
PALE = "#C9CFD6"
INK = "#1B1F24"


def markdown_table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
  """A table for a Markdown file, without a line end after it."""
  lines = [header, ["---"] * len(header), *rows]
  cells = [[_markdown(cell) for cell in line] for line in lines]
  return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _markdown(cell: Any) -> str:
  """A cell that cannot end its column, nor its line."""
  return " ".join(str(cell).split()).replace("|", "\\|")


@dataclasses.dataclass(frozen=True)
class Bar:
  """A cell with a small bar before its text.

  Attributes:
    share: length of the bar, 0 to 1.
    text: what stands behind it.
    mark: a line on the bar, 0 to 1, or None.
  """

  share: float
  text: str
  mark: float | None = None

  def __str__(self) -> str:
    return self.text


@dataclasses.dataclass(frozen=True)
class Tile:
  """A figure that is worth large print, with what it is and a remark."""

  label: str
  value: str
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Fold:
  """Texts under a title that opens and closes.

  Attributes:
    title: of the fold.
    texts: (caption, text) shown as they are, for samples of a corpus.
    note: smaller, behind the title.
    open: whether it is open at first.
  """

  title: str
  texts: Sequence[tuple[str, str]]
  note: str = ""
  open: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading with what stands under it, in this order.

  Attributes:
    title: the heading.
    text: paragraphs; plain text.
    tiles: headline figures.
    table: header and rows, or None; a cell is a `Bar` or anything with a str.
    left: so many columns hold words, the others numbers.
    total: the table's last row adds the others up.
    notes: paragraphs in small print.
    pictures: (inline PNG data, caption).
    folds: texts that open and close.
  """

  title: str
  text: Sequence[str] = ()
  tiles: Sequence[Tile] = ()
  table: tuple[Sequence[Any], Sequence[Sequence[Any]]] | None = None
  left: int = 1
  total: bool = False
  notes: Sequence[str] = ()
  pictures: Sequence[tuple[str, str]] = ()
  folds: Sequence[Fold] = ()


def write(path: epath.Path, title: str, lead: str, sections: Sequence[Section]):
  """Writes the page, whole or not at all; it needs no other file."""
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
    sections=sections,
    footer=f"Made by miniplm_jax {code_version()}.",
  )
  files.write_bytes(path, text.encode())


def axes(title: str, x: str, y: str, width: float = 5.6, height: float = 3.6):
  """A figure of its own, without pyplot's global state.

  Returns:
    (figure, axes).
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  ax = figure.add_subplot()
  ax.set_title(title, fontsize=10, loc="left", fontweight="bold", color=INK)
  ax.set_xlabel(x, fontsize=9, color=INK)
  ax.set_ylabel(y, fontsize=9, color=INK)
  ax.tick_params(labelsize=8, color=GRAY, labelcolor=INK)
  ax.spines[["top", "right"]].set_visible(False)
  ax.spines[["left", "bottom"]].set_color(GRAY)
  ax.grid(color="#E6EAEE", lw=0.7)
  ax.set_axisbelow(True)
  return figure, ax


def heat(ax, values, rows: Sequence[str], columns: Sequence[str], form: str):
  """A map of numbers, each written into its cell.

  Args:
    ax: from `axes`.
    values: float [rows, columns], 0 to 1 from pale to dark; NaN stays empty.
    rows: names of the lines.
    columns: names of the columns.
    form: of a number, such as "{:.2f}".
  """
  from matplotlib.colors import LinearSegmentedColormap

  shades = LinearSegmentedColormap.from_list("", ["#FFFFFF", COLORS[0]])
  ax.imshow(values, cmap=shades, vmin=0, vmax=1, aspect="auto")
  for i, line in enumerate(values):
    for j, value in enumerate(line):
      if value == value:
        color = "white" if value > 0.6 else INK
        place = {"ha": "center", "va": "center", "fontsize": 8}
        ax.text(j, i, form.format(value), color=color, **place)
  ax.set_yticks(range(len(rows)), [plain(name) for name in rows])
  names = [plain(name) for name in columns]
  ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
  ax.grid(visible=False)


def plain(text: str) -> str:
  """A name from data as matplotlib shows it as it is: $ begins no maths."""
  return text.replace("$", r"\$")


def legend(ax, **options):
  """A legend that can be read over the drawing; a long one stands beside it."""
  box = {"facecolor": "white", "edgecolor": "none", "framealpha": 0.85}
  if len(ax.get_legend_handles_labels()[1]) > len(COLORS):
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    options = beside | options
  ax.legend(fontsize=8, **box, **options)


def picture(figure) -> str:
  """A figure as inline PNG data; the same figure gives the same bytes."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
  return base64.b64encode(buffer.getvalue()).decode()
