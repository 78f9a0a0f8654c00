"""The decoder, in Flax NNX: modules hold the parameters, JAX does the rest.

An NNX module is a pytree, so `jax.jit`, `jax.grad` and `jax.lax.scan` take
it as it is. Parameters are stacked over layers, in memory and on disk.

B batch, T time, S columns of a cache, D hidden, V rows of the embedding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import cudnn, int8, mamba, sharding, transformer
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ops import KEPT, by_batch, normal, rms_norm

_is_named = jax.checkpoint_policies.save_only_these_names(KEPT)


def _is_kept(primitive, *operands, **parameters) -> bool:
  """True of matrix products with weights, and of attention."""
  is_cudnn = primitive.name == cudnn.FORWARD
  return is_cudnn or _is_named(primitive, *operands, **parameters)


# What the backward pass keeps of a layer.
REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": _is_kept,
}

# Layers of one turn of the scan over them where there is a backward pass, by
# platform; 0 is all. On GPUs what a layer keeps is copied into the stack of all
# layers, and out again: 82 GB of a step of the 500M with 32 rows and remat
# `dots`, a tenth of its predicted time. Compiled for an H100 as one turn it has
# none of that, needs 20 GiB less with remat `none`, and takes 6 times as long
# to compile. None of it is measured yet.
UNROLL = {"cpu": 1, "gpu": 0, "tpu": 1}

# What a family brings: PARAMETERS, Layers, residual_dtype, context,
# cached_context and new_cache, whose leaves are [L, B, …, channels].
FAMILIES = {"transformer": transformer, "mamba": mamba}


class Cache(NamedTuple):
  """What is kept of the tokens so far."""

  layers: Any  # the family's own cache
  start: Any  # int32 scalar, columns that are filled
  first_B: Any  # each row's first column that is not padding, int32 [B]


class Decoder(nnx.Module):
  """A decoder language model up to, and without, its logits.

  Logits are never formed here: `head.py` goes from hidden states to
  log-probs in tiles.
  """

  def __init__(
    self, arch: Architecture, rngs: nnx.Rngs, dtype: Any = jnp.float32
  ):
    """Initializes parameters in `dtype`, as the family's reference does."""
    self.arch = arch

    def table():
      shape = arch.table_rows, arch.hidden_size
      drawn_VxD = normal(rngs, shape, arch.initializer_range, dtype)[...]
      return nnx.Param(drawn_VxD.at[arch.vocab_size :].set(0))

    self.embed = table()
    self.layers = FAMILIES[arch.family].Layers(arch, dtype, rngs)
    self.final_norm = nnx.Param(jnp.ones((arch.hidden_size,), dtype))
    self.head = None if arch.tie_word_embeddings else table()

  @property
  def head_VxD(self):
    """The output table; a tied embedding is the same parameter."""
    return (self.embed if self.head is None else self.head)[...]

  def __call__(
    self, tokens_BxT, *, dtype: Any = jnp.float32, remat: str | None = None
  ):
    """Final hidden states of whole rows, after the last norm, [B, T, D].

    Needs a mesh in context (`jax.set_mesh`). Activations are in `dtype`, and
    parameters are cast where they are used. `remat` is what the backward pass
    keeps, a key of `REMAT`; None if there is none.
    """
    family = FAMILIES[self.arch.family]
    shared = family.context(self.arch, tokens_BxT.shape[1])

    def one_layer(x_BxTxD, layer):
      layer = _whole(layer, dtype)
      return layer(x_BxTxD, shared)[0], None

    if remat not in (None, "none"):
      one_layer = jax.checkpoint(one_layer, policy=REMAT[remat])
    unroll = 1
    # Weights that `fsdp` splits are to be whole one layer at a time.
    if remat and sharding.axis_size("fsdp") == 1:
      unroll = UNROLL[sharding.platform()] or self.arch.num_hidden_layers
    x_BxTxD = self._embed(tokens_BxT, dtype)
    x_BxTxD, _ = jax.lax.scan(one_layer, x_BxTxD, self.layers, unroll=unroll)
    return self._normed(x_BxTxD, dtype)

  def new_cache(self, first_B, size: int, dtype: Any) -> Cache:
    """A cache of `size` columns for rows that start at column `first_B`."""
    family, batch = FAMILIES[self.arch.family], first_B.shape[0]
    layers = jax.lax.with_sharding_constraint(
      family.new_cache(self.arch, batch, size, dtype),
      P(None, sharding.BATCH, None, "tensor"),
    )
    return Cache(layers, jnp.int32(0), first_B)

  def extend(self, tokens_BxT, cache: Cache, *, dtype: Any = jnp.float32):
    """Final hidden states of tokens that follow those in the cache.

    Tokens are those of the next T columns; what stands before a row's first
    column is padding and seen by nothing.

    Returns:
      [B, T, D] in `dtype`, and the cache with these tokens.
    """
    family, length = FAMILIES[self.arch.family], tokens_BxT.shape[1]
    shared = family.cached_context(
      self.arch, cache.layers, cache.start, length, cache.first_B
    )

    def one_layer(carry, xs):
      (x_BxTxD, layers), (layer, i) = carry, xs
      layer = _whole(layer, dtype)
      return layer(x_BxTxD, shared, layers, cache.start, i), None

    index_L = jnp.arange(self.arch.num_hidden_layers)
    carry = self._embed(tokens_BxT, dtype), cache.layers
    (x_BxTxD, layers), _ = jax.lax.scan(
      one_layer, carry, (self.layers, index_L)
    )
    cache = cache._replace(layers=layers, start=cache.start + length)
    return self._normed(x_BxTxD, dtype), cache

  def _embed(self, tokens_BxT, dtype):
    x_BxTxD = look_up(self.embed[...], tokens_BxT, dtype)
    family = FAMILIES[self.arch.family]
    return by_batch(x_BxTxD.astype(family.residual_dtype(dtype)))

  def _normed(self, x_BxTxD, dtype):
    norm_D = self.final_norm[...].astype(dtype)
    return rms_norm(x_BxTxD, norm_D, self.arch.rms_norm_eps).astype(dtype)


