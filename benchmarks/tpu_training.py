"""What training would take on TPUs, compiled for them without having one.

  python -m benchmarks.tpu_training [--slices=v5e:4x4] [--out=FILE.md]

Compiles the training steps of full-size students with libtpu at the paper's
global batch, weights split over all chips, and writes a table. Nothing is
run: memory, FLOPs and collectives are the compiled program's, times are
predictions. A program takes one to four minutes; with --cache those that
have not changed since the last time are not compiled again.
"""

import datetime
import shlex
import sys

import jax.numpy as jnp
from absl import app, flags
from etils import epath

from benchmarks import tpu_table
from miniplm_jax.config import KDConfig, TrainConfig
from miniplm_jax.core import files
from miniplm_jax.distillation.vanilla_kd import SoftLabels
from miniplm_jax.forecast import prediction, programs, topology, workload
from miniplm_jax.models import architecture
from miniplm_jax.report.page import Table
from miniplm_jax.training import flops as flops_lib

_STUDENTS = flags.DEFINE_list(
  "students", ["qwen-200m", "qwen-500m", "qwen-1.2b"], "Presets to train."
)
_TEACHER = flags.DEFINE_string("teacher", "qwen1.5-1.8b", "Of vanilla_kd.")
_METHODS = flags.DEFINE_list(
  "methods", ["pretrain", "vanilla_kd"], "Of these two."
)
_SLICES = flags.DEFINE_list(
  "slices", ["v5e:4x4", "v5p:2x2x2", "v6e:4x4", "v4:2x2x2"], "To compile for."
)
_LENGTH = flags.DEFINE_integer("length", 1024, "Inputs of a row.", 2)
_ROWS = flags.DEFINE_integer(
  "per_device_batch_size", 8, "Rows that a chip takes at a time.", 1
)
_REMAT = flags.DEFINE_string("remat", "dots", "What the backward pass keeps.")
_CACHE = flags.DEFINE_string("cache", "", "A folder of earlier results.")
_OUT = flags.DEFINE_string("out", "docs/tpu_training.md", "The table.")


def _program(student: str, method: str) -> workload.TrainingProgram:
  """The training step of a preset by one of the methods."""
  train, kd, length = TrainConfig(), KDConfig(), _LENGTH.value
  arch = architecture.SHAPES[student]
  token_flops = flops_lib.next_token(arch, length)
  objective = workload.next_token(train)
  if method == "vanilla_kd":
    teacher = architecture.SHAPES[_TEACHER.value]
    token_flops += teacher.forward_flops(length)

    def objective(mesh, remat):
      dtype = jnp.dtype(train.dtype)
      weights = programs.weights(teacher, mesh, dtype)
      return SoftLabels(train, workload.EOS_ID, remat, weights, kd)

  return workload.TrainingProgram(
    f"{method} of {student}",
    arch,
    train,
    length,
    token_flops,
    objective,
  )


def _row(student: str, method: str, name: str) -> list[str]:
  """The table's row of one program on one slice."""
  cache = epath.Path(_CACHE.value) if _CACHE.value else None
  mesh = topology.mesh(name, 1, -1, 1)
  run = prediction.predict(
    _program(student, method), name, mesh, _ROWS.value, _REMAT.value, cache
  )
  return [student, method, *tpu_table.cells(run)]


def main(argv):
  """Compiles, prints and writes."""
  del argv
  topology.prepare()
  lines = []
  for name in _SLICES.value:
    for method in _METHODS.value:
      for student in _STUDENTS.value:
        lines.append(_row(student, method, name))
        print(" | ".join(lines[-1]), flush=True)
  arguments = "".join(f" {shlex.quote(a)}" for a in sys.argv[1:])
  train = TrainConfig()
  text = f"""# Training on TPU, predicted

One step of {train.batch_size} rows of {_LENGTH.value:,} tokens (the paper's \
global batch), bfloat16 over float32 weights, remat `{_REMAT.value}`, weights \
and batch split over all chips. `vanilla_kd` has the teacher {_TEACHER.value} \
in the same step. Compiled for these slices with no TPU at hand; **nothing \
here was measured**. Memory, FLOPs and collectives are those of the compiled \
program, on one chip; every time, and what follows from it, is predicted from \
the program's text (`miniplm_jax/forecast/estimate.py`).

{tpu_table.versions()}, {datetime.date.today()}, \
`python -m benchmarks.tpu_training{arguments}`.

{Table(("student", "method", *tpu_table.HEADER), lines).markdown()}

Compiled FLOPs lie above the model's where the backward pass computes \
something again. Tokens/s and MFU are those of the middle of the range. What \
decides it, and how it compares with what was measured elsewhere, is in \
[Calibration](tpu_calibration.md); what it goes to, in [Parts](tpu_parts.md).
"""
  files.write_bytes(epath.Path(_OUT.value), text.encode())


if __name__ == "__main__":
  app.run(main)
