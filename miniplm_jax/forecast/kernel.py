"""FLOPs and time of Pallas kernels, which the compiler sees as black boxes."""

import math
import re

from miniplm_jax.forecast.hlo_text import Instruction

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


def is_kernel(instruction: Instruction) -> bool:
  """Whether it is a Pallas kernel."""
  is_custom = instruction.op == "custom-call"
  return is_custom and '"tpu_custom_call"' in instruction.attributes


def cost(instruction: Instruction) -> tuple[int, float]:
  """FLOPs of a kernel, and by how much it is slower than the peak.

  Its name begins with the kernel's own. Queries, [B, N, T, H] or of one row
  [N, T, H], are the first operand that is not of the mask's int8.

  Raises:
    UnknownKernelError: it is another one; it would count as nothing.
  """
  match = _SPLASH.match(instruction.name)
  if not match:
    raise UnknownKernelError(
      f"Pallas kernel {instruction.name}: state its cost in forecast/kernel.py"
    )
  arrays = (o.arrays[0] for o in instruction.operands)
  *rows, length, size = next(a.shape for a in arrays if a.dtype != "s8")
  causal = _PRODUCTS[match[1]] * math.prod(rows) * length * length * size
  slowness = 2 * _SLOWNESS * _AT_HEAD / min(size, _FULL_HEAD)
  return causal, slowness
