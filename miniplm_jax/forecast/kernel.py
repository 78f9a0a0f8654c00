"""FLOPs and time of Pallas kernels, which the compiler sees as black boxes."""

import re

from miniplm_jax.forecast.hlo_text import Array

# Products of queries, keys and values, each with T² · H multiplications a
# head, of which causal attention needs one half.
_SPLASH = re.compile(r"splash_mha_(fwd|dkv|dq)")
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 5}  # dkv with dq in it

# Attention of all pairs of positions, to this multiple of its time at the
# peak: one simulation of the bundles on v5e, at head size 64. Half of it at
# 128, which fills a matrix unit.
_SLOWNESS, _AT_HEAD, _FULL_HEAD = 2.42, 64, 128


class UnknownKernelError(Exception):
  """A kernel whose time nobody has looked into."""


def is_kernel(op: str, attributes: str) -> bool:
  """Whether an instruction is a Pallas kernel."""
  return op == "custom-call" and '"tpu_custom_call"' in attributes


def cost(name: str, operands: list[Array]) -> tuple[int, float]:
  """FLOPs of a kernel, and by how much it is slower than the peak.

  Args:
    name: of the instruction; the kernel's own is its beginning.
    operands: their types; queries, [B, N, T, H], are the first of four axes.

  Raises:
    UnknownKernelError: it is another one; it would count as nothing.
  """
  match = _SPLASH.match(name)
  if not match:
    raise UnknownKernelError(
      f"Pallas kernel {name}: state its cost in forecast/kernel.py"
    )
  queries = next(o for o in operands if len(o.shape) == 4)
  batch, heads, length, size = queries.shape
  causal = _PRODUCTS[match[1]] * batch * heads * length * length * size
  slowness = 2 * _SLOWNESS * _AT_HEAD / min(size, _FULL_HEAD)
  return causal, slowness
