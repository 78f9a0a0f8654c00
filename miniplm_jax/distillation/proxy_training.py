"""Fits the proxy to the scores of a sample."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest, made_by
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation.proxy_regression import Regression
from miniplm_jax.models import huggingface, sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.score import table, units
from miniplm_jax.training import loop
from miniplm_jax.training.spec import ObjectiveSpec, TrainSpec


def true_scores(
  teacher: Manifest, reference: Manifest
) -> tuple[np.ndarray, np.ndarray]:
  """Rows that both scored, and log p − log p_ref as a mean per token.

  Returns:
    Row ids int64 [n], ascending; scores float32 [n].

  Raises:
    UserError: the tables hold other rows.
  """
  columns = []
  for made in (teacher, reference):
    parts = list(table.parts(made))
    columns.append({k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
  p, p_ref = columns
  if not np.array_equal(p["row_id"], p_ref["row_id"]):
    raise UserError(
      "teacher and reference scored different rows",
      f"{teacher.path} and {reference.path}",
      "score both on the same corpus with the same settings",
    )
  n_tokens = p["n_tokens"].astype(np.float32)
  # Term by term as select's mean_diff.
  return p["row_id"], p_ref["nll_sum"] / n_tokens - p["nll_sum"] / n_tokens


def in_sample(config, corpus: Corpus, row_ids: np.ndarray) -> np.ndarray:
  """Which of these rows the proxy learns from, bool [n]; by their content."""
  hashes = corpus.index["hash"].to_numpy()[row_ids]
  return units.point(hashes, config.score.seed) < config.proxy.sample


def run(
  config,
  directory,
  arch: Architecture,
  source: ModelRef | None,
  settings: Mapping[str, Any],
  inputs: Mapping[str, Manifest],
) -> dict[str, Any]:
  """Trains it; returns the fields of its manifest.

  Args:
    config: the configuration.
    directory: gets checkpoints/ and metrics/.
    arch: its shape.
    source: the reference, if its weights are what it begins with.
    settings: of its step.
    inputs: manifests of the corpus and of both tables.

  Raises:
    UserError: too few rows, or nothing to tell them apart by.
  """
  c, run = config.proxy, config.run
  corpus = Corpus(inputs["corpus"])
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  row_ids, scores = true_scores(inputs["teacher"], inputs["reference"])
  mine = in_sample(config, corpus, row_ids)
  mean, scale = _moments(scores[mine], np.count_nonzero(~mine))
  row_ids, targets = row_ids[mine], (scores[mine] - mean) / scale
  body = _body(source, arch, corpus, mesh) if source else None
  model = loop.train(
    loop.Training(
      spec=TrainSpec(
        stage="proxy",
        folder=directory,
        shape=arch,
        train=c.train,
        run=run,
        max_length=corpus.max_length,
        # The head of one number is not counted.
        objective=ObjectiveSpec(
          token_flops=3 * arch.body_flops(corpus.max_length)
        ),
      ),
      corpus=corpus,
      row_ids=row_ids,
      curve_ids=np.zeros(0, np.int64),
      made_by=made_by(settings, inputs),
      objective=Regression(
        c.train,
        corpus.eos_id,
        run.remat,
        row_ids,
        targets.astype(np.float32),
        body,
      ),
    ),
    mesh,
  )
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": huggingface.weights_fingerprint(model),
    "counts": {
      "rows": len(row_ids),
      "steps": c.train.steps,
      "tokens": c.train.steps * c.train.batch_size * corpus.max_length,
      "parameters": arch.parameters(),
    },
    # What the model says, times `scale`, plus `mean`, is a score.
    "details": {"mean": mean, "scale": scale},
  }


def _moments(scores: np.ndarray, others: int) -> tuple[float, float]:
  """Mean and standard deviation of the scores to learn."""
  if len(scores) < 2 or not others:
    raise UserError(
      f"{len(scores)} scored rows to learn from and {others} to test on",
      "config.proxy.sample and config.score.share",
      "let there be some of both: give other shares, or more text",
    )
  mean, scale = (
    float(np.float64(scores).mean()),
    float(np.float64(scores).std()),
  )
  if not scale:
    raise UserError(
      f"all {len(scores)} rows have the score {mean}",
      "scores of teacher and reference",
      "give two models that differ",
    )
  return mean, scale


def _body(source: ModelRef, arch: Architecture, corpus, mesh):
  """The reference's weights, if they fit."""
  model = source.load_as_scored(corpus, mesh, "float32")
  if model.arch != arch:
    raise UserError(
      f"the proxy is {arch} and the reference {model.arch}",
      "config.proxy.from_reference",
      "give config.proxy.model the reference's shape, or say False",
    )
  return model
