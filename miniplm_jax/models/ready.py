"""Weights made ready for many tokens, once.

A layer that `fsdp` splits is put together where it is used. Whole rows pay
for that; a single token does not: its products take less time than its
weights take on their way. So before the first token all layers and the head
are gathered, and cast, if a device has room for them.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from miniplm_jax.core import distributed
from miniplm_jax.core.log import warn
from miniplm_jax.models import sharding
from miniplm_jax.models.decoder import Cache, Decoder

# The share of the free memory that weights and caches may take. Prompts need
# the rest: float32 scores of 8 rows, 16 heads and 768 × 1,024 are 384 MiB.
_ROOM = 0.9


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
  device = jax.local_devices()[0]
  if device.platform != sharding.platform():  # only compiled for
    return True
  stats = device.memory_stats() or {}
  if "bytes_limit" not in stats:  # CPU
    return True
  weights, cache = _bytes_of(layers, heads), _share(caches)
  free = stats["bytes_limit"] - stats["bytes_in_use"]
  if weights + cache <= _ROOM * free:
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


def _bytes_of(layers, heads) -> int:
  """What a device holds of them, as on a mesh without `fsdp`."""
  mesh = jax.sharding.get_abstract_mesh()
  sizes = {**mesh.shape, "fsdp": 1}
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), mesh.axis_types)
  where = (
    sharding.shardings(layers, mesh),
    [NamedSharding(mesh, sharding.TABLE) for _ in heads],
  )
  sizes = jax.tree.map(
    lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize,
    (layers, heads),
    where,
  )
  return sum(jax.tree.leaves(sizes))


def _share(caches) -> int:
  """What a device holds of them: rows and channels are split."""
  leaves = jax.tree.leaves([cache.layers for cache in caches])
  total = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
  return total // jax.sharding.get_abstract_mesh().size
