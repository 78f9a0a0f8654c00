"""Stage evaluate: NLL on held-out rows by domain.

Its zero-shot tasks are steps of `tasks_step`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epy

from miniplm_jax.config import EvaluateConfig, RunConfig, ScoreConfig
from miniplm_jax.core import backup, distributed, fields
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress, warn
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import CONVERTED, MANIFEST
from miniplm_jax.evaluation import heldout
from miniplm_jax.evaluation.heldout import STAGE
from miniplm_jax.evaluation.subjects import Subject
from miniplm_jax.training import comparable

with epy.lazy_imports():
  from miniplm_jax.corpus import store, trained_rows
  from miniplm_jax.models import sharding


def step(
  it: Subject,
  evaluate: EvaluateConfig,
  score: ScoreConfig,
  run: RunConfig,
  is_view: bool = False,
) -> Step:
  """The held-out losses of one model; `score` puts rows into batches.

  As a view they are measured again, not refused, with other settings, too. If
  other domains count, and nothing else is new, no row is measured again.
  """
  settings = {
    "max_rows": evaluate.max_rows,
    "ignore_domains": list(evaluate.ignore_domains),
    "dtype": it.dtype,
  }
  former = _former(it, settings)
  return Step(
    stage=STAGE,
    manifest=it.folder / heldout.MANIFEST,
    settings=settings,
    inputs={**it.corpus, "model": it.folder / MANIFEST},
    outputs=(it.folder / heldout.ROWS,),
    effect=functools.partial(_effect, it),
    policy=Policy(is_view=is_view or bool(former), is_measure=True),
    summary="held-out loss of",
    subject=it.name,
    run=lambda inputs: _run(it, evaluate, score, run, inputs, former),
  )


def _former(it: Subject, settings: Mapping[str, Any]) -> Manifest | None:
  """What was measured, if all that is new is which domains do not count."""
  path = it.folder / heldout.MANIFEST
  try:
    former = manifest_lib.read(path) or manifest_lib.read(backup.aside(path))
    if not former or heldout.ROWS not in former.files:
      return None
    then, now = (_effect(it, s) for s in (former.settings, settings))
  except UserError:  # it is told where something depends on it
    return None
  is_new = then.pop("ignore_domains") != now.pop("ignore_domains")
  return former if is_new and then == now else None


def _effect(it: Subject, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Which rows a model is measured on, and how."""
  corpus = manifest_lib.read(it.corpus.get(CONVERTED, it.corpus["corpus"]))
  rows = corpus.counts.get("split heldout") if corpus else None
  most = settings["max_rows"]
  return {
    "dtype": settings["dtype"],
    "ignore_domains": sorted(set(settings.get("ignore_domains") or ())),
    # Of fewer rows than these all are taken.
    "max_rows": most if rows is None else fields.stride(rows, most),
  }


def _run(
  it: Subject,
  evaluate: EvaluateConfig,
  score: ScoreConfig,
  run: RunConfig,
  inputs: Mapping[str, Manifest],
  former: Manifest | None,
) -> dict[str, Any]:
  corpus = store.open_corpus(inputs)
  row_ids = corpus.heldout_rows(evaluate.max_rows)
  if not len(row_ids):
    raise UserError(
      "there are no held-out rows",
      f"corpus {corpus.directory}",
      "raise corpus.heldout_share, or leave out --stages=evaluate",
    )
  ignored = evaluate.ignore_domains
  store.Corpus(inputs["corpus"]).warn_of_missing(ignored, STAGE)
  is_ignored = np.isin(corpus.domains(row_ids), list(ignored))
  if is_ignored.all():
    raise UserError(
      "every held-out row is of a domain that does not count",
      f"config.evaluate.ignore_domains={','.join(ignored)}",
      "ignore fewer domains",
    )
  kept = former and _kept(former, inputs)
  if kept:
    measured = heldout.weighted(corpus, *kept.values(), ignored)
  else:
    measured = _measure(it, corpus, row_ids, score, run, inputs, ignored)
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": inputs["model"].weights,
    "counts": {"rows": len(row_ids)},
    "files": distributed.agree(
      lambda: heldout.write_rows(inputs["model"].directory, measured)
    ),
    "details": {
      "loss": measured.losses,
      comparable.LOSS: comparable.digest(corpus, row_ids[~is_ignored]),
    },
  }


def _kept(
  former: Manifest, inputs: Mapping[str, Manifest]
) -> dict[str, np.ndarray] | None:
  """The rows of `heldout.read_rows` of the same inputs, if they are whole."""
  if former.inputs != {name: m.fingerprint for name, m in inputs.items()}:
    return None
  moved = backup.aside(former.directory / heldout.ROWS)
  try:
    return heldout.read_rows(former, moved if moved.exists() else None)
  except UserError as e:
    warn(STAGE, f"{e.what}: the rows are measured again")
    return None


def _measure(
  it: Subject,
  corpus,
  row_ids: np.ndarray,
  score: ScoreConfig,
  run: RunConfig,
  inputs: Mapping[str, Manifest],
  ignored: Sequence[str],
) -> heldout.Measured:
  folder = it.ref.folder() if it.ref else it.folder
  trained_rows.refuse(folder, corpus, row_ids, it.name, "held-out rows")
  mesh = sharding.mesh_of(run)
  model = it.load(inputs, mesh, it.dtype)
  every = run.log_every_seconds
  with Progress(f"{STAGE} {it.name}", len(row_ids), "rows", every=every) as bar:
    return heldout.measure(
      model,
      corpus,
      row_ids,
      mesh,
      score,
      dtype=it.dtype,
      ignored=ignored,
      progress=bar.update,
    )
