"""Stage select: the top share of D, once a method, from stored scores."""

import functools

from miniplm_jax.config import for_method, methods
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.job import Job
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.score.stage import ROLES
from miniplm_jax.select import view

STAGE = "select"


def jobs(config, workdir: Workdir) -> list[Job]:
  """Rows, then their reports; two methods may share a selection."""
  rows = {}
  for method in methods(config):
    names = for_method(config, method)
    rows[names.selection] = _job(config, workdir, names)
  views = [
    view.job(config, workdir, job, functools.partial(_scored, job.settings))
    for job in rows.values()
  ]
  return [*rows.values(), *views]


def _job(config, workdir: Workdir, names) -> Job:
  directory = workdir.selection(names.selection)
  c = config.select
  return Job(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings={
      "definition": names.definition,
      "ratio": c.ratio,
      "seed": c.seed,
      "scores": {role: config[role].name for role in ROLES},
    },
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      **{role: workdir.scores(config[role].name) / MANIFEST for role in ROLES},
    },
    outputs=(directory / "rows.npy",),
    summary=f"the top {c.ratio:.4g} of D by {names.definition}",
    run=lambda inputs: _run(names, c, directory, inputs),
  )


def _scored(settings, inputs):
  from miniplm_jax.select.scored import ScoredRows

  tables = {role: inputs[role] for role in ROLES}
  return ScoredRows(tables, settings["definition"], settings["seed"])


def _run(names, c, directory, inputs):
  import dataclasses

  import numpy as np

  from miniplm_jax.core import files
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.select import cutoff

  corpus = Corpus(inputs["corpus"])
  settings = {"definition": names.definition, "seed": c.seed}
  scored = _scored(settings, inputs)
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
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "files": {"rows.npy": files.describe(directory / "rows.npy")},
    "counts": {"rows": found.rows, "kept": found.kept},
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
