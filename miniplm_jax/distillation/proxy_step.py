"""MiniPLM-proxy, paper Appendix E: most of D is never seen by the teacher.

Teacher and reference score a sample of D, a small model learns log p − log
p_ref from it and predicts it for all of D; `select` ranks by the prediction.
The paper says that much and no more: the recipe is ours [inferred]. All rows
are ranked by the prediction, also those whose score is known: a true score
has more spread than its prediction, and the two would be no one scale.
"""

import dataclasses

from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST, Workdir, table_files
from miniplm_jax.models.ref import REFERENCE, ModelRef
from miniplm_jax.score import settings as score_settings

STAGE = "proxy"


def steps(config, workdir: Workdir) -> list[Step]:
  """Train it, and score D with it; nothing if no method asks for it."""
  if not config.uses_proxy:
    return []
  return [_train(config, workdir), _score(config, workdir)]


def _tables(config, workdir: Workdir):
  return {
    role: workdir.scores(section.name) / MANIFEST
    for role, section in config.roles.items()
  }


def _train(config, workdir: Workdir) -> Step:
  c, directory = config.proxy, workdir.scorer(STAGE)
  arch = c.model
  settings = {
    "model": dataclasses.asdict(arch),
    "train": dataclasses.asdict(c.train),
    "sample": c.sample,
    "seed": config.score.seed,
    "from_reference": c.from_reference,
  }
  inputs = {"corpus": workdir.corpus / MANIFEST, **_tables(config, workdir)}
  source = None
  if c.from_reference:
    source = ModelRef.of_role(REFERENCE, config.reference, workdir)
    inputs["began as"] = source.as_input()

  def run(found):
    from miniplm_jax.distillation import proxy_training as training

    return training.run(config, directory, arch, source, settings, found)

  return Step(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings=settings,
    inputs=inputs,
    outputs=tuple(directory / name for name in ("checkpoints", "metrics")),
    summary=f"{arch.parameters():,} parameters "
    f"({arch.non_embedding_parameters():,} without embeddings) learn the "
    f"score of {c.sample:.4g} of the rows of D, {c.train.steps:,} steps × "
    f"{c.train.batch_size} rows, {c.train.dtype}",
    run=run,
  )


def _score(config, workdir: Workdir) -> Step:
  c, directory = config.score, workdir.scores(config.proxy.name)

  def run(found):
    from miniplm_jax.distillation import proxy_scoring as scoring

    return scoring.run(config, workdir, directory, found)

  return Step(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings=score_settings.of_table(config.score),
    layout=score_settings.LAYOUT,
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      "model": workdir.scorer(STAGE) / MANIFEST,
      **_tables(config, workdir),
    },
    outputs=table_files(directory),
    policy=Policy(is_shared=True),
    summary=f"log p − log p_ref of every row of D as the proxy predicts it, "
    f"{c.dtype}",
    run=run,
  )
