"""MiniPLM-proxy at work: fitted to a sample's scores, it predicts those of D.

A score is log p − log p_ref as a mean per token, as `select` computes it.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from miniplm_jax.config import ProxyConfig, RunConfig, ScoreConfig, VerifyConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest, made_by
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation.regression import Regression
from miniplm_jax.models import huggingface, regressor, sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.scoring import check, fidelity, table, units
from miniplm_jax.scoring import worker as worker_lib
from miniplm_jax.scoring.scorer import Scorer
from miniplm_jax.training import flops as flops_lib
from miniplm_jax.training import loop, trained
from miniplm_jax.training.spec import ObjectiveSpec, TrainSpec

STAGE = "proxy"


def true_scores(
  teacher: Manifest, reference: Manifest
) -> tuple[np.ndarray, np.ndarray]:
  """Rows that both scored, and their scores.

  Returns:
    Row ids int64 [n], ascending; scores float32 [n].

  Raises:
    UserError: the tables hold other rows.
  """
  columns = []
  for manifest in (teacher, reference):
    parts = list(table.parts(manifest))
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


def in_sample(
  corpus: Corpus, row_ids: np.ndarray, share: float, seed: int
) -> np.ndarray:
  """Which of these rows the proxy learns from, bool [n]; by their content.

  Args:
    corpus: of the rows.
    row_ids: int64 [n].
    share: of D, proxy.sample.
    seed: score.seed, which chose the rows that are scored, too.
  """
  hashes = corpus.index["hash"].to_numpy()[row_ids]
  return units.point(hashes, seed) < share


def fit(
  options: ProxyConfig,
  seed: int,
  source: ModelRef | None,
  folder: epath.Path,
  settings: Mapping[str, Any],
  run: RunConfig,
  inputs: Mapping[str, Manifest],
) -> dict[str, Any]:
  """Trains the proxy; returns the fields of its manifest.

  Args:
    options: its section of the config.
    seed: of the sample.
    source: the reference, if its weights are what it begins with.
    folder: gets checkpoints/ and metrics/.
    settings: of its step.
    run: how it is run.
    inputs: manifests of the corpus and of both tables.

  Raises:
    UserError: too few rows, or nothing to tell them apart by.
  """
  corpus, train, shape = Corpus(inputs["corpus"]), options.train, options.model
  mesh = sharding.mesh_of(run)
  row_ids, scores = true_scores(inputs["teacher"], inputs["reference"])
  is_learned = in_sample(corpus, row_ids, options.sample, seed)
  learned = scores[is_learned]
  mean, scale = _moments(learned, np.count_nonzero(~is_learned))
  row_ids, targets = row_ids[is_learned], (learned - mean) / scale
  spec = TrainSpec(
    stage=STAGE,
    folder=folder,
    shape=shape,
    train=train,
    run=run,
    max_length=corpus.max_length,
    objective=ObjectiveSpec(
      # The head of one number is not counted.
      token_flops=3 * shape.body_flops(corpus.max_length)
    ),
  )
  objective = Regression(
    train,
    corpus.eos_id,
    run.remat,
    row_ids,
    targets.astype(np.float32),
    _body(source, shape, corpus, mesh) if source else None,
  )
  model = loop.train(
    loop.Training(
      spec=spec,
      corpus=corpus,
      row_ids=row_ids,
      curve_ids=np.zeros(0, np.int64),
      made_by=made_by(settings, inputs),
      objective=objective,
    ),
    mesh,
  )
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": huggingface.weights_fingerprint(model),
    "counts": {
      "rows": len(row_ids),
      "steps": train.steps,
      "tokens": train.steps * spec.step_tokens,
      "parameters": shape.parameters(),
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
  scores = np.float64(scores)
  mean, scale = float(scores.mean()), float(scores.std())
  if not scale:
    raise UserError(
      f"all {len(scores)} rows have the score {mean}",
      "scores of teacher and reference",
      "give two models that differ",
    )
  return mean, scale


def _body(source: ModelRef, shape: Architecture, corpus: Corpus, mesh):
  """The reference's weights, if they fit."""
  model = source.load_as_scored(corpus, mesh, "float32")
  if model.arch != shape:
    raise UserError(
      f"the proxy is {shape} and the reference {model.arch}",
      "config.proxy.from_reference",
      "give config.proxy.model the reference's shape, or say False",
    )
  return model


