"""On 8 CPU devices, in the process of eight_devices.py.

One training step, one scoring step and a few generated tokens on several
meshes: their figures, every gradient against one device's, the shardings that
were compiled, and the collectives in the HLO.
"""

import dataclasses
import functools
import math
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx

from miniplm_jax import config as config_lib
from miniplm_jax.models import (
  decoder,
  generation,
  head,
  huggingface,
  likelihood,
  placement,
  ready,
  sharding,
)
from miniplm_jax.models.architecture import Mamba, Transformer
from miniplm_jax.training import loop
from miniplm_jax.training.objective import NextToken

ARCHS = {
  "transformer": Transformer(
    vocab_size=1000,  # in memory 1,024
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
  ),
  "mamba": Mamba(
    vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2
  ),
}
BATCH, LENGTH = 64, 256  # more tokens on a device than a tile of the head
MESHES = {
  "transformer": ((8, 1, 1), (1, 8, 1), (1, 1, 2), (2, 2, 2)),
  "mamba": ((2, 2, 2),),
}


def gradients(opt_state):
  """All of them by name: what AdamW's mean holds after one step, × 10."""
  mean = optax.tree_utils.tree_get(opt_state, "mu")
  return {
    jax.tree_util.keystr(path): np.asarray(leaf) * 10
    for path, leaf in jax.tree_util.tree_leaves_with_path(mean)
  }


def gradients_off(found, wanted):
  """The largest difference of an element, by name, over the largest one."""
  assert found.keys() == wanted.keys()
  return {
    name: float(np.abs(found[name] - g).max() / np.abs(g).max())
    for name, g in wanted.items()
  }


def collectives(text):
  """How many of each collective the compiled program has."""
  names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
  # The result of an all-to-all is a tuple.
  found = re.findall(rf"= (?:\S+|\(.*?\)) ({names})(?:-start)?\(", text)
  return {name: found.count(name) for name in sorted(set(found))}


def logits_shapes(arch, text, shards, tensor):
  """Buffers that hold the logits of all of a device's tokens."""
  rows = BATCH // shards
  sizes = arch.table_rows, arch.table_rows // tensor
  return sorted(
    shape
    for v in sizes
    for shape in (f"[{rows},{LENGTH},{v}]", f"[{rows * LENGTH},{v}]")
    if shape in text
  )


def loaded_equals(arch, mesh, vocab_size):
  """Whether a model that was saved is read back, shard by shard."""
  arch = dataclasses.replace(arch, vocab_size=vocab_size)
  with tempfile.TemporaryDirectory() as folder:
    directory = epath.Path(folder)
    made = jax.tree.map(np.asarray, decoder.Decoder(arch, nnx.Rngs(1)))
    huggingface.save(directory, made, 0, {})
    loaded = huggingface.load(directory, mesh)
    return all(
      jax.tree.leaves(
        jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), made, loaded)
      )
    )


def read_once_off() -> float:
  """How far the head of GPUs is from that of TPUs, loss and gradients.

  With 61 real rows of 1,024 the last devices hold padding alone.
  """
  keys = jax.random.split(jax.random.key(2), 3)
  h = jax.random.normal(keys[0], (8, 16, 64))
  w = jax.random.normal(keys[1], (1024, 64))
  y = jax.random.randint(keys[2], (8, 16), 0, 61)
  weight = jnp.ones((8, 16))
  found = []
  for vocabulary in (61, 1000):
    for is_read_once in (False, True):
      tiling = head.Tiling(8, is_read_once=is_read_once)

      def both(h, w, vocabulary=vocabulary, tiling=tiling):
        nll = head.token_nll(h, w, y, vocabulary, tiling=tiling)
        loss = functools.partial(head.weighted_nll, tiling=tiling)
        of = jax.value_and_grad(loss, (0, 1))
        return nll, of(h, w, y, weight, vocabulary)

      found.append(jax.jit(both)(h, w))
  return max(
    float(jnp.abs(x - y).max())
    for one, other in (found[:2], found[2:])
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other))
  )


