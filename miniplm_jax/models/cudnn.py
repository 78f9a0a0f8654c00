"""Attention of whole rows by cuDNN's fused kernels, for NVIDIA GPUs.

B batch, T time, N heads, K key heads, H head size.
"""

import re

import jax

# The primitive whose results the backward pass reads. They carry no name that
# a policy of rematerialization could ask for.
FORWARD = "dot_product_attention_fwd_wrapper"

# The kernels need Ampere, compute capability 8.0 (a T4 has 7.5); head sizes
# above 128 need Hopper, 9.0.
_LEAST, _LARGE_HEADS = 8.0, 9.0


def fits(unused_length: int, size: int) -> bool:
  """Whether cuDNN takes heads of this size, on this GPU."""
  capability = _compute_capability()
  most = 256 if capability >= _LARGE_HEADS else 128
  return capability >= _LEAST and size % 8 == 0 and size <= most


def attention(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH, implementation: str = "cudnn"):
  """Causal attention, [B, T, N, H], of queries that are scaled.

  N / K queries share a key. The implementation "xla" computes the same without
  a GPU.
  """
  return jax.nn.dot_product_attention(
    q_BxTxNxH,
    k_BxTxKxH,
    v_BxTxKxH,
    scale=1.0,
    is_causal=True,
    implementation=implementation,
  )


def _compute_capability() -> float:
  """This process's devices have it; Hopper's, where there is no GPU."""
  device = jax.local_devices()[0]
  capability = str(getattr(device, "compute_capability", _LARGE_HEADS))
  # AMD's are names, such as gfx90a.
  return float(capability) if re.fullmatch(r"\d+\.\d+", capability) else 0.0
