"""Layers with a selective state space: Mamba-1 (arXiv 2312.00752).

B batch, T time, C time of a chunk, D hidden, E channels, N states of a
channel, R rank of the time step, W width of the convolution, L layers.
Channels are the last axis of a state: 16 states there are padded to 128 on
TPU.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import int8, sharding
from miniplm_jax.models.architecture import Mamba
from miniplm_jax.models.ops import (
  by_batch,
  by_channel,
  normal,
  project,
  rms_norm,
)
from miniplm_jax.models.sharding import Parameter, table

# Positions whose states exist at a time; each chunk starts from the last.
CHUNK = 64
# Initial time steps lie between these, and never below the floor.
_STEP_MIN, _STEP_MAX, _STEP_FLOOR = 1e-3, 0.1, 1e-4


def _mixer(name: str, spec: P, *details) -> Parameter:
  return Parameter(spec, f"backbone.layers.{{}}.mixer.{name}", *details)


_IN, _BOTH = P(None, "fsdp", "tensor"), ("tensor", "fsdp")
_CHANNELS = P(None, "tensor")
# R and N are too small to be split.
PARAMETERS = {
  "embed": table("backbone.embeddings.weight"),
  "head": table("lm_head.weight"),
  "final_norm": Parameter(P(), "backbone.norm_f.weight"),  # D
  "norm": Parameter(P(), "backbone.layers.{}.norm.weight"),  # LD
  "in_proj": _mixer("in_proj.weight", _IN, True, 0, 2),  # LDE
  "gate_proj": _mixer("in_proj.weight", _IN, True, 1, 2),  # LDE
  "conv": _mixer("conv1d.weight", _CHANNELS),  # L E 1 W
  "conv_bias": _mixer("conv1d.bias", _CHANNELS),  # LE
  "x_proj": _mixer("x_proj.weight", P(None, _BOTH), True),  # L E R2N
  "dt_proj": _mixer("dt_proj.weight", P(None, None, _BOTH), True),  # LRE
  "dt_bias": _mixer("dt_proj.bias", _CHANNELS),  # LE
  "a_log": _mixer("A_log", _CHANNELS),  # LEN
  "skip": _mixer("D", _CHANNELS),  # LE
  "out_proj": _mixer("out_proj.weight", P(None, "tensor", "fsdp"), True),  # LED
}
sharding.declare({name: p.spec for name, p in PARAMETERS.items()})


class Cache(NamedTuple):
  """What the next position needs of the past."""

  inputs: Any  # the last inputs of the convolution, [L, B, W - 1, E]
  states: Any  # float32 [L, B, N, E]


def context(unused_arch: Mamba, length: int):
  """Which positions of whole rows are not padding, bool [1, T]: all."""
  return jnp.ones((1, length), bool)


def cached_context(unused_arch, unused_cache, start, length: int, first_B):
  """The same of `length` tokens from column `start`, bool [B, T].

  Padding leaves states at 0.
  """
  column_T = start + jnp.arange(length)
  return column_T[None] >= first_B[:, None]


def new_cache(arch: Mamba, batch: int, unused_size: int, dtype: Any) -> Cache:
  """States before the first token; they do not grow with the size."""
  layers, e = arch.num_hidden_layers, arch.intermediate_size
  inputs = jnp.zeros((layers, batch, arch.conv_kernel - 1, e), dtype)
  states = jnp.zeros((layers, batch, arch.state_size, e), jnp.float32)
  return Cache(inputs, states)


def residual_dtype(unused_dtype: Any) -> Any:
  """float32 whatever the compute dtype, like the reference."""
  return jnp.float32


def _selective_scan(x_BxTxE, dt_BxTxE, a_NxE, b_BxTxN, c_BxTxN, h_BxNxE):
  """h_t = exp(dt_t a) h_{t-1} + dt_t b_t x_t, y_t = c_t · h_t, in float32.

  Parallel within a chunk (an associative scan), one chunk after the other:
  only a chunk's states exist at a time, in the backward pass too.

  Returns:
    y [B, T, E] and the last state [B, N, E].
  """
  batch, length, channels = x_BxTxE.shape
  chunk = min(CHUNK, length)
  chunks = -(-length // chunk)

  def split(z_BxTxE):  # → [chunks, B, C, …]; a step of 0 changes no state
    pad = chunks * chunk - length
    z_BxTxE = jnp.pad(z_BxTxE, [(0, 0), (0, pad), (0, 0)])
    return z_BxTxE.reshape(batch, chunks, chunk, -1).swapaxes(0, 1)

  def combine(left, right):  # h → a h + b, first left, then right
    (a, b), (a_next, b_next) = left, right
    return a * a_next, a_next * b + b_next

  @jax.checkpoint
  def one_chunk(h_BxNxE, xs):
    x_BxCxE, dt_BxCxE, b_BxCxN, c_BxCxN = xs
    decay = jnp.exp(dt_BxCxE[:, :, None, :] * a_NxE[None, None])
    entry = b_BxCxN[..., None] * (dt_BxCxE * x_BxCxE)[:, :, None, :]
    decay, state = jax.lax.associative_scan(combine, (decay, entry), axis=1)
    state_BxCxNxE = state + decay * h_BxNxE[:, None]
    y_BxCxE = jnp.sum(state_BxCxNxE * c_BxCxN[..., None], 2)
    return state_BxCxNxE[:, -1], y_BxCxE

  xs = tuple(split(z) for z in (x_BxTxE, dt_BxTxE, b_BxTxN, c_BxTxN))
  h_BxNxE, y = jax.lax.scan(one_chunk, h_BxNxE, xs)
  y_BxTxE = y.swapaxes(0, 1).reshape(batch, -1, channels)
  return y_BxTxE[:, :length], h_BxNxE


class Layers(nnx.Module):
  """All layers' parameters, stacked; a slice of it is one layer."""

  def __init__(self, arch: Mamba, dtype: Any, rngs: nnx.Rngs):
    """Initializes like transformers' MambaPreTrainedModel."""
    self.arch = arch
    layers, d = arch.num_hidden_layers, arch.hidden_size
    e = arch.intermediate_size
    n, r, scale = arch.state_size, arch.rank, arch.initializer_range

    # What the scan reads is never below float32.
    wide = jnp.promote_types(dtype, jnp.float32)

    def uniform(shape, low, high):
      shape = layers, *shape
      return jax.random.uniform(rngs.params(), shape, jnp.float32, low, high)

    def even(shape, bound):
      return nnx.Param(uniform(shape, -bound, bound).astype(dtype))

    self.norm = nnx.Param(jnp.ones((layers, d), dtype))
    # The two halves of the file's in_proj, so that `tensor` splits each.
    self.in_proj = normal(rngs, (layers, d, e), scale, dtype)
    self.gate_proj = normal(rngs, (layers, d, e), scale, dtype)
    self.conv = even((e, 1, arch.conv_kernel), arch.conv_kernel**-0.5)
    self.conv_bias = nnx.Param(jnp.zeros((layers, e), dtype))
    self.x_proj = normal(rngs, (layers, e, r + 2 * n), scale, dtype)
    self.dt_proj = even((r, e), r**-0.5)
    step = jnp.exp(uniform((e,), np.log(_STEP_MIN), np.log(_STEP_MAX)))
    step = jnp.maximum(step, _STEP_FLOOR)
    # the inverse of softplus
    bias = step + jnp.log(-jnp.expm1(-step))
    self.dt_bias = nnx.Param(bias.astype(wide))
    a_log = jnp.log(jnp.arange(1, n + 1, dtype=jnp.float32))
    a_log = jnp.broadcast_to(a_log, (layers, e, n))
    self.a_log = nnx.Param(a_log.astype(wide))
    self.skip = nnx.Param(jnp.ones((layers, e), wide))
    self.out_proj = even((e, d), e**-0.5)

  def astype(self, dtype: Any):
    """This layer in compute dtype, but what the scan reads in float32."""
    wide = ("dt_bias", "a_log", "skip")

    def one(path, w):
      name = sharding.name_of(path)
      return w.astype(jnp.float32 if name in wide else dtype)

    return jax.tree_util.tree_map_with_path(
      one, self, is_leaf=int8.is_quantized
    )

  def __call__(self, x_BxTxD, real_BxT, cache=None, unused_start=0, i=0):
    """One layer; `self` is a slice without the leading L.

    `x_BxTxD` is the residual stream, in float32. A cache is that of all
    layers, of which this is number `i`; states have no columns to start at.

    Returns:
      Hidden states, float32 [B, T, D], and the cache after the last token.
    """
    arch = self.arch
    batch, length = x_BxTxD.shape[:2]
    n, r, e = arch.state_size, arch.rank, arch.intermediate_size
    dtype = self.in_proj[...].dtype
    norm_D = self.norm[...]
    real_BxTx1 = real_BxT[..., None]
    y_BxTxD = rms_norm(x_BxTxD.astype(dtype), norm_D, arch.rms_norm_eps)
    u_BxTxE = by_channel(project(y_BxTxD, self.in_proj)) * real_BxTx1
    gate_BxTxE = by_channel(project(y_BxTxD, self.gate_proj))

    past = arch.conv_kernel - 1
    if cache is None:
      inputs_BxWxE = jnp.zeros((batch, past, e), dtype)
      h_BxNxE = jnp.zeros((batch, n, e), jnp.float32)
    else:
      inputs_BxWxE, h_BxNxE = cache.inputs[i], cache.states[i]
    u_BxWTxE = jnp.concatenate([inputs_BxWxE, u_BxTxE], 1)
    kernel_ExW = self.conv[...][:, 0]
    v_BxTxE = sum(
      u_BxWTxE[:, w : w + length] * kernel_ExW[None, None, :, w]
      for w in range(arch.conv_kernel)
    )
    v_BxTxE = jax.nn.silu(v_BxTxE + self.conv_bias[...][None, None])
    # The bias made something of padding.
    v_BxTxE = by_channel(v_BxTxE * real_BxTx1)

    z_BxTxR2N = by_batch(project(v_BxTxE, self.x_proj))
    dt_BxTxR, b_BxTxN, c_BxTxN = jnp.split(z_BxTxR2N, (r, r + n), -1)
    dt_BxTxE = by_channel(project(dt_BxTxR, self.dt_proj))
    y_BxTxE, h_BxNxE = _selective_scan(
      v_BxTxE.astype(jnp.float32),
      jax.nn.softplus(
        dt_BxTxE.astype(jnp.float32) + self.dt_bias[...][None, None]
      ),
      -jnp.exp(self.a_log[...]).T,
      b_BxTxN.astype(jnp.float32),
      c_BxTxN.astype(jnp.float32),
      h_BxNxE,
    )
    y_BxTxE += v_BxTxE * self.skip[...][None, None]
    y_BxTxE = by_channel(y_BxTxE * jax.nn.silu(gate_BxTxE))
    x_BxTxD = by_batch(x_BxTxD + project(y_BxTxE.astype(dtype), self.out_proj))
    if cache is not None:
      inputs = cache.inputs.at[i].set(u_BxWTxE[:, length:])
      cache = Cache(inputs, cache.states.at[i].set(h_BxNxE))
    return x_BxTxD, cache
