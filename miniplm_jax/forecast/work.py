"""What a config has TPUs do: its programs, and how often each one runs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.distillation import objectives
from miniplm_jax.forecast import programs
from miniplm_jax.methods import OBJECTIVES
from miniplm_jax.models import sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.training import flops
from miniplm_jax.training.objective import NextToken
from miniplm_jax.training.spec import ObjectiveSpec, TrainSpec

# Which changes nothing but a constant of the program.
_EOS_ID = 0


@dataclasses.dataclass(frozen=True)
class Piece:
  """A program that runs many times.

  Attributes:
    name: of the stage and the model.
    arch: the model whose head its logits come from.
    dtype: of the computation.
    rows: (shards of the batch) → rows of a shard at a time that can be
      chosen, what the config says first and then fewer.
    tokens: (shards, rows) → inputs of one run, over all chips.
    token_flops: that the method asks for on an input.
    runs: (shards, rows) → how often it runs.
    lower: (mesh, rows, remat) → the program.
    knob: (shards, rows) → the setting that chooses so many rows.
    slowdown: the FLOPs of the method in those of the program; not 1 where
      another program stands in for it.
    is_training: it has a backward pass.
    is_student: it trains a student.
  """

  name: str
  arch: Architecture
  dtype: Any
  rows: Callable[[int], list[int]]
  tokens: Callable[[int, int], int]
  token_flops: float
  runs: Callable[[int, int], int]
  lower: Callable[[Mesh, int, str], jax.stages.Lowered]
  knob: Callable[[int, int], str]
  slowdown: float = 1.0

  is_training: bool = True
  is_student: bool = False


def pieces(
  config, workdir: Workdir, students: Mapping[str, TrainSpec]
) -> list[Piece]:
  """All programs of a config that take time, in the order of the stages."""
  found = []
  for role in ("teacher", "reference"):
    c = getattr(config, role)
    if not c.path and not c.scores:
      arch = c.model
      found.append(_training(config, f"train {role}", arch, c.train))
  rows = _rows_of_d(config, workdir)
  for role in config.roles_with_model:
    found.append(_scoring(config, role, rows))
  found += _students(config, students)
  return found


def _rows_of_d(config, workdir: Workdir) -> int:
  """Rows that are scored; of the corpus if it has been made."""
  rows = config.plan.rows
  if made := manifest_lib.read(workdir.corpus / MANIFEST):
    rows = made.counts["split train"]
  return max(round(rows * config.score.share), 1)


def _shape(config, role: str) -> Architecture:
  c = config.roles[role]
  return ModelRef(c.name, c.path, c.revision, model=c.model).shape()


def _scoring(config, role: str, count: int) -> Piece:
  c, length = config.score, config.corpus.max_length
  arch, dtype = _shape(config, role), jnp.dtype(c.dtype)

  def lower(mesh, rows, unused_remat):
    rows *= sharding.batch_shards(mesh)
    return programs.scoring(arch, mesh, rows, length, dtype)

  return Piece(
    name=f"score by {role}",
    arch=arch,
    dtype=dtype,
    rows=lambda shards: _halves(max(c.batch_tokens // length // shards, 1)),
    tokens=lambda shards, rows: shards * rows * length,
    token_flops=arch.forward_flops(length),
    runs=lambda shards, rows: -(-count // (shards * rows)),
    lower=lower,
    knob=lambda shards, rows: (
      f"--config.score.batch_tokens={shards * rows * length}"
    ),
    is_training=False,
  )


def _students(config, students: Mapping[str, TrainSpec]) -> Iterator[Piece]:
  for method, spec in students.items():
    cost, is_compiled = spec.token_flops, _is_compiled(spec.objective)
    make = _next_token
    if is_compiled:
      make = functools.partial(_with_teacher, spec.objective)
    piece = _training(config, f"train {method}", spec.shape, spec.train, make)
    piece = dataclasses.replace(piece, is_student=True)
    if is_compiled:
      piece = dataclasses.replace(piece, token_flops=cost)
    else:
      piece = dataclasses.replace(piece, slowdown=cost / piece.token_flops)
    yield piece


def _is_compiled(objective: ObjectiveSpec) -> bool:
  return OBJECTIVES[objective.name].is_compiled


def _next_token(unused_config, unused_mesh, train, remat):
  return NextToken(train, _EOS_ID, remat)


def _with_teacher(objective: ObjectiveSpec, config, mesh, train, remat):
  """An objective whose teacher has a shape and no weights."""
  section = objective.section
  dtype = jnp.dtype(getattr(section, "dtype", train.dtype))
  teacher = programs.weights(_shape(config, "teacher"), mesh, dtype)
  loss = objectives.loss(OBJECTIVES[objective.name])
  return loss(train, _EOS_ID, remat, teacher, section)


def _training(config, name: str, arch, train, make=_next_token) -> Piece:
  length, most = config.corpus.max_length, config.run.per_device_batch_size

  def rows(shards):
    here, odd = divmod(train.batch_size, shards)
    if odd:
      raise UserError(
        f"batch_size {train.batch_size} does not split over {shards} shards",
        f"config of {name}",
        "choose a multiple or another mesh",
      )
    return [n for n in range(min(most or here, here), 0, -1) if here % n == 0]

  def lower(mesh, rows, remat):
    objective = make(config, mesh, train, remat)
    return programs.training(arch, mesh, train, objective, rows, length)

  return Piece(
    name=name,
    arch=arch,
    dtype=jnp.dtype(train.dtype),
    rows=rows,
    tokens=lambda shards, rows: train.batch_size * length,
    token_flops=flops.next_token(arch, length),
    runs=lambda shards, rows: train.steps,
    lower=lower,
    knob=lambda shards, rows: f"--config.run.per_device_batch_size={rows}",
  )


def _halves(most: int) -> list[int]:
  """From `most` down to 1, each half of the one before."""
  found = [most]
  while found[-1] > 1:
    found.append(found[-1] // 2)
  return found
