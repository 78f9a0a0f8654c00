"""Part device: what it can do at best, measured and not from a data sheet."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.accelerator.results import Store
from benchmarks.accelerator.settings import Settings

COPY, PRODUCT, DISPATCH = "copy", "bf16 product", "dispatch"
_SECONDS = 0.15  # of a repeat


def seconds(
  run: Callable[..., Any], inputs: Sequence[tuple], repeats: int
) -> dict[str, float]:
  """What a call takes: dispatched one after another, waited for at the end.

  Args:
    run: compiled, or compiles itself.
    inputs: arguments that take turns, so that no cache holds them.
    repeats: of which the median counts.

  Returns:
    The median, the least and the most, and how many calls a repeat had.
  """
  import jax

  for arguments in (*inputs, inputs[0]):
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    once = time.perf_counter() - start
  calls = max(min(int(_SECONDS / once), 200), 2)
  found = []
  for _ in range(repeats):
    start = time.perf_counter()
    for i in range(calls):
      made = run(*inputs[i % len(inputs)])
    jax.block_until_ready(made)
    found.append((time.perf_counter() - start) / calls)
  return {
    "seconds": statistics.median(found),
    "least": min(found),
    "most": max(found),
    "calls": calls,
  }


def ceilings(results: dict[str, Any]) -> tuple[float | None, float | None]:
  """FLOP/s of the product and bytes/s of the copy, from this part's results."""
  product, copy = results.get(PRODUCT, {}), results.get(COPY, {})
  return product.get("flops_per_second"), copy.get("bytes_per_second")


def _copy(size: int, repeats: int):
  import jax
  import jax.numpy as jnp

  keys = jax.random.split(jax.random.key(0), 2)
  inputs = [(jax.random.bits(key, (size // 4,), jnp.uint32),) for key in keys]
  found = seconds(jax.jit(lambda x: x ^ jnp.uint32(1)), inputs, repeats)
  moved = 2 * inputs[0][0].nbytes
  return found | {"bytes": moved, "bytes_per_second": moved / found["seconds"]}


def _product(size: int, repeats: int):
  import jax
  import jax.numpy as jnp

  keys = jax.random.split(jax.random.key(0), 3)
  a, b, c = (jax.random.normal(k, (size, size), jnp.bfloat16) for k in keys)
  found = seconds(jax.jit(jnp.matmul), [(a, b), (b, c), (c, a)], repeats)
  flops = 2 * size**3
  rate = flops / found["seconds"]
  return found | {"size": size, "flops": flops, "flops_per_second": rate}


def _dispatch(repeats: int):
  import jax
  import jax.numpy as jnp

  x = jax.random.normal(jax.random.key(0), (8,), jnp.float32)
  return seconds(jax.jit(lambda x: x + 1), [(x,)], repeats)


def run(settings: Settings, store: Store):
  """Measures the ceilings."""
  size, copied = settings.plan.product
  repeats = settings.plan.repeats
  store.attempt(COPY, _copy, copied, repeats)
  store.attempt(PRODUCT, _product, size, repeats)
  store.attempt(DISPATCH, _dispatch, repeats)
