"""A selection's figures as tables and sentences, for page and card."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from miniplm_jax.core import groups
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.criteria import criterion
from miniplm_jax.report.agreement import Agreement, Shared
from miniplm_jax.report.audit import Audit
from miniplm_jax.report.copies import Duplicates
from miniplm_jax.report.page import Bar, Section, Table
from miniplm_jax.report.selection_summary import Group, Summary, largest
from miniplm_jax.selection.items import SHORTEST, WORDS
from miniplm_jax.selection.overlap import Overlap


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
  later: str = ""  # how the rows of a training's later stages are ranked
  later_rows: int = 0  # of those kept
  # Not all reports look for these.
  contaminated: Mapping[str, int] | None = None  # rows left out, by set
  duplicates: Duplicates | None = None
  overlaps: Sequence[Overlap] = ()  # of each evaluation set
  agreement: Agreement | None = None  # with another selection

  @functools.cached_property
  def audit(self) -> Audit:
    """What the ranking goes with."""
    return Audit.of(self.definition, self.summary)

  @classmethod
  def of(cls, manifest: Manifest, summary: Summary, **measured: Any) -> Self:
    """Takes a selection's manifest, its figures, and what else was measured."""
    settings = manifest.settings
    definition = settings["definition"]
    dropped = manifest.counts.get("dropped", {})
    if staged := settings.get("staged"):
      _, *rows = manifest.counts["kept_by_stage"]
      later = f"{staged['definition']}, from step {staged['ends'][0]:,} on"
      measured |= {"later": later, "later_rows": sum(rows)}
    return cls(
      name=manifest.path.parent.name,
      definition=definition,
      label=criterion(definition).label,
      threshold=_threshold(manifest, summary),
      dropped={k.replace("_", " "): n for k, n in dropped.items() if n},
      contaminated=manifest.counts.get("contaminated"),
      options=dict(flat(settings)),
      summary=summary,
      **measured,
    )


def _threshold(manifest: Manifest, summary: Summary) -> float | None:
  threshold = manifest.details.get("cutoff", {}).get("threshold")
  settings = manifest.settings
  if settings.get("temperature") or settings.get("redundancy"):
    return None  # of the score and noise, or less what is kept already
  places = (p["lowest score that was kept"] for p in summary.places.values())
  lowest = min((score for place in places for score, _ in place), default=0.0)
  if not isinstance(threshold, float) or lowest < threshold:
    return None  # by domain, or of something else than the score
  return threshold


def flat(settings: Mapping[str, Any], before: str = ""):
  """Yields dotted names of what is in mappings of mappings, and it as text."""
  for name, value in settings.items():
    if isinstance(value, Mapping):
      yield from flat(value, f"{before}{name}.")
    elif isinstance(value, list | tuple):
      yield before + name, ", ".join(map(str, value)) or "none"
    else:
      yield before + name, str(value)


