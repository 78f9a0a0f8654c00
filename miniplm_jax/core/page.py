"""One self-contained HTML page of sections, tables and pictures."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import files

# Colour-blind safe (Okabe and Ito), in this order everywhere.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#888888"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table for a Markdown file, without a line end after it."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclasses.dataclass
class Section:
  """A heading with what stands under it.

  Attributes:
    title: the heading.
    text: paragraphs; plain text.
    table: header and rows, or None.
    pictures: (inline PNG data, caption).
    texts: (caption, text) shown as they are, for samples of a corpus.
  """

  title: str
  text: Sequence[str] = ()
  table: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None
  pictures: Sequence[tuple[str, str]] = ()
  texts: Sequence[tuple[str, str]] = ()


def write(path: epath.Path, title: str, lead: str, sections: Sequence[Section]):
  """Writes the page, whole or not at all."""
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("miniplm_jax", "core"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  template = environment.get_template("page.html")
  text = template.render(title=title, lead=lead, sections=sections)
  files.write_bytes(path, text.encode())


def axes(title: str, x: str, y: str, width: float = 5.6, height: float = 3.6):
  """A figure of its own, without pyplot's global state.

  Returns:
    (figure, axes).
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  ax = figure.add_subplot()
  ax.set_title(title, fontsize=10)
  ax.set_xlabel(x, fontsize=9)
  ax.set_ylabel(y, fontsize=9)
  ax.tick_params(labelsize=8)
  ax.spines[["top", "right"]].set_visible(False)
  return figure, ax


def picture(figure) -> str:
  """A figure as inline PNG data; the same figure gives the same bytes."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
  return base64.b64encode(buffer.getvalue()).decode()
