"""One thing varied at a time: α, the size of the reference, of the teacher."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from miniplm_jax.core import files
from miniplm_jax.core.groups import ALL
from miniplm_jax.evaluate.heldout import losses
from miniplm_jax.report import page
from miniplm_jax.report.analyses.inventory import (
  BUDGET,
  Inventory,
  Skipped,
  Student,
)
from miniplm_jax.report.analyses.ranking import number
from miniplm_jax.training import comparable

TITLE = "Ablations"
DEFINITION = (
  "Every student of the workdir that was evaluated. α is the share of the rows "
  "of D that its selection kept; sizes are parameters of the models whose "
  "scores it stands on. Held-out loss in nats (mean over rows of the mean per "
  "token). A line joins students that differ in the one thing alone: the same "
  "shape, training, objective and other settings of the selection. One seed "
  "each unless there are more."
)
# What is varied, with its label; a line varies one of them.
AXES = {
  "kept": "α, share of rows kept",
  "reference": "parameters of the reference",
  "teacher": "parameters of the teacher",
}
_MODELS = ("teacher_weights", "seqkd", "logits_of")  # inputs of a student


def measure(found: Inventory) -> dict[str, Any]:
  """All students, and the lines along each axis.

  Raises:
    Skipped: no student has been evaluated.
  """
  students = {
    name: student
    for name, student in found.students.items()
    if student.evaluation and not student.reads_other_tokens
  }
  left_out = comparable.left_out({n: s.evaluation for n, s in students.items()})
  runs = {
    name: _run(found, student)
    for name, student in students.items()
    if name not in left_out
  }
  if not runs:
    raise Skipped("no student has been evaluated: run --stages=evaluate")
  return {
    "runs": runs,
    "lines": {axis: lines(runs, axis) for axis in AXES},
    "left_out": left_out,
  }


def _run(found: Inventory, student: Student) -> dict[str, Any]:
  """What a student was made with, and what it reached."""
  made, selection = student.made, student.selection
  loss = losses(student.evaluation)[ALL]
  tables = selection.settings["scores"]
  run = {
    "definition": selection.settings["definition"],
    "kept": selection.counts["kept"] / selection.counts["rows"],
    "steps": made.counts["steps"],
    "train_flops": made.details["train_flops"],
    "begins_with": student.begins_with,
    "loss": loss["instance_mean"],
    "bits_per_byte": loss["bits_per_byte"],
    # All else that may differ: a line takes runs that are equal in it.
    "rest": files.digest(
      [
        {k: v for k, v in made.settings.items() if k != "rows"},
        sorted(made.inputs),
        student.begins_with,
        {
          k: v
          for k, v in selection.settings.items()
          if k not in (*BUDGET, "scores")
        },
      ]
    ),
  }
  # Models that it reads beside the scores; of other rows they are the same.
  run["read"] = [made.inputs.get(name) for name in _MODELS]
  for role in ("teacher", "reference"):
    table = tables.get(role)
    here = found.scores.get(table)
    run[f"{role}_scores"] = table
    run[role] = here.parameters if here else None
  return run


def lines(
  runs: Mapping[str, Mapping[str, Any]], axis: str
) -> list[dict[str, Any]]:
  """Families of runs that differ along an axis alone, in its order.

  Args:
    runs: by name, with "rest", "loss" and what `AXES` names.
    axis: a key of `AXES`.

  Returns:
    Of each family with at least two values: `label`, and `names`, `values`
    and `losses` of its runs.
  """
  families = collections.defaultdict(list)
  for name, run in runs.items():
    if run[axis] is None:
      continue
    own = {f"{a}_scores" if a != "kept" else a for a in AXES if a != axis}
    key = run["rest"], *((a, run[a]) for a in sorted(own))
    if axis != "teacher":
      key += (*run["read"],)
    families[key].append((run[axis], name))
  found = []
  for members in families.values():
    if len({value for value, _ in members}) < 2:
      continue
    values, names = zip(*sorted(members))
    found.append(
      {
        "label": _label(runs[names[0]], axis),
        "names": list(names),
        "values": list(values),
        "losses": [runs[name]["loss"] for name in names],
      }
    )
  return found


def _label(run: Mapping[str, Any], axis: str) -> str:
  """What the runs of a family have in common."""
  words = [run["definition"]]
  words += [
    run[f"{role}_scores"]
    for role in ("teacher", "reference")
    if role != axis and run[f"{role}_scores"]
  ]
  return ", ".join(words + ([] if axis == "kept" else [f"α {run['kept']:.2g}"]))


def section(found: Mapping[str, Any]) -> page.Section:
  """All students, and a picture of each axis that was varied."""
  header = ["student", "rows by", "teacher", "its parameters", "reference"]
  header += ["its parameters", "α", "steps", "training FLOPs", "held-out loss"]
  header += ["bits per byte"]
  rows = [
    [
      name,
      run["definition"],
      *_scorer(run, "teacher"),
      *_scorer(run, "reference"),
      f"{run['kept']:.3g}",
      f"{run['steps']:,}",
      f"{run['train_flops']:.3g}",
      f"{run['loss']:.4f}",
      f"{run['bits_per_byte']:.4f}",
    ]
    for name, run in sorted(found["runs"].items(), key=lambda r: r[1]["loss"])
  ]
  warm = [name for name, run in found["runs"].items() if run.get("begins_with")]
  varied = {a: there for a, there in found["lines"].items() if there}
  others = ", ".join(AXES[axis] for axis in AXES if axis not in varied)
  return page.Section(
    TITLE,
    [DEFINITION],
    table=(header, rows),
    left=2,
    notes=([f"Not varied alone: {others}."] if others else [])
    + [f"Began with given weights (student.init): {', '.join(warm)}."]
    * bool(warm)
    + comparable.in_words(found.get("left_out", ())),
    pictures=[(_picture(a, there), AXES[a]) for a, there in varied.items()],
  )


def _scorer(run: Mapping[str, Any], role: str) -> tuple[str, str]:
  table = run[f"{role}_scores"]
  return (table, number(run[role])) if table else ("–", "–")


def _picture(axis: str, families: Sequence[Mapping[str, Any]]) -> str:
  figure, ax = page.axes(
    f"Held-out loss by {axis}".replace("kept", "α"),
    AXES[axis],
    "nats per token",
  )
  for style, line in zip(page.LINES, families):
    label = page.plain(line["label"])
    ax.plot(line["values"], line["losses"], **style, marker="o", label=label)
  if axis != "kept":
    ax.set_xscale("log")
  page.legend(ax)
  return page.picture(figure)
