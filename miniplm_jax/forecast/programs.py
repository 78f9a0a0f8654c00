"""The programs of a run, lowered for a mesh that may not be here."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from miniplm_jax.models import decoder, likelihood, placement, sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.training import loop
from miniplm_jax.training.objective import NextToken


def scoring(
  arch: Architecture,
  mesh: Mesh,
  rows: int,
  length: int,
  dtype: Any = jnp.bfloat16,
) -> jax.stages.Lowered:
  """One batch of scoring, the program that `scoring/scorer.py` runs.

  Args:
    mesh: the rows are split over its batch axes.
    rows: of a batch, over all devices.
    length: inputs of a row.
    dtype: of the parameters and of the computation.
  """
  # Which id ends a document changes a constant, and nothing else.
  step = placement.program(likelihood.row_nll, mesh, eos_id=0, dtype=dtype)
  with jax.set_mesh(mesh):
    batch = _batch(mesh, rows, length) | {
      placement.ROW: _placed(_ints(rows), sharding.batch_sharding(mesh))
    }
    return step.lower(weights(arch, mesh, dtype), batch)


def training(
  arch: Architecture,
  mesh: Mesh,
  train,
  objective: NextToken,
  per_device_batch_size: int,
  length: int,
) -> jax.stages.Lowered:
  """One step of training, the program that `training/loop.py` runs.

  Args:
    objective: what is minimized; its `frozen` as `weights` makes it.
    per_device_batch_size: rows that a shard of the batch takes at a time.
    length: inputs of a row.
  """
  turns = train.batch_size // sharding.batch_shards(mesh)
  turns //= per_device_batch_size
  state = loop.abstract_state(arch, train, mesh, objective.new_model)
  with jax.set_mesh(mesh):
    step = loop.step_function(state, train, objective, mesh, turns)
    batch = _batch(mesh, train.batch_size, length)
    return step.lower(state, batch, objective.frozen)


def weights(arch: Architecture, mesh: Mesh, dtype: Any):
  """A decoder without values, placed on the mesh."""
  model = decoder.abstract(arch, dtype)
  return jax.tree.map(_placed, model, sharding.shardings(model, mesh))


def _batch(mesh: Mesh, rows: int, length: int):
  by_row = sharding.batch_sharding(mesh)
  batch = {"tokens": _ints(rows, length + 1), "length": _ints(rows)}
  return {name: _placed(x, by_row) for name, x in batch.items()}


def _ints(*shape: int):
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def _placed(x, where: NamedSharding):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
