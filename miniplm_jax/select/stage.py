"""Stage select: the top share of D, once a method, from stored scores."""

from miniplm_jax.config import for_method, methods
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.job import Job
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.score.stage import ROLES

STAGE = "select"
_OUTPUTS = ("rows.npy", "report.html", "card.md")


def jobs(config, workdir: Workdir) -> list[Job]:
  """One job a method; two methods may share a selection."""
  found = {}
  for method in methods(config):
    names = for_method(config, method)
    found[names.selection] = _job(config, workdir, names)
  return list(found.values())


def _roles(definition: str) -> tuple[str, ...]:
  """The tables that are read; the proxy's may hold rows that others lack."""
  return ("proxy",) if definition == "proxy" else ROLES


def _job(config, workdir: Workdir, names) -> Job:
  directory = workdir.selection(names.selection)
  c, roles = config.select, _roles(names.definition)
  return Job(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings={
      "definition": names.definition,
      "ratio": c.ratio,
      "seed": c.seed,
      "scores": {role: config[role].name for role in roles},
    },
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      **{role: workdir.scores(config[role].name) / MANIFEST for role in roles},
    },
    outputs=tuple(directory / name for name in _OUTPUTS),
    summary=f"the top {c.ratio:.4g} of D by {names.definition}",
    run=lambda inputs: _run(names, c, directory, inputs),
  )


def _run(names, c, directory, inputs):
  import dataclasses

  import numpy as np

  from miniplm_jax.core import files
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.select import card, cutoff
  from miniplm_jax.select.scored import ScoredRows

  corpus = Corpus(inputs["corpus"])
  tables = {role: inputs[role] for role in _roles(names.definition)}
  scored = ScoredRows(tables, names.definition, c.seed)
  found = cutoff.find(scored.chunks, c.ratio)
  if not found.kept:
    raise UserError(
      f"{c.ratio} of {found.rows} rows is none",
      "config.select.ratio",
      "raise it, or give more text",
    )
  # The registered Task does the filtering, here as for anyone else. Imported
  # when the scores are known to be sound: it brings TensorFlow, 7 s.
  from miniplm_jax.select import tasks

  name = tasks.task_name(names.selection)
  tasks.add_tasks(name, scored, found, corpus)
  rows = np.concatenate(list(tasks.kept_row_ids(name)))
  if len(rows) != found.kept:
    raise AssertionError(f"kept {len(rows)} rows, the cutoff {found.kept}")
  with (
    files.replacing(directory / "rows.npy") as scratch,
    scratch.open("wb") as f,
  ):
    np.save(f, rows)
  summary = card.summarise(corpus, scored, rows)
  body = card.sections(summary, found, scored.definition, corpus)
  card.write(directory, names.selection, body, summary)
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "files": {n: files.describe(directory / n) for n in _OUTPUTS},
    "counts": {
      "rows": found.rows,
      "kept": found.kept,
      "domains": summary.domains,
    },
    "details": {
      "cutoff": dataclasses.asdict(found),
      "select/kept_ratio": found.kept / found.rows,
      "seqio_task": name,
    },
  }


def kept_rows(selection: Manifest):
  """int64 kept row ids of a finished selection, ascending.

  Raises:
    UserError: they are not those that were selected.
  """
  import numpy as np

  from miniplm_jax.core import files

  path = selection.directory / "rows.npy"
  if not path.exists() or files.describe(path) != selection.files["rows.npy"]:
    raise UserError(
      "the kept rows are not those that were selected",
      str(path),
      "select again with --stages=select --force",
    )
  with path.open("rb") as f:
    return np.load(f)