def generated(model, mesh):
  """Tokens after 8 prompts of unequal length: likeliest, and drawn."""
  rng = np.random.default_rng(1)
  prompts = [rng.integers(0, 1000, n) for n in range(2, 10)]
  inputs = placement.put(generation.pad_left(prompts, 8), mesh)
  found = []
  for temperature in (0.0, 1.0):
    program = generation.compiled(
      mesh,
      sampling=generation.Sampling(6, temperature=temperature),
      seed=0,
      eos_ids=(),
      vocabulary=1000,
      dtype=jnp.float32,
    )
    found.append(np.asarray(program(model, inputs).values.tokens).tolist())
  return found


def all_meshes(family):
  """One device, which the others must equal, and the meshes of a family."""
  one = jax.make_mesh(
    (1, 1, 1),
    sharding.AXES,
    (jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:1],
  )
  return one, *(
    sharding.make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    for sizes in MESHES[family]
  )


def heads() -> list[float]:
  """`read_once_off` of every mesh; no model is in it."""
  found = []
  for mesh in all_meshes("transformer"):
    with jax.set_mesh(mesh):
      found.append(read_once_off())
  return found


def main(family):
  arch = ARCHS[family]
  train = config_lib.default().train
  with train.unlocked():
    train.update({"steps": 10, "warmup_steps": 0, "dtype": "float32"})
    train.clip_norm = 1e9  # so that the optimizer sees the gradient as it is
  rng = np.random.default_rng(0)
  batch = {
    "tokens": rng.integers(0, 1000, (BATCH, LENGTH + 1)).astype(np.int32),
    "length": rng.integers(2, LENGTH + 2, BATCH).astype(np.int32),
  }
  batch["row"] = np.arange(BATCH, dtype=np.int32)
  results, wanted = [], None
  for mesh in all_meshes(family):
    with jax.set_mesh(mesh):
      abstract = loop.abstract_state(arch, train, mesh)
      where = jax.tree.map(lambda s: s.sharding, abstract)
      new_model = NextToken.new_model
      new = functools.partial(loop._new_state, arch, train, new_model)
      state = jax.jit(new, out_shardings=where)(jax.random.key(0))
      placed = placement.put(batch, mesh)
      objective = NextToken(train, 0, "full")
      step = loop.step_function(abstract, train, objective, mesh, 2)
      compiled = step.lower(state, placed).compile()
      score = placement.program(
        likelihood.row_nll, mesh, eos_id=0, dtype=jnp.float32
      )
      scored = score.lower(state.model, placed).compile()
      nll, count = scored(state.model, placed).values
      whole, of_rows = ready.for_rows(state.model, mesh)
      with jax.set_mesh(of_rows):
        program = placement.program(
          likelihood.row_nll, of_rows, eos_id=0, dtype=jnp.float32
        )
        again = placement.put(batch, of_rows)
        whole_scored = program.lower(whole, again).compile()
        whole_nll, _ = whole_scored(whole, again).values
      embed = state.model.embed[...]
      local = embed.addressable_shards[0].data.shape
      memory = compiled.memory_analysis()
      tokens = generated(state.model, mesh)
      new_state, found = compiled(state, placed)
      grads = gradients(new_state.opt_state)
      wanted = wanted or grads
      tensor = mesh.shape["tensor"]
      shards = sharding.batch_shards(mesh)
      text = compiled.as_text(), scored.as_text()
      results.append(
        {
          "family": family,
          "whole_mesh": [of_rows.shape[a] for a in sharding.AXES],
          "whole_nll": [float(x) for x in whole_nll[:8]],
          "whole_collectives": collectives(whole_scored.as_text()),
          "mesh": [mesh.shape[a] for a in sharding.AXES],
          "loss": float(found["train/loss"]),
          "grad_norm": float(found["train/grad_norm"]),
          "gradients_off": gradients_off(grads, wanted),
          "nll": [float(x) for x in nll[:8]],
          "tokens": int(count.sum()),
          "generated": tokens,
          "embed_shard": list(local),
          "argument_bytes": memory.argument_size_in_bytes,
          "train_collectives": collectives(text[0]),
          "score_collectives": collectives(text[1]),
          "logits": logits_shapes(arch, text[0], shards, tensor)
          + logits_shapes(arch, text[1], shards, tensor),
        }
      )
    # Of 61 rows, padded to 128, the last device holds padding alone.
    results[-1]["loaded"] = all(
      loaded_equals(arch, mesh, vocabulary) for vocabulary in (1000, 61)
    )
  return results
