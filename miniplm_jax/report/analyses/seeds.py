"""Students that differ in their seeds alone: means and spread."""

import collections
import os
import re
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from miniplm_jax.core import files
from miniplm_jax.core.groups import ALL
from miniplm_jax.core.workdir import GENERATED
from miniplm_jax.evaluation import heldout
from miniplm_jax.methods import LABELS, LABELS_OF, SEQKD
from miniplm_jax.report import plots
from miniplm_jax.report.analyses.base import Analysis, NoInputs
from miniplm_jax.report.inventory import (
  BY_SEED,
  Inventory,
  Student,
  same_rows,
)
from miniplm_jax.report.page import Section, Table
from miniplm_jax.training import comparable

_CURVES = "Learning curves: every seed, thin, and the mean."
# Made of the selection as the second says: a digest without select.seed, which
# students of earlier versions do not have.
_FOLLOWS = {GENERATED: SEQKD, LABELS: LABELS_OF}


def measure(workdir: Inventory) -> dict[str, Any]:
  """Groups of students by all but their seeds.

  Raises:
    NoInputs: no two students differ in their seeds alone.
  """
  students, left_out = same_rows(workdir.students, "evaluation")
  groups = collections.defaultdict(dict)
  for name, student in students.items():
    # A student that was made again under another name counts once.
    weights = student.training.weights
    groups[_rest(student)].setdefault(weights, (name, student))
  several = [dict(g.values()) for g in groups.values() if len(g) > 1]
  alone = [n for g in groups.values() if len(g) == 1 for n, _ in g.values()]
  if not several:
    raise NoInputs("no two students differ in their seeds alone")
  figures = {}
  for members in several:
    name = name_of(list(members))
    name = ", ".join(members) if name in figures else name
    figures[name] = _figures(members)
  return {"groups": figures, "left_out": left_out, "alone": alone}


def _rest(student: Student) -> str:
  """All that a student was made with but its seeds and its names."""
  training, selection = student.training.settings, student.selection.settings
  inputs = student.training.inputs
  by_seed = {*BY_SEED, *(k for k, said in _FOLLOWS.items() if said in inputs)}
  return files.digest(
    [
      {k: v for k, v in training.items() if k not in ("rows", "train")},
      {k: v for k, v in training["train"].items() if k != "seed"},
      {k: v for k, v in selection.items() if k != "seed"},
      sorted(inputs),
      {k: v for k, v in inputs.items() if k not in by_seed},
      student.training.tokenizer,
      {k: v for k, v in student.evaluation.settings.items() if k != "name"},
    ]
  )


def name_of(names: list[str]) -> str:
  """How names begin alike, without the digits of a seed at its end."""
  begin = os.path.commonprefix(names)  # noqa: RUF071  (characters are meant)
  return re.sub(r"[-_.]?\d*$", "", begin) or names[0]


def _figures(members: Mapping[str, Student]) -> dict[str, Any]:
  """The figures of one group; lists are in the order of `names`."""
  students = list(members.values())
  first = students[0]
  losses = [heldout.losses(s.evaluation) for s in students]
  curves = [s.curve() for s in students]
  same = all(np.array_equal(curves[0][0], steps) for steps, _ in curves)
  same &= len({comparable.rows_of(s.training) for s in students}) == 1
  return {
    "names": list(members),
    # Of one shape and tokenizer nats compare.
    "kind": files.digest(
      [first.training.settings["model"], first.training.tokenizer]
    ),
    "steps": first.training.counts["steps"],
    "train_flops": first.training.details["train_flops"],
    "offline_flops": first.offline_flops,
    "seconds": [s.training.details["seconds"] for s in students],
    "loss": [of[ALL]["instance_mean"] for of in losses],
    "bits_per_byte": [of[ALL]["bits_per_byte"] for of in losses],
    "domains": {
      domain: [of[domain]["bits_per_byte"] for of in losses]
      for domain in losses[0]
      if domain != ALL
    },
    # Of runs that were measured at other steps or on others there is no mean.
    "curve": {
      "steps": curves[0][0].tolist() if same else [],
      "losses": [loss.tolist() for _, loss in curves] if same else [],
    },
  }


