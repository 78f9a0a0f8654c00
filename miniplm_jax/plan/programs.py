"""The programs of a run, lowered for a mesh that may not be here."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from miniplm_jax.core.errors import UserError
from miniplm_jax.models import decoder, likelihood, sharding
from miniplm_jax.models.architecture import Architecture


class DoesNotFitError(UserError):
  """A program takes more memory than a device has."""


def scoring(
  arch: Architecture,
  mesh: Mesh,
  rows: int,
  length: int,
  dtype: Any = jnp.bfloat16,
) -> jax.stages.Lowered:
  """One batch of scoring, the program that `score/scorer.py` runs.

  Args:
    arch: of the model.
    mesh: the rows are split over its batch axes.
    rows: of a batch, over all devices.
    length: inputs of a row.
    dtype: of the parameters and of the computation.
  """
  model = decoder.abstract(arch, dtype)
  where = sharding.shardings(model, mesh)
  model = jax.tree.map(_placed, model, where)
  by_row = sharding.batch_sharding(mesh)
  batch = {
    "tokens": jax.ShapeDtypeStruct((rows, length + 1), jnp.int32),
    "length": jax.ShapeDtypeStruct((rows,), jnp.int32),
  }
  batch = {name: _placed(x, by_row) for name, x in batch.items()}
  # Which id ends a document changes a constant, and nothing else.
  step = likelihood.row_nll_step(mesh, eos_id=0, dtype=dtype)
  with jax.set_mesh(mesh):
    return step.lower(model, batch)


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles it.

  Raises:
    DoesNotFitError: it takes more memory than a device has.
  """
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise DoesNotFitError(
      "the program does not fit into the device's memory: "
      + str(e).splitlines()[0],
      "when it was compiled",
      "make the batch per device smaller, or split weights over more devices",
    ) from e


def _placed(x, where: NamedSharding):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
