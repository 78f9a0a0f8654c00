"""What a training step takes of a device's memory."""

import math
from typing import Any

import jax


def report(state, frozen: Any, compiled: jax.stages.Compiled) -> str:
  """One line: what a device holds, and what the compiled step needs.

  Args:
    state: a `loop.State`, of arrays or ShapeDtypeStructs with shardings.
    frozen: the objective's.
    compiled: the step.
  """
  held = {
    "weights": state.model,
    "optimizer state": state.opt_state,
    "frozen": frozen,
  }
  parts = [f"{name} {amount(bytes_of(tree))}" for name, tree in held.items()]
  text = f"memory of a device: {', '.join(parts)}"
  needed = compiled.memory_analysis()
  if needed is None:
    return text
  # Donated arguments are counted once. The compiler's own peak knows of
  # buffers that share their place; on CPU it leaves temporaries out.
  arguments = needed.argument_size_in_bytes + needed.output_size_in_bytes
  total = arguments - needed.alias_size_in_bytes + needed.temp_size_in_bytes
  peak = getattr(needed, "peak_memory_in_bytes", 0)
  if peak > needed.temp_size_in_bytes + needed.argument_size_in_bytes:
    total = peak
  text += (
    f"; the step needs {amount(needed.temp_size_in_bytes)} of temporaries "
    f"beside {amount(needed.argument_size_in_bytes)} of arguments, "
    f"{amount(total)} in all"
  )
  limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
  if limit:
    text += f", {total / limit:.0%} of {amount(limit)}"
  return text


def bytes_of(tree: Any) -> int:
  """Bytes that one device holds of arrays with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def amount(size: float) -> str:
  """Bytes as a person would say them: 12 B, 3.4 KiB, 15.8 GiB."""
  units = ("B", "KiB", "MiB", "GiB", "TiB")
  power = min(int(math.log(max(size, 1), 1024)), len(units) - 1)
  return f"{size / 1024**power:.{1 if power else 0}f} {units[power]}"
