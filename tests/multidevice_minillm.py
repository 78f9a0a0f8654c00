"""On 8 CPU devices, in the process of eight_devices.py.

What is drawn, and a step of MiniLLM, on one device and on a mesh of 8.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from miniplm_jax import config as config_lib
from miniplm_jax.distillation import minillm
from miniplm_jax.models import placement, sharding
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.training import loop
from miniplm_jax.training.objective import NextToken


def shape(vocabulary, hidden):
  return Transformer(
    vocab_size=vocabulary,
    hidden_size=hidden,
    intermediate_size=2 * hidden,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
  )


STUDENT, TEACHER = shape(300, 16), shape(200, 32)  # 384 and 256 rows
ROWS, LENGTH = 16, 16


def placed(new, mesh):
  """A model on the mesh, the same on each."""
  where = sharding.shardings(jax.eval_shape(new), mesh)
  return jax.jit(new, out_shardings=where)()


def main():
  train = config_lib.default().train
  train.dtype, train.warmup_steps, train.steps = "float32", 0, 10
  section = config_lib.default().minillm
  rng = np.random.default_rng(0)
  batch = {
    "tokens": rng.integers(4, 200, (ROWS, LENGTH + 1)).astype(np.int32),
    "length": np.full(ROWS, LENGTH + 1, np.int32),
    "row": np.arange(ROWS, dtype=np.int32),
  }
  one = jax.make_mesh(
    (1, 1, 1),
    sharding.AXES,
    (jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:1],
  )
  results = []
  for mesh in (one, sharding.make_mesh(2, 2, 2)):
    with jax.set_mesh(mesh):
      teacher = placed(lambda: Decoder(TEACHER, nnx.Rngs(1)), mesh)
      objective = minillm.MiniLLM(train, 3, "full", teacher, section)
      abstract = loop.abstract_state(STUDENT, train, mesh)
      state = placed(
        lambda: loop._new_state(
          STUDENT, train, NextToken.new_model, jax.random.key(0)
        ),
        mesh,
      )
      here = placement.put(batch, mesh)

      def draw(student, teacher, batch):
        keys = minillm.keys_of_rows(jax.random.key(5), batch["row"])
        return minillm.draw(
          student,
          teacher,
          batch["tokens"][:, :12],
          keys,
          size=4,
          teacher_mix=0.2,
          eos_id=3,
          dtype=jnp.float32,
        )

      drawn = jax.jit(draw)(state.model, teacher, here)
      tokens, ratio = jax.device_get((drawn.tokens, drawn.log_p - drawn.log_q))
      step = loop.step_function(abstract, train, objective, mesh, 1)
      compiled = step.lower(state, here, objective.frozen).compile()
      state, found = compiled(state, here, objective.frozen)
      weights = [float(jnp.sum(jnp.abs(x))) for x in jax.tree.leaves(state)]
      shapes = re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
      results.append(
        {
          "tokens": tokens.tolist(),
          "ratio": ratio.tolist(),
          "found": {k: float(v) for k, v in found.items()},
          "weights": weights,
          # Logits of all new tokens, of one device or of all.
          "logits": [s for s in set(shapes) if re.match(r"\d+,4,\d{3}$", s)],
        }
      )
  return results
