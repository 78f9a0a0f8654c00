"""What a criterion ranks beside what it is meant to: domains, lengths, a model.

Looked at before anything is trained on its rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from miniplm_jax.criteria.statistics import Moments
from miniplm_jax.report.agreement import Agreement
from miniplm_jax.report.page import Bar, Section, Table
from miniplm_jax.report.selection_summary import Group, Summary, largest
from miniplm_jax.scoring import fidelity

# Of the variance, from which on a criterion mostly ranks domains.
_MOSTLY = 0.5


@dataclasses.dataclass(frozen=True)
class Audit:
  """What a criterion's ranking goes with, and what each domain loses by it."""

  definition: str
  # η²: the share of the variance of the values that lies between domains, over
  # all rows of D; and that of their ranks, which selections go by.
  between_domains: float
  between_domains_by_rank: float
  # Spearman's ρ of the value with tokens, the ids of a row, and with its mean
  # NLL under each model.
  correlations: Mapping[str, float]
  sampled: int  # evenly spaced rows that ranks are of
  share: float  # of D that is kept
  domains: Sequence[Group]  # most tokens first
  overlaps: Sequence[Agreement] = ()  # with other selections

  @classmethod
  def of(
    cls, definition: str, summary: Summary, overlaps: Sequence[Agreement] = ()
  ) -> Self:
    """From a selection's figures, see `selection_summary.summarize`."""
    sample = summary.sample
    known = {"tokens": sample.tokens} | dict(sample.means)
    ranks = fidelity.ranks(sample.score)
    _, domain = np.unique(sample.domain.astype(str), return_inverse=True)
    moments = Moments()
    moments.add(domain, ranks.astype(np.float32))  # exact of so few
    with_rank = {
      name: fidelity.pearson(ranks, fidelity.ranks(values))
      for name, values in known.items()
    }
    return cls(
      definition,
      summary.between_domains,
      moments.between(),
      with_rank,
      len(ranks),
      summary.total.share,
      summary.domains,
      overlaps,
    )

  @property
  def warning(self) -> str:
    """One line, if the criterion mostly ranks domains; else ""."""
    if self.between_domains_by_rank < _MOSTLY:
      return ""
    least, *_, most = sorted(self.domains, key=lambda g: g.share)
    return (
      f"{self.definition} mostly ranks domains: "
      f"{self.between_domains_by_rank:.0%} of the variance of its ranks lies "
      f"between them; of {least.name} {least.share:.1%} is kept, of "
      f"{most.name} {most.share:.1%}. z(…, by=domain) and select.quotas rank "
      "within domains"
    )

  def figures(self) -> dict[str, Any]:
    """What report.json has of it."""
    names = "between_domains", "between_domains_by_rank", "sampled"
    return {name: getattr(self, name) for name in names} | {
      "correlations": dict(self.correlations)
    }

  def tables(self) -> list[Table]:
    """What the ranking goes with; then what is kept of the largest domains."""
    rows = [
      ("η², share of the variance between domains", self.between_domains),
      ("η² of the ranks", self.between_domains_by_rank),
      *(
        (f"ρ, rank correlation with {name}", value)
        for name, value in self.correlations.items()
      ),
      *(
        (f"rows shared with {one.name}, Jaccard", one.total.jaccard)
        for one in self.overlaps
      ),
    ]
    shown = Table(
      ("audit", ("value", ">")),
      [(name, Bar(abs(value), f"{value:+.3f}")) for name, value in rows],
    )
    domains = Table.of(
      largest(self.domains),
      ("domain", "", lambda g: g.name),
      ("rows of D", ",", lambda g: g.rows),
      ("kept", ".1%", lambda g: g.share),
      ("beside the share of all", "+.1%", lambda g: g.share - self.share),
    )
    return [shown, domains]

  def section(self) -> Section:
    """For the report of the selection, which has the domains elsewhere."""
    words = (
      "What the criterion goes with. η² is over all rows of D; the others are "
      f"of {self.sampled:,} evenly spaced rows that have a score."
    )
    notes = [f"{self.warning}."] if self.warning else []
    return Section("Audit", [words], table=self.tables()[0], notes=notes)

  def __str__(self) -> str:
    texts = [table.text() for table in self.tables()]
    return "\n\n".join([*texts, self.warning]).strip()
