"""The objectives of methods.py as a training takes them; without JAX."""

import dataclasses
import pkgutil
from typing import Any

from etils import epath, epy

from miniplm_jax.config import TrainConfig
from miniplm_jax.core import manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import Section
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.distillation.logits_step import StoredLabels
from miniplm_jax.methods import (
  LABELS,
  OBJECTIVES,
  TEACHER_WEIGHTS,
  Objective,
  settings_key,
)
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.training import flops
from miniplm_jax.training.spec import ObjectiveSpec

with epy.lazy_imports():
  from miniplm_jax.distillation import logits_table


def spec(
  name: str,
  section: Section | None,
  *,
  train: TrainConfig,
  shape: Architecture,
  max_length: int,
  teacher: ModelRef,
  labels: StoredLabels | None,
  finished: epath.Path,
) -> ObjectiveSpec:
  """What training a student by an objective takes.

  Args:
    section: of the config; None is of an objective that has none.
    labels: what stage logits stores, if it is trained on that.
    finished: the student's manifest: what its training took, when the teacher
      is gone.

  Raises:
    UserError: the teacher's shape is not known.
  """
  objective = OBJECTIVES[name]
  if section and hasattr(section, "dtype"):  # "" is that of the training
    section = dataclasses.replace(section, dtype=section.dtype or train.dtype)
  dtype = getattr(section, "dtype", train.dtype)

  def make(training, corpus, mesh, inputs):
    other = None
    if objective.runs_teacher:
      other = teacher.load_as_scored(corpus, mesh, dtype)
    elif objective.labels:
      rows = kept_rows(inputs["selection"])
      other = logits_table.LogitsTable(inputs[LABELS], rows)
    t, run = training.train, training.run
    return class_of(objective)(t, corpus.eos_id, run.remat, other, section)

  settings, inputs, token_flops = {}, {}, 0.0
  if name != "next_token":
    options = dataclasses.asdict(section) if section else {}
    settings = {settings_key(name): options}
  if labels:
    inputs = labels.as_inputs()
  if objective.runs_teacher:
    inputs[TEACHER_WEIGHTS] = teacher.as_input()
  if objective.token_flops:
    try:
      theirs = teacher.shape() if objective.runs_teacher else None
      cost = flops.TokenCost(shape, theirs, max_length)
      token_flops = objective.token_flops(cost, section)
    except UserError:  # it may be gone, or the hub not be reached
      trained = manifest.read(finished)
      if not trained:
        raise
      token_flops = trained.details["train_flops"] / trained.counts["tokens"]
  return ObjectiveSpec(
    name=name,
    section=section,
    make=make if objective.loss else None,
    settings=settings,
    inputs=inputs,
    token_flops=token_flops,
  )


def class_of(objective: Objective) -> Any:
  """The class of an objective that has its own."""
  return pkgutil.resolve_name(f"miniplm_jax.distillation.{objective.loss}")
