"""Outlooks as a table, with what does not fit and what all of it comes to."""

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from miniplm_jax.core.log import duration
from miniplm_jax.forecast import outlook as outlook_lib
from miniplm_jax.forecast import topology
from miniplm_jax.forecast.outlook import Outlook
from miniplm_jax.forecast.workload import SCORE_BY
from miniplm_jax.report import page
from miniplm_jax.report.page import Table

CAVEAT = (
  "Compiled for these slices without having one; nothing was measured. Memory "
  "and FLOPs are the compiled program's. Times are predicted from its text, "
  "each with its range from optimistic to pessimistic "
  "(docs/tpu_calibration.md compares them with what was measured elsewhere). "
  "Add what is not modeled: loading, compiling, checkpoints, the input "
  "pipeline."
)


def section(path: epath.Path) -> page.Section:
  """Makes the report's section of the plan in a file."""
  outlooks, price, notes = outlook_lib.read(path)
  return page.Section(
    "Plan: predicted, not measured",
    [*totals(outlooks, price), *notes, *advice(outlooks)],
    table=table(outlooks, price),
    notes=[CAVEAT],
  )


def table(outlooks: Sequence[Outlook], price: float) -> Table:
  """Makes a row of each; with what it costs if there is a price."""
  lines = [_cells(outlook, price) for outlook in outlooks]
  titles = list(dict.fromkeys(itertools.chain(*lines)))
  rows = [[cells.get(title, "") for title in titles] for cells in lines]
  return Table.of_texts(titles, rows, words=3)


def _cells(outlook: Outlook, price: float) -> dict[str, str]:
  """A row's cells by their titles, as far as there are some."""
  run = outlook.prediction
  cells = {
    "program": outlook.name + " (tried)" * outlook.is_tried,
    "slice": run.slice,
    "mesh (data, fsdp, tensor)": ", ".join(map(str, run.mesh)),
    "rows a chip at a time": str(run.rows),
    "remat": outlook.remat,
  }
  if not run.fits:
    return cells | {"peak GiB (of)": "does not fit"}
  peak, hbm, held = run.peak_bytes, run.hbm_bytes, run.held_bytes
  moved = sum(nbytes for _, nbytes in run.collectives.values())
  tera = run.flops / 1e12, run.model_flops / 1e12
  about = "~ " if outlook.slowdown != 1 else ""
  tokens_per_second = run.tokens_per_second * run.chips / outlook.slowdown
  cells |= {
    "peak GiB (of)": f"{peak / 2**30:.1f} ({hbm / 2**30:.1f})",
    "held GiB": f"{held / 2**30:.1f}",
    "TFLOPs compiled / asked for": f"{tera[0]:.1f} / {tera[1]:.1f}",
    "collectives GiB": f"{moved / 2**30:.1f}",
    "predicted ms a run": about
    + _ranged(
      run.seconds * outlook.slowdown * 1e3, run.spread, "{:,.1f}".format
    ),
    "predicted MFU": f"{run.mfu:.2f}",
    "predicted tokens/s": f"{about}{tokens_per_second:,.0f}",
    "runs": f"{outlook.runs:,}",
    "predicted time": about + _ranged(outlook.seconds, run.spread, duration),
    "predicted chip-hours": f"{about}{outlook.chip_hours:,.1f}",
  }
  if price:
    cells["predicted cost"] = f"{outlook.chip_hours * price:,.0f}"
  return cells


def _ranged(
  middle: float, spread: Sequence[float], words: Callable[[float], str]
) -> str:
  """Writes a figure, and from where to where it may be."""
  low, high = (words(middle * share) for share in spread)
  between = f" ({low} to {high})" if low != high else ""
  return words(middle) + between


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
    own = {o.name: o for o in on_slice if not o.is_tried}
    best = {o.name: o for o in reversed(on_slice) if o.is_tried}
    for name in filter(best.get, own):
      yield _fastest(slice_name, own[name], best[name])


def _fastest(slice_name: str, own: Outlook, best: Outlook) -> str:
  """Compares the config's own outlook with the best that was tried."""
  if own.prediction.fits and own.seconds <= best.seconds:
    return (
      f"On {slice_name} nothing that was tried for {own.name} is faster than "
      "the config."
    )
  data, fsdp, tensor = best.prediction.mesh
  data //= topology.count(slice_name)
  gain = f", predicted {own.seconds / best.seconds:.2f} × as fast"
  flags = best.setting or (
    f"--config.run.data={data} "
    f"--config.run.fsdp={fsdp} --config.run.tensor={tensor} "
    f"--config.run.per_device_batch_size={best.prediction.rows} "
    f"--config.run.remat={best.remat}"
  )
  return (
    f"On {slice_name} the fastest that was tried for {best.name}"
    f"{gain if own.prediction.fits else ''}: {flags}"
  )


def together(outlooks: Sequence[Outlook]) -> Iterator[str]:
  """Says where models that score in one pass have no room beside each other."""
  for slice_name, on_slice in _by_slice(outlooks).items():
    runs = [o.prediction for o in on_slice if o.name.startswith(SCORE_BY)]
    runs = [run for run in runs if run.fits and len(runs) > 1]
    held = sum(run.held_bytes for run in runs)
    used = held + max((r.peak_bytes - r.held_bytes for r in runs), default=0)
    if runs and used > runs[0].hbm_bytes:
      yield (
        f"{slice_name}: {len(runs)} models that score together take "
        f"{used / 2**30:.1f} GiB of a chip's {runs[0].hbm_bytes / 2**30:.1f}: "
        "--config.run.score_together=False"
      )


def totals(outlooks: Sequence[Outlook], price: float) -> Iterator[str]:
  """Says what the programs take together on each slice."""
  for slice_name, on_slice in _by_slice(outlooks).items():
    own = [outlook for outlook in on_slice if not outlook.is_tried]
    if not all(outlook.prediction.fits for outlook in own):
      yield f"{slice_name}: no total, since not everything fits."
      continue
    seconds = sum(outlook.seconds for outlook in own)
    chips = own[0].prediction.chips
    spread = [
      sum(o.seconds * o.prediction.spread[end] for o in own) / seconds
      for end in (0, 1)
    ]
    time = _ranged(seconds, spread, duration)
    hours = _ranged(seconds * chips / 3600, spread, "{:,.0f}".format)
    cost = ""
    if price:
      paid = seconds * chips / 3600 * price
      cost = f", {_ranged(paid, spread, '{:,.0f}'.format)} at {price:g} each"
    yield f"{slice_name}: predicted {time}, {hours} chip-hours{cost}."


def _by_slice(outlooks: Sequence[Outlook]) -> dict[str, list[Outlook]]:
  by_slice = collections.defaultdict(list)
  for outlook in outlooks:
    by_slice[outlook.prediction.slice].append(outlook)
  return dict(by_slice)
