"""Attention of whole rows by cuDNN's fused kernels, for NVIDIA GPUs.

B batch, T time, N heads, K key heads, H head size.
"""

import functools
import re

import jax
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import sharding

# The primitive whose results the backward pass reads. They carry no name that
# a policy of rematerialization could ask for.
FORWARD = "dot_product_attention_fwd_wrapper"

# The kernels need Ampere, compute capability 8.0 (a T4 has 7.5); head sizes
# above 128 need Hopper, 9.0.
_LEAST, _LARGE_HEADS = 8.0, 9.0


def fits(q_BxTxNxH, k_BxTxKxH) -> bool:
  """Whether cuDNN takes whole rows of this shape, on this mesh and GPU."""
  batch, _, heads, size = q_BxTxNxH.shape
  shards = sharding.axis_size("data") * sharding.axis_size("fsdp")
  tensor, keys = sharding.axis_size("tensor"), k_BxTxKxH.shape[2]
  capability = _compute_capability()
  return (
    capability >= _LEAST
    and size % 8 == 0
    and size <= (256 if capability >= _LARGE_HEADS else 128)
    and batch % shards == 0
    and heads % tensor == keys % tensor == 0
  )


def attention(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH, implementation: str = "cudnn"):
  """Causal attention, [B, T, N, H], of queries that are not scaled.

  N / K queries share a key. No [T, S] weights are formed in main memory,
  forward or backward. Needs a shape that `fits`. The implementation "xla"
  computes the same without a GPU.
  """
  # Under shard_map each device calls the kernel on its rows and heads: JAX's
  # own partitioning of it is a Python callback, which no cache can keep.
  spec = P(sharding.BATCH, None, "tensor", None)
  mapped = jax.shard_map(
    functools.partial(
      jax.nn.dot_product_attention,
      is_causal=True,
      implementation=implementation,
    ),
    in_specs=(spec,) * 3,
    out_specs=spec,
    check_vma=False,
  )
  return mapped(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH)


def _compute_capability() -> float:
  """This process's devices have it; Hopper's, where there is no GPU."""
  device = jax.local_devices()[0]
  capability = str(getattr(device, "compute_capability", _LARGE_HEADS))
  # AMD's are names, such as gfx90a.
  return float(capability) if re.fullmatch(r"\d+\.\d+", capability) else 0.0
