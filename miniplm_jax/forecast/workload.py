"""What TPUs have to do: the programs of a run, and how often each one runs."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from miniplm_jax.config import (
  PlanConfig,
  ProxyConfig,
  RunConfig,
  ScoreConfig,
  TrainConfig,
)
from miniplm_jax.config.sections import TPU_BATCH_TOKENS
from miniplm_jax.core import fields
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.distillation import objectives
from miniplm_jax.forecast import estimate, programs
from miniplm_jax.methods import OBJECTIVES
from miniplm_jax.models import decoder, ready, sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.training import flops
from miniplm_jax.training.objective import NextToken
from miniplm_jax.training.spec import ObjectiveSpec, TrainSpec

# Which id ends a document changes a constant of the program, and no more.
EOS_ID = 0
# What the programs of stage score are called.
SCORE_BY = "score by "


class _Passes:
  """A program that runs until `count` rows are done, some at a time."""

  is_training: ClassVar[bool] = False
  is_student: ClassVar[bool] = False
  count: int

  def runs(self, shards: int, rows: int) -> int:
    """Batches of all rows."""
    return -(-self.count // (shards * rows))


def _halves(most: int) -> list[int]:
  """Rows that can be chosen: the most, and halves of them down to 1."""
  return [most >> i for i in range(most.bit_length())]


@dataclasses.dataclass(frozen=True)
class ScoringProgram(_Passes):
  """One batch of scoring by a model; see `Program`."""

  name: str  # of the stage and the model
  arch: Architecture  # the model whose head its logits come from
  dtype: Any  # of the computation
  length: int  # inputs of a row
  batch_tokens: int  # of a batch over all devices; 0 is as many as on TPUs
  count: int  # rows to score
  # FLOPs of what is meant in those of the program; see `TrainingProgram`.
  slowdown: float = 1.0

  @property
  def token_flops(self) -> float:
    """FLOPs that the method asks for on an input: the forward pass."""
    return self.arch.forward_flops(self.length)

  def rows(self, shards: int) -> list[int]:
    """Those that can be chosen: the config's, and halves of them down to 1."""
    tokens = self.batch_tokens or TPU_BATCH_TOKENS * shards
    return _halves(max(tokens // self.length // shards, 1))

  def tokens(self, shards: int, rows: int) -> int:
    """How many inputs one run takes, over all chips."""
    return shards * rows * self.length

  def setting(self, shards: int, rows: int) -> str:
    """The flag that chooses so many rows."""
    return f"--config.score.batch_tokens={self.tokens(shards, rows)}"

  def mesh(self, mesh: Mesh) -> Mesh:
    """The one that it runs on, given the run's; see `ready.for_rows`."""
    chip = estimate.CHIPS[mesh.devices.flat[0].device_kind]
    model = decoder.abstract(self.arch, self.dtype)
    return ready.whole_mesh(model, mesh, chip.hbm_gib * 2**30)

  def lower(self, mesh: Mesh, rows: int, unused_remat) -> jax.stages.Lowered:
    """Lowers it; without a backward pass there is nothing to form again."""
    rows *= sharding.batch_shards(mesh)
    return programs.scoring(self.arch, mesh, rows, self.length, self.dtype)


def next_token(train: TrainConfig) -> Callable[[Mesh, str], NextToken]:
  """Makes the objective of a train section, for a mesh and remat."""
  return lambda mesh, remat: NextToken(train, EOS_ID, remat)


@dataclasses.dataclass(frozen=True)
class TrainingProgram:
  """One step of training; see `Program`."""

  name: str
  arch: Architecture
  train: TrainConfig
  length: int  # inputs of a row
  token_flops: float  # that the method asks for on an input
  objective: Callable[[Mesh, str], NextToken]  # for a mesh and remat
  most_rows: int = 0  # run.per_device_batch_size; 0 is all
  # FLOPs of the method in those of the program; not 1 where the program of
  # another method stands in for its own.
  slowdown: float = 1.0
  is_student: bool = False
  models: int = 1  # that are trained so

  is_training: ClassVar[bool] = True

  @property
  def dtype(self) -> Any:
    """The train section's."""
    return jnp.dtype(self.train.dtype)

  def rows(self, shards: int) -> list[int]:
    """Those that can be chosen: divisors of a shard's, down from the most.

    Raises:
      UserError: the batch does not split over the shards.
    """
    of_shard, odd = divmod(self.train.batch_size, shards)
    if odd:
      raise UserError(
        f"batch_size {self.train.batch_size} does not split over {shards} "
        "shards",
        f"config of {self.name}",
        "choose a multiple or another mesh",
      )
    most = min(self.most_rows or of_shard, of_shard)
    return [n for n in range(most, 0, -1) if of_shard % n == 0]

  def tokens(self, unused_shards: int, unused_rows: int) -> int:
    """Those of a step, in however many turns."""
    return self.train.batch_size * self.length

  def runs(self, unused_shards: int, unused_rows: int) -> int:
    """The steps."""
    return self.train.steps * self.models

  def setting(self, unused_shards: int, rows: int) -> str:
    """The flag that chooses so many rows."""
    return f"--config.run.per_device_batch_size={rows}"

  def lower(self, mesh: Mesh, rows: int, remat: str) -> jax.stages.Lowered:
    """Lowers it."""
    objective = self.objective(mesh, remat)
    return programs.training(
      self.arch, mesh, self.train, objective, rows, self.length
    )


@dataclasses.dataclass(frozen=True)
class Decoding(_Passes):
  """Rows that models go on with together, a token at a time; not compiled."""

  name: str
  models: tuple[Architecture, ...]
  dtype: Any  # of weights, computation and cache
  prompt: int  # tokens of a row
  new: int  # tokens that follow
  batch: int  # rows at a time over all devices
  count: int  # rows
  flag: str  # that chooses the batch
  most_rows: int = 0  # run.per_device_batch_size; 0 is all

  slowdown: ClassVar[float] = 1.0

  def rows(self, shards: int) -> list[int]:
    """A shard's, and halves of them down to 1."""
    most = -(-self.batch // shards)
    return _halves(min(self.most_rows or most, most))

  def setting(self, shards: int, rows: int) -> str:
    """The flag that chooses so many rows."""
    is_of_shard = self.flag.endswith("per_device_batch_size")
    return f"--config.{self.flag}={rows * (1 if is_of_shard else shards)}"


# It runs many times. `shards` are those of the batch, `rows` what each takes at
# a time.
Program = ScoringProgram | TrainingProgram | Decoding


def rows_of_d(corpus: epath.Path, plan: PlanConfig) -> int:
  """Counts the rows of D; those of `plan` while there is no corpus."""
  tokenized = manifest_lib.read(corpus)
  return tokenized.counts["split train"] if tokenized else plan.rows


def scoring(
  name: str, model: Architecture, score: ScoreConfig, length: int, rows: float
) -> ScoringProgram:
  """The program that a model scores so many rows of this length by."""
  dtype, count = jnp.dtype(score.dtype), max(round(rows), 1)
  return ScoringProgram(name, model, dtype, length, score.batch_tokens, count)


def regression(
  proxy: ProxyConfig, score: ScoreConfig, run: RunConfig, length: int, rows: int
) -> list[Program]:
  """Training of the proxy, and its pass over all rows.

  Programs of the next-token loss stand in, faster by their head.
  """
  shape = proxy.model
  share = shape.body_flops(length) / shape.forward_flops(length)
  learn = TrainingProgram(
    "fit the proxy",
    shape,
    proxy.train,
    length,
    flops.next_token(shape, length),
    next_token(proxy.train),
    run.per_device_batch_size,
  )
  predict = scoring("predict by the proxy", shape, score, length, rows)
  return [dataclasses.replace(p, slowdown=share) for p in (learn, predict)]


def training(name: str, spec: TrainSpec) -> TrainingProgram:
  """The program of a training on the next-token loss."""
  return TrainingProgram(
    name,
    spec.shape,
    spec.train,
    spec.max_length,
    flops.next_token(spec.shape, spec.max_length),
    next_token(spec.train),
    spec.run.per_device_batch_size,
  )


def student_training(
  method: str, spec: TrainSpec, teacher: ModelRef
) -> TrainingProgram:
  """The program that trains a student.

  Of an objective that is not compiled for TPUs here, it is that of the
  next-token loss, slower by their FLOPs; `sampling` has those of what is drawn.
  """
  program = training(f"train {method}", spec)
  program = dataclasses.replace(program, is_student=True)
  if OBJECTIVES[spec.objective.name].is_compiled:
    objective = _with_teacher(spec.train, spec.objective, teacher)
    return dataclasses.replace(
      program, objective=objective, token_flops=spec.token_flops
    )
  drawn = sum(
    flops.generation(arch, draws.prompt, draws.new) / program.length
    for draws in sampling(method, spec, teacher)
    for arch in draws.models
  )
  slowdown = (spec.token_flops - drawn) / program.token_flops
  return dataclasses.replace(program, slowdown=slowdown)


def sampling(method: str, spec: TrainSpec, teacher: ModelRef) -> list[Decoding]:
  """What student and teacher draw in the steps of minillm; else nothing."""
  if spec.objective.name != "minillm":
    return []
  prompt = fields.of(spec.objective.section.prompt_share, spec.max_length)
  return [
    Decoding(
      f"sample for {method}",
      (spec.shape, teacher.shape()),
      spec.train.dtype,
      prompt,
      spec.max_length - prompt,
      spec.train.batch_size,
      spec.train.batch_size * spec.train.steps,
      "run.per_device_batch_size",
      spec.run.per_device_batch_size,
    )
  ]


def _with_teacher(
  train: TrainConfig, objective: ObjectiveSpec, teacher: ModelRef
) -> Callable[[Mesh, str], NextToken]:
  """Makes an objective whose teacher has a shape and no weights."""
  section = objective.section
  loss = objectives.class_of(OBJECTIVES[objective.name])

  def make(mesh: Mesh, remat: str) -> NextToken:
    dtype = jnp.dtype(getattr(section, "dtype", train.dtype))
    weights = programs.weights(teacher.shape(), mesh, dtype)
    return loss(train, EOS_ID, remat, weights, section)

  return make
