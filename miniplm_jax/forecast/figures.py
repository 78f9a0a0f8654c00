"""A forecast as plain figures, kept on disk so that nothing compiles twice."""

import dataclasses
import hashlib
import itertools
import json
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from miniplm_jax.core import files
from miniplm_jax.forecast import estimate, forecast, programs


@dataclasses.dataclass(frozen=True)
class Figures:
  """Of one run of a program; of one chip, and every time is a prediction.

  Attributes:
    slice: such as "v5e:4x4".
    mesh: sizes of data, fsdp and tensor.
    hbm_bytes: memory of a chip that a program may use.
    rows: that a shard of the batch takes at a time.
    peak_bytes: memory at its fullest; 0 if it does not fit.
    held_bytes: of it, what is there before and after: weights, optimizer,
      batch.
    flops: of the matrix products that were compiled.
    model_flops: that the model asks for, by closed form.
    seconds: of the whole.
    collective: seconds of all collectives.
    exposed: seconds of those beside which nothing is scheduled.
    mfu: share of the peak that the model's FLOPs are.
    tokens_per_second: inputs.
    collectives: (runs, bytes of the results) by kind.
    logits: the largest buffer like logits, in words.
    largest: the largest buffers, in words.
    refusal: what the compiler said of a program that does not fit; else "".
  """

  slice: str
  mesh: tuple[int, int, int]
  hbm_bytes: int
  rows: int
  peak_bytes: int = 0
  held_bytes: int = 0
  flops: int = 0
  model_flops: float = 0.0
  seconds: float = 0.0
  collective: float = 0.0
  exposed: float = 0.0
  mfu: float = 0.0
  tokens_per_second: float = 0.0
  collectives: dict[str, tuple[int, int]] = dataclasses.field(
    default_factory=dict
  )
  logits: str = ""
  largest: tuple[str, ...] = ()
  refusal: str = ""

  @property
  def fits(self) -> bool:
    """Whether a chip's memory is enough."""
    return not self.refusal

  @property
  def chips(self) -> int:
    """Of the slice."""
    data, fsdp, tensor = self.mesh
    return data * fsdp * tensor


def of_program(
  cache: epath.Path | None,
  name: str,
  mesh: Mesh,
  rows: int,
  lowered: jax.stages.Lowered,
  **facts: Any,
) -> Figures:
  """Compiles a program, unless `cache` knows it.

  Args:
    cache: folder of what was compiled before, or None.
    name: of the slice.
    mesh: of the slice.
    rows: that a shard of the batch takes at a time.
    lowered: the program.
    **facts: of `forecast.compiled`: arch, tokens, flops, dtype.
  """
  compiler = mesh.devices.flat[0].client.platform_version
  known = "\n".join((compiler, name, str(rows), lowered.as_text()))
  known = hashlib.sha256(known.encode()).hexdigest()
  path = cache / f"{known}.json" if cache else None
  if path and path.exists():
    return read(json.loads(path.read_text()))
  try:
    made = forecast.compiled(lowered, mesh=mesh, rows=rows, **facts)
    found = of(name, mesh, made)
  except programs.DoesNotFitError as e:
    found = Figures(*_place(name, mesh), rows, refusal=e.what)
  if path:
    files.write_json(path, dataclasses.asdict(found))
  return found


def read(content: dict[str, Any]) -> Figures:
  """What `dataclasses.asdict` gave, after JSON, which has no tuples."""
  return Figures(**content | {"mesh": tuple(content["mesh"])})


def of(name: str, mesh: Mesh, made: forecast.Forecast) -> Figures:
  """A forecast's figures on slice `name`."""
  return Figures(
    *_place(name, mesh),
    made.rows,
    peak_bytes=made.peak_bytes,
    held_bytes=made.held_bytes,
    flops=made.flops,
    model_flops=made.model_flops,
    seconds=made.time.seconds,
    collective=made.time.collective,
    exposed=made.time.exposed,
    mfu=made.mfu,
    tokens_per_second=made.tokens_per_second,
    collectives=made.collectives,
    logits=str(made.logits),
    largest=tuple(
      f"{array} {array.nbytes / 2**30:.2f} GiB ({source or 'no name'})"
      for array, source in itertools.islice(made.program.buffers().items(), 3)
    ),
  )


def _place(name, mesh):
  kind = mesh.devices.flat[0].device_kind
  hbm = int(estimate.CHIPS[kind].hbm_gib * 2**30)
  return name, tuple(mesh.devices.shape), hbm
