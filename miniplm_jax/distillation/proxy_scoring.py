"""The proxy's predictions for all of D, and how good they are."""

from collections.abc import Mapping
from typing import Any

from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation import proxy_cost as cost
from miniplm_jax.distillation import proxy_fidelity as fidelity
from miniplm_jax.distillation.proxy_regression import Regression
from miniplm_jax.distillation.proxy_step import STAGE
from miniplm_jax.models import regressor, sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.score import check, table
from miniplm_jax.score import worker as worker_lib
from miniplm_jax.score.scorer import Scorer
from miniplm_jax.score.units import units_of
from miniplm_jax.training import flops as flops_lib
from miniplm_jax.training.trained import restore


def run(
  config, workdir: Workdir, directory, inputs: Mapping[str, Manifest]
) -> dict[str, Any]:
  """Fills the table and compares; returns the fields of its manifest.

  Its parts are those of any score table, with `diff_sum`, the predicted
  Σ log p − log p_ref of the row, where others have `nll_sum`.

  Args:
    config: the configuration.
    workdir: of the run.
    directory: of the table.
    inputs: manifests of the corpus, of the trained proxy as "model", and of
      both tables.
  """
  run, c = config.run, config.proxy
  corpus, trained = Corpus(inputs["corpus"]), inputs["model"]
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)

  def load(mesh):
    model = restore(trained, mesh, Regression.new_model)
    mean, scale = trained.details["mean"], trained.details["scale"]
    return model.rescaled(mean, scale)

  def scorer_of(model, mesh, **what):
    return Scorer.configured(
      config.score,
      {c.name: model},
      corpus,
      mesh,
      row_step=regressor.row_value_step,
      flops=Architecture.body_flops,
      **what,
    )

  model = load(mesh)
  spec = worker_lib.TableSpec(
    model=c.name,
    directory=directory,
    claims=workdir.claims_of(directory),
    made_by=worker_lib.made_by(config.score, corpus, model, False),
    stage=STAGE,
    value="diff_sum",
  )
  units = units_of(corpus, config.score.rows_per_part)
  worker_lib.Worker(scorer_of(model, mesh), units, [spec], run).fill()
  del model

  def scorer_on(mesh):
    return scorer_of(load(mesh), mesh, lengths=())

  made = check.merge(spec, corpus, units, run, config.verify, scorer_on)
  if not made:  # another process writes the manifest
    return {}
  predicted = [table.read_part(directory / unit.name).columns for unit in units]
  found = fidelity.heldout(config, corpus, inputs, predicted)
  # A selection by rows or tokens has no share of its own.
  report = fidelity.report(found, config.select.ratio or 0.5)
  flops = cost.flops(config, workdir, corpus, inputs)
  log(STAGE, fidelity.in_words(report))
  log(STAGE, cost.in_words(flops))
  made["details"] |= {
    "fidelity": report,
    "flops_compared": flops,
    flops_lib.OFFLINE: cost.parts(flops),
  }
  return made
