"""Stage train: one student a method."""

import functools

from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.corpus import convert_step
from miniplm_jax.distillation import objectives
from miniplm_jax.distillation import seqkd_step as seqkd_stage
from miniplm_jax.methods import INIT
from miniplm_jax.train import warm_start
from miniplm_jax.training import budget, trained
from miniplm_jax.training import step as training_step
from miniplm_jax.training.spec import TrainSpec

STAGE = "train"


def steps(config, workdir: Workdir) -> list[Step]:
  """One step a method."""
  return [_step(config, workdir, names) for names in config.names]


def _step(config, workdir: Workdir, names) -> Step:
  objective = objectives.of_config(config, workdir, names)
  shape = config.student.model
  train = budget.schedule(config, shape, objective.token_flops)
  generated = seqkd_stage.corpus_inputs(config, workdir, names)
  source = warm_start.source(config)
  spec = TrainSpec(
    stage=STAGE,
    folder=workdir.student(names.student),
    shape=shape,
    train=train,
    run=config.run,
    max_length=config.corpus.max_length,
    objective=objective,
    begin=source and functools.partial(warm_start.load, source),
    rows=f"{trained.OF_SELECTION}{names.selection}",
    row_ids=trained.row_ids,
    ignore_domains=config.evaluate.ignore_domains,
    export=config.export,
    steps_note=budget.in_words(config, train),
    offline={
      **budget.offline(
        config, workdir, names, {**generated, **objective.inputs}
      ),
      **({"the weights that it begins with": None} if source else {}),
    },
  )
  inputs = {
    **convert_step.corpus_inputs(
      config.student, config.corpus, workdir, names.student
    ),
    "selection": workdir.selection(names.selection) / MANIFEST,
    **generated,
  }
  if source:
    inputs[INIT] = source.as_input()
  return training_step.step(spec, inputs)
