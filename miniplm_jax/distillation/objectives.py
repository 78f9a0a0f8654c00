"""The objectives by name; nothing of JAX is imported before one is made."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from miniplm_jax.core import fields, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.step import Input
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.distillation import logits_step as logits_stage
from miniplm_jax.models import architecture
from miniplm_jax.models.ref import TEACHER, ModelRef
from miniplm_jax.training import flops

# The input that a teacher is; a selection has the scores of one as "teacher".
WEIGHTS = "teacher_weights"


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a training step needs to know of its objective.

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


def _soft_labels(config, workdir, names) -> Plan:
  kd, train = config.kd, config.train
  dtype = kd.dtype or train.dtype
  read, teacher = _teacher(config, workdir, dtype)

  def make(corpus, mesh, inputs):
    from miniplm_jax.distillation.vanilla_kd import SoftLabels

    model = read(corpus, mesh)
    return SoftLabels(train, corpus.eos_id, config.run.remat, model, kd)

  student = config.student.model
  length = config.corpus.max_length
  return Plan(
    make,
    settings={"kd": {**dataclasses.asdict(kd), "dtype": dtype}},
    inputs=teacher,
    token_flops=_token_flops(
      config, workdir, names, lambda t: flops.vanilla_kd(student, t, length)
    ),
  )


def _minillm(config, workdir, names) -> Plan:
  c, train, length = config.minillm, config.train, config.corpus.max_length
  prompt = fields.of(c.prompt_share, length)
  student = config.student.model
  read, teacher = _teacher(config, workdir, train.dtype)

  def make(corpus, mesh, inputs):
    from miniplm_jax.distillation.minillm import MiniLLM

    model = read(corpus, mesh)
    return MiniLLM(train, corpus.eos_id, config.run.remat, model, c)

  return Plan(
    make,
    settings={"minillm": dataclasses.asdict(c)},
    inputs=teacher,
    token_flops=_token_flops(
      config,
      workdir,
      names,
      lambda t: flops.minillm(student, t, prompt, length - prompt),
    ),
  )


def _sparse_kd(config, workdir, names) -> Plan:
  def make(corpus, unused_mesh, inputs):
    from miniplm_jax.distillation.sparse_kd import SparseKD

    train, run = config.train, config.run
    stored = _stored(inputs)
    return SparseKD(train, corpus.eos_id, run.remat, stored, config.sparse_kd)

  # As many FLOPs as the next-token loss: the teacher has spoken before.
  return Plan(
    make=make,
    settings={"sparse_kd": dataclasses.asdict(config.sparse_kd)},
    inputs=logits_stage.inputs(config, workdir, names),
  )


def _token_selection(config, workdir, names) -> Plan:
  c, student = config.token_selection, config.student.model

  def make(corpus, unused_mesh, inputs):
    from miniplm_jax.distillation.token_selection import TokenSelection

    train, run = config.train, config.run
    stored = _stored(inputs)
    return TokenSelection(train, corpus.eos_id, run.remat, stored, c.ratio)

  return Plan(
    make=make,
    settings={"token_selection": dataclasses.asdict(c)},
    inputs=logits_stage.inputs(config, workdir, names),
    token_flops=flops.token_selection(student, config.corpus.max_length),
  )


def _stored(inputs):
  """What stage logits has stored of the rows."""
  from miniplm_jax.distillation.logits_table import LogitsTable

  return LogitsTable(inputs[logits_stage.STAGE], kept_rows(inputs["selection"]))


def _teacher(config, workdir, dtype: str):
  """How a teacher is read that takes part in each step, and as an input."""
  source = ModelRef.of_role(TEACHER, config.teacher, workdir)

  def read(corpus, mesh):
    return source.load_as_scored(corpus, mesh, dtype)

  return read, {WEIGHTS: source.as_input()}


def _token_flops(
  config, workdir, names, of: Callable[[architecture.Architecture], float]
) -> float:
  """Of a token by the teacher's shape, or as its finished student says.

  Raises:
    UserError: there is neither.
  """
  try:
    return of(ModelRef.of_role(TEACHER, config.teacher, workdir).shape())
  except UserError:  # it may be gone, or the hub not be reached
    made = manifest.read(workdir.student(names.student) / MANIFEST)
    if not made:
      raise
    return made.details["train_flops"] / made.counts["tokens"]


def trained_by(settings: Mapping[str, Any]) -> str:
  """The objective whose settings a student's manifest has."""
  named = {"kd": "soft_labels"} | {name: name for name in OBJECTIVES}
  return next((named[s] for s in settings if s in named), "next_token")


_IN_WORDS = {
  "next_token": "the next-token loss",
  "soft_labels": "the next-token loss and a teacher's soft labels",
  "minillm": "reverse KL to a teacher, on samples, and the next-token loss",
  "sparse_kd": "what a teacher has said of few ids at each token",
  "token_selection": "the next-token loss of the tokens that gain most by a "
  "frozen model",
}


def in_words(settings: Mapping[str, Any]) -> str:
  """What a student minimized, with its options, by its manifest's settings."""
  name = trained_by(settings)
  own = settings.get("kd" if name == "soft_labels" else name, {})
  options = ", ".join(f"{key} {value}" for key, value in own.items())
  words = _IN_WORDS.get(name, "an objective of its own")
  return f"`{name}`, {words}" + f" ({options})" * bool(options)


# (config, workdir, names of `config.for_method`) → Plan.
OBJECTIVES: dict[str, Callable[..., Plan]] = {
  "next_token": _next_token,
  "soft_labels": _soft_labels,
  "minillm": _minillm,
  "sparse_kd": _sparse_kd,
  "token_selection": _token_selection,
}