def lead(selection: SelectionReport) -> str:
  """The selection in a sentence or two."""
  total, threshold = selection.summary.total, selection.threshold
  above = "" if threshold is None else f", from {threshold:.4f} on"
  by = f" by {selection.definition} ({selection.label}){above}"
  if selection.later:
    rows = selection.later_rows
    by = f", {total.kept_rows - rows:,}{by}, and {rows:,} by {selection.later}"
  return (
    f"{total.kept_rows:,} of {total.rows:,} rows ({total.share:.1%}) were "
    f"kept{by}: {total.kept_tokens:,} of {total.tokens:,} tokens."
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


def contaminated_words(selection: SelectionReport) -> Iterator[str]:
  """Yields how many rows were left out for items of each named set."""
  if by_set := selection.contaminated:
    each = ", ".join(f"{name} {rows:,}" for name, rows in by_set.items())
    yield (
      f"Contaminated: rows with {WORDS} words of an item in this order, or all "
      f"of a text of {SHORTEST} to {WORDS - 1}. By evaluation set: {each}; a "
      "row may have items of several. All of D was read."
    )


def domain_table(summary: Summary) -> Table:
  """A row for each of the largest domains; the last one is of all."""
  return _group_table("domain", largest(summary.domains), summary)


def length_table(summary: Summary) -> Table:
  """A row for each range of lengths; the last one is of all."""
  return _group_table("tokens of a row", summary.lengths, summary)


def _group_table(what: str, shown: Iterable[Group], summary: Summary) -> Table:
  total = summary.total

  def before(g: Group) -> float:
    return g.tokens / total.tokens

  def after(g: Group) -> float:
    return g.kept_tokens / max(total.kept_tokens, 1)

  def change(g: Group) -> str:
    return "" if g is total else signed(100 * (after(g) - before(g)), 1)

  return Table.of(
    (*shown, total),
    (what, "", lambda g: g.name if g is total else groups.key(g.name)),
    ("rows of D", ",", lambda g: g.rows),
    ("kept", ",", lambda g: g.kept_rows),
    ("share kept", ".1%", lambda g: share_kept(g, total)),
    ("tokens of D", ",", lambda g: g.tokens),
    ("share of tokens, before", ".1%", before),
    ("share of tokens, after", ".1%", after),
    ("change", ">", change),
    ("mean score", ">", lambda g: mean(g.score, g.scored)),
    ("of the kept", ">", lambda g: mean(g.kept_score, g.kept_rows)),
    has_total=True,
  )


def share_kept(group: Group, total: Group) -> float | Bar:
  """The share of a group's rows that was kept, beside that of all."""
  if group is total:
    return group.share
  return Bar(group.share, f"{group.share:.1%}", total.share)


def duplicates(copies: Duplicates) -> Section:
  """What was looked at, and what is there more than once."""
  words = "Rows with equal ids, among all rows of D."
  if copies.every > 1:
    words = (
      f"Rows with equal ids, among the rows with one of every {copies.every:,} "
      "hashes: all copies of a row are looked at, or none; counts are of these."
    )
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
  table = Table(("exact duplicates", ("D", ","), ("kept", ",")), rows)
  return Section("Duplicates", [words], table=table)


def overlap(overlaps: Sequence[Overlap]) -> Section:
  """How it was looked for, and in what; a row for each evaluation set."""

  def bar(part: int, whole: int) -> Bar:
    return Bar(part / max(whole, 1), share(part, whole))

  table = Table.of(
    overlaps,
    ("evaluation set", "", lambda o: o.name),
    ("items", ",", lambda o: o.items),
    ("too short", ",", lambda o: o.too_short),
    ("items found in D", ",", lambda o: o.found),
    ("share", ">", lambda o: bar(o.found, o.items)),
    ("items found in kept rows", ",", lambda o: o.found_kept),
    ("share", ">", lambda o: bar(o.found_kept, o.items)),
    ("rows of D with an item", ",", lambda o: o.rows),
    ("kept rows with an item", ",", lambda o: o.kept_rows),
  )
  first = overlaps[0]
  words = (
    f"An item is found if {WORDS} of its words stand in a row in this order "
    "(lower case, punctuation stripped), or all words of one of its texts that "
    f"has {SHORTEST} to {WORDS - 1}; items with shorter texts only are not "
    f"looked for. Read: {first.rows_read:,} rows of D, evenly spaced if that "
    f"is not all, {first.kept_read:,} of them kept. What is cut by the end of "
    "a row may be missed."
  )
  return Section("Overlap with evaluation sets", [words], table=table)


def agreement(name: str, with_other: Agreement) -> Section:
  """A row for each domain; the last one is of all rows."""
  total = with_other.total

  def jaccard(s: Shared) -> Bar:
    return Bar(s.jaccard, f"{s.jaccard:.3f}", total.jaccard)

  table = Table.of(
    (*with_other.domains, total),
    ("domain", "", lambda s: s.name if s is total else groups.key(s.name)),
    ("kept here", ",", lambda s: s.ours),
    ("kept there", ",", lambda s: s.theirs),
    ("in both", ",", lambda s: s.both),
    ("Jaccard", ">", jaccard),
    ("share of here, also there", ">", lambda s: share(s.both, s.ours)),
    ("share of there, also here", ">", lambda s: share(s.both, s.theirs)),
    has_total=True,
  )
  words = (
    f"{name} (here) beside {with_other.name} (there, by "
    f"{with_other.definition}): Jaccard {total.jaccard:.3f}, rows in both over "
    "rows in either. Two random selections of these sizes would have "
    f"{with_other.chance:.3f}."
  )
  return Section("Agreement with another selection", [words], table=table)


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
