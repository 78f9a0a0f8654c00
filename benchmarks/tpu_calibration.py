"""What was measured on TPUs elsewhere, beside what is predicted of it.

  python -m benchmarks.tpu_calibration [--only=16B] [--out=FILE.md]

Compiles our own training step at the shapes, on the slices and with the
batches of published runs of MaxText, and writes a table. Nothing is run, and
no constant is fitted to a run. A program takes one to five minutes and up to
8 GiB; with --cache those that have not changed are not compiled again.
"""

import dataclasses
import datetime
import shlex
import sys

from absl import app, flags
from etils import epath

from benchmarks import tpu_table
from miniplm_jax.config import TrainConfig
from miniplm_jax.core import files
from miniplm_jax.forecast import prediction, topology, workload
from miniplm_jax.forecast.prediction import Prediction
from miniplm_jax.models import sharding
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.report.page import Table
from miniplm_jax.training import flops as flops_lib

_ONLY = flags.DEFINE_string("only", "", "Runs whose name or slice has this.")
_CACHE = flags.DEFINE_string("cache", "", "A folder of earlier results.")
_OUT = flags.DEFINE_string("out", "docs/tpu_calibration.md", "The table.")


@dataclasses.dataclass(frozen=True)
class Run:
  """A training that somebody has measured, in bfloat16 over float32."""

  name: str
  shape: Transformer
  slice: str
  mesh: tuple[int, int, int]  # data, fsdp, tensor
  rows: int  # of each chip
  length: int
  remat: str  # ours, closest to theirs
  differs: str  # how their program is another one
  source: str
  turns: int = 1  # in which a chip takes its rows here; one there
  seconds: float = 0.0  # a step, if that was published
  tflops: float = 0.0  # and else TFLOP/s a chip, by their count

  @property
  def measured(self) -> float:
    """Seconds of a step; MaxText counts attention of all pairs."""
    tokens = self.rows * self.length
    attention = 6 * self.shape.num_hidden_layers
    attention *= self.shape.mixing_flops(self.length)
    weights = 6 * self.shape.matmul_parameters()
    counted = tokens * (weights + attention)
    return self.seconds or counted / (self.tflops * 1e12)


def _llama(width: int, **kwargs) -> Transformer:
  sizes = {"num_key_value_heads": kwargs["num_attention_heads"]} | kwargs
  return Transformer(
    hidden_size=width, tie_word_embeddings=False, qkv_bias=False, **sizes
  )


_16B = _llama(
  4096,
  vocab_size=32_000,
  intermediate_size=28_672,
  num_hidden_layers=32,
  num_attention_heads=64,
  head_dim=128,
)
_32B = dataclasses.replace(_16B, hidden_size=8192)
_8B = _llama(
  4096,
  vocab_size=128_256,
  intermediate_size=14_336,
  num_hidden_layers=32,
  num_attention_heads=32,
  num_key_value_heads=8,
)
_7B = dataclasses.replace(_8B, vocab_size=32_768)

_CONFIGS = "MaxText/configs in AI-Hypercomputer/maxtext"
_RECIPES = "training/trillium in AI-Hypercomputer/tpu-recipes"
_OFFLOAD = "inputs of layers, queries, keys, values go to the host's memory"
_FLAGS = "flags of the compiler"
RUNS = (
  Run(
    *("Llama3.1-8B", _8B, "v6e:2x4", (1, 8, 1), 3, 8192, "full", _OFFLOAD),
    f"Llama3.1-8B-MaxText/v6e-8, {_RECIPES}",
    turns=3,
    seconds=3.443,
  ),
  Run(
    *("Mistral-7B", _7B, "v6e:2x4", (1, 8, 1), 6, 8192, "full", _OFFLOAD),
    f"Mistral-7B-MaxText, {_RECIPES}",
    turns=6,
    seconds=6.320,
  ),
  Run(
    *("16B", _16B, "v5e:16x16", (1, 256, 1), 6, 2048, "full", _FLAGS),
    f"v5e/README.md, {_CONFIGS}",
    tflops=0.6110 * 197,
  ),
  Run(
    *("32B", _32B, "v5e:16x16", (1, 256, 1), 4, 2048, "full", _FLAGS),
    f"v5e/README.md, {_CONFIGS}",
    tflops=0.6686 * 197,
  ),
  Run(
    *("32B", _32B, "v5p:4x4x4", (1, 16, 4), 6, 2048, "dots"),
    f"{_FLAGS}; what is kept for the backward pass",
    f"v5p/README.md, {_CONFIGS}",
    turns=2,
    tflops=0.7147 * 459,
  ),
)


