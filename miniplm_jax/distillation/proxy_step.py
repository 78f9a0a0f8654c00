"""MiniPLM-proxy, paper Appendix E: most of D is never seen by the teacher.

Teacher and reference score a sample of D, a small model learns log p − log
p_ref from it and predicts it for all of D; `select` ranks by the prediction.
The paper says that much and no more: the recipe is ours [inferred]. All rows
are ranked by the prediction, also those whose score is known: a true score
has more spread than its prediction, and the two would be no one scale.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epy

from miniplm_jax.config import ProxyConfig, RunConfig, ScoreConfig, VerifyConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest, made_by
from miniplm_jax.core.step import Input, Policy, Step
from miniplm_jax.core.workdir import MANIFEST, Workdir, table_files
from miniplm_jax.models.ref import REFERENCE, ModelRef
from miniplm_jax.training.spec import ObjectiveSpec, TrainSpec

with epy.lazy_imports():
  import numpy as np

  from miniplm_jax.corpus import store
  from miniplm_jax.distillation import proxy, regression
  from miniplm_jax.models import architecture, huggingface, regressor, sharding
  from miniplm_jax.scoring import check, scorer, table, units, worker
  from miniplm_jax.training import flops, loop, trained

STAGE = "proxy"


@dataclasses.dataclass(frozen=True)
class Proxy:
  """A small model that learns the scores of a sample and predicts the rest."""

  options: ProxyConfig
  score: ScoreConfig  # how rows are scored, and which the models have
  models: Mapping[str, ModelRef]  # teacher and reference by role
  alpha: float  # the share that selection keeps
  workdir: Workdir
  run: RunConfig
  verify: VerifyConfig

  def steps(self) -> list[Step]:
    """Fit it, and score D with it."""
    tables = {role: ref.table / MANIFEST for role, ref in self.models.items()}
    inputs = {"corpus": self.workdir.corpus / MANIFEST, **tables}
    return [self._fit_step(inputs), self._table_step(inputs)]

  @property
  def _source(self) -> ModelRef | None:
    """The reference, if its weights are what the proxy begins with."""
    return self.models[REFERENCE] if self.options.from_reference else None

  def _fit_step(self, inputs: Mapping[str, Input]) -> Step:
    options, train, shape = self.options, self.options.train, self.options.model
    folder = self.workdir.scorer(STAGE)
    settings = {
      "model": architecture.settings_of(shape),
      "train": dataclasses.asdict(train),
      "sample": options.sample,
      "seed": self.score.seed,
      "from_reference": options.from_reference,
    }
    if self._source:
      inputs = {**inputs, "began as": self._source.as_input()}
    return Step(
      stage=STAGE,
      manifest=folder / MANIFEST,
      settings=settings,
      inputs=inputs,
      outputs=tuple(folder / name for name in ("checkpoints", "metrics")),
      summary=f"{shape.parameters():,} parameters "
      f"({shape.non_embedding_parameters():,} without embeddings) learn the "
      f"score of {options.sample:.4g} of the rows of D, {train.steps:,} steps "
      f"× {train.batch_size} rows, {train.dtype}",
      run=lambda manifests: self._fit(settings, manifests),
    )

  def _fit(
    self, settings: Mapping[str, Any], inputs: Mapping[str, Manifest]
  ) -> dict[str, Any]:
    """Trains it on the rows of the sample that both models scored."""
    corpus, options = store.Corpus(inputs["corpus"]), self.options
    train, shape = options.train, options.model
    mesh = sharding.mesh_of(self.run)
    row_ids, scores = proxy.true_scores(inputs["teacher"], inputs["reference"])
    is_learned = proxy.in_sample(
      corpus, row_ids, options.sample, self.score.seed
    )
    learned = scores[is_learned]
    mean, scale = proxy.moments(learned, np.count_nonzero(~is_learned))
    row_ids, targets = row_ids[is_learned], (learned - mean) / scale
    spec = TrainSpec(
      stage=STAGE,
      folder=self.workdir.scorer(STAGE),
      shape=shape,
      train=train,
      run=self.run,
      max_length=corpus.max_length,
      objective=ObjectiveSpec(
        # The head of one number is not counted.
        token_flops=3 * shape.body_flops(corpus.max_length)
      ),
    )
    objective = regression.Regression(
      train,
      corpus.eos_id,
      self.run.remat,
      row_ids,
      targets.astype(np.float32),
      self._body(corpus, mesh),
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

  def _body(self, corpus: "store.Corpus", mesh):
    """The reference's weights, if it begins with them."""
    if not self._source:
      return None
    model = self._source.load_as_scored(corpus, mesh, "float32")
    if model.arch != (shape := self.options.model):
      raise UserError(
        f"the proxy is {shape} and the reference {model.arch}",
        "config.proxy.from_reference",
        "give config.proxy.model the reference's shape, or say False",
      )
    return model

  def _table_step(self, inputs: Mapping[str, Input]) -> Step:
    folder = self.workdir.scores(self.options.name)
    return Step(
      stage=STAGE,
      manifest=folder / MANIFEST,
      settings=self.score.of_table,
      layout=ScoreConfig.LAYOUT,
      effect=ScoreConfig.effect,
      inputs={
        "corpus": inputs["corpus"],
        "model": self.workdir.scorer(STAGE) / MANIFEST,
        **inputs,
      },
      outputs=table_files(folder),
      policy=Policy(is_shared=True),
      summary=f"log p − log p_ref of every row of D as the proxy predicts it, "
      f"{self.score.dtype}",
      run=self._predict,
    )

  def _predict(self, inputs: Mapping[str, Manifest]) -> dict[str, Any]:
    """Fills its table, and compares it with what both models said.

    Its parts are those of any score table, with `diff_sum`, the predicted
    Σ log p − log p_ref of the row, where others have `nll_sum`.
    """
    score, options, run = self.score, self.options, self.run
    corpus, fitted = store.Corpus(inputs["corpus"]), inputs["model"]
    folder = self.workdir.scores(options.name)

    def load(mesh):
      model = trained.restore(fitted, mesh, regression.Regression.new_model)
      return model.rescaled(fitted.details["mean"], fitted.details["scale"])

    def scorer_of(model, mesh, **how) -> "scorer.Scorer":
      return scorer.Scorer(
        score,
        {options.name: model},
        corpus,
        mesh,
        row_sum=regressor.row_value,
        flops=architecture.Architecture.body_flops,
        **how,
      )

    mesh = sharding.mesh_of(run)
    model = load(mesh)
    spec = worker.TableSpec(
      model=options.name,
      directory=folder,
      claims=self.workdir.claims_of(folder),
      made_by=worker.made_by(score, corpus, model, False),
      stage=STAGE,
      value="diff_sum",
    )
    all_units = units.units_of(corpus, score.rows_per_part)
    worker.Worker(scorer_of(model, mesh), all_units, [spec], run).fill()
    del model

    def scorer_on(mesh) -> "scorer.Scorer":
      return scorer_of(load(mesh), mesh, lengths=())

    fields = check.merge(spec, corpus, all_units, run, self.verify, scorer_on)
    if not fields:  # another process writes the manifest
      return {}
    parts = [table.read_part(folder / unit.name).columns for unit in all_units]
    both = proxy.compare(corpus, inputs, parts, options.sample, score.seed)
    quality, cost = proxy.report(both, self.alpha), {}
    if not any(model.scores for model in self.models.values()):
      shapes = [model.shape() for model in self.models.values()]
      cost = proxy.cost(options, score, shapes, corpus, fitted)
    log(STAGE, proxy.in_words(quality))
    log(STAGE, proxy.cost_in_words(cost))
    fields["details"] |= {
      "fidelity": quality,
      "flops_compared": cost,
      # As other stages say what they took.
      flops.OFFLINE: {
        "scoring of the proxy's sample": cost.get("sample"),
        "training of proxy": cost.get("train"),
        "scoring by proxy": cost.get("score"),
      },
    }
    return fields
