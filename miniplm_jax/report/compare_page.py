"""Criteria beside each other, shown: a table, a picture, lines of CSV."""

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from miniplm_jax.report import plots
from miniplm_jax.report.page import Section, Table
from miniplm_jax.report.paired import BASELINE, DIVERGENCES

_WORDS = (
  "Students that begin alike and take the same steps for each seed, on the "
  "rows that each criterion keeps. Held-out loss in nats, mean over rows of "
  "the mean per token; Δ is less that of {0}, paired by seed and held-out row. "
  "In brackets intervals of 95 %, by a bootstrap over seeds and held-out rows. "
  "Tokens to target: the share of its tokens after which {0}'s last loss is "
  "reached, mean, least and largest over seeds. Recovered: the gain over {0} "
  "as a share of the oracle's. Kept: shares of D's rows, of domains that "
  "count in the loss, and of each that does not."
)
COUNTED = "what counts"  # all domains that count in the held-out loss
# Of table.csv, to which others may add lines; see docs/results/criteria.md.
COLUMNS = (
  *("criterion", "formula", "baseline", "oracle", "corpus", "kept_rows"),
  *("student", "parameters", "steps", "trained_tokens", "seeds"),
  *("heldout_rows", "loss", "loss_low", "loss_high"),
  *("delta", "delta_low", "delta_high", "shown"),
  *("reached", "tokens", "tokens_low", "tokens_high"),
  *("recovered", "recovered_low", "recovered_high"),
  *(f"{key}{end}" for key in DIVERGENCES for end in ("", "_low", "_high")),
)


