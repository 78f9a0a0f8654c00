"""MiniPLM-proxy, paper Appendix E: most of D is never seen by the teacher.

Teacher and reference score a sample of D, a small model learns log p − log
p_ref from it and predicts it for all of D; `select` ranks by the prediction.
The paper says that much and no more: the recipe is ours [inferred]. All rows
are ranked by the prediction, also those whose score is known: a true score
has more spread than its prediction, and the two would be no one scale.
"""

import dataclasses
from collections.abc import Mapping

from etils import epy

from miniplm_jax.config import ProxyConfig, RunConfig, ScoreConfig, VerifyConfig
from miniplm_jax.core.step import Input, Policy, Step
from miniplm_jax.core.workdir import MANIFEST, Workdir, table_files
from miniplm_jax.models.ref import REFERENCE, ModelRef
from miniplm_jax.scoring import settings as score_settings

with epy.lazy_imports():
  from miniplm_jax.distillation import proxy

STAGE = "proxy"


def steps(
  options: ProxyConfig,
  score: ScoreConfig,
  models: Mapping[str, ModelRef],
  alpha: float,
  workdir: Workdir,
  run: RunConfig,
  verify: VerifyConfig,
) -> list[Step]:
  """Fit it, and score D with it.

  Args:
    options: its section of the config.
    score: how rows are scored, and which teacher and reference have.
    models: teacher and reference by role.
    alpha: the share that selection keeps.
    workdir: of the run.
    run: how it is run.
    verify: how what is stored is checked.
  """
  inputs = {"corpus": workdir.corpus / MANIFEST}
  inputs |= {role: ref.table / MANIFEST for role, ref in models.items()}
  return [
    _fit(options, score.seed, models[REFERENCE], inputs, workdir, run),
    _table(options, score, models, alpha, inputs, workdir, run, verify),
  ]


def _fit(
  options: ProxyConfig,
  seed: int,
  reference: ModelRef,
  inputs: Mapping[str, Input],
  workdir: Workdir,
  run: RunConfig,
) -> Step:
  """The step that trains it."""
  folder, train, shape = workdir.scorer(STAGE), options.train, options.model
  settings = {
    "model": dataclasses.asdict(shape),
    "train": dataclasses.asdict(train),
    "sample": options.sample,
    "seed": seed,
    "from_reference": options.from_reference,
  }
  source = reference if options.from_reference else None
  if source:
    inputs = {**inputs, "began as": source.as_input()}
  return Step(
    stage=STAGE,
    manifest=folder / MANIFEST,
    settings=settings,
    inputs=inputs,
    outputs=tuple(folder / name for name in ("checkpoints", "metrics")),
    summary=f"{shape.parameters():,} parameters "
    f"({shape.non_embedding_parameters():,} without embeddings) learn the "
    f"score of {options.sample:.4g} of the rows of D, {train.steps:,} steps × "
    f"{train.batch_size} rows, {train.dtype}",
    run=lambda manifests: proxy.fit(
      options, seed, source, folder, settings, run, manifests
    ),
  )


def _table(
  options: ProxyConfig,
  score: ScoreConfig,
  models: Mapping[str, ModelRef],
  alpha: float,
  inputs: Mapping[str, Input],
  workdir: Workdir,
  run: RunConfig,
  verify: VerifyConfig,
) -> Step:
  """The step that makes its score table."""
  folder = workdir.scores(options.name)
  return Step(
    stage=STAGE,
    manifest=folder / MANIFEST,
    settings=score_settings.of_table(score),
    layout=score_settings.LAYOUT,
    inputs={
      "corpus": inputs["corpus"],
      "model": workdir.scorer(STAGE) / MANIFEST,
      **inputs,
    },
    outputs=table_files(folder),
    policy=Policy(is_shared=True),
    summary=f"log p − log p_ref of every row of D as the proxy predicts it, "
    f"{score.dtype}",
    run=lambda manifests: proxy.predict(
      options, score, models, alpha, workdir, run, verify, manifests
    ),
  )
