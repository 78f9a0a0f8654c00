"""Students that differ in their seeds alone: means and spread."""

import collections
import os
import re
import statistics
from collections.abc import Mapping
from typing import Any

from miniplm_jax.core import files
from miniplm_jax.core.groups import ALL
from miniplm_jax.core.workdir import GENERATED
from miniplm_jax.evaluation import heldout
from miniplm_jax.methods import LABELS, LABELS_OF, SEQKD
from miniplm_jax.report.analyses.base import Analysis, NoInputs
from miniplm_jax.report.inventory import (
  BY_SEED,
  Inventory,
  Student,
  same_rows,
)
from miniplm_jax.report.page import Section, Table
from miniplm_jax.training import comparable

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
  return {
    "names": list(members),
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
  }


def spread(values: list[float]) -> str:
  """Mean ± standard deviation."""
  return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def render(figures: Mapping[str, Any]) -> Section:
  """The table, with a column for each domain."""
  groups = figures["groups"]

  def of(domain: str):
    def shown(name: str) -> str | None:
      values = groups[name]["domains"].get(domain)
      return values and spread(values)

    return domain, ">", shown

  table = Table.of(
    groups,
    ("students", "", str),
    ("seeds", "d", lambda name: len(groups[name]["names"])),
    ("steps", ",", lambda name: groups[name]["steps"]),
    ("training FLOPs", ".3g", lambda name: groups[name]["train_flops"]),
    ("held-out loss", ">", lambda name: spread(groups[name]["loss"])),
    ("bits per byte", ">", lambda name: spread(groups[name]["bits_per_byte"])),
    *map(of, sorted({d for g in groups.values() for d in g["domains"]})),
  )
  alone = ", ".join(figures.get("alone", ()))
  return Section(
    table=table,
    notes=[f"No other differs in its seeds alone: {alone}."] * bool(alone)
    + comparable.in_words(figures.get("left_out", ())),
  )


ANALYSIS = Analysis(
  "Over seeds",
  "Students that differ in train.seed and select.seed alone, and have been "
  "evaluated: mean ± standard deviation over them (n − 1). Held-out loss in "
  "nats, mean over rows of the mean per token; it compares students of one "
  "tokenizer. Bits per byte, those of domains too, compare all. Intervals of "
  "differences are what stage compare has.",
  measure,
  render,
)
