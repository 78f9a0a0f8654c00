"""What one run of a program takes of each chip, predicted from compiling it.

Kept on disk by what was compiled, so that nothing compiles twice.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from miniplm_jax.core import distributed, files
from miniplm_jax.forecast import estimate, hlo
from miniplm_jax.forecast.hlo_text import Array
from miniplm_jax.forecast.workload import Decoding, Program, ScoringProgram
from miniplm_jax.models import sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.training import flops as flops_lib

_HLO_NAMES = {"bfloat16": "bf16", "float32": "f32"}


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One run of a program, per chip; every time is predicted, not measured."""

  slice: str  # such as "v5e:4x4"
  mesh: tuple[int, int, int]  # sizes of data, fsdp and tensor
  hbm_bytes: int  # memory of a chip that a program may use
  rows: int  # that a shard of the batch takes at a time
  peak_bytes: int = 0  # memory at its fullest; 0 if it does not fit
  # Of it, what is there before and after: weights, optimizer, batch.
  held_bytes: int = 0
  flops: int = 0  # of the matrix products that were compiled
  model_flops: float = 0.0  # that the model asks for, by closed form
  seconds: float = 0.0  # the middle of a range
  # Its ends; 0 in what was written before there was a range.
  optimistic: float = 0.0
  pessimistic: float = 0.0
  collective: float = 0.0  # seconds of all collectives inside a slice
  exposed: float = 0.0  # seconds of those beside which nothing is scheduled
  mfu: float = 0.0  # share of the chip's peak that model_flops are
  tokens_per_second: float = 0.0  # inputs
  # (runs, bytes of the results) by kind.
  collectives: dict[str, tuple[int, int]] = dataclasses.field(
    default_factory=dict
  )
  logits: str = ""  # the largest buffer like logits, such as "f32[1024,32000]"
  largest: tuple[str, ...] = ()  # the three largest buffers, in words
  refusal: str = ""  # what the compiler said if it does not fit

  @property
  def fits(self) -> bool:
    """Whether a chip's memory is enough."""
    return not self.refusal

  @property
  def spread(self) -> tuple[float, float]:
    """Both ends of the range, in the time that is predicted."""
    if not self.optimistic:
      return 1.0, 1.0
    return self.optimistic / self.seconds, self.pessimistic / self.seconds

  @property
  def chips(self) -> int:
    """How many the slice has."""
    return math.prod(self.mesh)


def predict(
  program: Program,
  slice_name: str,
  mesh: Mesh,
  rows: int,
  remat: str = "full",
  cache: epath.Path | None = None,
) -> Prediction:
  """Compiles a program, unless `cache` knows it, and reads what it takes.

  Args:
    slice_name: such as "v5e:4x4".
    rows: that a shard of the batch takes at a time.
    remat: what a backward pass forms again.
    cache: folder of the predictions that were made before.
  """
  if isinstance(program, Decoding):
    return _decoding(program, slice_name, mesh, rows)
  if isinstance(program, ScoringProgram):
    mesh = program.mesh(mesh)
  lowered = program.lower(mesh, rows, remat)
  path = None
  if cache:
    compiler = mesh.devices.flat[0].client.platform_version
    key = "\n".join(
      (estimate.VERSION, compiler, slice_name, str(rows), lowered.as_text())
    )
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    if path.exists():
      return from_json(json.loads(path.read_text()))
  try:
    compiled = lowered.compile()
    prediction = of_compiled(compiled, program, slice_name, mesh, rows)
  except jax.errors.JaxRuntimeError as e:
    if not distributed.is_out_of_memory(e):
      raise
    said = str(e).splitlines()[0].rstrip(".")
    refusal = f"the program does not fit into the device's memory: {said}"
    prediction = Prediction(*_place(slice_name, mesh), rows, refusal=refusal)
  if path:
    files.write_json(path, dataclasses.asdict(prediction))
  return prediction


def from_json(content: dict[str, Any]) -> Prediction:
  """Undoes `dataclasses.asdict` after JSON, which has no tuples."""
  return Prediction(**content | {"mesh": tuple(content["mesh"])})


