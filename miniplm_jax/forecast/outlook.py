"""What all runs of a program come to on a slice, and with which settings.

The slice's mesh, remat and rows at a time are the config's own, or the ones
that fit, or those that a search found to be the fastest.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence

from etils import epath
from jax.sharding import Mesh

from miniplm_jax.core import files
from miniplm_jax.core.log import log
from miniplm_jax.forecast import prediction as prediction_lib
from miniplm_jax.forecast import topology
from miniplm_jax.forecast.prediction import Prediction
from miniplm_jax.forecast.workload import Program
from miniplm_jax.models import sharding

_MOST_ROWS = 16  # of a search: more only adds to what a turn holds


@dataclasses.dataclass(frozen=True)
class Outlook:
  """All runs of a program on a slice."""

  name: str  # of the program
  prediction: Prediction  # of one run
  remat: str  # what the backward pass forms again; "" without one
  runs: int  # how often it runs
  slowdown: float = 1.0  # FLOPs of the method in those of the program
  setting: str = ""  # what chooses these rows, if it is not the config's own
  refusal: str = ""  # what the compiler said of the config's own rows
  is_tried: bool = False  # by a search; no part of what the config comes to

  @property
  def seconds(self) -> float:
    """Predicted seconds of all runs."""
    return self.runs * self.prediction.seconds * self.slowdown

  @property
  def chip_hours(self) -> float:
    """Predicted hours of all runs, times the chips."""
    return self.seconds * self.prediction.chips / 3600


# What plan.json calls these fields.
_IN_FILE = {"prediction": "figures", "is_tried": "is_found"}


def write(path: epath.Path, outlooks: Sequence[Outlook], price: float):
  """Writes a plan as JSON; `price` of a chip-hour, 0 is not known."""
  lines = [
    {_IN_FILE.get(k, k): v for k, v in dataclasses.asdict(outlook).items()}
    for outlook in outlooks
  ]
  files.write_json(path, {"price": price, "lines": lines})


def read(path: epath.Path) -> tuple[list[Outlook], float]:
  """Reads the outlooks and the price that were written."""
  content = json.loads(path.read_text())
  fields = {v: k for k, v in _IN_FILE.items()}
  outlooks = []
  for line in content["lines"]:
    values = {fields.get(k, k): v for k, v in line.items()}
    values["prediction"] = prediction_lib.from_json(values["prediction"])
    outlooks.append(Outlook(**values))
  return outlooks, content["price"]


def first_that_fits(
  program: Program,
  slice_name: str,
  mesh: Mesh,
  remat: str,
  cache: epath.Path | None,
) -> Outlook:
  """Takes the config's own rows a chip, or the most that fit.

  Args:
    program: what is to run.
    slice_name: such as "v5e:4x4".
    mesh: of the slice.
    remat: what the backward pass forms again.
    cache: folder of what was compiled before.
  """
  shards, refusal = sharding.batch_shards(mesh), ""
  for rows in program.rows(shards):
    outlook = _outlook(program, slice_name, mesh, rows, remat, cache)
    if outlook.prediction.fits:
      break
    log("plan", f"{rows} rows a chip do not fit, trying fewer")
    refusal = refusal or outlook.prediction.refusal
  setting = program.setting(shards, rows) if refusal else ""
  return dataclasses.replace(outlook, setting=setting, refusal=refusal)


def search(
  program: Program,
  slice_name: str,
  mesh: Mesh,
  remat: str,
  cache: epath.Path,
  known: Outlook,
) -> list[Outlook]:
  """Tries other rows, remat and meshes; those that fit, the fastest first.

  First rows and remat on the config's mesh, then the best of these on meshes
  with twice the copies and twice the tensor shards.

  Args:
    program: a training step.
    slice_name: such as "v5e:4x4".
    mesh: the config's.
    remat: the config's.
    cache: folder of what was compiled before.
    known: the config's own outlook.
  """
  outlooks = [known]
  shards = sharding.batch_shards(mesh)
  rows = [n for n in program.rows(shards) if n <= _MOST_ROWS]
  for other, n in itertools.product(("dots", "full"), rows[:3]):
    if (other, n) != (remat, known.prediction.rows):
      log("plan", f"{slice_name}: trying {n} rows a chip, remat {other}")
      outlooks.append(_outlook(program, slice_name, mesh, n, other, cache))
  best = min(filter(_fits, outlooks), key=_run_seconds, default=known)
  n = best.prediction.rows
  data, fsdp, tensor = mesh.devices.shape
  slices = sharding.slices(mesh.devices.flat)
  data //= slices  # of a slice, as topology.mesh takes it
  for sizes in ((2 * data, fsdp // 2, tensor), (data, fsdp // 2, 2 * tensor)):
    shards = sizes[0] * sizes[1] * slices
    if fsdp % 2 or n not in program.rows(shards):
      continue
    if getattr(program.arch, "num_key_value_heads", 0) % sizes[2] == 0:
      log("plan", f"{slice_name}: trying mesh {sizes}")
      other = topology.mesh(slice_name, *sizes)
      outlooks.append(
        _outlook(program, slice_name, other, n, best.remat, cache)
      )
  return [
    dataclasses.replace(outlook, is_tried=True)
    for outlook in sorted(filter(_fits, outlooks[1:]), key=_run_seconds)
  ]


def _outlook(program, slice_name, mesh, rows, remat, cache) -> Outlook:
  prediction = prediction_lib.predict(
    program, slice_name, mesh, rows, remat, cache
  )
  return Outlook(
    program.name,
    prediction,
    remat if program.is_training else "",
    program.runs(sharding.batch_shards(mesh), rows),
    program.slowdown,
  )


def _fits(outlook: Outlook) -> bool:
  return outlook.prediction.fits


def _run_seconds(outlook: Outlook) -> float:
  return outlook.prediction.seconds
