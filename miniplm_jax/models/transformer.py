"""Layers with attention: Qwen, Llama and their kind.

B batch, T time, S time of the keys, D hidden, N heads, K key heads, H head
size, F FFN, L layers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import int8, sharding
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.models.attention import attention
from miniplm_jax.models.ops import (
  KEPT,
  apart,
  by_batch,
  normal,
  project,
  rms_norm,
)
from miniplm_jax.models.sharding import Parameter, table


def _vector(name: str, spec: P) -> Parameter:
  return Parameter(spec, f"model.layers.{{}}.{name}")


def _weight(name: str, spec: P) -> Parameter:
  return Parameter(spec, f"model.layers.{{}}.{name}.weight", transposed=True)


_IN, _OUT = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")
_HEADS = P(None, "tensor")
PARAMETERS = {
  "embed": table("model.embed_tokens.weight"),
  "head": table("lm_head.weight"),
  "final_norm": Parameter(P(), "model.norm.weight"),  # D
  "input_norm": _vector("input_layernorm.weight", P()),  # LD
  "q_proj": _weight("self_attn.q_proj", _IN),  # L D NH
  "k_proj": _weight("self_attn.k_proj", _IN),  # L D KH
  "v_proj": _weight("self_attn.v_proj", _IN),  # L D KH
  "q_bias": _vector("self_attn.q_proj.bias", _HEADS),  # L NH
  "k_bias": _vector("self_attn.k_proj.bias", _HEADS),  # L KH
  "v_bias": _vector("self_attn.v_proj.bias", _HEADS),  # L KH
  "q_norm": _vector("self_attn.q_norm.weight", P()),  # LH
  "k_norm": _vector("self_attn.k_norm.weight", P()),  # LH
  "o_proj": _weight("self_attn.o_proj", _OUT),  # L NH D
  "post_attention_norm": _vector("post_attention_layernorm.weight", P()),  # LD
  "gate_proj": _weight("mlp.gate_proj", _IN),  # LDF
  "up_proj": _weight("mlp.up_proj", _IN),  # LDF
  "down_proj": _weight("mlp.down_proj", _OUT),  # LFD
}
sharding.declare({name: p.spec for name, p in PARAMETERS.items()})


class Context(NamedTuple):
  """What all layers of a pass share."""

  cos: Any  # float32 [B or 1, T, H / 2]
  sin: Any  # the same
  # Which keys a query sees, bool [B, T, S]; None in whole rows, where it sees
  # those up to its own position.
  visible: Any


class Cache(NamedTuple):
  """Keys and values of all layers, [L, B, S, K·H].

  K·H is one axis: a head size of 64 as its own is padded to 128 on TPU.
  """

  keys: Any
  values: Any


def context(arch: Transformer, length: int) -> Context:
  """The context of whole rows of `length` tokens that start at position 0.

  Documents of a row see each other and positions run on: as released.
  """
  return Context(*_rope(arch, jnp.arange(length)[None]), None)


def cached_context(
  arch: Transformer, cache: Cache, start, length: int, first_B
) -> Context:
  """The context of `length` tokens, written at column `start` of a cache.

  `start` may be traced; `first_B` is the first column of each row that is
  not padding.
  """
  column_T = start + jnp.arange(length)
  position_BxT = jnp.maximum(column_T[None] - first_B[:, None], 0)
  key_S = jnp.arange(cache.keys.shape[2])
  causal_TxS = key_S[None] <= column_T[:, None]
  real_BxS = key_S[None] >= first_B[:, None]
  visible_BxTxS = causal_TxS[None] & real_BxS[:, None]
  return Context(*_rope(arch, position_BxT), visible_BxTxS)


def new_cache(arch: Transformer, batch: int, size: int, dtype: Any) -> Cache:
  """An empty cache of `size` columns."""
  shape = arch.num_hidden_layers, batch, size, arch.key_size
  empty = jnp.zeros(shape, dtype)
  return Cache(empty, empty)


def residual_dtype(dtype: Any) -> Any:
  """The dtype of the stream that layers add to, from the compute dtype."""
  return dtype


def _rope(arch: Transformer, position_BxT):
  """Cosines and sines, float32 [B, T, H/2]."""
  half = jnp.arange(0, arch.head_size, 2, dtype=jnp.float32) / arch.head_size
  frequency = 1.0 / arch.rope_theta**half
  if arch.rope_type == "linear":
    frequency /= arch.rope_factor
  elif arch.rope_type == "llama3":
    # 1 where the original length holds many wavelengths, 0 where few
    low, high = arch.rope_low_freq_factor, arch.rope_high_freq_factor
    turns = arch.rope_original_length * frequency / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    frequency *= kept + (1 - kept) / arch.rope_factor
  position_BxT = position_BxT.astype(jnp.float32)
  angle = position_BxT[..., None] * frequency[None, None, :]
  return jnp.cos(angle), jnp.sin(angle)


def _rotate(x_BxTxNxH, shared: Context, scale: float = 1.0):
  """Rotary embedding, the two halves of a head as real and imaginary.

  Multiplied by `scale` before it is rounded.
  """
  cos, sin = shared.cos[:, :, None, :], shared.sin[:, :, None, :]
  if sharding.platform() == "tpu":
    return _rotate_whole(x_BxTxNxH, cos * scale, sin * scale)
  a, b = jnp.split(x_BxTxNxH.astype(jnp.float32), 2, -1)
  rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
  return (rotated * scale).astype(x_BxTxNxH.dtype)


@jax.custom_vjp
def _rotate_whole(x_BxTxNxH, cos, sin):
  """The same with no head cut in two.

  Half a head of 64 is padded from 32 to 128 lanes in each copy. A product with
  a matrix of ±1 puts (−b, a) in the place of (a, b), exactly; predicted for
  the 500M on v5e:4x4, a step takes 8 % less. The gradient is turned back.
  """
  half = x_BxTxNxH.shape[-1] // 2
  turn_HxH = np.kron([[0, 1], [-1, 0]], np.eye(half))
  turned_BxTxNxH = jnp.einsum(
    "btnh,hk->btnk",
    x_BxTxNxH,
    jnp.asarray(turn_HxH, x_BxTxNxH.dtype),
    precision="highest",  # the backward pass is outside of its context
    preferred_element_type=jnp.float32,
  )
  cos, sin = jnp.tile(cos, 2), jnp.tile(sin, 2)
  rotated = x_BxTxNxH.astype(jnp.float32) * cos + turned_BxTxNxH * sin
  return rotated.astype(x_BxTxNxH.dtype)


_rotate_whole.defvjp(
  lambda x, cos, sin: (_rotate_whole(x, cos, sin), (cos, sin)),
  lambda angle, g: (_rotate_whole(g, angle[0], -angle[1]), None, None),
)


class Layers(nnx.Module):
  """All layers' parameters, stacked; a slice of it is one layer."""

  def __init__(self, arch: Transformer, dtype: Any, rngs: nnx.Rngs):
    self.arch = arch
    d, f = arch.hidden_size, arch.intermediate_size
    nh, kh = arch.query_size, arch.key_size
    layers = arch.num_hidden_layers

    def matrix(*shape):
      return normal(rngs, (layers, *shape), arch.initializer_range, dtype)

    def norm(n, used=True):
      return nnx.Param(jnp.ones((layers, n), dtype)) if used else None

    def bias(n):
      used = arch.qkv_bias
      return nnx.Param(jnp.zeros((layers, n), dtype)) if used else None

    self.input_norm = norm(d)
    # 2-D: a head size of 64 as its own dimension is padded to 128 on TPU.
    self.q_proj, self.q_bias = matrix(d, nh), bias(nh)
    self.k_proj, self.k_bias = matrix(d, kh), bias(kh)
    self.v_proj, self.v_bias = matrix(d, kh), bias(kh)
    self.q_norm = norm(arch.head_size, arch.qk_norm)
    self.k_norm = norm(arch.head_size, arch.qk_norm)
    self.o_proj = matrix(nh, d)
    self.post_attention_norm = norm(d)
    self.gate_proj = matrix(d, f)
    self.up_proj = matrix(d, f)
    self.down_proj = matrix(f, d)

  def astype(self, dtype: Any):
    """This layer in compute dtype; int8 is left to be dequantized to it."""
    return jax.tree.map(
      lambda w: w.astype(dtype), self, is_leaf=int8.is_quantized
    )

  def __call__(self, x_BxTxD, shared: Context, cache=None, start=0, i=0):
    """One layer; `self` is a slice without the leading L.

    A cache is that of all layers, of which this is number `i`; `start` is its
    column of the first token.

    Returns:
      Hidden states [B, T, D], and the cache with keys and values added.
    """
    arch, eps = self.arch, self.arch.rms_norm_eps

    def heads(x_BxTxNH):
      x_BxTxNxH = x_BxTxNH.reshape(*x_BxTxNH.shape[:2], -1, arch.head_size)
      spec = P(sharding.BATCH, None, "tensor", None)
      return jax.lax.with_sharding_constraint(x_BxTxNxH, spec)

    def projected(w, b, norm=None):
      z = project(y_BxTxD, w, is_kept=arch.qk_norm)
      if b is not None:
        z += b[...][None, None, :]
      z = heads(z)
      return z if norm is None else rms_norm(z, norm[...], eps)

    y_BxTxD = rms_norm(x_BxTxD, self.input_norm[...], eps)
    q_BxTxNxH = projected(self.q_proj, self.q_bias, self.q_norm)
    k_BxTxKxH = projected(self.k_proj, self.k_bias, self.k_norm)
    v_BxTxKxH = projected(self.v_proj, self.v_bias)
    q_BxTxNxH = _rotate(q_BxTxNxH, shared, arch.head_size**-0.5)
    k_BxTxKxH = _rotate(k_BxTxKxH, shared)
    if not arch.qk_norm:
      # As attention reads them: nothing before needs them in the backward pass.
      q_BxTxNxH, k_BxTxKxH, v_BxTxKxH = (
        checkpoint_name(z, KEPT) for z in (q_BxTxNxH, k_BxTxKxH, v_BxTxKxH)
      )
    if cache is not None:
      cache = _put(cache, Cache(k_BxTxKxH, v_BxTxKxH), start, i)
      k_BxTxKxH, v_BxTxKxH = heads(cache.keys[i]), heads(cache.values[i])
    o_BxTxNxH = attention(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH, shared.visible)
    o_BxTxNH = o_BxTxNxH.reshape(*x_BxTxD.shape[:2], -1)
    x_BxTxD = by_batch(x_BxTxD + project(o_BxTxNH, self.o_proj))

    y_BxTxD = rms_norm(x_BxTxD, self.post_attention_norm[...], eps)
    gate_BxTxF, up_BxTxF = apart(
      (project(y_BxTxD, self.gate_proj), project(y_BxTxD, self.up_proj))
    )
    y_BxTxF = jax.nn.silu(gate_BxTxF) * up_BxTxF
    return by_batch(x_BxTxD + project(y_BxTxF, self.down_proj)), cache


def _put(cache: Cache, new: Cache, start, i) -> Cache:
  """The cache with [B, T, K, H] of layer `i` at column `start`."""

  def one(old_LxBxSxKH, x_BxTxKxH):
    x_BxTxKH = x_BxTxKxH.reshape(*x_BxTxKxH.shape[:2], -1)
    return jax.lax.dynamic_update_slice(
      old_LxBxSxKH, x_BxTxKH[None], (i, 0, start, 0)
    )

  return jax.tree.map(one, cache, new)