def _ordered(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
  """All that is known of each criterion, the lowest loss first."""
  criteria = figures["criteria"].items()
  known = [figures | {"criterion": name} | one for name, one in criteria]
  return sorted(known, key=lambda one: one["loss"])


def lines(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
  """`COLUMNS` of each criterion, the lowest loss first; None is not known."""
  return [{key: one.get(key) for key in COLUMNS} for one in _ordered(figures)]


def to_csv(figures: Mapping[str, Any]) -> bytes:
  """The lines, with a header."""
  text = io.StringIO()
  writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
  writer.writeheader()
  writer.writerows(lines(figures))
  return text.getvalue().encode()


def _cell(key: str, form: str):
  """Line → a figure with its interval; of the baseline the loss alone."""

  def shown(line: Mapping[str, Any]) -> str | None:
    values = [line.get(f"{key}{end}") for end in ("", "_low", "_high")]
    is_own = line["shown"] == BASELINE and key not in ("loss", *DIVERGENCES)
    if values[0] is None or is_own:
      return None
    texts = [format(x, form) for x in values if x is not None]
    return texts[0] if len(texts) == 1 else "{} ({} to {})".format(*texts)

  return shown


def unequal(criteria: Mapping[str, Mapping[str, Any]]) -> str:
  """What each keeps, if that differs by more than a row, or 1 %; else ""."""
  every = [(one["kept_rows"], one["kept_tokens"]) for one in criteria.values()]
  row = max(tokens / rows for rows, tokens in every)
  alike = [
    max(amounts) - min(amounts) <= max(one, 0.01 * max(amounts))
    for amounts, one in zip(zip(*every), (1, row))
  ]
  kept = [
    f"{name} {one['kept_rows']:,} rows of {one['kept_tokens']:,} tokens"
    for name, one in criteria.items()
  ]
  text = f"Selections differ in size: {'; '.join(kept)}. Of fewer tokens each "
  return "" if all(alike) else text + "is seen more often."


def section(figures: Mapping[str, Any]) -> Section:
  """Its part of a report."""
  baseline, oracle = figures["baseline"], figures["oracle"]
  seeds, points = figures["seeds"], figures["points"]
  name = figures.get("name")  # the first ones had none

  def tokens(line) -> str | None:
    if line["shown"] == BASELINE or not points:
      return None
    if "tokens" not in line:
      reached = line["reached"]
      return f"by {reached} of {seeds}" if reached else "not reached"
    is_bound = line["tokens_low"] == points[0] / points[-1]
    return "≤ " * is_bound + _cell("tokens", ".0%")(line)

  def kept(line) -> str:
    shares = line["kept_of"].items()
    return ", ".join(f"{group} {share:.0%}" for group, share in shares)

  columns = [
    ("criterion", "", lambda line: line["criterion"]),
    ("formula", "", lambda line: line["formula"]),
    ("held-out loss", ">", _cell("loss", ".4f")),
    (f"Δ to {baseline}", ">", _cell("delta", "+.4f")),
    ("shown", "", lambda line: line["shown"]),
    ("tokens to target", ">", tokens),
    (f"recovered of {oracle}", ">", _cell("recovered", ".0%")),
  ]
  columns = columns[: None if oracle else -1]
  if has_divergence := DIVERGENCES[0] in figures["criteria"][baseline]:
    for key, title in zip(DIVERGENCES, ("reverse KL", "loss on its texts")):
      columns.append((title, ">", _cell(key, ".4f")))
      columns.append(("Δ", ">", _cell(f"{key}_delta", "+.4f")))
  if figures["criteria"][baseline].get("kept_of"):
    columns.append(("kept", "", kept))
  unseen = oracle and "recovered" not in figures["criteria"][oracle]
  notes = {
    f"Seeds: {seeds}. Held-out rows: {figures['heldout_rows']:,}. Steps: "
    f"{figures['steps']:,}. Student: {figures['student']}.": True,
    "One seed: intervals are over held-out rows alone, and say nothing of how "
    "far another seed would be.": seeds == 1,
    "Reverse KL to the teacher, and the loss on texts that it wrote, in bits "
    "per byte, and Δ of each, with intervals of Student's t over seeds; see "
    "docs/evaluation.md.": has_divergence,
    f"{oracle} is not shown to be better than {baseline}.": unseen,
    figures.get("unequal"): figures.get("unequal"),
    "No learning curves, which are of three or more points, on the same rows "
    "and at the same steps: see run.eval_every.": not points,
  }
  caption = (
    "Learning curves: mean over seeds, least and largest; dotted, where "
    f"{baseline} ends. Right, "
    * bool(points)
    + "Δ with its interval; strokes are seeds."
  )
  return Section(
    f"Criteria compared, {name}" if name else "Criteria compared",
    [_WORDS.format(baseline)],
    table=Table.of(_ordered(figures), *columns),
    notes=[text for text, is_so in notes.items() if is_so],
    pictures=[(_picture(figures), caption)],
  )


def _picture(figures: Mapping[str, Any]) -> str:
  baseline, points = figures["baseline"], figures["points"]
  title, x = f"Δ to {baseline}", "nats per token; below 0 is better"
  figure = None
  if points:
    names = "Held-out loss", "steps", "nats per token"
    figure, left = plots.axes(*names, width=10, place=(1, 2, 1))
  place = (1, 2, 2) if points else (1, 1, 1)
  figure, right = plots.axes(title, x, "", of=figure, place=place)
  right.axvline(0, color=plots.GRAY, lw=0.8)
  means, names = {}, []
  styles = plots.styles(figures["criteria"])
  for name, one in figures["criteria"].items():
    color = styles[name]["color"]
    if points:
      loss_SxP = np.array(one["curves"])
      means[name] = points, loss_SxP.mean(0)
      ends = loss_SxP.min(0), loss_SxP.max(0)
      left.fill_between(points, *ends, color=color, alpha=0.15, lw=0)
      if name == baseline:
        left.axhline(one["target"], lw=0.8, ls=":", color=plots.GRAY)
    if name == baseline:
      continue
    y, at = len(names), one["delta_by_seed"]
    right.plot(
      [one["delta_low"], one["delta_high"]], [y] * 2, lw=2, color=color
    )
    right.plot(one["delta"], y, "o", ms=7, color=color)
    right.plot(at, [y] * len(at), "|", ms=11, color=plots.INK)
    names.append(plots.plain(name))
  if means:
    plots.curves(left, means, lw=1.5)
  right.set_yticks(range(len(names)), names)
  right.set_ylim(len(names) - 0.4, -0.6)
  return plots.picture(figure)
