"""Attention of whole rows by JAX's splash attention kernel, for TPU.

B batch, T time, N heads, K key heads, H head size.
"""

import functools

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)

from miniplm_jax.models.ops import KEPT

# Queries and keys of a block, and keys of one product: what a core's memory
# holds beside the gradients on every generation. All are multiples of LANES.
# A block of keys of the backward pass makes a gradient of all queries that is
# added up afterwards: with 512 these are half as many as with 256, and as many
# blocks lie above the diagonal.
_QUERIES, _KEYS, _KEYS_BACKWARD, _KEYS_AT_A_TIME = 512, 256, 512, 128
LANES = 128


def fits(length: int, unused_size: int) -> bool:
  """Whether the kernel takes whole rows of this length."""
  return length % LANES == 0


def attention(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH, interpret: bool = False):
  """Causal attention, [B, T, N, H], of queries that are scaled.

  N / K queries share a key. No block of [T, S] weights above the diagonal is
  computed. What the backward pass needs carries the name `KEPT`. With
  `interpret` it runs without a TPU, slowly.
  """
  _, length, heads, _ = q_BxTxNxH.shape
  one_row = _kernel(length, heads, interpret)
  q_BxNxTxH = q_BxTxNxH.swapaxes(1, 2)
  k_BxKxTxH, v_BxKxTxH = k_BxTxKxH.swapaxes(1, 2), v_BxTxKxH.swapaxes(1, 2)
  return jax.vmap(one_row)(q_BxNxTxH, k_BxKxTxH, v_BxKxTxH).swapaxes(1, 2)


def _kernel(length: int, heads: int, interpret: bool):
  """The kernel of one row, queries [N, T, H] and keys [K, T, H]."""
  divides = functools.partial(_block, length)
  sizes = kernel.BlockSizes(
    block_q=divides(_QUERIES),
    block_kv=divides(_KEYS),
    block_kv_compute=divides(_KEYS_AT_A_TIME),
    block_q_dkv=divides(_QUERIES),
    block_kv_dkv=divides(_KEYS_BACKWARD),
    block_kv_dkv_compute=divides(_KEYS_AT_A_TIME),
    # dq beside dk and dv: the scores are formed once, not twice.
    use_fused_bwd_kernel=True,
  )
  causal = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
  return kernel.make_splash_mha(
    causal,
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=KEPT,
    interpret=interpret,
  )


def _block(length: int, most: int) -> int:
  """The largest multiple of LANES up to `most` that divides the length."""
  return next(n for n in range(most, 0, -LANES) if length % n == 0)