def predict(run: Run, cache: epath.Path | None) -> Prediction:
  """Our own step in the place of theirs."""
  mesh = topology.mesh(run.slice, *run.mesh)
  chips, shards = mesh.devices.size, sharding.batch_shards(mesh)
  train = TrainConfig(batch_size=run.rows * chips)
  program = workload.TrainingProgram(
    run.name,
    run.shape,
    train,
    run.length,
    flops_lib.next_token(run.shape, run.length),
    workload.next_token(train),
  )
  rows = run.rows * chips // shards // run.turns
  return prediction.predict(program, run.slice, mesh, rows, run.remat, cache)


def cells(run: Run, found: Prediction) -> list[str]:
  """Makes a row of the table."""
  row = [
    f"{run.name}, {run.slice}",
    f"{run.rows} × {run.length:,} in {run.turns}, {run.remat}",
    f"{run.measured:.2f}",
  ]
  if found.fits:
    ends = found.optimistic, found.pessimistic
    row += [
      f"{found.seconds:.2f} ({ends[0]:.2f} to {ends[1]:.2f})",
      f"{100 * (found.seconds / run.measured - 1):+.0f} %",
      "yes" if ends[0] <= run.measured <= ends[1] else "no",
      f"{found.exposed:.2f} ({found.collective:.2f})",
      f"{found.peak_bytes / 2**30:.1f} ({found.hbm_bytes / 2**30:.1f})",
    ]
  else:
    row += ["does not fit", "", "", "", ""]
  return [*row, run.differs, run.source]


HEADER = (
  "run, slice",
  "rows a chip × tokens in our turns, our remat",
  "measured s a step",
  "predicted s (optimistic to pessimistic)",
  "middle against measured",
  "measured in the range",
  "of it waiting for collectives (all of them), s",
  "peak GiB (of)",
  "their program has otherwise",
  "source",
)


def main(argv):
  """Compiles, prints and writes."""
  del argv
  topology.prepare()
  cache = epath.Path(_CACHE.value) if _CACHE.value else None
  lines = []
  for run in RUNS:
    if _ONLY.value in f"{run.name}, {run.slice}":
      lines.append(cells(run, predict(run, cache)))
      print(" | ".join(lines[-1]), flush=True)
  arguments = "".join(f" {shlex.quote(a)}" for a in sys.argv[1:])
  text = f"""{_TEXT}
{tpu_table.versions()}, {datetime.date.today()}, \
`python -m benchmarks.tpu_calibration{arguments}`.

{Table(HEADER, lines).markdown()}
"""
  files.write_bytes(epath.Path(_OUT.value), text.encode())


_TEXT = """# Calibration of predicted times

Training runs that others have measured and published, beside what is predicted
of our own training step with the model's shape, on the slice, with the batch
and the length of theirs, compiled by the libtpu below. No constant was fitted
to a single run; that products are charged halfway between the peak and the
compiler's cycles in the middle was decided by the two runs on v5e, before the
one on v5p was compiled: with their cycles these are +4 and +24 %. A difference
has three sources that this table cannot tell apart: the estimator, what their
program does otherwise, and years of compilers.

What a time is made of is in `miniplm_jax/forecast/estimate.py`; which term
decides single steps is in [Single steps](tpu_steps.md). Splash attention is
charged 2.42 times what its FLOPs take at the peak (head size 128), by one
simulation (`miniplm_jax/forecast/kernel.py`), at both ends of the range too.
The links of a slice are taken as a grid, closed to a torus where it is one;
a hop takes 1 µs (`miniplm_jax/forecast/links.py`).

What is published and cannot be expressed here: MLPs without a gate and learned
positions (MaxText's 22B and 52B on v4, GPT-3 175B), windowed attention and
soft-capped logits (Gemma), experts (Mixtral, DeepSeek), int8 and fp8 training.
What goes to the host's memory there is computed again here (remat `full`).
"""


if __name__ == "__main__":
  app.run(main)
