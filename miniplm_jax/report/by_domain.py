"""What a selection keeps of each domain, beside what that did to the loss.

N held-out rows, paired: both students were measured on each.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from miniplm_jax.core import groups
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.evaluation import heldout
from miniplm_jax.report.inventory import Student
from miniplm_jax.report.page import Section, Table
from miniplm_jax.report.selection_summary import Group, Summary
from miniplm_jax.report.selection_tables import share_kept

_NORMAL = 1.96  # standard errors on either side: 95 %


@dataclasses.dataclass(frozen=True)
class Difference:
  """A held-out loss less that of a baseline, in nats, with its 95 %."""

  name: str
  baseline: str
  mean: float
  low: float
  high: float
  rows: int  # held out
  by_seed: Sequence[float] = ()  # () is of one
  at_random: bool = False  # the baseline takes its rows so
  over: str = "one seed"
  more: str = ""  # what else is said of it

  @property
  def shown(self) -> int:
    """−1 is better, 1 is worse, 0 is that no difference is shown."""
    return int(self.low > 0) - int(self.high < 0)

  @staticmethod
  def way(nats: float, unit: str = "") -> str:
    """A difference without a sign."""
    size = f"{abs(nats):.4f} {unit}".strip()
    return f"{size} {'lower' if nats < 0 else 'higher'}"

  def __str__(self) -> str:
    none = "is not shown to differ from"
    words = "is ahead of", none, "is behind"  # of one seed, which proves little
    if len(self.by_seed) > 1:
      words = "is shown to be better than", none, "is shown to be worse than"
    is_unsaid = self.at_random and self.baseline != "random"
    return (
      f"{self.name} {words[self.shown + 1]} {self.baseline}"
      f"{' (rows at random)' * is_unsaid}: its held-out loss is "
      f"{self.way(self.mean, 'nats')} (95 %: {self.way(self.low)} to "
      f"{self.way(self.high)}, over {self.over} and {self.rows:,} held-out "
      f"rows){self.more}"
    )


@dataclasses.dataclass(frozen=True)
class Paired:
  """Losses of one student less those of another, in nats per token."""

  methods: tuple[str, str]  # that of the first, and of the other
  loss_N: np.ndarray  # of the first, float64: mean over a row's tokens
  delta_N: np.ndarray  # float64
  domain_N: np.ndarray  # names
  counts_N: np.ndarray  # bool, whether the row counts in the total
  at_random: bool = True  # the other takes its rows so

  @classmethod
  def of(cls, students: Mapping[str, Student], corpus: Corpus) -> Self | None:
    """That of the first student and of random rows, or else of the second.

    None if there is one alone, or losses of rows were not kept, or are of other
    tokens or rows, or fewer than two rows count.
    """
    main, *others = students
    random = [name for name in others if students[name].is_baseline]
    both = main, *(random or others or [main])[:1]
    measured = [students[name].evaluation for name in both]
    rows = list(map(heldout.row_means, measured))
    tokenizers = {m.tokenizer for m in measured}
    if not others or None in rows or tokenizers != {corpus.manifest.tokenizer}:
      return None
    (ids, mine), (ids_of_other, theirs) = rows
    if not np.array_equal(ids, ids_of_other):
      return None
    domain = corpus.domains(ids)
    ignored = measured[0].settings.get("ignore_domains", ())
    counts = ~np.isin(domain, list(ignored))
    if counts.sum() < 2:
      return None
    return cls(both, mine, mine - theirs, domain, counts, bool(random))

  @property
  def difference(self) -> Difference:
    """Over all rows that count."""
    delta = self.delta_N[self.counts_N]
    mean, reach = float(delta.mean()), _NORMAL * _error(delta)
    ends = mean - reach, mean + reach
    rows, at_random = len(delta), self.at_random
    return Difference(*self.methods, mean, *ends, rows, at_random=at_random)

  @property
  def decides(self) -> tuple[str, float]:
    """The domain that makes the most of the difference, and what it makes."""
    delta, domain = self.delta_N[self.counts_N], self.domain_N[self.counts_N]
    parts = {
      d: delta[domain == d].sum() / len(delta) for d in np.unique(domain)
    }
    name = max(parts, key=lambda d: parts[d] * np.sign(delta.mean()))
    return name, float(parts[name])

  def sentence(self) -> str:
    """The difference with its interval, and the domain that decides."""
    way, (name, part) = Difference.way, self.decides
    by = f", most by {name}, {way(part)}"
    several = len(set(self.domain_N[self.counts_N])) > 1
    others = self.domain_N[~self.counts_N]
    means = {d: self.delta_N[self.domain_N == d].mean() for d in set(others)}
    listed = ", ".join(f"{d} {way(means[d])}" for d in sorted(means))
    not_counted = f" Not counted: {listed}." * bool(listed)
    return f"{self.difference}{by * several}.{not_counted}"

  def section(self, summary: Summary) -> Section:
    """A line for each domain, of all last."""
    of_d, total = {g.name: g for g in summary.domains}, summary.total
    out = {*self.domain_N[~self.counts_N]}

    def line(name: str, of: Group | None, rows_N: np.ndarray) -> list[Any]:
      delta, loss, change = self.delta_N[rows_N], None, None
      if len(delta):
        loss = self.loss_N[rows_N].mean()
        change = f"{delta.mean():+.4f} ± {_error(delta):.4f}"
      kept = (
        [of.rows, of.kept_rows, share_kept(of, total)] if of else [None] * 3
      )
      return [name, *kept, len(delta), loss, change]

    kept = {name: g.share for name, g in of_d.items()}
    names = sorted({*kept, *self.domain_N}, key=lambda d: (-kept.get(d, 0), d))
    lines = [
      line(
        f"({groups.key(d)})" if d in out else groups.key(d),
        of_d.get(d),
        self.domain_N == d,
      )
      for d in names
    ]
    lines.append(line(groups.ALL, total, self.counts_N))
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
      table=Table(
        (
          "domain",
          ("rows of D", ","),
          ("kept", ","),
          ("share kept", ".1%"),
          ("held-out rows", ","),
          (f"loss of {main}", ".4f"),
          (f"less {other}", ">"),
        ),
        lines,
        has_total=True,
      ),
    )


def _error(values: np.ndarray) -> float:
  """The standard error of a mean; NaN of one value."""
  n = len(values)
  return float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
