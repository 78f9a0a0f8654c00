"""Where the time of the programs goes on TPU slices, part by part.

  python -m benchmarks.tpu_parts [--slices=v5e:4x4] [--out=FILE.md]

Compiles training of a student and scoring by the teacher with libtpu and
writes what is predicted of their layers, their head and the rest. Nothing is
run. A program takes half a minute.
"""

import collections
import datetime
import shlex
import sys

import numpy as np
from absl import app, flags
from etils import epath

from benchmarks import tpu_table
from miniplm_jax.config import ScoreConfig, TrainConfig
from miniplm_jax.core import files
from miniplm_jax.forecast import estimate, hlo, topology, workload
from miniplm_jax.models import architecture
from miniplm_jax.report.page import Table
from miniplm_jax.training import flops as flops_lib

_STUDENT = flags.DEFINE_string("student", "qwen-500m", "Preset to train.")
_TEACHER = flags.DEFINE_string("teacher", "qwen1.5-1.8b", "Preset that scores.")
_SLICES = flags.DEFINE_list(
  "slices", ["v5e:4x4", "v5p:2x2x2", "v6e:4x4", "v4:2x2x2"], "To compile for."
)
_ROWS = flags.DEFINE_integer(
  "per_device_batch_size", 8, "Rows that a chip trains on at a time.", 1
)
_OUT = flags.DEFINE_string("out", "docs/tpu_parts.md", "The table.")
_LENGTH, _REMAT = 1024, "dots"

# Computations most of whose operations come from such a path in JAX: what is
# left are embeddings, sums of gradients over devices and the optimizer.
_PARTS = {
  "layers, backward": ("transpose(jvp())/while/body",),
  "head": ("jvp()/shard_map/while/body", "jit(rows)/shard_map/while/body"),
  "layers, forward": ("jvp()/while/body", "jit(rows)/while/body"),
}
_REST = "the rest"
_HEADER = (
  "program, slice",
  "part",
  "predicted ms (optimistic to pessimistic)",
  "of it products, at the peak",
  "and beyond the peak",
  "attention's kernels",
  "all else",
  "waiting for collectives (all of them)",
)


def _part(computation) -> str:
  """The name of the part that most of a computation is of."""
  sources = [i.source for i in computation.instructions.values() if i.source]
  for name, paths in _PARTS.items():
    own = [any(path in source for path in paths) for source in sources]
    if 2 * sum(own) > len(own):
      return name
  return _REST


def _rows(name: str, program, slice_name: str, rows: int) -> list[list[str]]:
  """The table's rows of one program on one slice."""
  mesh = topology.mesh(slice_name, 1, -1, 1)
  if isinstance(program, workload.ScoringProgram):
    mesh = program.mesh(mesh)
  compiled = program.lower(mesh, rows, _REMAT).compile()
  schedule, devices = hlo.Schedule(compiled.as_text()), list(mesh.devices.flat)
  kind = devices[0].device_kind
  peak = flops_lib.peak_flops(kind)
  part_of = {
    o.instruction.computation.name: _part(o.instruction.computation)
    for o in schedule.operations
  }
  found = collections.defaultdict(lambda: np.zeros(9))
  for place, time in estimate.by_computation(schedule, devices).items():
    found[part_of[place]][:5] += *time.seconds, time.exposed, time.collective
  for o in schedule.operations:
    seconds = o.times * estimate.operation_seconds(o, kind).middle
    is_kernel = o.slowness != 1
    least = o.times * o.flops / peak if o.flops and not is_kernel else 0.0
    split = least, seconds - least, 0.0, 0.0
    if is_kernel or not o.flops:
      split = 0.0, 0.0, seconds * is_kernel, seconds * (not is_kernel)
    found[part_of[o.instruction.computation.name]][5:] += split
  found["all"] = np.sum(list(found.values()), 0)
  lines = []
  for part in (*_PARTS, _REST, "all"):
    if part in found:
      low, middle, high, exposed, every, *split = found[part] * 1e3
      times = f"{middle:.1f} ({low:.1f} to {high:.1f})"
      waits = f"{exposed:.1f} ({every:.1f})"
      columns = [f"{x:.1f}" for x in split]
      lines.append([f"{name}, {slice_name}", part, times, *columns, waits])
  return lines


def main(argv):
  """Compiles, prints and writes."""
  del argv
  topology.prepare()
  train, student = TrainConfig(), architecture.SHAPES[_STUDENT.value]
  training = workload.TrainingProgram(
    _STUDENT.value,
    student,
    train,
    _LENGTH,
    flops_lib.next_token(student, _LENGTH),
    workload.next_token(train),
  )
  teacher = architecture.SHAPES[_TEACHER.value]
  scoring = workload.scoring(_TEACHER.value, teacher, ScoreConfig(), _LENGTH, 1)
  lines = []
  for slice_name in _SLICES.value:
    for name, program, rows in (
      (f"a step of {_STUDENT.value}", training, _ROWS.value),
      (f"a batch by {_TEACHER.value}", scoring, scoring.rows(1)[0]),
    ):
      lines += (new := _rows(name, program, slice_name, rows))
      for line in new:
        print(" | ".join(line), flush=True)
  arguments = "".join(f" {shlex.quote(a)}" for a in sys.argv[1:])
  text = f"""# Where the time goes on TPU, predicted

A step of {_STUDENT.value} on {train.batch_size} rows of {_LENGTH:,} tokens, \
{_ROWS.value} a chip at a time, weights and batch split over all chips, remat \
`{_REMAT}`; and a batch of {scoring.rows(1)[0]} rows a chip, scored by \
{_TEACHER.value}. Milliseconds of the middle of the range where no range is \
said. **Nothing here was measured** (`miniplm_jax/forecast/estimate.py`). What \
collectives hide behind other work is in no other column.

{tpu_table.versions()}, {datetime.date.today()}, \
`python -m benchmarks.tpu_parts{arguments}`.

{Table(_HEADER, lines).markdown()}
"""
  files.write_bytes(epath.Path(_OUT.value), text.encode())


if __name__ == "__main__":
  app.run(main)
