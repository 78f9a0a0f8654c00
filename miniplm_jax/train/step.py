"""Stage train: one student a method."""

import functools

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import CONVERTED, GENERATED, MANIFEST, Workdir
from miniplm_jax.corpus import convert_step
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.distillation import seqkd_step as seqkd_stage
from miniplm_jax.distillation.objectives import OBJECTIVES
from miniplm_jax.train import budget, warm_start
from miniplm_jax.training import step as training_step

STAGE = "train"
# Before the name of its selection, in a student's settings.rows.
OF_SELECTION = "selection "
INIT = "init"  # of its inputs: the weights that it begins with


def steps(config, workdir: Workdir) -> list[Step]:
  """One step a method."""
  names = config.names
  return [_step(config, workdir, n) for n in names]


def _step(config, workdir: Workdir, names) -> Step:
  plan = OBJECTIVES[names.objective](config, workdir, names)
  arch = config.student.model
  train = budget.schedule(config, arch, plan.token_flops)
  generated = seqkd_stage.corpus_inputs(config, workdir, names)
  source = warm_start.source(config)
  return training_step.make(
    stage=STAGE,
    config=config,
    workdir=workdir,
    directory=workdir.student(names.student),
    arch=arch,
    train=train,
    rows=f"{OF_SELECTION}{names.selection}",
    row_ids=row_ids,
    inputs={
      **convert_step.corpus_inputs(
        config.student, config.corpus, workdir, names.student
      ),
      "selection": workdir.selection(names.selection) / MANIFEST,
      **generated,
      **({INIT: source.as_input()} if source else {}),
      **plan.inputs,
    },
    begin=source and functools.partial(warm_start.load, source),
    export_every=config.run.export_every,
    objective=plan.make,
    settings=plan.settings,
    token_flops=plan.token_flops,
    told=budget.in_words(config, train),
    offline={
      **budget.offline(config, workdir, names, {**generated, **plan.inputs}),
      **({"the weights that it begins with": None} if source else {}),
    },
  )


def own_corpora(trained: Manifest) -> dict[str, Manifest]:
  """The corpora beside a student that it was trained on, by input."""
  places = {
    name: trained.directory / folder / MANIFEST
    for name, folder in ((GENERATED, "generated"), (CONVERTED, "corpus"))
    if name in trained.inputs
  }
  # One that was removed when it had been used is no other.
  found = {name: manifest_lib.read(path) for name, path in places.items()}
  return {name: made for name, made in found.items() if made}


def row_ids(corpus, inputs):
  """Those of a student's training, int64: the kept ones.

  A corpus of the student's own has no others to train on.
  """
  if CONVERTED in inputs or GENERATED in inputs:
    return corpus.rows_of("train")
  return kept_rows(inputs["selection"])
