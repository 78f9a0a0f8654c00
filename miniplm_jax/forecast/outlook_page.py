"""Outlooks as a table, with what does not fit and what all of it comes to."""

import collections
from collections.abc import Iterator, Sequence

from etils import epath

from miniplm_jax.core.log import duration
from miniplm_jax.forecast import outlook as outlook_lib
from miniplm_jax.forecast import topology
from miniplm_jax.forecast.outlook import Outlook
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


def section(path: epath.Path) -> page.Section:
  """Makes the report's section of the plan in a file."""
  outlooks, price = outlook_lib.read(path)
  return page.Section(
    "Plan: predicted, not measured",
    [*totals(outlooks, price), *advice(outlooks)],
    table=table(outlooks, price),
    notes=[CAVEAT],
  )


def table(outlooks: Sequence[Outlook], price: float) -> Table:
  """Makes a row of each; with what it costs if there is a price."""
  header = (*HEADER, *(["predicted cost"] if price else []))
  rows = []
  for outlook in outlooks:
    cells = _cells(outlook)
    if price:
      cost = f"{outlook.chip_hours * price:,.0f}"
      cells.append(cost if outlook.prediction.fits else "")
    rows.append(cells)
  return Table.of_texts(header, rows, words=3)


def _cells(outlook: Outlook) -> list[str]:
  run = outlook.prediction
  place = [
    outlook.name + " (tried)" * outlook.is_tried,
    run.slice,
    ", ".join(map(str, run.mesh)),
    str(run.rows),
    outlook.remat,
  ]
  if not run.fits:
    return [*place, "does not fit", *[""] * (len(HEADER) - 6)]
  moved = sum(nbytes for _, nbytes in run.collectives.values())
  about = "~ " if outlook.slowdown != 1 else ""
  tokens_per_second = run.tokens_per_second * run.chips / outlook.slowdown
  return [
    *place,
    f"{run.peak_bytes / 2**30:.1f} ({run.hbm_bytes / 2**30:.1f})",
    f"{run.held_bytes / 2**30:.1f}",
    f"{run.flops / 1e12:.1f} / {run.model_flops / 1e12:.1f}",
    f"{moved / 2**30:.1f}",
    f"{about}{run.seconds * outlook.slowdown * 1e3:,.1f}",
    f"{run.mfu:.2f}",
    f"{about}{tokens_per_second:,.0f}",
    f"{outlook.runs:,}",
    f"{about}{duration(outlook.seconds)}",
    f"{about}{outlook.chip_hours:,.1f}",
  ]


def advice(outlooks: Sequence[Outlook]) -> Iterator[str]:
  """Says what does not fit and what to change, and what a search found."""
  for outlook in outlooks:
    run = outlook.prediction
    program = f"{outlook.name} on {run.slice}"
    if outlook.refusal and run.fits:
      yield (
        f"{program} does not fit as configured; with {outlook.setting} it does."
      )
      yield (
        f"(The compiler: {outlook.refusal}. Then the largest buffers are "
        f"{'; '.join(run.largest)}.)"
      )
    elif outlook.refusal:
      yield (
        f"{program} does not fit, not even a row a chip at a time: take a "
        f"larger slice, or split weights over more chips (--config.run.fsdp, "
        f"--config.run.tensor). The compiler: {outlook.refusal}"
      )
  for slice_name, on_slice in _by_slice(outlooks).items():
    tried = [outlook for outlook in on_slice if outlook.is_tried]
    if tried:
      own = next(
        outlook
        for outlook in on_slice
        if outlook.name == tried[0].name and not outlook.is_tried
      )
      yield _fastest(slice_name, own, tried[0])


def _fastest(slice_name: str, own: Outlook, best: Outlook) -> str:
  """Compares the config's own outlook with the best that was tried."""
  if own.prediction.fits and own.seconds <= best.seconds:
    return f"On {slice_name} nothing that was tried is faster than the config."
  data, fsdp, tensor = best.prediction.mesh
  data //= topology.count(slice_name)
  gain = f", predicted {own.seconds / best.seconds:.2f} × as fast"
  return (
    f"On {slice_name} the fastest that was tried for {best.name}"
    f"{gain if own.prediction.fits else ''}: --config.run.data={data} "
    f"--config.run.fsdp={fsdp} --config.run.tensor={tensor} "
    f"--config.run.per_device_batch_size={best.prediction.rows} "
    f"--config.run.remat={best.remat}"
  )


def totals(outlooks: Sequence[Outlook], price: float) -> Iterator[str]:
  """Says what all programs of the config take on each slice."""
  for slice_name, on_slice in _by_slice(outlooks).items():
    own = [outlook for outlook in on_slice if not outlook.is_tried]
    if not all(outlook.prediction.fits for outlook in own):
      yield f"{slice_name}: no total, since not everything fits."
      continue
    seconds = sum(outlook.seconds for outlook in own)
    hours = sum(outlook.chip_hours for outlook in own)
    cost = f", {hours * price:,.0f} at {price:g} each" if price else ""
    yield (
      f"{slice_name}: all of it predicted {duration(seconds)}, "
      f"{hours:,.0f} chip-hours{cost}."
    )


def _by_slice(outlooks: Sequence[Outlook]) -> dict[str, list[Outlook]]:
  by_slice = collections.defaultdict(list)
  for outlook in outlooks:
    by_slice[outlook.prediction.slice].append(outlook)
  return dict(by_slice)
