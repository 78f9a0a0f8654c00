"""On 8 CPU devices, in the process of eight_devices.py.

Tokens drawn with weights that are gathered once, and with weights that each
token gathers: what they are, and what is gathered in the loops of the HLO.
"""

import dataclasses
import functools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from miniplm_jax.distillation import minillm
from miniplm_jax.models import (
  decoder,
  generation,
  int8,
  placement,
  ready,
  sharding,
)
from miniplm_jax.models.architecture import Mamba, Transformer

TRANSFORMER = Transformer(
  vocab_size=1000,
  hidden_size=64,
  intermediate_size=96,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  tie_word_embeddings=False,
)
TIED = dataclasses.replace(TRANSFORMER, tie_word_embeddings=True)
MAMBA = Mamba(
  vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2
)
# Shape, what is done to the model, and the dtype of the computation.
CASES = {
  "untied": (TRANSFORMER, lambda m: m, jnp.float32),
  "tied": (TIED, lambda m: m, jnp.bfloat16),
  "mamba": (MAMBA, lambda m: m, jnp.float32),
  "int8": (TRANSFORMER, int8.quantize, jnp.float32),
}


def largest_gather(text: str) -> int:
  """Elements of the largest all-gather in a loop, 0 if there is none."""
  parts = re.split(r"\n(?=\S[^\n]*\{\n)", text)
  bodies = {re.sub(r"^ENTRY ", "", part).split()[0]: part for part in parts}
  pending = re.findall(r"(?:body|condition)=(%[\w.-]+)", text)
  assert pending
  seen = set()
  while pending:
    if (name := pending.pop()) not in seen:
      seen.add(name)
      pending += re.findall(r"[=,{ ](%[\w.-]+)", bodies[name])
      pending = [name for name in pending if name in bodies]
  shapes = re.findall(
    r"= \(?\w+\[([\d,]*)\]\S* all-gather(?:-start)?\(",
    "\n".join(bodies[name] for name in seen),
  )
  return max((math.prod(map(int, s.split(","))) for s in shapes), default=0)


def new(arch, mesh, seed=0):
  """A model on the mesh."""
  where = sharding.shardings(decoder.abstract(arch), mesh)
  make = jax.jit(
    lambda: decoder.Decoder(arch, nnx.Rngs(seed)), out_shardings=where
  )
  return make()


def both_ways(make, *arguments):
  """Results and the largest gather of a program, of each token and once."""
  found = []
  for fits in (False, True):
    with mock.patch.object(ready, "_fits", lambda *_, fits=fits: fits):
      compiled = make().lower(*arguments).compile()
    made = jax.tree.map(lambda x: x.tolist(), compiled(*arguments))
    found.append([made, largest_gather(compiled.as_text())])
  return found


def generated(mesh, arch, change, dtype):
  """Of `generation`."""
  rng = np.random.default_rng(1)
  prompts = [rng.integers(0, 1000, n) for n in range(2, 10)]
  make = functools.partial(
    generation.compiled,
    mesh,
    sampling=generation.Sampling(6),
    seed=0,
    eos_ids=(),
    vocabulary=1000,
    dtype=dtype,
  )
  batch = placement.put_whole(generation.pad_left(prompts, 8), mesh)
  found = both_ways(make, change(new(arch, mesh)), batch)
  return [[made.values.tokens, size] for made, size in found]


def drawn(mesh):
  """Of MiniLLM; the heads are of unlike length."""
  other = dataclasses.replace(TRANSFORMER, vocab_size=1100)

  def program(student, teacher, prompt):
    keys = minillm.keys_of_rows(jax.random.key(5), jnp.arange(8))
    return minillm.draw(
      student,
      teacher,
      prompt,
      keys,
      size=4,
      teacher_mix=0.2,
      eos_id=3,
      dtype=jnp.float32,
    )

  prompt = np.random.default_rng(0).integers(4, 1000, (8, 6)).astype(np.int32)
  models = new(other, mesh), new(TRANSFORMER, mesh, 1)

  def make():  # a trace is kept by its function: another each time
    return jax.jit(functools.partial(program))

  found = both_ways(make, *models, placement.put_whole(prompt, mesh))
  return [[[made.tokens, made.log_q, made.log_p], n] for made, n in found]


def main(name: str, *sizes: str):
  """One of CASES, or MiniLLM's samples, on a mesh of these sizes."""
  mesh = sharding.make_mesh(*map(int, sizes))
  with jax.set_mesh(mesh):
    return drawn(mesh) if name == "minillm" else generated(mesh, *CASES[name])
