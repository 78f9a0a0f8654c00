r"""Drawing tokens with weights split by `fsdp`: gathered once or each token.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python -m benchmarks.fsdp_generation [--dtype=bfloat16]

Simulated devices share memory and cores, so what is saved here is copying:
on a slice the weights cross the interconnect. Runs are paired, in turn.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from miniplm_jax.models import decoder, generation, placement, ready, sharding
from miniplm_jax.models.architecture import Transformer

_DTYPE = flags.DEFINE_string("dtype", "float32", "Of the computation.")
_PROMPT = flags.DEFINE_integer("prompt", 64, "Tokens of a prompt.", 1)
_TOKENS = flags.DEFINE_integer("max_new_tokens", 32, "New tokens.", 1)
_ROWS = flags.DEFINE_integer("rows", 8, "Prompts at a time.", 1)
_RUNS = flags.DEFINE_integer("runs", 5, "Paired runs.", 1)
ARCH = Transformer(
  vocab_size=32_000,
  hidden_size=512,
  intermediate_size=1408,
  num_hidden_layers=8,
  num_attention_heads=8,
  num_key_value_heads=8,
  tie_word_embeddings=False,
)


def main(argv):
  """Prints both rates and the ratio."""
  del argv
  mesh = sharding.make_mesh(1, -1, 1)
  rng = np.random.default_rng(0)
  shape = _ROWS.value, _PROMPT.value
  prompts = generation.pad_left(rng.integers(0, 32_000, shape), _ROWS.value)
  with jax.set_mesh(mesh):
    where = sharding.shardings(decoder.abstract(ARCH), mesh)
    make = jax.jit(
      lambda: decoder.Decoder(ARCH, nnx.Rngs(0)), out_shardings=where
    )
    arguments = make(), placement.put_whole(prompts, mesh)
    programs, made = [], []
    for fits in (False, True):
      ready._fits = lambda *_, fits=fits: fits
      program = generation.compiled(
        mesh,
        sampling=generation.Sampling(_TOKENS.value),
        seed=0,
        eos_ids=(),
        vocabulary=ARCH.vocab_size,
        dtype=jnp.dtype(_DTYPE.value),
      )
      programs.append(program.lower(*arguments).compile())
      made.append(np.asarray(programs[-1](*arguments).values.tokens))
    pairs = []
    for _ in range(_RUNS.value):
      pair = []
      for program in programs:
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        pair.append(time.perf_counter() - start)
      pairs.append(pair)
  tokens = _ROWS.value * _TOKENS.value
  rates = [tokens / statistics.median(seconds) for seconds in zip(*pairs)]
  ratios = [each / once for each, once in pairs]
  print(
    f"{ARCH.parameters():,} parameters over fsdp={mesh.shape['fsdp']}, float32 "
    f"in {_DTYPE.value}, {_ROWS.value} prompts of {_PROMPT.value}, "
    f"{_TOKENS.value} new tokens, {_RUNS.value} paired runs: each token "
    f"gathers {rates[0]:.1f} tokens/s, once {rates[1]:.1f}, × "
    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to "
    f"{max(ratios):.2f}); {(made[0] == made[1]).mean():.0%} of tokens equal"
  )


if __name__ == "__main__":
  app.run(main)
