"""What programs on slices come to: hours, chip-hours, and what to change."""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence

from etils import epath
from jax.sharding import Mesh

from miniplm_jax.core import files
from miniplm_jax.core.log import duration, log
from miniplm_jax.forecast import figures, topology
from miniplm_jax.forecast.figures import Figures
from miniplm_jax.forecast.work import Piece
from miniplm_jax.models import sharding
from miniplm_jax.report import page
from miniplm_jax.report.table import Table

CAVEAT = (
  "Compiled for these slices without having one; nothing was measured. Memory "
  "and FLOPs are the compiled program's. Times are predicted from its text: "
  "take them for within ±25 % (docs/tpu_scoring.md says why), and add what is "
  "not modeled: loading, compiling, checkpoints, evaluation, the input "
  "pipeline."
)
HEADER = (
  "program",
  "slice",
  "mesh (data, fsdp, tensor)",
  "rows a chip at a time",
  "remat",
  "peak GiB (of)",
  "held GiB",
  "TFLOPs compiled / asked for",
  "collectives GiB",
  "predicted ms a run",
  "predicted MFU",
  "predicted tokens/s",
  "runs",
  "predicted time",
  "predicted chip-hours",
)
_MOST_ROWS = 16  # of a search: more only adds to what a turn holds


@dataclasses.dataclass(frozen=True)
class Line:
  """A program on a slice.

  Attributes:
    name: of the program.
    figures: of one run.
    remat: what the backward pass forms again; "" without one.
    runs: how often it runs.
    slowdown: FLOPs of the method in those of the program.
    setting: what chooses these rows, if it is not the config's own.
    refusal: what the compiler said of the config's own; "" if it fits.
    is_found: by a search; not part of what the config comes to.
  """

  name: str
  figures: Figures
  remat: str
  runs: int
  slowdown: float = 1.0
  setting: str = ""
  refusal: str = ""
  is_found: bool = False

  @property
  def seconds(self) -> float:
    """Of all runs, predicted."""
    return self.runs * self.figures.seconds * self.slowdown

  @property
  def chip_hours(self) -> float:
    """Of all runs, predicted."""
    return self.seconds * self.figures.chips / 3600


def write(path: epath.Path, lines: Sequence[Line], price: float):
  """Writes a plan as JSON; `price` of a chip-hour, 0 is not known."""
  lines = [dataclasses.asdict(line) for line in lines]
  files.write_json(path, {"price": price, "lines": lines})


def read(path: epath.Path) -> tuple[list[Line], float]:
  """The lines and the price that were written."""
  content = json.loads(path.read_text())
  lines = [
    Line(**line | {"figures": figures.read(line["figures"])})
    for line in content["lines"]
  ]
  return lines, content["price"]


def section(path: epath.Path) -> page.Section:
  """A written plan for the report."""
  lines, price = read(path)
  return page.Section(
    "Plan: predicted, not measured",
    [*totals(lines, price), *advice(lines)],
    table=table(lines, price),
    notes=[CAVEAT],
  )


def first_that_fits(
  piece: Piece, name: str, mesh: Mesh, remat: str, cache: epath.Path
) -> Line:
  """The config's own rows a chip, or the most that fit.

  Args:
    piece: the program.
    name: of the slice.
    mesh: of the slice.
    remat: what the backward pass forms again.
    cache: folder of what was compiled before.
  """
  shards, refusal = sharding.batch_shards(mesh), ""
  for rows in piece.rows(shards):
    line = _line(piece, name, mesh, rows, remat, cache)
    if line.figures.fits:
      break
    log("plan", f"{rows} rows a chip do not fit, trying fewer")
    refusal = refusal or line.figures.refusal
  setting = piece.knob(shards, rows) if refusal else ""
  return dataclasses.replace(line, setting=setting, refusal=refusal)


