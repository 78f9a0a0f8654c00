"""FLOPs of one matrix product of a compiled program."""

import functools
import math
import re

from miniplm_jax.forecast.hlo_text import Instruction, integers


def flops(instruction: Instruction) -> int:
  """2 per product of a dot or a convolution; 0 of any other instruction."""
  if instruction.op not in ("dot", "convolution"):
    return 0
  left, right = (o.arrays[0].shape for o in instruction.operands[:2])
  out = instruction.arrays[0].shape
  if instruction.op == "dot":
    return 2 * math.prod(out) * _contracted(instruction, left)
  return 2 * _convolution_products(instruction, left, right, out)


def _contracted(dot: Instruction, left: tuple[int, ...]) -> int:
  match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
  return math.prod(left[n] for n in integers(match[1]))


def _convolution_products(instruction, left, right, out) -> int:
  """Products in a convolution; those with padding are not counted.

  On TPU every matrix product is one; batches are its spatial dimensions, of
  which padding and dilation select one position each.
  """
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
  in_labels, kernel_labels, out_labels = labels.groups()
  window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
  fields = dict(f.split("=") for f in window[1].split()) if window else {}

  def field(key, place, default):
    return fields[key].split("x")[place] if key in fields else default

  products = right[kernel_labels.index("i")]
  for label, size in zip(out_labels, out):
    if not label.isdigit():
      products *= size
      continue
    place = int(label)
    products *= _positions(
      out=size,
      taps=int(field("size", place, "1")),
      inputs=left[in_labels.index(label)],
      stride=int(field("stride", place, "1")),
      before=int(field("pad", place, "0_0").split("_")[0]),
      in_dilation=int(field("lhs_dilate", place, "1")),
      tap_dilation=int(field("rhs_dilate", place, "1")),
    )
  return products


@functools.cache
def _positions(
  *, out, taps, inputs, stride, before, in_dilation, tap_dilation
) -> int:
  """Pairs of an output and a tap that meet an input along one dimension."""
  last = (inputs - 1) * in_dilation
  count = 0
  for tap in range(taps):
    offset = tap * tap_dilation - before
    first = max(0, -(offset // stride))
    final = min(out - 1, (last - offset) // stride)
    if in_dilation == 1:
      count += max(0, final - first + 1)
    else:
      count += sum(
        (o * stride + offset) % in_dilation == 0
        for o in range(first, final + 1)
      )
  return count
