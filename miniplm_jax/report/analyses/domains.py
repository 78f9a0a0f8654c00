"""What share of each domain do the selections of a workdir keep?"""

from collections.abc import Mapping
from typing import Any

from miniplm_jax.core.groups import ALL, with_total
from miniplm_jax.report import page
from miniplm_jax.report.analyses.inventory import Inventory, Skipped

TITLE = "Kept share by domain"
DEFINITION = (
  "Of each domain's rows of D, the share that a selection keeps; beside it the "
  "share of all rows that it keeps."
)
_MOST = 20  # domains of the picture and the table, the largest


def measure(found: Inventory) -> dict[str, Any]:
  """Of each selection of the workdir.

  Raises:
    Skipped: there is none.
  """
  if not found.selections:
    raise Skipped("there is no selection: run --stages=select")
  return {
    "selections": {
      name: with_total(
        shares(made.counts["kept"], made.counts["rows"]),
        {
          domain: shares(n["kept"], n["rows"])
          for domain, n in made.counts["domains"].items()
        },
      )
      for name, made in found.selections.items()
    }
  }


def shares(kept: int, rows: int) -> dict[str, float]:
  """Rows of D, those that were kept, and their share."""
  return {"rows": rows, "kept": kept, "share": kept / rows if rows else 0.0}


def section(found: Mapping[str, Any]) -> page.Section:
  """The table, and the same as a map."""
  selections = found["selections"]
  # Selections of one corpus have the same domains.
  rows_of = {d: n["rows"] for d, n in next(iter(selections.values())).items()}
  domains = sorted(rows_of, key=lambda d: (d != ALL, -rows_of[d], d))
  rest, domains = len(domains) - 1 - _MOST, domains[: _MOST + 1]
  values = [[s[d]["share"] for s in selections.values()] for d in domains]
  rows = [
    [domain, f"{rows_of[domain]:,}", *(f"{v:.1%}" for v in line)]
    for domain, line in zip(domains, values)
  ]
  figure, ax = page.axes(
    "Kept share",
    "",
    "",
    2.6 + 0.9 * len(selections),
    1.6 + 0.32 * len(domains),
  )
  page.heat(ax, values, domains, list(selections), "{:.0%}")
  return page.Section(
    TITLE,
    [DEFINITION],
    table=(["domain", "rows of D", *selections], rows),
    notes=[f"The {rest} smaller domains are in domains.json."]
    if rest > 0
    else [],
    pictures=[(page.picture(figure), "Share of a domain's rows that is kept.")],
  )