def search(
  piece: Piece,
  name: str,
  mesh: Mesh,
  remat: str,
  cache: epath.Path,
  known: Line,
) -> list[Line]:
  """Other rows, remat and meshes for a training step, those that fit.

  First rows and remat on the config's mesh, then the best of these on meshes
  with twice the copies and twice the tensor shards.

  Args:
    piece: the program.
    name: of the slice.
    mesh: the config's.
    remat: the config's.
    cache: folder of what was compiled before.
    known: the config's own line.
  """
  found = [known]
  rows = [n for n in piece.rows(sharding.batch_shards(mesh)) if n <= _MOST_ROWS]
  for other, n in itertools.product(("dots", "full"), rows[:3]):
    if (other, n) != (remat, known.figures.rows):
      log("plan", f"{name}: trying {n} rows a chip, remat {other}")
      found.append(_line(piece, name, mesh, n, other, cache))
  best = min(filter(_fits, found), key=_rank, default=known)
  data, fsdp, tensor = mesh.devices.shape
  slices = sharding.slices(mesh.devices.flat)
  data //= slices  # of a slice, as topology.mesh takes it
  for sizes in ((2 * data, fsdp // 2, tensor), (data, fsdp // 2, 2 * tensor)):
    shards = sizes[0] * sizes[1] * slices
    if fsdp % 2 or best.figures.rows not in piece.rows(shards):
      continue
    if getattr(piece.arch, "num_key_value_heads", 0) % sizes[2] == 0:
      log("plan", f"{name}: trying mesh {sizes}")
      other = topology.mesh(name, *sizes)
      found.append(
        _line(piece, name, other, best.figures.rows, best.remat, cache)
      )
  return [
    dataclasses.replace(line, is_found=True)
    for line in sorted(filter(_fits, found[1:]), key=_rank)
  ]


def _line(piece, name, mesh, rows, remat, cache) -> Line:
  shards = sharding.batch_shards(mesh)
  tokens = piece.tokens(shards, rows)
  found = figures.of_program(
    cache,
    name,
    mesh,
    rows,
    piece.lower(mesh, rows, remat),
    arch=piece.arch,
    tokens=tokens,
    flops=piece.token_flops * tokens,
    dtype=piece.dtype,
  )
  shown = remat if piece.is_training else ""
  runs = piece.runs(shards, rows)
  return Line(piece.name, found, shown, runs, piece.slowdown)


def _fits(line: Line) -> bool:
  return line.figures.fits


def _rank(line: Line) -> float:
  return line.figures.seconds


def table(lines: Sequence[Line], price: float) -> Table:
  """A row for each line; with what it costs if there is a price."""
  header = (*HEADER, *(["predicted cost"] if price else []))
  rows = []
  for line in lines:
    cells = _cells(line)
    if price:
      cells.append(f"{line.chip_hours * price:,.0f}" if _fits(line) else "")
    rows.append(cells)
  return Table.of_texts(header, rows, words=3)


def _cells(line: Line) -> list[str]:
  f = line.figures
  place = [
    line.name + " (tried)" * line.is_found,
    f.slice,
    ", ".join(map(str, f.mesh)),
    str(f.rows),
    line.remat,
  ]
  if not f.fits:
    return [*place, "does not fit", *[""] * (len(HEADER) - 6)]
  moved = sum(nbytes for _, nbytes in f.collectives.values())
  about = "~ " if line.slowdown != 1 else ""
  return [
    *place,
    f"{f.peak_bytes / 2**30:.1f} ({f.hbm_bytes / 2**30:.1f})",
    f"{f.held_bytes / 2**30:.1f}",
    f"{f.flops / 1e12:.1f} / {f.model_flops / 1e12:.1f}",
    f"{moved / 2**30:.1f}",
    f"{about}{f.seconds * line.slowdown * 1e3:,.1f}",
    f"{f.mfu:.2f}",
    f"{about}{f.tokens_per_second * f.chips / line.slowdown:,.0f}",
    f"{line.runs:,}",
    f"{about}{duration(line.seconds)}",
    f"{about}{line.chip_hours:,.1f}",
  ]


def advice(lines: Sequence[Line]) -> Iterator[str]:
  """What does not fit and what to change; what a search found."""
  for line in lines:
    where = f"{line.name} on {line.figures.slice}"
    if line.refusal and line.figures.fits:
      yield f"{where} does not fit as configured; with {line.setting} it does."
      yield (
        f"(The compiler: {line.refusal}. Then the largest buffers are "
        f"{'; '.join(line.figures.largest)}.)"
      )
    elif line.refusal:
      yield (
        f"{where} does not fit, not even a row a chip at a time: take a larger "
        f"slice, or split weights over more chips (--config.run.fsdp, "
        f"--config.run.tensor). The compiler: {line.refusal}"
      )
  for slice_, found in _by_slice(lines).items():
    tried = [line for line in found if line.is_found]
    if not tried:
      continue
    best = tried[0]
    own = next(x for x in found if x.name == best.name and not x.is_found)
    if _fits(own) and own.seconds <= best.seconds:
      yield f"On {slice_} nothing that was tried is faster than the config."
      continue
    f = best.figures
    data, fsdp, tensor = f.mesh
    data //= topology.count(slice_)
    gain = f", predicted {own.seconds / best.seconds:.2f} × as fast"
    yield (
      f"On {slice_} the fastest that was tried for {best.name}"
      f"{gain if _fits(own) else ''}: --config.run.data={data} "
      f"--config.run.fsdp={fsdp} --config.run.tensor={tensor} "
      f"--config.run.per_device_batch_size={f.rows} "
      f"--config.run.remat={best.remat}"
    )


def totals(lines: Sequence[Line], price: float) -> Iterator[str]:
  """What all programs of the config take on each slice."""
  for slice_, found in _by_slice(lines).items():
    own = [line for line in found if not line.is_found]
    if not all(map(_fits, own)):
      yield f"{slice_}: no total, since not everything fits."
      continue
    seconds = sum(line.seconds for line in own)
    hours = sum(line.chip_hours for line in own)
    cost = f", {hours * price:,.0f} at {price:g} each" if price else ""
    yield (
      f"{slice_}: all of it predicted {duration(seconds)}, "
      f"{hours:,.0f} chip-hours{cost}."
    )


def _by_slice(lines) -> dict[str, list[Line]]:
  found = collections.defaultdict(list)
  for line in lines:
    found[line.figures.slice].append(line)
  return dict(found)
