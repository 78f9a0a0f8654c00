"""The objectives by name; nothing of JAX is imported before one is made."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from miniplm_jax.core.job import Input
from miniplm_jax.distill import logits_stage
from miniplm_jax.models import architecture, hub
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.score import stage as score_stage
from miniplm_jax.select.stage import kept_rows
from miniplm_jax.trainer import flops


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a training job needs to know of its objective.

  Attributes:
    make: (corpus, mesh, input manifests) → a `NextToken` or what extends it;
      None is `NextToken` itself.
    settings: what of the config changes the result, for the manifest.
    inputs: what it reads beside corpus and selection, by name.
    token_flops: of training on one input token; 0 is what the student's
      forward and backward pass take.
  """

  make: Callable[..., Any] | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  inputs: Mapping[str, Input] = dataclasses.field(default_factory=dict)
  token_flops: float = 0.0


def _next_token(unused_config, unused_workdir, unused_names) -> Plan:
  return Plan()


def _minillm(config, workdir, unused_names) -> Plan:
  source, length = (
    score_stage.sources(config, workdir)[0],
    config.corpus.max_length,
  )

  def make(corpus, mesh, inputs):
    from miniplm_jax.distill.minillm import MiniLLM

    if "teacher" in inputs:
      inputs["teacher"].check_sizes()
    train, run = config.train, config.run
    teacher = score_stage.load_checked(source, corpus, mesh, train.dtype)
    return MiniLLM(train, corpus.eos_id, run.remat, teacher, config.minillm)

  return Plan(
    make=make,
    settings={"minillm": dict(config.minillm)},
    inputs={"teacher": score_stage.weights_input(source)},
    token_flops=minillm_flops(
      architecture.make(config.student.model),
      _teacher(config, source),
      length,
      int(config.minillm.prompt_share * length),
    ),
  )


def _sparse_kd(config, workdir, names) -> Plan:
  def make(corpus, unused_mesh, inputs):
    from miniplm_jax.distill.sparse_kd import SparseKD

    train, run = config.train, config.run
    stored = _stored(inputs)
    return SparseKD(train, corpus.eos_id, run.remat, stored, config.sparse_kd)

  # As many FLOPs as the next-token loss: the teacher has spoken before.
  return Plan(
    make=make,
    settings={"sparse_kd": dict(config.sparse_kd)},
    inputs=logits_stage.inputs(config, workdir, names),
  )


def _token_selection(config, workdir, names) -> Plan:
  c, student = config.token_selection, architecture.make(config.student.model)

  def make(corpus, unused_mesh, inputs):
    from miniplm_jax.distill.token_selection import TokenSelection

    train, run = config.train, config.run
    stored = _stored(inputs)
    return TokenSelection(train, corpus.eos_id, run.remat, stored, c.ratio)

  return Plan(
    make=make,
    settings={"token_selection": dict(c)},
    inputs=logits_stage.inputs(config, workdir, names),
    token_flops=flops.token_selection(student, config.corpus.max_length),
  )


def _stored(inputs):
  """What stage logits has stored of the rows."""
  from miniplm_jax.distill.logits_table import LogitsTable

  return LogitsTable(inputs[logits_stage.STAGE], kept_rows(inputs["selection"]))


def _teacher(config, source: score_stage.Source) -> Architecture:
  if not source.path:
    return architecture.make(config.teacher.model)
  directory = hub.resolve(source.path, source.revision, weights=False)
  return hub.load_architecture(directory)


def minillm_flops(
  student: Architecture, teacher: Architecture, length: int, prompt: int
) -> float:
  """FLOPs of MiniLLM on one input token of a row.

  In passes forward, a backward pass being two: the student 1 to draw, 3 on
  the sample and 3 on the row; the teacher 1, its hidden states being kept for
  the loss. The heads only where a token is predicted: of new tokens the
  student's 1 to draw and 3 for each part of the gradient, the teacher's 1 and
  1. The paper, to make runs equal, counts 4 of the student and 2 of the
  teacher where plain training has 3.

  Args:
    student: its shape.
    teacher: its shape.
    length: inputs of a row.
    prompt: those that are not drawn.
  """
  drawn = 1 - prompt / length

  def head(arch: Architecture) -> int:
    return arch.forward_flops(length) - arch.body_flops(length)

  return (
    3 * student.forward_flops(length)
    + 4 * student.body_flops(length)
    + 7 * drawn * head(student)
    + teacher.body_flops(length)
    + 2 * drawn * head(teacher)
  )


# (config, workdir, names of `config.for_method`) → Plan.
OBJECTIVES: dict[str, Callable[..., Plan]] = {
  "next_token": _next_token,
  "minillm": _minillm,
  "sparse_kd": _sparse_kd,
  "token_selection": _token_selection,
}
