"""One self-contained HTML page of sections, tables and pictures."""

import dataclasses
from collections.abc import Sequence

from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.manifest import code_version
from miniplm_jax.report.table import Table


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
