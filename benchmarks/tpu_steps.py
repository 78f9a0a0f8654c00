"""What single steps take on v5e by each term of the estimator.

  python -m benchmarks.tpu_steps [--out=FILE.md]

Compiles a product, norms, a softmax and other small programs with libtpu, and
lets it simulate their instructions as well. Nothing is run on a TPU.
"""

import datetime
import os
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import tpu_table
from miniplm_jax.core import files
from miniplm_jax.forecast import estimate, hlo, topology
from miniplm_jax.report.page import Table
from miniplm_jax.training import flops as flops_lib

_OUT = flags.DEFINE_string("out", "docs/tpu_steps.md", "The table.")
_SIMULATED = re.compile(
  r'"bundle_analysis_data":\{[^}]*"estimated_cycles":"(\d+)"'
)


def _layer_norm(x, scale, bias):
  x = x.astype(jnp.float32)
  x -= x.mean(-1, keepdims=True)
  x *= jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  return (x * scale[None] + bias[None]).astype(jnp.bfloat16)


def _rms_norm(x, scale):
  x = x.astype(jnp.float32)
  x *= jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  return (x * scale[None]).astype(jnp.bfloat16)


def _softmax(x):
  return jax.nn.softmax(x.astype(jnp.float32), -1).astype(jnp.bfloat16)


def _swiglu(a, b):
  return (jax.nn.silu(a.astype(jnp.float32)) * b).astype(jnp.bfloat16)


def _adam(weight, gradient, mean, square):
  mean = 0.9 * mean + 0.1 * gradient
  square = 0.99 * square + 0.01 * gradient**2
  return weight - 1e-3 * mean / (jnp.sqrt(square) + 1e-8), mean, square


# Simulating takes minutes and gigabytes where they are larger.
_STEPS = {
  "product": (jnp.matmul, "bf16 4096,4096", "bf16 4096,4096"),
  "sum of two": (jnp.add, "bf16 2048,4096", "bf16 2048,4096"),
  "exp": (jnp.exp, "bf16 2048,8192"),
  "sum of all": (jnp.sum, "f32 2048,2048"),
  "layer norm": (_layer_norm, "bf16 2048,2048", "f32 2048", "f32 2048"),
  "RMSNorm": (_rms_norm, "bf16 2048,2048", "f32 2048"),
  "softmax": (_softmax, "bf16 8,1024,1024"),
  "SwiGLU": (_swiglu, "bf16 2048,5504", "bf16 2048,5504"),
  "Adam": (_adam, *["f32 2048,2048"] * 4),
}
_DTYPES = {"bf16": jnp.bfloat16, "f32": jnp.float32}
_HEADER = (
  "step",
  "of it",
  "FLOPs at the peak, µs",
  "bytes, µs",
  "compiler's cycles, µs",
  "simulated, µs",
  "cycles / simulated",
  "predicted µs (optimistic to pessimistic)",
)


def _rows(name: str, mesh) -> tuple[list[list[str]], list[float]]:
  """The table's rows of one program, and how far cycles are above it."""
  function, *arguments = _STEPS[name]
  placed = []
  for text in arguments:
    dtype, sizes = text.split()
    shape = tuple(map(int, sizes.split(",")))
    where = NamedSharding(mesh, P())
    placed.append(jax.ShapeDtypeStruct(shape, _DTYPES[dtype], sharding=where))
  text = jax.jit(function).lower(*placed).compile().as_text()
  kind = mesh.devices.flat[0].device_kind
  chip, rows, ratios = estimate.CHIPS[kind], [], []
  for o in hlo.Schedule(text).operations:
    if o.cycles < 2000:  # launching it takes as long
      continue
    match = _SIMULATED.search(o.instruction.attributes)
    simulated = int(match[1]) / chip.clock * 1e6 if match else 0.0
    cycles = o.cycles / chip.clock * 1e6
    if simulated and not o.flops:
      ratios.append(cycles / simulated)
    low, middle, high = np.array(estimate.operation_seconds(o, kind)) * 1e6
    rows.append(
      [
        f"{name}, {'; '.join(arguments)}",
        o.instruction.op + (" of products" if o.flops else ""),
        f"{o.flops / flops_lib.peak_flops(kind) * 1e6:.1f}",
        f"{o.moved / chip.hbm_bandwidth * 1e6:.1f}",
        f"{cycles:.1f}",
        f"{simulated:.1f}" if simulated else "none",
        f"{cycles / simulated:.1f}" if simulated else "",
        f"{middle:.1f} ({low:.1f} to {high:.1f})",
      ]
    )
  return rows, ratios


def main(argv):
  """Compiles, prints and writes."""
  del argv
  # libtpu reads it once, when it is loaded.
  with tempfile.TemporaryDirectory() as folder:
    flag = f"--xla_jf_dump_static_llo_profile_to={folder}"
    os.environ["LIBTPU_INIT_ARGS"] = flag
    topology.prepare()
    mesh = topology.mesh("v5e:1x1", 1, 1, 1)
    lines, ratios = [], []
    for name in _STEPS:
      more, above = _rows(name, mesh)
      lines, ratios = lines + more, ratios + above
      for line in more:
        print(" | ".join(line), flush=True)
  text = f"""# Single steps on v5e, by each term of the estimator

{tpu_table.versions()}, {datetime.date.today()}, \
`python -m benchmarks.tpu_steps`. **Nothing here was measured.** The \
simulation goes through a step's instructions and copies; it counts some that \
wait for main memory too low (Adam). "none" where it has no figure.

{Table(_HEADER, lines).markdown()}

Of steps without a product the compiler's cycles are {min(ratios):.1f} to \
{max(ratios):.1f} times what is simulated, in the middle \
{np.median(ratios):.1f} times ({len(ratios)} steps). So the middle of the \
range charges a quarter of them, its optimistic end a tenth and its \
pessimistic end all, and each at least the bytes; products are charged the \
peak or their bytes at the optimistic end, their cycles at the pessimistic \
one, and in the middle what is halfway (`miniplm_jax/forecast/estimate.py`).
"""
  files.write_bytes(epath.Path(_OUT.value), text.encode())


if __name__ == "__main__":
  app.run(main)
