"""A selection's figures as tables and sentences, for page and card."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from miniplm_jax.core import groups
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.criteria import CRITERIA
from miniplm_jax.report.agreement import Agreement
from miniplm_jax.report.copies import Duplicates
from miniplm_jax.report.overlap import SHORTEST, WORDS, Overlap
from miniplm_jax.report.selection_summary import Group, Summary, largest
from miniplm_jax.report.table import Bar, Table


@dataclasses.dataclass(frozen=True)
class SelectionReport:
  """All that is known of a selection."""

  name: str
  definition: str  # by which it ranks
  label: str  # of the score
  # The score that every kept row reaches, None if there is no such one.
  threshold: float | None
  dropped: Mapping[str, int]  # rows by why they were not considered
  options: Mapping[str, str]  # every setting, in words
  summary: Summary
  # Not all reports look for these.
  duplicates: Duplicates | None = None
  overlaps: Sequence[Overlap] = ()  # of each evaluation set
  agreement: Agreement | None = None  # with another selection

  @classmethod
  def of(cls, manifest: Manifest, summary: Summary, **measured: Any) -> Self:
    """Takes a selection's manifest, its figures, and what else was measured."""
    settings = manifest.settings
    definition = settings["definition"]
    known = CRITERIA.get(definition)
    dropped = manifest.counts.get("dropped", {})
    return cls(
      name=manifest.path.parent.name,
      definition=definition,
      label=known.label if known else definition,
      threshold=_threshold(manifest, summary),
      dropped={k.replace("_", " "): n for k, n in dropped.items() if n},
      options=dict(_flat(settings)),
      summary=summary,
      **measured,
    )


def _threshold(manifest: Manifest, summary: Summary) -> float | None:
  threshold = manifest.details.get("cutoff", {}).get("threshold")
  if manifest.settings.get("temperature"):
    return None  # of the score and noise
  places = (p["lowest score that was kept"] for p in summary.places.values())
  lowest = min((score for place in places for score, _ in place), default=0.0)
  if not isinstance(threshold, float) or lowest < threshold:
    return None  # by domain, or of something else than the score
  return threshold


def _flat(settings: Mapping[str, Any], before: str = ""):
  for name, value in settings.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{before}{name}.")
    elif isinstance(value, list):
      yield before + name, ", ".join(map(str, value)) or "none"
    else:
      yield before + name, str(value)


def lead(selection: SelectionReport) -> str:
  """The selection in a sentence or two."""
  total, threshold = selection.summary.total, selection.threshold
  above = "" if threshold is None else f", from {threshold:.4f} on"
  return (
    f"{total.kept_rows:,} of {total.rows:,} rows ({total.share:.1%}) were "
    f"kept by {selection.definition} ({selection.label}){above}: "
    f"{total.kept_tokens:,} of {total.tokens:,} tokens."
  )


def share(part: float, whole: float, digits: int = 1) -> str:
  """A share in per cent, or a dash of nothing."""
  return f"{part / whole:.{digits}%}" if whole else "–"


def mean(total: float, count: int) -> str:
  """A mean score with its sign, or a dash of nothing."""
  return signed(total / count, 3) if count else "–"


def signed(value: float, digits: int) -> str:
  """A number with its sign, the minus as wide as the plus; no sign at 0."""
  if not (value := round(value, digits)):
    return f"{0:.{digits}f}"
  return f"{value:+.{digits}f}".replace("-", "−")


def noise_words(summary: Summary) -> str:
  """How many rows the reference finds likelier."""
  total = summary.total
  return (
    "Noise, rows that the reference finds likelier than the teacher does: "
    f"{share(total.noise, total.rows)} of D, "
    f"{share(total.kept_noise, total.kept_rows)} of the kept."
  )


def domain_table(summary: Summary) -> Table:
  """A row for each of the largest domains; the last one is of all."""
  return _group_table("domain", largest(summary.domains), summary)


def length_table(summary: Summary) -> Table:
  """A row for each range of lengths; the last one is of all."""
  return _group_table("tokens of a row", summary.lengths, summary)


def _group_table(what: str, shown: Iterable[Group], summary: Summary) -> Table:
  total, rows = summary.total, []
  for g in (*shown, total):
    is_total = g is total
    before = g.tokens / total.tokens
    after = g.kept_tokens / max(total.kept_tokens, 1)
    rows.append(
      (
        g.name if is_total else groups.key(g.name),
        g.rows,
        g.kept_rows,
        g.share if is_total else Bar(g.share, f"{g.share:.1%}", total.share),
        g.tokens,
        before,
        after,
        "" if is_total else signed(100 * (after - before), 1),
        mean(g.score, g.scored),
        mean(g.kept_score, g.kept_rows),
      )
    )
  columns = (
    what,
    ("rows of D", ","),
    ("kept", ","),
    ("share kept", ".1%"),
    ("tokens of D", ","),
    ("share of tokens, before", ".1%"),
    ("share of tokens, after", ".1%"),
    ("change", ">"),
    ("mean score", ">"),
    ("of the kept", ">"),
  )
  return Table(columns, rows, has_total=True)


