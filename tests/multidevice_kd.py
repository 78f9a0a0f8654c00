"""On 8 CPU devices, in the process of eight_devices.py.

Steps of vanilla KD on several meshes: losses, weights, and what the compiled
program holds. Teacher and student pad their vocabularies differently.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from miniplm_jax import config as config_lib
from miniplm_jax.distillation.vanilla_kd import SoftLabels
from miniplm_jax.models import placement, sharding
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.training import loop


def _arch(vocab_size, hidden):
  return Transformer(
    vocab_size=vocab_size,
    hidden_size=hidden,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
  )


STUDENT, TEACHER = _arch(1000, 32), _arch(1100, 64)
BATCH, LENGTH = 32, 144  # more tokens on a device than a tile
MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2))
NAMES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def _logits(text, shards, tensor):
  """Buffers that hold the logits of all of a device's tokens."""
  rows = BATCH // shards
  sizes = {
    size
    for arch in (STUDENT, TEACHER)
    for whole in (arch.vocab_size, arch.table_rows)
    for size in (whole, whole // tensor)
  }
  return sorted(
    shape
    for v in sizes
    for shape in (f"[{rows},{LENGTH},{v}]", f"[{rows * LENGTH},{v}]")
    if shape in text
  )


def main():
  config = config_lib.default()
  with config.unlocked():
    config.train.update({"steps": 10, "warmup_steps": 0, "dtype": "float32"})
  train = config.train
  rng = np.random.default_rng(0)
  batch = {
    "tokens": rng.integers(0, 1000, (BATCH, LENGTH + 1)).astype(np.int32),
    "length": rng.integers(2, LENGTH + 2, BATCH).astype(np.int32),
  }
  results = []
  one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  for mesh in (one, *(sharding.make_mesh(*sizes) for sizes in MESHES)):
    with jax.set_mesh(mesh):

      def drawn():
        return Decoder(TEACHER, nnx.Rngs(1))

      where = sharding.shardings(jax.eval_shape(drawn), mesh)
      teacher = jax.jit(drawn, out_shardings=where)()
      objective = SoftLabels(train, 0, "full", teacher, config.kd)
      abstract = loop.abstract_state(STUDENT, train, mesh)
      where = jax.tree.map(lambda s: s.sharding, abstract)
      new = functools.partial(
        loop._new_state, STUDENT, train, objective.new_model
      )
      state = jax.jit(new, out_shardings=where)(jax.random.key(0))
      placed = placement.put(batch, mesh)
      step = loop.step_function(abstract, train, objective, mesh, 1)
      compiled = step.lower(state, placed, teacher).compile()
      losses = []
      for _ in range(2):
        state, found = compiled(state, placed, teacher)
        losses += [float(found[f"train/{k}"]) for k in ("loss", "ce", "kd")]
      text = compiled.as_text()
      shards, tensor = sharding.batch_shards(mesh), mesh.shape["tensor"]
      results.append(
        {
          "losses": losses,
          "weights": [
            float(jnp.sum(jnp.abs(x))) for x in jax.tree.leaves(state.model)
          ],
          "collectives": len(re.findall(rf"= \S+ (?:{NAMES})\(", text)),
          "logits": _logits(text, shards, tensor),
        }
      )
  return results
