"""What a selection keeps of each domain, beside what that did to the loss.

N held-out rows, paired: both students were measured on each.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Self

import numpy as np

from miniplm_jax.core import groups
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.evaluation import heldout
from miniplm_jax.report.inventory import Student
from miniplm_jax.report.page import Section, Table
from miniplm_jax.report.selection_summary import Summary

_NORMAL = 1.96  # standard errors on either side: 95 %
_BASELINE = "pretrain"  # with which a method is compared, if it is there


@dataclasses.dataclass(frozen=True)
class Paired:
  """Losses of one student less those of another, in nats per token."""

  methods: tuple[str, str]  # that of the first, and of the other
  loss_N: np.ndarray  # of the first, float64: mean over a row's tokens
  delta_N: np.ndarray  # float64
  domain_N: np.ndarray  # names
  counts_N: np.ndarray  # bool, whether the row counts in the total

  @classmethod
  def of(cls, students: Mapping[str, Student], corpus: Corpus) -> Self | None:
    """That of the first student and of random rows, or else of the second.

    None if there is one alone, or losses of rows were not kept, or are of other
    tokens or rows.
    """
    main, *others = students
    both = main, _BASELINE if _BASELINE in others else (others or [main])[0]
    measured = [students[name].evaluation for name in both]
    rows = list(map(heldout.read_rows, measured))
    tokenizers = {m.tokenizer for m in measured}
    if not others or None in rows or tokenizers != {corpus.manifest.tokenizer}:
      return None
    if not np.array_equal(*(each["row_id"] for each in rows)):
      return None
    mine, theirs = (
      each["nll_sum"].astype(np.float64) / each["n_tokens"] for each in rows
    )
    domain = corpus.domains(rows[0]["row_id"])
    ignored = measured[0].settings.get("ignore_domains", ())
    counts = ~np.isin(domain, list(ignored))
    return cls(both, mine, mine - theirs, domain, counts)

  def sentence(self) -> str:
    """The difference with its interval, and the domain that decides."""
    delta, domain = self.delta_N[self.counts_N], self.domain_N[self.counts_N]
    mean, reach = delta.mean(), _NORMAL * _error(delta)
    names = np.unique(domain)
    parts = {d: delta[domain == d].sum() / len(delta) for d in names}
    name = max(parts, key=lambda d: parts[d] * np.sign(mean))
    decides = f", of which {parts[name]:+.4f} by {name}"
    main, other = self.methods
    other += " (rows at random)" * (other == _BASELINE)
    return (
      f"{main} less {other}: {mean:+.4f} nats{decides * (len(parts) > 1)}, "
      f"95 % {mean - reach:+.4f} to {mean + reach:+.4f} over {len(delta):,} "
      f"held-out rows, one seed{self._left_out()}."
    )

  def _left_out(self) -> str:
    """What counts in no mean, with its own."""
    others = self.domain_N[~self.counts_N]
    means = {d: self.delta_N[self.domain_N == d].mean() for d in set(others)}
    listed = ", ".join(f"{d} {means[d]:+.4f}" for d in sorted(means))
    return listed and f"; not counted: {listed}"

  def section(self, summary: Summary) -> Section:
    """A line for each domain, of all last."""
    kept = {g.name: g.share for g in summary.domains}
    names = sorted({*kept, *self.domain_N}, key=lambda d: (-kept.get(d, 0), d))
    out = {*self.domain_N[~self.counts_N]}
    lines = [
      (
        f"({groups.key(d)})" if d in out else groups.key(d),
        kept.get(d),
        self.domain_N == d,
      )
      for d in names
    ]
    lines.append((groups.ALL, summary.total.share, self.counts_N))

    def change(line) -> str | None:
      delta = self.delta_N[line[2]]
      if not len(delta):
        return None
      return f"{np.mean(delta):+.4f} ± {_error(delta):.4f}"

    def loss(line) -> float | None:
      return self.loss_N[line[2]].mean() if line[2].any() else None

    main, other = self.methods
    return Section(
      "By domain: what was kept, and what came of it",
      [
        f"The share of D's rows that {main} keeps, and its held-out loss less "
        f"that of {other}, paired by row: below 0 is better. Nats per token, "
        "mean over rows, ± one standard error over rows; of one seed."
        + " A domain in parentheses is in no mean."
        * (not self.counts_N.all())
      ],
      table=Table.of(
        lines,
        ("domain", "", lambda line: line[0]),
        ("share kept", ".1%", lambda line: line[1]),
        ("held-out rows", ",", lambda line: int(line[2].sum())),
        (f"loss of {main}", ".4f", loss),
        (f"less {other}", ">", change),
        has_total=True,
      ),
    )


def _error(values: np.ndarray) -> float:
  """The standard error of a mean; NaN of one value."""
  n = len(values)
  return float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