def dropped_table(dropped: Mapping[str, int]) -> Table:
  """Rows by the reason for which they were left out before the ranking."""
  return Table(("reason", ("rows of D", ",")), list(dropped.items()))


def duplicate_table(copies: Duplicates) -> Table:
  """What is there more than once."""
  surplus = "rows beyond the first of their content"
  rows = [
    ("rows looked at", copies.rows, copies.kept),
    ("contents there more than once", copies.groups, copies.kept_groups),
    (surplus, copies.surplus, copies.kept_surplus),
    (
      "share of the rows",
      share(copies.surplus, copies.rows, 2),
      share(copies.kept_surplus, copies.kept, 2),
    ),
    ("rows left out that are copies of a kept row", copies.left_out, ""),
  ]
  return Table(("exact duplicates", ("D", ","), ("kept", ",")), rows)


def duplicate_words(copies: Duplicates) -> str:
  """What was looked at."""
  if copies.every == 1:
    return "Rows with equal ids, among all rows of D."
  return (
    f"Rows with equal ids, among the rows with one of every {copies.every:,} "
    "hashes: all copies of a row are looked at, or none; counts are of these."
  )


def overlap_table(overlaps: Sequence[Overlap]) -> Table:
  """A row for each evaluation set."""

  def bar(part: int, whole: int) -> Bar:
    return Bar(part / max(whole, 1), share(part, whole))

  rows = [
    (
      o.name,
      o.items,
      o.too_short,
      o.found,
      bar(o.found, o.items),
      o.found_kept,
      bar(o.found_kept, o.items),
      o.rows,
      o.kept_rows,
    )
    for o in overlaps
  ]
  columns = (
    "evaluation set",
    ("items", ","),
    ("too short", ","),
    ("items found in D", ","),
    ("share", ">"),
    ("items found in kept rows", ","),
    ("share", ">"),
    ("rows of D with an item", ","),
    ("kept rows with an item", ","),
  )
  return Table(columns, rows)


def overlap_words(overlaps: Sequence[Overlap]) -> str:
  """How it was looked for, and in what."""
  first = overlaps[0]
  return (
    f"An item is found if {WORDS} of its words stand in a row in this order "
    "(lower case, punctuation stripped), or all words of one of its texts that "
    f"has {SHORTEST} to {WORDS - 1}; items with shorter texts only are not "
    f"looked for. Read: {first.rows_read:,} rows of D, evenly spaced if that "
    f"is not all, {first.kept_read:,} of them kept. What is cut by the end of "
    "a row may be missed."
  )


def agreement_table(agreement: Agreement) -> Table:
  """A row for each domain; the last one is of all rows."""
  total = agreement.total
  rows = [
    (
      s.name if s is total else groups.key(s.name),
      s.ours,
      s.theirs,
      s.both,
      Bar(s.jaccard, f"{s.jaccard:.3f}", total.jaccard),
      share(s.both, s.ours),
      share(s.both, s.theirs),
    )
    for s in (*agreement.domains, total)
  ]
  columns = (
    "domain",
    ("kept here", ","),
    ("kept there", ","),
    ("in both", ","),
    ("Jaccard", ">"),
    ("share of here, also there", ">"),
    ("share of there, also here", ">"),
  )
  return Table(columns, rows, has_total=True)


def agreement_words(name: str, agreement: Agreement) -> str:
  """The comparison in a sentence."""
  return (
    f"{name} (here) beside {agreement.name} (there, by "
    f"{agreement.definition}): Jaccard {agreement.total.jaccard:.3f}, rows in "
    "both over rows in either. Two random selections of these sizes would have "
    f"{agreement.chance:.3f}."
  )


def made_table(
  selection: SelectionReport, inputs: Mapping[str, Manifest]
) -> Table:
  """Settings and fingerprints."""
  rows = list(selection.options.items())
  rows += [
    (f"{name}, manifest", each.fingerprint) for name, each in inputs.items()
  ]
  rows += [
    (f"{name}, weights", each.weights)
    for name, each in inputs.items()
    if each.weights
  ]
  rows.append(("tokenizer", inputs["corpus"].tokenizer))
  return Table(("what", "value"), rows)