def of_compiled(
  compiled: jax.stages.Compiled,
  program: Program,
  slice_name: str,
  mesh: Mesh,
  rows: int,
) -> Prediction:
  """Reads a compiled program's text and memory; see `predict`."""
  kind, chips = mesh.devices.flat[0].device_kind, mesh.devices.size
  schedule = hlo.Schedule(compiled.as_text())
  slices = sharding.slices(mesh.devices.flat)
  time = estimate.estimate(schedule, list(mesh.devices.flat), slices)
  seconds = time.seconds.middle
  memory = compiled.memory_analysis()
  tokens = program.tokens(sharding.batch_shards(mesh), rows)
  model_flops = program.token_flops * tokens / chips
  collectives = collections.defaultdict(lambda: (0, 0))
  for c in schedule.collectives:
    count, nbytes = collectives[c.kind]
    collectives[c.kind] = count + c.times, nbytes + c.times * c.nbytes
  largest = itertools.islice(schedule.buffers().items(), 3)
  return Prediction(
    *_place(slice_name, mesh),
    rows,
    peak_bytes=memory.peak_memory_in_bytes,
    held_bytes=memory.argument_size_in_bytes,
    flops=schedule.flops,
    model_flops=model_flops,
    seconds=seconds,
    optimistic=time.seconds.optimistic,
    pessimistic=time.seconds.pessimistic,
    collective=time.collective,
    exposed=time.exposed,
    mfu=model_flops / seconds / flops_lib.peak_flops(kind),
    tokens_per_second=tokens / chips / seconds,
    collectives=dict(collectives),
    logits=str(logits_buffer(schedule, program.arch, mesh, program.dtype)),
    largest=tuple(
      f"{array} {array.nbytes / 2**30:.2f} GiB ({source or 'no name'})"
      for array, source in largest
    ),
  )


# What a batch of generation takes, in the least that it can. Assumed: it was
# neither compiled nor measured.
_DECODING = estimate.Range(1, 1.5, 3)


def _decoding(
  program: Decoding, slice_name: str, mesh: Mesh, rows: int
) -> Prediction:
  """A batch of generation by closed form.

  A prompt takes its FLOPs. A token takes its FLOPs or, if that is longer, what
  all weights and the caches of all rows take to be read from main memory.
  """
  place = _place(slice_name, mesh)
  kind, tensor = mesh.devices.flat[0].device_kind, mesh.shape["tensor"]
  peak, size = flops_lib.peak_flops(kind), jnp.dtype(program.dtype).itemsize
  prompt, new = program.prompt, program.new
  weights = cache = prefill = total = 0
  for arch in program.models:
    keys = 2 * arch.num_hidden_layers * getattr(arch, "key_size", 0)
    weights += size * arch.matmul_parameters() // tensor
    cache += size * rows * (prompt + new) * keys // tensor
    prefill += rows * flops_lib.row(arch, prompt, 1) / tensor
    total += rows * flops_lib.generation(arch, prompt, new) / tensor
  if weights + cache > 0.9 * place[-1]:
    full = (weights + cache) / 2**30
    refusal = f"whole weights and caches take {full:.1f} GiB of a chip"
    return Prediction(*place, rows, refusal=refusal)
  read = (weights + cache) / estimate.CHIPS[kind].hbm_bandwidth
  token = max(read, (total - prefill) / new / peak)
  ends = [share * (prefill / peak + new * token) for share in _DECODING]
  return Prediction(
    *place,
    rows,
    peak_bytes=weights + cache,
    held_bytes=weights,
    flops=total,
    model_flops=total,
    seconds=ends[1],
    optimistic=ends[0],
    pessimistic=ends[2],
    mfu=total / ends[1] / peak,
    tokens_per_second=rows * new / tensor / ends[1],
  )


def _place(slice_name: str, mesh: Mesh) -> tuple[str, tuple[int, ...], int]:
  """The first three fields of a Prediction."""
  kind = mesh.devices.flat[0].device_kind
  hbm = int(estimate.CHIPS[kind].hbm_gib * 2**30)
  return slice_name, tuple(mesh.devices.shape), hbm


def logits_buffer(
  schedule: hlo.Schedule, arch: Architecture, mesh: Mesh, dtype: Any
) -> Array | None:
  """The largest buffer that looks like logits, of a head in `dtype`.

  It has an axis as long as the vocabulary, or as a shard of it, and is not the
  head itself. None if there is no such buffer.
  """
  local = arch.table_rows // mesh.shape["tensor"]
  vocabularies = {arch.vocab_size, arch.table_rows, local}
  hidden = arch.hidden_size
  widths = {1, hidden, hidden // mesh.shape["fsdp"]}
  for array in schedule.buffers():
    for size in vocabularies & set(array.shape):
      is_head = math.prod(array.shape) // size in widths
      if not is_head or array.dtype != _HLO_NAMES[jnp.dtype(dtype).name]:
        return array
  return None
