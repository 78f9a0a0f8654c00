"""What the analyses have in common."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from miniplm_jax.report.inventory import Inventory
from miniplm_jax.report.page import Section

Figures = Mapping[str, Any]


class NoInputs(Exception):  # noqa: N818
  """The workdir lacks what an analysis reads; says what."""


@dataclasses.dataclass(frozen=True)
class Analysis:
  """A question to all runs of a workdir, and how it is answered."""

  title: str
  definition: str  # what is measured, and what it means, in words
  # Figures that can stand in JSON; raises NoInputs if there is nothing to read.
  measure: Callable[[Inventory], Figures]
  # Table, notes and pictures of such figures.
  render: Callable[[Figures], Section]

  def section(self, figures: Figures) -> Section:
    """Its part of a report."""
    return dataclasses.replace(
      self.render(figures), title=self.title, text=[self.definition]
    )
