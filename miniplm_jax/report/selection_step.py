"""The report of a selection as a step of its own.

It shows what was selected: with another evaluation set or another selection
to compare with, it alone is made again.
"""

from collections.abc import Callable, Collection, Mapping

from miniplm_jax.core import contents, files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST, Workdir

_OUTPUTS = ("report.html", "card.md")
# Beside the inputs of the selection itself.
_SELECTION = "selection"


def step(config, workdir: Workdir, rows: Step, scored: Callable) -> Step:
  """report.html and card.md; report.json is their manifest.

  Args:
    config: its `select.evaluation_sets` and `select.compare_with`.
    workdir: of the other selection.
    rows: the step that selects.
    scored: (inputs of that step) → its `ScoredRows`.
  """
  c, directory = config.select, rows.manifest.parent
  other = rows.manifest
  if c.compare_with:
    other = workdir.selection(c.compare_with) / MANIFEST
  compares = other != rows.manifest
  inputs = {_SELECTION: rows.manifest, **rows.inputs}
  if compares:
    inputs["compare_with"] = lambda: _require(other).fingerprint
  if c.evaluation_sets:
    inputs["evaluation_sets"] = contents.Whole(lambda: _sets(c.evaluation_sets))
  return Step(
    stage=rows.stage,
    manifest=directory / "report.json",
    settings={
      "evaluation_sets": list(c.evaluation_sets),
      "compare_with": c.compare_with if compares else "",
    },
    inputs=inputs,
    outputs=tuple(directory / name for name in _OUTPUTS),
    summary=f"{directory / 'report.html'} and card.md",
    run=lambda found: _run(
      config, directory, other if compares else None, scored, found
    ),
    is_view=True,
  )


def check(config, workdir: Workdir, made_here: Collection[str], corpus):
  """Looks at what the reports of a run will be asked for, before it selects.

  Args:
    config: its `select.evaluation_sets` and `select.compare_with`.
    workdir: of the run.
    made_here: selections that this run makes: they may not be there yet.
    corpus: the manifest of the corpus that is selected from.

  Raises:
    UserError: an evaluation set cannot be read, or the selection to compare
      with is not there or of another corpus.
  """
  from miniplm_jax.report import agreement, overlap

  c = config.select
  for path in overlap.paths(c.evaluation_sets):
    for _ in overlap.read_texts(path):
      pass
  if c.compare_with and c.compare_with not in made_here:
    other = _require(workdir.selection(c.compare_with) / MANIFEST)
    agreement.check(other, corpus)


def _require(other) -> Manifest:
  found = manifest_lib.read(other)
  if found is None:
    raise UserError(
      "there is no such selection to compare with",
      f"{other.parent}, config.select.compare_with",
      "name a finished selection of this workdir, or ''",
    )
  return found


def _sets(patterns):
  from miniplm_jax.report import overlap

  return overlap.paths(patterns)


def _run(config, directory, other, scored, inputs: Mapping[str, Manifest]):
  from miniplm_jax.core.progress import Progress
  from miniplm_jax.corpus.kept_rows import kept_rows
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.report import (
    agreement,
    copies,
    dataset_card,
    overlap,
  )
  from miniplm_jax.report import (
    selection as card,
  )
  from miniplm_jax.report import (
    selection_summary as summary,
  )
  from miniplm_jax.report import (
    selection_tables as tables,
  )

  made_from = dict(inputs)
  selection = made_from.pop(_SELECTION)
  corpus, rows = Corpus(inputs["corpus"]), kept_rows(selection)
  agreed, overlaps = None, []
  if other:
    theirs = _require(other)
    agreement.check(theirs, inputs["corpus"])
    agreed = agreement.compare(corpus, rows, theirs, kept_rows(theirs))
  if config.select.evaluation_sets:
    sets = overlap.paths(config.select.evaluation_sets)
    every = config.run.log_every_seconds
    ids = overlap.rows_to_read(corpus)
    with Progress("select", len(ids), "rows", every=every) as progress:
      overlaps = overlap.measure(corpus, rows, sets, ids, progress.update)
  figures = summary.summarize(corpus, scored(made_from), rows)
  found = tables.Findings(
    directory.name,
    tables.facts(selection, figures),
    figures,
    copies.find(corpus, rows),
    overlaps,
    agreed,
  )
  card.write(directory, found, made_from, corpus)
  files.write_bytes(
    directory / "card.md", dataset_card.write(found, made_from).encode()
  )
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "files": {name: files.describe(directory / name) for name in _OUTPUTS},
    "counts": {
      "domains": {
        g.name: {"rows": g.rows, "kept": g.kept_rows, "share": g.share}
        for g in found.summary.domains
      },
      "duplicates": found.duplicates.surplus,
      "duplicates_kept": found.duplicates.kept_surplus,
      # Both were counted in one of so many hashes.
      "duplicates_every": found.duplicates.every,
      "overlap": {o.name: [o.found, o.found_kept] for o in overlaps},
    },
    "details": {"jaccard": agreed and agreed.total.jaccard},
  }
