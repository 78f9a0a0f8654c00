"""What share of each domain do the selections of a workdir keep?"""

from collections.abc import Mapping
from typing import Any

from miniplm_jax.core.groups import ALL, with_total
from miniplm_jax.report.analyses.base import Analysis, NoInputs
from miniplm_jax.report.inventory import Inventory
from miniplm_jax.report.page import Section, Table

_MOST = 20  # domains of the table, the largest


def measure(workdir: Inventory) -> dict[str, Any]:
  """Measures each selection of the workdir.

  Raises:
    NoInputs: there is none.
  """
  if not workdir.selections:
    raise NoInputs("there is no selection: run --stages=select")
  return {
    "selections": {
      name: with_total(
        shares(selection.counts["kept"], selection.counts["rows"]),
        {
          domain: shares(n["kept"], n["rows"])
          for domain, n in selection.counts["domains"].items()
        },
      )
      for name, selection in workdir.selections.items()
    }
  }


def shares(kept: int, rows: int) -> dict[str, float]:
  """Rows of D, those that were kept, and their share."""
  return {"rows": rows, "kept": kept, "share": kept / rows if rows else 0.0}


def render(figures: Mapping[str, Any]) -> Section:
  """The table."""
  selections = figures["selections"]
  # Selections of one corpus have the same domains.
  rows_of = {d: n["rows"] for d, n in next(iter(selections.values())).items()}
  domains = sorted(rows_of, key=lambda d: (d != ALL, -rows_of[d], d))
  rest, domains = len(domains) - 1 - _MOST, domains[: _MOST + 1]
  values = [[s[d]["share"] for s in selections.values()] for d in domains]
  smaller = f"The {rest} smaller domains are in domains.json."
  return Section(
    table=Table(
      ("domain", ("rows of D", ","), *((name, ".1%") for name in selections)),
      [(d, rows_of[d], *line) for d, line in zip(domains, values)],
    ),
    notes=[smaller] if rest > 0 else [],
  )


ANALYSIS = Analysis(
  "Kept share by domain",
  "Of each domain's rows of D, the share that a selection keeps; beside it the "
  "share of all rows that it keeps.",
  measure,
  render,
)
