"""What one step would take on a slice of TPUs, from compiling it."""

import collections
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from miniplm_jax.forecast import estimate, hlo, programs
from miniplm_jax.forecast.hlo_text import Array
from miniplm_jax.models import sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.training import flops as flops_lib

_HLO_NAMES = {"bfloat16": "bf16", "float32": "f32"}


@dataclasses.dataclass(frozen=True)
class Forecast:
  """Of one step; all figures are of one chip, and all times predictions.

  Attributes:
    rows: that a shard of the batch takes at a time.
    tokens: inputs of a batch, divided by the chips.
    peak_bytes: memory at its fullest, weights included.
    held_bytes: of it, the arguments: weights, optimizer, batch.
    flops: of the matrix products that were compiled.
    model_flops: that the model asks for, by closed form.
    device_kind: as JAX calls the chip.
    time: seconds.
    program: what was compiled.
    text: its HLO.
    logits: the largest buffer with an axis as long as the vocabulary that is
      not the head itself; None if there is none.
  """

  rows: int
  tokens: float
  peak_bytes: int
  held_bytes: int
  flops: int
  model_flops: float
  device_kind: str
  time: estimate.Estimate
  program: hlo.Program
  text: str
  logits: Array | None

  @property
  def tokens_per_second(self) -> float:
    """Predicted tokens/s."""
    return self.tokens / self.time.seconds

  @property
  def mfu(self) -> float:
    """Predicted share of the peak that the model's FLOPs are."""
    peak = flops_lib.peak_flops(self.device_kind)
    return self.model_flops / self.time.seconds / peak

  @property
  def collectives(self) -> dict[str, tuple[int, int]]:
    """How many run of each kind, and the bytes of their results."""
    found = collections.defaultdict(lambda: (0, 0))
    for c in self.program.collectives:
      count, nbytes = found[c.kind]
      found[c.kind] = count + c.times, nbytes + c.times * c.nbytes
    return dict(found)


def scoring(
  arch: Architecture,
  mesh: Mesh,
  rows: int,
  length: int,
  dtype: Any = jnp.bfloat16,
) -> Forecast:
  """Compiles a step of scoring and reads what it takes.

  Args:
    arch: of the model.
    mesh: of `forecast/topology.py`.
    rows: of a batch, on each of its shards.
    length: inputs of a row.
    dtype: of the parameters and of the computation.

  Raises:
    DoesNotFitError: its memory.
  """
  shards = sharding.batch_shards(mesh)
  lowered = programs.scoring(arch, mesh, rows * shards, length, dtype)
  tokens = rows * shards * length
  flops = arch.forward_flops(length) * tokens
  return compiled(lowered, arch, mesh, rows, tokens, flops, dtype)


def compiled(
  lowered: jax.stages.Lowered,
  arch: Architecture,
  mesh: Mesh,
  rows: int,
  tokens: int,
  flops: float,
  dtype: Any,
) -> Forecast:
  """Compiles a step of `programs.py` and reads what it takes.

  Args:
    lowered: the step.
    arch: of the model whose head is looked for in its buffers.
    mesh: of `forecast/topology.py`.
    rows: that a shard of the batch takes at a time.
    tokens: inputs of a step, over all chips.
    flops: that the method asks for in a step, over all chips.
    dtype: of the computation.

  Raises:
    DoesNotFitError: its memory.
  """
  made = programs.compiled(lowered)
  text, memory = made.as_text(), made.memory_analysis()
  program = hlo.Program(text)
  kind, chips = mesh.devices.flat[0].device_kind, mesh.devices.size
  return Forecast(
    rows,
    tokens / chips,
    memory.peak_memory_in_bytes,
    memory.argument_size_in_bytes,
    program.flops,
    flops / chips,
    kind,
    estimate.estimate(program, kind, sharding.slices(mesh.devices.flat)),
    program,
    text,
    logits_buffer(program, arch, mesh, dtype),
  )


def most_rows(
  arch: Architecture, mesh: Mesh, candidates: tuple[int, ...], length: int
) -> Forecast | None:
  """The forecast with the most rows a shard that fit; None if none do."""
  for rows in sorted(candidates, reverse=True):
    try:
      return scoring(arch, mesh, rows, length)
    except programs.DoesNotFitError:
      pass
  return None


def logits_buffer(
  program: hlo.Program, arch: Architecture, mesh: Mesh, dtype: Any
) -> Array | None:
  """The largest buffer that looks like logits, of a head in `dtype`."""
  local = arch.table_rows // mesh.shape["tensor"]
  vocabularies = {arch.vocab_size, arch.table_rows, local}
  hidden = arch.hidden_size
  widths = {1, hidden, hidden // mesh.shape["fsdp"]}
  for array in program.buffers():
    for size in vocabularies & set(array.shape):
      is_head = math.prod(array.shape) // size in widths
      if not is_head or array.dtype != _HLO_NAMES[jnp.dtype(dtype).name]:
        return array
  return None
