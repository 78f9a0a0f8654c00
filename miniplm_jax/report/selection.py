"""The report of a selection: report.html, and its parts for other pages."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from miniplm_jax.core.log import short
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.report import page, selection_figures
from miniplm_jax.report import selection_tables as tables
from miniplm_jax.report.copies import Duplicates
from miniplm_jax.report.selection_summary import PLACES, Summary, largest
from miniplm_jax.report.selection_tables import SelectionReport
from miniplm_jax.selection import items
from miniplm_jax.selection.overlap import Overlap

_SHOWN = 900  # characters of a text
_BEFORE = 120  # of them, before what was found in it


class _Texts:
  """Rows of the corpus as readers see them."""

  def __init__(self, corpus: Corpus):
    self._corpus, self._tokenizer = corpus, corpus.tokenizer()

  def whole(self, row_ids: Sequence[int]) -> list[tuple[str, str]]:
    """(where it is from, its text) of rows."""
    return [
      (
        f"{row.domain}, row {row_id:,}, {row.n_tokens:,} tokens",
        self._tokenizer.decode(row.ids),
      )
      for row_id, row in zip(row_ids, self._corpus.read(row_ids))
    ]

  def read(self, row_ids: Sequence[int]) -> list[tuple[str, str]]:
    """(where it is from, its first characters) of rows."""
    return [(caption, _cut(text)) for caption, text in self.whole(row_ids)]


def _cut(text: str, start: int = 0) -> str:
  """Some characters from `start` on."""
  end = start + _SHOWN
  before, after = "… " * (start > 0), " …" * (len(text) > end)
  return f"{before}{text[start:end]}{after}"


def sections(
  selection: SelectionReport, corpus: Corpus, has_domains: bool = False
) -> Iterator[page.Section]:
  """The parts of a report, without what it has or was not looked for."""
  summary, texts = selection.summary, _Texts(corpus)
  alone = len(largest(summary.domains)) - 1
  rest = len(summary.domains) - alone
  others = (
    f"The {alone} domains with the most tokens; {rest} others are added up in "
    "one line."
  )
  noise = " Noise: the reference finds the row likelier than the teacher does."
  terms = f"D: the rows that were scored. Score: {selection.label}."
  terms += noise * summary.has_noise
  yield page.Section(
    "What was kept",
    [tables.lead(selection)],
    tiles=[*_tiles(selection)],
    notes=[terms, *tables.contaminated_words(selection)],
  )
  if not has_domains:
    yield page.Section(
      "By domain",
      table=tables.domain_table(summary),
      notes=[
        "The mark on a bar is the share of all rows that was kept. Shares of "
        "tokens are of all tokens of D, and of all kept tokens; the change is "
        f"in percentage points. {others * (rest > 1)}".strip()
      ],
    )
  yield page.Section(
    "By length",
    table=tables.length_table(summary),
    notes=[
      "Tokens of a row, its last target included. Rows are cut at sentence "
      f"ends; those of {corpus.max_length + 1:,} are full."
    ],
  )
  yield selection.audit.section()
  yield page.Section("Pictures", pictures=selection_figures.pictures(selection))
  if selection.duplicates:
    yield _duplicates(selection.duplicates, texts)
  if selection.overlaps:
    yield _overlaps(selection.overlaps, texts)
  if selection.agreement:
    yield tables.agreement(selection.name, selection.agreement)
  yield _places(summary, texts)


def _tiles(selection: SelectionReport) -> Iterator[page.Tile]:
  total, threshold = selection.summary.total, selection.threshold
  yield page.Tile(
    "Rows kept", f"{total.kept_rows:,}", f"of {total.rows:,} of D"
  )
  kept, of_d = short(total.kept_tokens), short(total.tokens)
  yield page.Tile("Tokens", kept, f"of {of_d} of D")
  tokens = tables.share(total.kept_tokens, total.tokens)
  note = f"of the rows; {tokens} of the tokens"
  yield page.Tile("Share kept", f"{total.share:.1%}", note)
  if threshold is not None:
    yield page.Tile("Threshold", f"{threshold:.4f}", selection.label)
  kept = tables.mean(total.kept_score, total.kept_rows)
  of_d = tables.mean(total.score, total.scored)
  yield page.Tile("Mean score", kept, f"of the kept; {of_d} in D")
  if selection.summary.has_noise:
    kept = tables.share(total.kept_noise, total.kept_rows)
    of_d = tables.share(total.noise, total.rows)
    yield page.Tile("Noise", of_d, f"of D; {kept} of the kept rows")
  if copies := selection.duplicates:
    note = f"rows beyond the first; {copies.surplus:,} in D"
    if copies.every > 1:
      note += f"; counted in one of every {copies.every:,} hashes"
    yield page.Tile("Duplicates kept", f"{copies.kept_surplus:,}", note)
  if dropped := selection.dropped:
    note = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    yield page.Tile("Left out before", f"{sum(dropped.values()):,}", note)


def _duplicates(duplicates: Duplicates, texts: _Texts) -> page.Section:
  rows = {c.row_id: c for c in duplicates.largest}
  shown = [
    (f"{c.rows:,} copies, {c.kept:,} of them kept; {caption}", text)
    for (caption, text), c in zip(texts.read(list(rows)), rows.values())
  ]
  folds = [page.Fold("Most frequent contents", shown)] if shown else ()
  return dataclasses.replace(tables.duplicates(duplicates), folds=folds)


def _overlaps(overlaps: Sequence[Overlap], texts: _Texts) -> page.Section:
  folds = []
  for o in overlaps:
    shown = []
    read = texts.whole([m.row_id for m in o.worst])
    for match, (caption, text) in zip(o.worst, read):
      label = f"item, {match.share:.0%} of its n-grams found"
      start = max(items.locate(match.texts, text) - _BEFORE, 0)
      item = "\n".join(match.texts)
      shown += [(label, _cut(item)), (f"in {caption}", _cut(text, start))]
    if shown:
      folds.append(page.Fold(o.name, shown, "items of which most was found"))
  return dataclasses.replace(tables.overlap(overlaps), folds=folds)


def _places(summary: Summary, texts: _Texts) -> page.Section:
  shown = [g for g in largest(summary.domains) if g.name in summary.places]
  folds = []
  for i, g in enumerate(shown):
    by_place = summary.places[g.name]
    places = [(p, *pair) for p in PLACES for pair in by_place[p]]
    read = texts.read([row_id for *_, row_id in places])
    shown_texts = [
      (f"{place}: {tables.signed(score, 3)}, {caption}", text)
      for (place, score, _), (caption, text) in zip(places, read)
    ]
    note = f"{g.kept_rows:,} of {g.rows:,} rows kept"
    folds.append(page.Fold(g.name, shown_texts, note, open=i == 0))
  which = f", the {len(shown)} largest of {len(summary.domains)} domains"
  return page.Section(
    "Texts",
    [
      "From each domain the rows at the top, on both sides of the cut, and at "
      f"the bottom{which if len(shown) < len(summary.domains) else ''}; "
      f"{_SHOWN:,} characters of each."
    ],
    folds=folds,
  )


def write(
  directory: epath.Path,
  selection: SelectionReport,
  inputs: Mapping[str, Manifest],
  corpus: Corpus,
):
  """Writes report.html."""
  glance, *body = sections(selection, corpus)
  glance = dataclasses.replace(glance, text=())  # the page begins with it
  table = tables.made_table(selection, inputs)
  body = [glance, *body, page.Section("How it was made", table=table)]
  title, lead = f"Selection {selection.name}", [tables.lead(selection)]
  page.write(directory / "report.html", title, lead, body)