def look_up(table_VxD, tokens_BxT, dtype):
  """Embeddings [B, T, D] in `dtype`.

  Where `fsdp` splits the table, it stays where it is: ids go to its columns
  and embeddings back to the rows of the batch. Its gradient is so never
  whole on a device, nor summed up over all of them.
  """
  shards = sharding.axis_size("data") * sharding.axis_size("fsdp")
  if sharding.axis_size("fsdp") == 1 or tokens_BxT.shape[0] % shards:
    table_VxD = jax.lax.with_sharding_constraint(table_VxD, P("tensor", None))
    return jnp.take(table_VxD, tokens_BxT, axis=0).astype(dtype)

  def local(table_VxD, tokens_BxT):
    tokens_AxT = jax.lax.all_gather(tokens_BxT, "fsdp", tiled=True)
    rows = table_VxD.shape[0]
    place_AxT = tokens_AxT - jax.lax.axis_index("tensor") * rows
    # Rows of other devices are 0; a negative index would wrap around.
    place_AxT = jnp.where(place_AxT >= 0, place_AxT, rows)
    x_AxTxD = table_VxD.at[place_AxT].get(mode="fill", fill_value=0)
    x_BxTxD = jax.lax.all_to_all(
      x_AxTxD.astype(dtype), "fsdp", split_axis=0, concat_axis=2, tiled=True
    )
    return sharding.total(x_BxTxD, "tensor")

  mapped = jax.shard_map(
    local,
    in_specs=(sharding.TABLE, sharding.BY_TOKEN),
    out_specs=sharding.BY_TOKEN,
    check_vma=False,
  )
  return mapped(table_VxD, tokens_BxT)


def _whole(layer, dtype):
  """A layer in compute dtype, whole over `fsdp`; int8 is sent as int8."""
  return int8.dequantized(sharding.gather_fsdp(layer.astype(dtype)))


def abstract(arch: Architecture, dtype: Any = jnp.float32) -> Decoder:
  """A decoder of ShapeDtypeStructs."""
  return jax.eval_shape(lambda: Decoder(arch, nnx.Rngs(0), dtype))
