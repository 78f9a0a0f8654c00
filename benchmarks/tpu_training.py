"""What training would take on TPUs, compiled for them without having one.

  python -m benchmarks.tpu_training [--slices=v5e:4x4] [--out=FILE.md]

Compiles the training steps of full-size students with libtpu at the paper's
global batch, weights split over all chips, and writes a table. Nothing is
run: memory, FLOPs and collectives are the compiled program's, times are
predictions. A program takes one to four minutes; with --cache those that
have not changed since the last time are not compiled again.
"""

import datetime
import importlib.metadata
import shlex
import sys

import jax.numpy as jnp
from absl import app, flags
from etils import epath

from miniplm_jax import config as config_lib
from miniplm_jax.core import files
from miniplm_jax.distillation.vanilla_kd import SoftLabels
from miniplm_jax.forecast import figures, programs, table, topology
from miniplm_jax.models import architecture
from miniplm_jax.report.table import Table
from miniplm_jax.training.objective import NextToken

_STUDENTS = flags.DEFINE_list(
  "students", ["qwen-200m", "qwen-500m", "qwen-1.2b"], "Presets to train."
)
_TEACHER = flags.DEFINE_string("teacher", "qwen1.5-1.8b", "Of vanilla_kd.")
_METHODS = flags.DEFINE_list(
  "methods", ["pretrain", "vanilla_kd"], "Of these two."
)
_SLICES = flags.DEFINE_list(
  "slices", ["v5e:4x4", "v5p:2x2x2", "v6e:4x4"], "To compile for."
)
_LENGTH = flags.DEFINE_integer("length", 1024, "Inputs of a row.", 2)
_ROWS = flags.DEFINE_integer(
  "per_device_batch_size", 8, "Rows that a chip takes at a time.", 1
)
_REMAT = flags.DEFINE_string("remat", "dots", "What the backward pass keeps.")
_CACHE = flags.DEFINE_string("cache", "", "A folder of earlier results.")
_OUT = flags.DEFINE_string("out", "docs/tpu_training.md", "The table.")


def _objective(method: str, train, mesh):
  """What a method minimizes, and its FLOPs beside the student's."""
  if method == "pretrain":
    return NextToken(train, 0, _REMAT.value), 0
  arch = architecture.make(architecture.PRESETS[_TEACHER.value])
  teacher = programs.weights(arch, mesh, jnp.dtype(train.dtype))
  kd = config_lib.default().kd
  objective = SoftLabels(train, 0, _REMAT.value, teacher, kd)
  return objective, arch.forward_flops(_LENGTH.value)


def _line(student: str, method: str, name: str) -> list[str]:
  """The table's line of one program."""
  train, length = config_lib.default().train, _LENGTH.value
  mesh = topology.mesh(name, 1, -1, 1)
  arch = architecture.make(architecture.PRESETS[student])
  objective, more_flops = _objective(method, train, mesh)
  tokens = train.batch_size * length
  found = figures.of_program(
    epath.Path(_CACHE.value) if _CACHE.value else None,
    name,
    mesh,
    _ROWS.value,
    programs.training(arch, mesh, train, objective, _ROWS.value, length),
    arch=arch,
    tokens=tokens,
    flops=(3 * arch.forward_flops(length) + more_flops) * tokens,
    dtype=jnp.bfloat16,
  )
  return [student, method, *table.cells(found)]


def main(argv):
  """Compiles, prints and writes."""
  del argv
  topology.prepare()
  lines = []
  for name in _SLICES.value:
    for method in _METHODS.value:
      for student in _STUDENTS.value:
        lines.append(_line(student, method, name))
        print(" | ".join(lines[-1]), flush=True)
  versions = ", ".join(
    f"{p} {importlib.metadata.version(p)}" for p in ("jax", "libtpu")
  )
  arguments = "".join(f" {shlex.quote(a)}" for a in sys.argv[1:])
  train = config_lib.default().train
  text = f"""# Training on TPU, predicted

One step of {train.batch_size} rows of {_LENGTH.value:,} tokens (the paper's \
global batch), bfloat16 over float32 weights, remat `{_REMAT.value}`, weights \
and batch split over all chips. `vanilla_kd` has the teacher {_TEACHER.value} \
in the same step. Compiled for these slices with no TPU at hand; **nothing \
here was measured**. Memory, FLOPs and collectives are those of the compiled \
program, on one chip; every time, and what follows from it, is predicted from \
the program's text (`miniplm_jax/forecast/estimate.py`).

{versions}, {datetime.date.today()}, \
`python -m benchmarks.tpu_training{arguments}`.

{Table(("student", "method", *table.HEADER), lines).markdown()}

Compiled FLOPs lie above the model's where the backward pass computes \
something again. A step takes what the slower of computation and collectives \
does; "alone" are collectives beside which nothing is scheduled, and the step \
is that much longer if the chip waits for them. For how far to trust the \
times, those of attention above all, see [Scoring on TPU](tpu_scoring.md).
"""
  files.write_bytes(epath.Path(_OUT.value), text.encode())


if __name__ == "__main__":
  app.run(main)
