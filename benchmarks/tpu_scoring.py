"""What scoring would take on TPUs, compiled for them without having one.

  python -m benchmarks.tpu_scoring [--preset=qwen1.5-1.8b] [--out=FILE.md]

Compiles the scoring step of the full-size model with libtpu for several
slices and writes a table. Nothing is run: memory, FLOPs and collectives are the
compiled program's, times are predictions. 20 programs of 5 to 30 seconds each.
"""

import datetime
import shlex
import sys

import jax.numpy as jnp
from absl import app, flags
from etils import epath

from benchmarks import tpu_table
from miniplm_jax.core import files
from miniplm_jax.forecast import prediction, topology
from miniplm_jax.forecast.workload import ScoringProgram
from miniplm_jax.models import architecture
from miniplm_jax.report.page import Table

_PRESET = flags.DEFINE_string("preset", "qwen1.5-1.8b", "Of the architecture.")
_SLICES = flags.DEFINE_list(
  "slices",
  ["v5e:1x1", "v5e:4x4", "v5p:2x2x2", "v6e:4x4", "v4:2x2x2"],
  "To compile for.",
)
_LENGTH = flags.DEFINE_integer("length", 1024, "Inputs of a row.", 2)
_ROWS = flags.DEFINE_list("rows", ["1", "4", "16", "64"], "Of a chip.")
_TENSOR = flags.DEFINE_integer("tensor", 1, "Size of this mesh axis.", 1)
_OUT = flags.DEFINE_string("out", "docs/tpu_scoring.md", "The table.")


def main(argv):
  """Compiles, prints and writes."""
  del argv
  topology.prepare()
  arch = architecture.SHAPES[_PRESET.value]
  length = _LENGTH.value
  program = ScoringProgram(
    _PRESET.value, arch, jnp.bfloat16, length, batch_tokens=length, count=1
  )
  lines = []
  for name in _SLICES.value:
    mesh = topology.mesh(name, 1, -1, _TENSOR.value)
    for rows in map(int, _ROWS.value):
      found = prediction.predict(program, name, mesh, rows)
      lines.append(tpu_table.cells(found))
      print(" | ".join(lines[-1]), flush=True)
  arguments = "".join(f" {shlex.quote(a)}" for a in sys.argv[1:])
  text = f"""# Scoring on TPU, predicted

{_PRESET.value}, {arch.parameters():,} parameters in bfloat16, rows of \
{length:,} tokens, weights whole on each chip where half of its memory has \
room for them, else split over all chips. Compiled for these slices with no \
TPU at hand; **nothing here was measured**. Memory, FLOPs and collectives are \
those of the compiled program, on one chip. Every time, and what follows from \
it, is predicted from the program's text (`miniplm_jax/forecast/estimate.py`).

{tpu_table.versions()}, {datetime.date.today()}, \
`python -m benchmarks.tpu_scoring{arguments}`.

{Table(tpu_table.HEADER, lines).markdown()}

All tokens are wanted, so no tile of the head is skipped. Per token 4 rows a \
chip, the default on TPUs, are within 2 % of the best of 1 to 32 on all of \
these slices. Tokens/s and MFU are those of the middle of the range. What \
decides it, and how it compares with what was measured elsewhere, is in \
[Calibration](tpu_calibration.md); what it goes to, in [Parts](tpu_parts.md).
"""
  files.write_bytes(epath.Path(_OUT.value), text.encode())


if __name__ == "__main__":
  app.run(main)
