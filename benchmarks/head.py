"""The tiled head against the plain one: a gradient, and memory of scoring.

  python -m benchmarks.head        (or: make bench)

Both are compiled for this machine and timed in turn; what is quoted is the
ratio. Memory is the compiler's own count of temporary buffers.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from miniplm_jax.models import head, sharding

TOKENS, HIDDEN, RUNS = 2048, 512, 5


def _plain(h, w, y, weight):
  logits = jnp.einsum("btd,vd->btv", h, w)
  picked = jnp.take_along_axis(logits, y[..., None], -1)[..., 0]
  return jnp.sum((jax.nn.logsumexp(logits, -1) - picked) * weight)


def _compile(function, arguments):
  return jax.jit(jax.grad(function, (0, 1))).lower(*arguments).compile()


def _seconds(compiled, arguments) -> float:
  start = time.perf_counter()
  jax.block_until_ready(compiled(*arguments))
  return time.perf_counter() - start


def _scoring_memory():
  """Temporary memory of log-probs without gradients: no vocabulary × batch."""
  for vocabulary in (32_000, 151_936, 262_144):
    for tokens in (2048, 8192):
      shapes = (4, tokens // 4, HIDDEN), (vocabulary, HIDDEN), (4, tokens // 4)
      h, w, y = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in zip(shapes, (jnp.float32, jnp.float32, jnp.int32))
      )
      compiled = jax.jit(head.token_nll).lower(h, w, y).compile()
      mib = compiled.memory_analysis().temp_size_in_bytes / 2**20
      print(
        f"scoring, vocabulary {vocabulary:,}, {tokens:,} tokens: temporary "
        f"memory {mib:.1f} MiB; their logits would take "
        f"{4 * vocabulary * tokens / 2**20:,.0f} MiB"
      )


def main():
  """Prints a line for each vocabulary."""
  print(f"{TOKENS} tokens, hidden {HIDDEN}, float32, {RUNS} paired runs")
  mesh = sharding.make_mesh(-1, 1, 1)
  with jax.set_mesh(mesh):
    _scoring_memory()
  for vocabulary in (8_192, 151_936):
    keys = jax.random.split(jax.random.key(0), 3)
    h = jax.random.normal(keys[0], (2, TOKENS // 2, HIDDEN))
    w = jax.random.normal(keys[1], (vocabulary, HIDDEN)) * 0.02
    y = jax.random.randint(keys[2], h.shape[:2], 0, vocabulary)
    arguments = h, w, y, jnp.full(y.shape, 1 / y.size)
    with jax.set_mesh(mesh):
      programs = [_compile(f, arguments) for f in (head.weighted_nll, _plain)]
      for program in programs:
        _seconds(program, arguments)
      pairs = [
        [_seconds(program, arguments) for program in programs]
        for _ in range(RUNS)
      ]
    ratios = [tiled / plain for tiled, plain in pairs]
    memory = [p.memory_analysis().temp_size_in_bytes for p in programs]
    print(
      f"vocabulary {vocabulary:,}: time × {statistics.median(ratios):.2f} "
      f"({min(ratios):.2f} to {max(ratios):.2f}), temporary memory × "
      f"{memory[0] / memory[1]:.2f} ({memory[0] >> 20} MiB)"
    )


if __name__ == "__main__":
  main()