def predict(
  options: ProxyConfig,
  score: ScoreConfig,
  models: Mapping[str, ModelRef],
  alpha: float,
  workdir: Workdir,
  run: RunConfig,
  verify: VerifyConfig,
  inputs: Mapping[str, Manifest],
) -> dict[str, Any]:
  """Fills the table and compares; returns the fields of its manifest.

  Its parts are those of any score table, with `diff_sum`, the predicted
  Σ log p − log p_ref of the row, where others have `nll_sum`.

  Args:
    options: the proxy's section of the config.
    score: how rows are scored, and which teacher and reference have.
    models: teacher and reference by role, for what they cost.
    alpha: the share that selection keeps.
    workdir: of the run.
    run: how it is run.
    verify: how what is stored is checked.
    inputs: manifests of the corpus, of the fitted proxy as "model", and of
      both tables.
  """
  corpus, fitted = Corpus(inputs["corpus"]), inputs["model"]
  folder = workdir.scores(options.name)

  def load(mesh):
    model = trained.restore(fitted, mesh, Regression.new_model)
    return model.rescaled(fitted.details["mean"], fitted.details["scale"])

  def scorer_of(model, mesh, **how) -> Scorer:
    return Scorer.configured(
      score,
      {options.name: model},
      corpus,
      mesh,
      row_step=regressor.row_value_step,
      flops=Architecture.body_flops,
      **how,
    )

  mesh = sharding.mesh_of(run)
  model = load(mesh)
  spec = worker_lib.TableSpec(
    model=options.name,
    directory=folder,
    claims=workdir.claims_of(folder),
    made_by=worker_lib.made_by(score, corpus, model, False),
    stage=STAGE,
    value="diff_sum",
  )
  all_units = units.units_of(corpus, score.rows_per_part)
  worker_lib.Worker(scorer_of(model, mesh), all_units, [spec], run).fill()
  del model

  def scorer_on(mesh) -> Scorer:
    return scorer_of(load(mesh), mesh, lengths=())

  fields = check.merge(spec, corpus, all_units, run, verify, scorer_on)
  if not fields:  # another process writes the manifest
    return {}
  parts = [table.read_part(folder / unit.name).columns for unit in all_units]
  both = compare(corpus, inputs, parts, options.sample, score.seed)
  quality, cost = report(both, alpha), {}
  if not any(model.scores for model in models.values()):
    cost = flops(options, score, models, corpus, fitted)
  log(STAGE, in_words(quality))
  log(STAGE, cost_in_words(cost))
  fields["details"] |= {
    "fidelity": quality,
    "flops_compared": cost,
    # As other stages say what they took.
    flops_lib.OFFLINE: {
      "scoring of the proxy's sample": cost.get("sample"),
      "training of proxy": cost.get("train"),
      "scoring by proxy": cost.get("score"),
    },
  }
  return fields


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Does it rank as the models do, on rows that it did not learn from?

  Of those that both scored: all others, if all of D was scored.
  """

  row_ids: np.ndarray  # int64 [n]
  true: np.ndarray  # float32 [n], log p − log p_ref, nats per token
  predicted: np.ndarray  # float32 [n], the same as the proxy says
  learned: int  # how many rows it did learn from
  of_d: int  # rows of D


def compare(
  corpus: Corpus,
  tables: Mapping[str, Manifest],
  parts: Iterable[table.Columns],
  share: float,
  seed: int,
) -> Comparison:
  """Both scores of those rows.

  Args:
    corpus: of the rows.
    tables: manifests of "teacher" and "reference".
    parts: of the proxy's table, in row order.
    share: as `in_sample` has it.
    seed: likewise.
  """
  row_ids, true = true_scores(tables["teacher"], tables["reference"])
  other = ~in_sample(corpus, row_ids, share, seed)
  ids, values = zip(
    *(
      (c["row_id"], c["diff_sum"] / c["n_tokens"].astype(np.float32))
      for c in parts
    )
  )
  ids, values = np.concatenate(ids), np.concatenate(values)
  return Comparison(
    row_ids=row_ids[other],
    true=true[other],
    predicted=values[np.searchsorted(ids, row_ids[other])],
    learned=int(np.count_nonzero(~other)),
    of_d=len(ids),
  )


def report(both: Comparison, alpha: float) -> dict[str, Any]:
  """The figures of `score.fidelity.report`, and Pearson's correlation.

  Args:
    both: of at least one row.
    alpha: the share that selection keeps.
  """
  true, predicted = np.float64(both.true), np.float64(both.predicted)
  return fidelity.report(true, predicted, alpha=alpha) | {
    "pearson": fidelity.pearson(true, predicted),
    "learned_rows": both.learned,
    "rows_of_d": both.of_d,
  }


def in_words(report: Mapping[str, Any]) -> str:
  """A `report`, for the log."""
  alpha = report["alpha"]
  return (
    f"on {report['rows']:,} rows that it did not learn from: Spearman "
    f"{report['spearman']:.4f}, Pearson {report['pearson']:.4f}, "
    f"{report['agreement'][str(alpha)]:.1%} of the highest {alpha:.0%} "
    f"(chance {alpha:.0%})"
  )


def flops(
  options: ProxyConfig,
  score: ScoreConfig,
  models: Mapping[str, ModelRef],
  corpus: Corpus,
  fitted: Manifest,
) -> dict[str, float]:
  """FLOPs of ranking D with and without it; padding in training alone.

  Args:
    options: the proxy's section of the config.
    score: which rows teacher and reference scored.
    models: teacher and reference.
    corpus: of the rows.
    fitted: manifest of the proxy.

  Returns:
    `full`, D by both models; `sample`, what the proxy learns from by both;
    `test`, further rows that were scored and only test it; `train`; `score`,
    D by the proxy; and `share_of_full` of sample, train and score together.
  """
  shapes = [model.shape() for model in models.values()]

  def both(length: int) -> float:
    return sum(shape.forward_flops(length) for shape in shapes)

  def total(of_token: flops_lib.OfToken, row_ids) -> float:
    return flops_lib.rows(of_token, corpus.lengths[row_ids] - 1)

  of_d, body = corpus.rows_of("train"), options.model.body_flops
  scored = units.sampled_rows(corpus, score.share, score.seed)
  is_learned = in_sample(corpus, scored, options.sample, score.seed)
  cost = {
    "full": total(both, of_d),
    "sample": total(both, scored[is_learned]),
    "test": total(both, scored[~is_learned]),
    "train": 3 * body(corpus.max_length) * fitted.counts["tokens"],
    "score": total(body, of_d),
  }
  way = cost["sample"] + cost["train"] + cost["score"]
  return cost | {"share_of_full": way / cost["full"]}


def cost_in_words(cost: Mapping[str, float]) -> str:
  """`flops`, for the log; none are those of scores that were given."""
  if not cost:
    return "FLOPs are not known: scores were made elsewhere"
  # Whether more than the sample was scored, to test the proxy or for other
  # methods, is another matter.
  only = ", had only the sample been scored" if cost["test"] else ""
  return (
    f"{cost['sample']:.3g} FLOPs of scoring its sample + "
    f"{cost['train']:.3g} of training + {cost['score']:.3g} of scoring D "
    f"are {cost['share_of_full']:.1%} of {cost['full']:.3g} of scoring D "
    f"with both models{only}"
  )
