"""What the layers of every family are made of.

B batch, T time, D hidden; x_BxTxD stands for any width of the last axis.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import sharding

# The name of what the backward pass keeps with remat `dots`: results of
# matrix products with weights, and of attention.
KEPT = "kept"

# Terms of a float32 product that are added in one go on CPU.
_BLOCK = 256


def normal(rngs: nnx.Rngs, shape, scale: float, dtype: Any) -> nnx.Param:
  """A parameter drawn from N(0, scale²) in float32."""
  draw = jax.random.normal(rngs.params(), shape, jnp.float32)
  return nnx.Param((draw * scale).astype(dtype))


def rms_norm(x_BxTxD, scale_D, eps: float):
  """RMSNorm over the last axis, in float32 like the reference."""
  y_BxTxD = x_BxTxD.astype(jnp.float32)
  mean_BxT1 = jnp.mean(y_BxTxD * y_BxTxD, -1, keepdims=True)
  y_BxTxD = (y_BxTxD * jax.lax.rsqrt(mean_BxT1 + eps)).astype(x_BxTxD.dtype)
  return y_BxTxD * scale_D.reshape((1,) * (y_BxTxD.ndim - 1) + (-1,))


def project(x_BxTxD, w_DxE, is_kept: bool = True):
  """X @ w with the tokens as one dimension; kept for the backward pass or not.

  XLA's CPU backend takes twice as long for the gradient of the 3-D product.
  It also adds the D terms of a float32 product one after the other; in
  blocks, NLL is half as far from float64, at no cost (D = 576 and 1,536).
  Accelerators add up in blocks of their own; bfloat16 is not cut.
  """
  x_SxD, w_DxE = x_BxTxD.reshape(-1, x_BxTxD.shape[-1]), w_DxE[...]
  # A weight that `tensor` splits has few terms on a device, and must not be
  # sliced across devices.
  is_cut = x_SxD.dtype == jnp.float32 and sharding.platform() == "cpu"
  is_cut &= sharding.axis_size("tensor") == 1
  y = _in_blocks(x_SxD, w_DxE) if is_cut else x_SxD @ w_DxE
  y = checkpoint_name(y, KEPT) if is_kept else y
  return y.reshape(*x_BxTxD.shape[:2], -1)


@jax.custom_vjp
def _in_blocks(x_SxD, w_DxE):
  """X @ w, `_BLOCK` terms at a time."""
  return sum(
    x_SxD[:, i : i + _BLOCK] @ w_DxE[i : i + _BLOCK]
    for i in range(0, x_SxD.shape[-1], _BLOCK)
  )


def _blocks_forward(x_SxD, w_DxE):
  return _in_blocks(x_SxD, w_DxE), (x_SxD, w_DxE)


def _blocks_backward(operands, g_SxE):
  """Two products; left to itself, each block's is padded and added up."""
  x_SxD, w_DxE = operands
  # This is traced outside of the context that asks for float32.
  product = functools.partial(jnp.matmul, precision="highest")
  return product(g_SxE, w_DxE.T), product(x_SxD.T, g_SxE)


_in_blocks.defvjp(_blocks_forward, _blocks_backward)


@jax.custom_vjp
def apart(arrays):
  """The arrays, not fused with what reads them, nor their gradients so.

  Only where there is a backward pass. Around the gates of the FFN, predicted
  for the 500M on v5e:4x4, a step takes 225 ms and not 231; scoring is faster
  without.
  """
  return arrays


apart.defvjp(
  lambda arrays: (jax.lax.optimization_barrier(arrays), None),
  lambda _, g: (jax.lax.optimization_barrier(g),),
)


def by_batch(x_BxTxD):
  """Splits the rows over the mesh, and nothing else."""
  spec = P(sharding.BATCH, *[None] * (x_BxTxD.ndim - 1))
  return jax.lax.with_sharding_constraint(x_BxTxD, spec)


def by_channel(x_BxTxE):
  """Splits rows, and channels (heads, states) over `tensor`."""
  middle = [None] * (x_BxTxE.ndim - 2)
  spec = P(sharding.BATCH, *middle, "tensor")
  return jax.lax.with_sharding_constraint(x_BxTxE, spec)
