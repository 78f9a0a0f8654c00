"""Weights made ready for many tokens or rows, once.

A layer that `fsdp` splits is put together where it is used. Rows of training
pay for that; a single token does not: its products take less time than its
weights take on their way. So before the first token all layers and the head
are gathered, and cast, if a device has room for them. And before the first
batch that is only scored all weights are.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from miniplm_jax.core import distributed
from miniplm_jax.core.log import warn
from miniplm_jax.models import sharding
from miniplm_jax.models.decoder import Cache, Decoder

# The share of the free memory that weights and caches may take. Prompts need
# the rest: float32 scores of 8 rows, 16 heads and 768 × 1,024 are 384 MiB.
_ROOM = 0.9
# The same of weights that rows are scored by. For 4 rows of 1,024 tokens of the
# 1.8B a chip of v5e:4x4 is predicted to take 76 ms where weights of 3.4 GiB are
# whole, and 87 ms where each layer is gathered; the rest takes 0.6 GiB.
_ROOM_OF_SCORING = 0.5


def ready(
  models: Sequence[Decoder],
  heads: Sequence[Any],
  caches: Sequence[Cache],
  dtype: Any,
) -> tuple[Sequence[Decoder], Sequence[Any]]:
  """Models and heads for `extend` and `head.logits` of many tokens.

  Whole over `fsdp`, split by `tensor`, and in compute dtype; int8 stays int8.
  Embeddings stay where they are: ids go to them. What has no room in a
  device's memory is left as it is, so that each token gathers it, layer by
  layer, and a line says so.
  """
  given = [model.layers for model in models], [*heads]
  whole = jax.eval_shape(functools.partial(_whole, dtype=dtype), *given)
  are_ready = jax.tree.map(lambda a, b: a.dtype == b.dtype, given, whole)
  if sharding.axis_size("fsdp") == 1 and all(jax.tree.leaves(are_ready)):
    return models, heads
  if not distributed.agree(lambda: _fits(*whole, caches)):
    return models, heads
  layers, heads = _whole(*given, dtype=dtype)
  return [_with_layers(m, new) for m, new in zip(models, layers)], heads


def for_rows(models: Any, mesh: Mesh) -> tuple[Any, Mesh]:
  """Models as rows are scored by them, and the mesh of it.

  Whole over `fsdp` if all devices have room, so that nothing is gathered; else
  as they are. Rows lie on the same devices either way.

  Args:
    models: a pytree of decoders and their kind, on `mesh`.
  """
  if not distributed.agree(lambda: whole_mesh(models, mesh, _free()) != mesh):
    return models, mesh
  mesh = sharding.without_fsdp(mesh)
  where = sharding.shardings(models, mesh)
  return jax.jit(lambda x: x, out_shardings=where)(models), mesh


def whole_mesh(models: Any, mesh: Mesh, free: float) -> Mesh:
  """The mesh that rows are scored on, by the free bytes of a device."""
  whole = sharding.without_fsdp(mesh)
  where = sharding.shardings(models, whole)
  room = _ROOM_OF_SCORING * free
  return whole if _bytes_of(models, where) <= room else mesh


def _whole(layers, heads, *, dtype):
  """All layers at once: each leaf of a stack is gathered as one of a layer."""

  def one(layer):
    return sharding.gather_fsdp(layer.astype(dtype))

  def table(w_VxD):
    where = P("tensor", None)
    return jax.lax.with_sharding_constraint(w_VxD.astype(dtype), where)

  return [jax.vmap(one)(stack) for stack in layers], [*map(table, heads)]


def _with_layers(model: Decoder, layers) -> Decoder:
  other = jax.tree.map(lambda x: x, model)  # another object
  other.layers = layers
  return other


def _fits(layers, heads, caches) -> bool:
  """Whether a device of this process has room; says so if it has not."""
  if jax.local_devices()[0].platform != sharding.platform():
    return True  # only compiled for
  mesh = jax.sharding.get_abstract_mesh()
  sizes = {**mesh.shape, "fsdp": 1}
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), mesh.axis_types)
  where = (
    sharding.shardings(layers, mesh),
    [NamedSharding(mesh, sharding.TABLE) for _ in heads],
  )
  weights, cache = _bytes_of((layers, heads), where), _share(caches)
  if weights + cache <= _ROOM * (free := _free()):
    return True
  _warn(
    f"weights of {weights / 2**30:.1f} GiB, whole over fsdp, and "
    f"caches of {cache / 2**30:.1f} GiB do not fit into {_ROOM:.0%} of the "
    f"{free / 2**30:.1f} GiB that a device has free: each token gathers the "
    "weights anew, which is slow; raise config.run.tensor"
  )
  return False


@functools.cache
def _warn(text: str):
  """Warns once, though a program may be traced several times."""
  warn("generation", text)


def _free() -> float:
  """Bytes of memory that a device of this process has free; of a CPU, any."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if "bytes_limit" not in stats:
    return math.inf
  return stats["bytes_limit"] - stats["bytes_in_use"]


def _bytes_of(arrays: Any, where: Any) -> int:
  """What a device holds of them, placed so."""
  sizes = jax.tree.map(
    lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize,
    arrays,
    where,
  )
  return sum(jax.tree.leaves(sizes))


def _share(caches) -> int:
  """What a device holds of them: rows and channels are split."""
  leaves = jax.tree.leaves([cache.layers for cache in caches])
  total = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
  return total // jax.sharding.get_abstract_mesh().size
