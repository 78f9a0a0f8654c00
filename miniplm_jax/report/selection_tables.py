"""A selection's figures as tables and sentences, for page and card."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from miniplm_jax.core import groups
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.report import page
from miniplm_jax.report.agreement import Agreement
from miniplm_jax.report.copies import Duplicates
from miniplm_jax.report.overlap import SHORTEST, WORDS, Overlap
from miniplm_jax.report.selection_summary import Group, Summary, largest
from miniplm_jax.select.definitions import DEFINITIONS

Table = tuple[Sequence[Any], list[Sequence[Any]]]


@dataclasses.dataclass(frozen=True)
class Findings:
  """All that is known of a selection.

  Attributes:
    name: the selection's.
    facts: how it was made, see `facts`.
    summary: its figures.
    duplicates: None if they were not looked for; likewise what follows.
    overlaps: a measure for each evaluation set.
    agreement: with another selection.
  """

  name: str
  facts: Mapping[str, Any]
  summary: Summary
  duplicates: Duplicates | None = None
  overlaps: Sequence[Overlap] = ()
  agreement: Agreement | None = None


def facts(selection: Manifest, summary: Summary) -> dict[str, Any]:
  """How a selection was made, from its manifest.

  Args:
    selection: its manifest.
    summary: its figures.

  Returns:
    `definition` and its `label`; `threshold`, the score that every kept row
    reaches, or None if there is no such one; `dropped`, rows by the reason for
    which they were not considered; `options`, every setting in words.
  """
  settings = selection.settings
  definition = settings["definition"]
  known = DEFINITIONS.get(definition)
  cut = selection.details.get("cutoff", {}).get("threshold")
  if settings.get("temperature"):
    cut = None  # of the score and noise
  elif not isinstance(cut, float) or lowest_kept(summary) < cut:
    cut = None  # by domain, or of something else than the score
  return {
    "definition": definition,
    "label": known.label if known else definition,
    "threshold": cut,
    "dropped": {
      reason.replace("_", " "): count
      for reason, count in selection.counts.get("dropped", {}).items()
      if count
    },
    "options": dict(_flat(settings)),
  }


def lowest_kept(summary: Summary) -> float:
  """The lowest score of a kept row."""
  places = (p["lowest score that was kept"] for p in summary.places.values())
  return min((score for found in places for score, _ in found), default=0.0)


def _flat(settings: Mapping[str, Any], before: str = ""):
  for name, value in settings.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{before}{name}.")
    elif isinstance(value, list):
      yield before + name, ", ".join(map(str, value)) or "none"
    else:
      yield before + name, str(value)


def lead(found: Findings) -> str:
  """The selection in a sentence or two."""
  total, cut = found.summary.total, found.facts["threshold"]
  told = "" if cut is None else f", from {cut:.4f} on"
  return (
    f"{total.kept_rows:,} of {total.rows:,} rows ({total.share:.1%}) were "
    f"kept by {found.facts['definition']} ({found.facts['label']}){told}: "
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
  """Header and rows; the last one is of all domains."""
  return _group_table("domain", largest(summary.domains), summary)


def length_table(summary: Summary) -> Table:
  """Header and rows; the last one is of all lengths."""
  return _group_table("tokens of a row", summary.lengths, summary)


def _group_table(what: str, shown: Iterable[Group], summary: Summary) -> Table:
  total, rows = summary.total, []
  for g in (*shown, total):
    before = g.tokens / total.tokens
    after = g.kept_tokens / max(total.kept_tokens, 1)
    kept = page.Bar(g.share, f"{g.share:.1%}", total.share)
    if g is total:
      kept = f"{g.share:.1%}"
    rows.append(
      (
        g.name if g is total else groups.key(g.name),
        f"{g.rows:,}",
        f"{g.kept_rows:,}",
        kept,
        f"{g.tokens:,}",
        f"{before:.1%}",
        f"{after:.1%}",
        "" if g is total else signed(100 * (after - before), 1),
        mean(g.score, g.scored),
        mean(g.kept_score, g.kept_rows),
      )
    )
  header = (
    what,
    "rows of D",
    "kept",
    "share kept",
    "tokens of D",
    "share of tokens, before",
    "share of tokens, after",
    "change",
    "mean score",
    "of the kept",
  )
  return header, rows


def duplicate_table(found: Duplicates) -> Table:
  """Header and rows of what is there more than once."""
  rows = [
    ("rows looked at", f"{found.rows:,}", f"{found.kept:,}"),
    (
      "contents there more than once",
      f"{found.groups:,}",
      f"{found.kept_groups:,}",
    ),
    (
      "rows beyond the first of their content",
      f"{found.surplus:,}",
      f"{found.kept_surplus:,}",
    ),
    (
      "share of the rows",
      share(found.surplus, found.rows, 2),
      share(found.kept_surplus, found.kept, 2),
    ),
    ("rows left out that are copies of a kept row", f"{found.left_out:,}", ""),
  ]
  return ("exact duplicates", "D", "kept"), rows


def duplicate_words(found: Duplicates) -> str:
  """What was looked at."""
  if found.every == 1:
    return "Rows with equal ids, among all rows of D."
  return (
    f"Rows with equal ids, among the rows with one of every {found.every:,} "
    "hashes: all copies of a row are looked at, or none; counts are of these."
  )


def overlap_table(overlaps: Sequence[Overlap]) -> Table:
  """Header and rows, a line for each evaluation set."""
  rows = [
    (
      o.name,
      f"{o.items:,}",
      f"{o.too_short:,}",
      f"{o.found:,}",
      page.Bar(o.found / max(o.items, 1), share(o.found, o.items)),
      f"{o.found_kept:,}",
      page.Bar(o.found_kept / max(o.items, 1), share(o.found_kept, o.items)),
      f"{o.rows:,}",
      f"{o.kept_rows:,}",
    )
    for o in overlaps
  ]
  header = (
    "evaluation set",
    "items",
    "too short",
    "items found in D",
    "share",
    "items found in kept rows",
    "share",
    "rows of D with an item",
    "kept rows with an item",
  )
  return header, rows


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


def agreement_table(found: Agreement) -> Table:
  """Header and rows by domain; the last one is of all rows."""
  rows = [
    (
      s.name if s is found.total else groups.key(s.name),
      f"{s.ours:,}",
      f"{s.theirs:,}",
      f"{s.both:,}",
      page.Bar(s.jaccard, f"{s.jaccard:.3f}", found.total.jaccard),
      share(s.both, s.ours),
      share(s.both, s.theirs),
    )
    for s in (*found.domains, found.total)
  ]
  header = (
    "domain",
    "kept here",
    "kept there",
    "in both",
    "Jaccard",
    "share of here, also there",
    "share of there, also here",
  )
  return header, rows


def agreement_words(name: str, found: Agreement) -> str:
  """The comparison in a sentence."""
  return (
    f"{name} (here) beside {found.name} (there, by {found.definition}): "
    f"Jaccard {found.total.jaccard:.3f}, rows in both over rows in either. Two "
    f"random selections of these sizes would have {found.chance:.3f}."
  )


def made_table(found: Findings, inputs: Mapping[str, Manifest]) -> Table:
  """Settings and fingerprints."""
  rows = [(name, value) for name, value in found.facts["options"].items()]
  rows += [
    (f"{name}, manifest", made.fingerprint) for name, made in inputs.items()
  ]
  rows += [
    (f"{name}, weights", made.weights)
    for name, made in inputs.items()
    if made.weights
  ]
  rows.append(("tokenizer", inputs["corpus"].tokenizer))
  return ("what", "value"), rows
