"""What a selection keeps of each domain, beside what that did to the loss.

N held-out rows, paired: both students were measured on each.
"""

import dataclasses
import math
from collections.abc import Mapping

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
  def of(cls, students: Mapping[str, Student], corpus: Corpus):
    """That of the first student and its baseline; None if rows differ.

    The baseline is random rows, or the second student if there are none.
    """
    main, *others = students
    if not others:
      return None
    other = _BASELINE if _BASELINE in others else others[0]
    measured = [students[name].evaluation for name in (main, other)]
    both = list(map(heldout.read_rows, measured))
    if None in both or {m.tokenizer for m in measured} != {
      corpus.manifest.tokenizer
    }:
      return None
    ids = both[0]["row_id"]
    if not np.array_equal(ids, both[1]["row_id"]):
      return None
    mine, theirs = (
      rows["nll_sum"].astype(np.float64) / rows["n_tokens"] for rows in both
    )
    domain = corpus.domains(ids)
    ignored = measured[0].settings.get("ignore_domains", ())
    counts = ~np.isin(domain, list(ignored))
    return cls((main, other), mine, mine - theirs, domain, counts)

  def sentence(self) -> str:
    """The difference with its interval, and the domain that decides."""
    main, other = self.methods
    delta = self.delta_N[self.counts_N]
    mean, error = delta.mean(), _error(delta)
    low, high = mean - _NORMAL * error, mean + _NORMAL * error
    text = (
      f"{main} less {other}: {mean:+.4f} nats, 95 % {low:+.4f} to {high:+.4f} "
      f"over {len(delta):,} held-out rows"
    )
    domain = self.domain_N[self.counts_N]
    parts = {
      d: delta[domain == d].sum() / len(delta) for d in np.unique(domain)
    }
    if len(parts) == 1:
      return f"{text}."
    name = max(parts, key=lambda d: parts[d] * np.sign(mean))
    return f"{text}; {name} decides, {parts[name]:+.4f} of it."

  def section(self, summary: Summary) -> Section:
    """A line for each domain, of all last."""
    main, other = self.methods
    kept = {g.name: g.share for g in summary.domains}

    def line(name: str, share: float | None, rows: np.ndarray):
      delta, n = self.delta_N[rows], int(rows.sum())
      if not n:
        return [name, share, n, None, None]
      shown = f"{delta.mean():+.4f} ± {_error(delta):.4f}"
      return [name, share, n, self.loss_N[rows].mean(), shown]

    lines = [
      line(groups.key(d), kept.get(d), self.domain_N == d)
      for d in sorted({*kept, *self.domain_N.tolist()})
    ]
    lines.sort(key=lambda each: -(each[1] or 0))
    total = line(groups.ALL, summary.total.share, self.counts_N)
    return Section(
      "By domain: what was kept, and what came of it",
      [
        f"The share of D's rows that {main} keeps, and its held-out loss less "
        f"that of {other}, paired by row: below 0 is better. Nats per token, "
        "mean over rows, ± one standard error over rows; of one seed."
      ],
      table=Table(
        (
          "domain",
          ("share kept", ".1%"),
          ("held-out rows", ","),
          (f"loss of {main}", ".4f"),
          (f"less {other}", ">"),
        ),
        [*lines, total],
        has_total=True,
      ),
    )


def _error(values: np.ndarray) -> float:
  """The standard error of a mean; NaN of one value."""
  n = len(values)
  return float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
