"""On 8 CPU devices, in the process of eight_devices.py.

One scoring step with int8 weights on one device and on 2 × 2 × 2: figures,
shards, and what is gathered in the HLO.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from miniplm_jax.models import decoder, int8, likelihood, placement, sharding
from miniplm_jax.models.architecture import Mamba, Transformer

ARCHS = {
  "transformer": Transformer(
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
  ),
  "mamba": Mamba(
    vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2
  ),
}


def found_on(mesh, arch, batch):
  """Figures of one mesh."""
  abstract = decoder.abstract(arch)
  with jax.set_mesh(mesh):
    model = jax.jit(
      lambda: decoder.Decoder(arch, nnx.Rngs(0)),
      out_shardings=sharding.shardings(abstract, mesh),
    )()
    model = int8.quantize(model)
    rows = placement.put(batch, mesh)
    step = placement.program(
      likelihood.row_nll, mesh, eos_id=0, dtype=jnp.float32
    )
    program = step.lower(model, rows).compile()
    nll, _ = program(model, rows).values
  leaves = jax.tree_util.tree_leaves_with_path(model.layers, int8.is_quantized)
  matrices = {
    sharding.name_of(path): leaf
    for path, leaf in leaves
    if int8.is_quantized(leaf)
  }
  gathers = re.findall(
    r"= (\w+)\[([\d,]*)\]\S* all-gather(?:-start)?\(", program.as_text()
  )
  tensor = mesh.shape["tensor"]
  return {
    "nll": nll.tolist(),
    "values": {
      name: int(jnp.sum(q.qvalue.astype(int))) for name, q in matrices.items()
    },
    "shards": {
      name: [x.addressable_shards[0].data.shape for x in (q.qvalue, q.scale)]
      for name, q in matrices.items()
    },
    "gathers": [
      [dtype, [int(n) for n in shape.split(",")]] for dtype, shape in gathers
    ],
    "tables": [[arch.table_rows // tensor, arch.hidden_size]],
  }


def main():
  rng = np.random.default_rng(0)
  batch = {
    "tokens": rng.integers(0, 1000, (8, 65)).astype(np.int32),
    "length": rng.integers(2, 66, 8).astype(np.int32),
    "row": np.arange(8, dtype=np.int32),
  }
  one = jax.make_mesh(
    (1, 1, 1),
    sharding.AXES,
    (jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:1],
  )
  meshes = one, sharding.make_mesh(2, 2, 2)
  return {
    kind: [found_on(mesh, arch, batch) for mesh in meshes]
    for kind, arch in ARCHS.items()
  }