def spread(values: list[float]) -> str:
  """Mean ± standard deviation."""
  return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def render(figures: Mapping[str, Any]) -> Section:
  """The table, the curves, and the losses by domain."""
  groups = figures["groups"]
  table = Table.of(
    groups,
    ("students", "", str),
    ("seeds", "d", lambda name: len(groups[name]["names"])),
    ("steps", ",", lambda name: groups[name]["steps"]),
    ("training FLOPs", ".3g", lambda name: groups[name]["train_flops"]),
    ("held-out loss", ">", lambda name: spread(groups[name]["loss"])),
    ("bits per byte", ">", lambda name: spread(groups[name]["bits_per_byte"])),
  )
  alone = ", ".join(figures.get("alone", ()))
  return Section(
    table=table,
    notes=[f"No other differs in its seeds alone: {alone}."] * bool(alone)
    + comparable.in_words(figures.get("left_out", ())),
    pictures=[
      *((_curves(alike), _CURVES) for alike in _by_kind(groups)),
      (_domains(groups), "Held-out bits per byte by domain, less the mean."),
    ],
  )


def _by_kind(groups: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Groups of one shape and tokenizer, whose nats compare, by themselves."""
  kinds = dict.fromkeys(group["kind"] for group in groups.values())
  return [
    {name: group for name, group in groups.items() if group["kind"] == kind}
    for kind in kinds
  ]


def _curves(groups: Mapping[str, Any]) -> str:
  figure, ax = plots.axes(
    "Held-out loss over seeds", "FLOPs of training", "nats per token"
  )
  means = {}
  for style, (name, group) in zip(plots.LINES, groups.items()):
    curve = group["curve"]
    of_step = group["train_flops"] / group["steps"]
    spent = np.array(curve["steps"]) * of_step
    for loss in curve["losses"]:
      ax.plot(spent, loss, **style, lw=0.4, alpha=0.5)
    means[name] = spent, np.mean(curve["losses"], 0) if curve["steps"] else ()
  plots.curves(ax, means, lw=1.6)
  return plots.picture(figure)


def _domains(groups: Mapping[str, Any]) -> str:
  """A point for each group, with a bar of a standard deviation."""
  domains = sorted({d for group in groups.values() for d in group["domains"]})
  figure, ax = plots.axes(
    "By domain",
    "bits per byte, less the mean of the groups",
    "",
    height=1.2 + 0.34 * len(domains),
  )
  middle = {
    d: statistics.mean(
      v for g in groups.values() for v in g["domains"].get(d, [])
    )
    for d in domains
  }
  for i, (style, (name, group)) in enumerate(zip(plots.LINES, groups.items())):
    lines = [
      (row, statistics.mean(values) - middle[d], statistics.stdev(values))
      for row, d in enumerate(domains)
      if (values := group["domains"].get(d))
    ]
    y, x, error = np.array(lines).T
    shift = (i - (len(groups) - 1) / 2) * 0.7 / len(groups)
    ax.errorbar(
      x,
      y + shift,
      xerr=error,
      fmt="o",
      ms=3.5,
      lw=1,
      color=style["color"],
      label=plots.plain(name),
    )
  ax.axvline(0, color=plots.GRAY, lw=0.8)
  ax.set_yticks(range(len(domains)), [plots.plain(d) for d in domains])
  ax.invert_yaxis()
  plots.legend(ax, loc="center left", bbox_to_anchor=(1, 0.5))
  return plots.picture(figure)


ANALYSIS = Analysis(
  "Over seeds",
  "Students that differ in train.seed and select.seed alone, and have been "
  "evaluated: mean ± standard deviation over them (n − 1). Held-out loss in "
  "nats, mean over rows of the mean per token; it compares students of one "
  "tokenizer, bits per byte compares all. Intervals of differences are what "
  "stage compare has.",
  measure,
  render,
)
