"""What all runs of a program come to on a slice, and with which settings.

The slice's mesh, remat and rows at a time are the config's own, or the ones
that fit, or those that a search found to be the fastest.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

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
# Few rows leave activations in VMEM, many have longer products.
_ROWS_OF_SCORING = (16, 8, 4, 2, 1)


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


class Plan(NamedTuple):
  """What a plan's file has."""

  outlooks: Sequence[Outlook]
  price: float  # of a chip-hour; 0 is not known
  notes: Sequence[str]  # sentences about the whole, none in older files


def write(path: epath.Path, plan: Plan):
  """Writes a plan as JSON."""
  lines = [
    {_IN_FILE.get(k, k): v for k, v in dataclasses.asdict(outlook).items()}
    for outlook in plan.outlooks
  ]
  files.write_json(
    path, {"price": plan.price, "lines": lines, "notes": plan.notes}
  )


def read(path: epath.Path) -> Plan:
  """Reads what was written."""
  content = json.loads(path.read_text())
  fields = {v: k for k, v in _IN_FILE.items()}
  outlooks = []
  for line in content["lines"]:
    values = {fields.get(k, k): v for k, v in line.items()}
    values["prediction"] = prediction_lib.from_json(values["prediction"])
    outlooks.append(Outlook(**values))
  return Plan(outlooks, content["price"], content.get("notes", ()))


@dataclasses.dataclass(frozen=True)
class Slice:
  """Where programs are to run, and how they are compiled for it."""

  name: str  # such as "v5e:4x4"
  mesh: Mesh  # of all its chips
  remat: str  # what a backward pass forms again
  cache: epath.Path | None  # folder of what was compiled before

  def first_that_fits(self, program: Program) -> Outlook:
    """Takes the config's own rows a chip, or the most that fit."""
    shards, refusal = sharding.batch_shards(self.mesh), ""
    for rows in program.rows(shards):
      outlook = self._outlook(program, rows)
      if outlook.prediction.fits:
        break
      log("plan", f"{rows} rows a chip do not fit, trying fewer")
      refusal = refusal or outlook.prediction.refusal
    setting = program.setting(shards, rows) if refusal else ""
    return dataclasses.replace(outlook, setting=setting, refusal=refusal)

  def search(self, program: Program, known: Outlook) -> list[Outlook]:
    """Tries other rows, remat and meshes; those that fit, the fastest first.

    Of scoring, rows. Of training, first rows and remat on the config's mesh,
    then the best of these on meshes with twice the copies and twice the tensor
    shards.

    Args:
      program: it, compiled as `known` is.
      known: the config's own outlook.
    """
    tried = []
    shards = sharding.batch_shards(self.mesh)
    if not program.is_training:
      for n in _ROWS_OF_SCORING:
        if n != known.prediction.rows:
          log("plan", f"{self.name}: {program.name}, trying {n} rows a chip")
          setting = program.setting(shards, n)
          tried.append(self._outlook(program, n, setting, is_tried=True))
      return _fitting(tried)
    rows = [n for n in program.rows(shards) if n <= _MOST_ROWS]
    for remat, n in itertools.product(("dots", "full"), rows[:3]):
      if (remat, n) != (self.remat, known.prediction.rows):
        log("plan", f"{self.name}: trying {n} rows a chip, remat {remat}")
        place = dataclasses.replace(self, remat=remat)
        tried.append(place._outlook(program, n, is_tried=True))
    best = (_fitting([known, *tried]) or [known])[0]
    n = best.prediction.rows
    data, fsdp, tensor = self.mesh.devices.shape
    slices = sharding.slices(self.mesh.devices.flat)
    data //= slices  # of a slice, as topology.mesh takes it
    for sizes in ((2 * data, fsdp // 2, tensor), (data, fsdp // 2, 2 * tensor)):
      shards = sizes[0] * sizes[1] * slices
      if fsdp % 2 or n not in program.rows(shards):
        continue
      if getattr(program.arch, "num_key_value_heads", 0) % sizes[2] == 0:
        log("plan", f"{self.name}: trying mesh {sizes}")
        mesh = topology.mesh(self.name, *sizes)
        place = dataclasses.replace(self, mesh=mesh, remat=best.remat)
        tried.append(place._outlook(program, n, is_tried=True))
    return _fitting(tried)

  def _outlook(
    self, program: Program, rows: int, setting: str = "", is_tried: bool = False
  ) -> Outlook:
    prediction = prediction_lib.predict(
      program, self.name, self.mesh, rows, self.remat, self.cache
    )
    return Outlook(
      program.name,
      prediction,
      self.remat if program.is_training else "",
      program.runs(sharding.batch_shards(self.mesh), rows),
      program.slowdown,
      setting,
      is_tried=is_tried,
    )


def _fitting(outlooks: Sequence[Outlook]) -> list[Outlook]:
  """Those whose programs fit, the fastest first."""
  fitting = [outlook for outlook in outlooks if outlook.prediction.fits]
  return sorted(fitting, key=lambda outlook: outlook.seconds)
