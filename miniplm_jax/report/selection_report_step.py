"""The report of a selection, a step of stage select: report.html and card.md.

It shows what was selected: with another evaluation set or another selection
to compare with, it alone is made again.
"""

from collections.abc import Collection, Mapping, Sequence

from etils import epath, epy

from miniplm_jax.config import SelectConfig
from miniplm_jax.core import contents, files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress, warn
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.corpus.kept_rows import kept_rows

with epy.lazy_imports():  # NumPy and PyArrow
  from miniplm_jax.corpus import store
  from miniplm_jax.report import (
    agreement,
    copies,
    dataset_card,
    selection,
    selection_summary,
    selection_tables,
  )
  from miniplm_jax.selection import items, overlap, scored

_OUTPUTS = ("report.html", "card.md")
# Beside the inputs of the selection itself.
_SELECTION = "selection"


def step(
  select: SelectConfig, selecting: Step, workdir: Workdir, every: float
) -> Step:
  """The step that shows a selection; report.json is its manifest."""
  folder, rows = selecting.manifest.parent, selecting.manifest
  other = None
  if select.compare_with:
    path = workdir.selection(select.compare_with) / MANIFEST
    other = path if path != rows else None  # nothing differs from itself
  inputs = {_SELECTION: rows, **selecting.inputs}
  if other:
    inputs["compare_with"] = lambda: _require(other).fingerprint
  if select.evaluation_sets:
    inputs["evaluation_sets"] = contents.Whole(
      lambda: items.paths(select.evaluation_sets)
    )
  return Step(
    stage=selecting.stage,
    manifest=folder / "report.json",
    settings={
      "evaluation_sets": list(select.evaluation_sets),
      "compare_with": select.compare_with if other else "",
    },
    inputs=inputs,
    outputs=tuple(folder / name for name in _OUTPUTS),
    summary="report.html and card.md of selection",
    subject=folder.name,
    run=lambda manifests: _run(
      folder, select.evaluation_sets, other, every, manifests
    ),
    policy=Policy(is_view=True),
  )


def check(
  select: SelectConfig,
  selections: Collection[str],
  workdir: Workdir,
  corpus: Manifest,
):
  """Looks at what the reports of a run will be asked for, before it selects.

  Args:
    select: what its rows are looked for in, and compared with.
    selections: those of this run, which may not be there yet.

  Raises:
    UserError: an evaluation set cannot be read, or the selection to compare
      with is not there or of another corpus.
  """
  for path in items.paths(select.evaluation_sets):
    for _ in items.read_texts(path):
      pass
  if select.compare_with and select.compare_with not in selections:
    other = _require(workdir.selection(select.compare_with) / MANIFEST)
    agreement.check(other, corpus)


def _require(path: epath.Path) -> Manifest:
  """The manifest of the selection to compare with."""
  manifest = manifest_lib.read(path)
  if manifest is None:
    raise UserError(
      "there is no such selection to compare with",
      f"{path.parent}, config.select.compare_with",
      "name a finished selection of this workdir, or ''",
    )
  return manifest


def _run(
  folder: epath.Path,
  evaluation_sets: Sequence[str],
  other: epath.Path | None,
  every: float,
  inputs: Mapping[str, Manifest],
):
  made_from = dict(inputs)
  manifest = made_from.pop(_SELECTION)
  corpus, rows = store.Corpus(inputs["corpus"]), kept_rows(manifest)
  agreed, overlaps = None, []
  if other:
    theirs = _require(other)
    agreement.check(theirs, inputs["corpus"])
    names = theirs.path.parent.name, theirs.settings["definition"]
    agreed = agreement.compare(corpus, rows, *names, kept_rows(theirs))
  if evaluation_sets:
    sets = items.paths(evaluation_sets)
    ids = overlap.rows_to_read(corpus)
    with Progress("select", len(ids), "rows", every=every) as progress:
      overlaps = overlap.measure(corpus, rows, sets, ids, progress.update)
  figures = selection_summary.summarize(
    corpus, scored.of_selection(manifest, made_from), rows
  )
  shown = selection_tables.SelectionReport.of(
    manifest,
    figures,
    duplicates=copies.find(corpus, rows),
    overlaps=overlaps,
    agreement=agreed,
  )
  if shown.audit.warning:
    warn(manifest.stage, shown.audit.warning)
  selection.write(folder, shown, made_from, corpus)
  files.write_bytes(
    folder / "card.md", dataset_card.write(shown, made_from).encode()
  )
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "files": {name: files.describe(folder / name) for name in _OUTPUTS},
    "counts": {
      "domains": {
        g.name: {"rows": g.rows, "kept": g.kept_rows, "share": g.share}
        for g in shown.summary.domains
      },
      "duplicates": shown.duplicates.surplus,
      "duplicates_kept": shown.duplicates.kept_surplus,
      # Both were counted in one of so many hashes.
      "duplicates_every": shown.duplicates.every,
      "overlap": {o.name: [o.found, o.found_kept] for o in overlaps},
    },
    "details": {
      "jaccard": agreed and agreed.total.jaccard,
      "audit": shown.audit.figures(),
    },
  }
