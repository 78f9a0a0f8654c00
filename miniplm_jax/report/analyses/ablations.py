"""One thing varied at a time: α, the size of the reference, of the teacher."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from miniplm_jax.core import files
from miniplm_jax.core.groups import ALL
from miniplm_jax.evaluation.heldout import losses
from miniplm_jax.methods import LABELS_OF, SEQKD, TEACHER_WEIGHTS
from miniplm_jax.report import plots
from miniplm_jax.report.analyses.base import Analysis, NoInputs
from miniplm_jax.report.inventory import BUDGET, Inventory, Student, same_rows
from miniplm_jax.report.page import Section, Table, or_unknown
from miniplm_jax.training import comparable

# What is varied, with its label; a line varies one of them.
AXES = {
  "kept": "α, share of rows kept",
  "reference": "parameters of the reference",
  "teacher": "parameters of the teacher",
}
_MODELS = TEACHER_WEIGHTS, SEQKD, LABELS_OF  # inputs of a student


def measure(workdir: Inventory) -> dict[str, Any]:
  """All students, and the lines along each axis.

  Raises:
    NoInputs: no student has been evaluated, or nothing was varied alone.
  """
  students = {
    name: student
    for name, student in workdir.students.items()
    if not student.reads_other_tokens
  }
  students, left_out = same_rows(students, "evaluation")
  runs = {name: _run(workdir, each) for name, each in students.items()}
  if not runs:
    raise NoInputs("no student has been evaluated: run --stages=evaluate")
  by_axis = {axis: lines(runs, axis) for axis in AXES}
  if not any(by_axis.values()):
    raise NoInputs(f"no students differ alone in {' or '.join(AXES.values())}")
  return {
    "runs": runs,
    "lines": by_axis,
    "left_out": left_out,
  }


def _run(workdir: Inventory, student: Student) -> dict[str, Any]:
  """What a student was made with, and what it reached."""
  training, selection = student.training, student.selection
  loss = losses(student.evaluation)[ALL]
  tables = selection.settings["scores"]
  run = {
    "definition": selection.settings["definition"],
    "kept": selection.counts["kept"] / selection.counts["rows"],
    "steps": training.counts["steps"],
    "train_flops": training.details["train_flops"],
    "begins_with": student.begins_with,
    "loss": loss["instance_mean"],
    "bits_per_byte": loss["bits_per_byte"],
    # All else that may differ: a line takes runs that are equal in it.
    "rest": files.digest(
      [
        {k: v for k, v in training.settings.items() if k != "rows"},
        sorted(training.inputs),
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
  run["read"] = [training.inputs.get(name) for name in _MODELS]
  for role in ("teacher", "reference"):
    name = tables.get(role)
    scored = workdir.scores.get(name)
    run[f"{role}_scores"] = name
    run[role] = scored.parameters if scored else None
  return run


def lines(
  runs: Mapping[str, Mapping[str, Any]], axis: str
) -> list[dict[str, Any]]:
  """Families of runs, as `_run` has them, that differ along an axis alone.

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
  along = []
  for members in families.values():
    if len({value for value, _ in members}) < 2:
      continue
    values, names = zip(*sorted(members))
    along.append(
      {
        "label": _label(runs[names[0]], axis),
        "names": list(names),
        "values": list(values),
        "losses": [runs[name]["loss"] for name in names],
      }
    )
  return along


def _label(run: Mapping[str, Any], axis: str) -> str:
  """What the runs of a family have in common."""
  words = [run["definition"]]
  words += [
    run[f"{role}_scores"]
    for role in ("teacher", "reference")
    if role != axis and run[f"{role}_scores"]
  ]
  return ", ".join(words + ([] if axis == "kept" else [f"α {run['kept']:.2g}"]))


def render(figures: Mapping[str, Any]) -> Section:
  """All students, and a picture of each axis that was varied."""
  runs, lines_by_axis = figures["runs"], figures["lines"]

  def size(run: Mapping[str, Any], role: str) -> Any:
    return or_unknown(run[role]) if run[f"{role}_scores"] else None

  table = Table.of(
    sorted(runs, key=lambda name: runs[name]["loss"]),
    ("student", "", str),
    ("rows by", "", lambda name: runs[name]["definition"]),
    ("teacher", "", lambda name: runs[name]["teacher_scores"]),
    ("its parameters", ",", lambda name: size(runs[name], "teacher")),
    ("reference", ">", lambda name: runs[name]["reference_scores"]),
    ("its parameters", ",", lambda name: size(runs[name], "reference")),
    ("α", ".3g", lambda name: runs[name]["kept"]),
    ("steps", ",", lambda name: runs[name]["steps"]),
    ("training FLOPs", ".3g", lambda name: runs[name]["train_flops"]),
    ("held-out loss", ".4f", lambda name: runs[name]["loss"]),
    ("bits per byte", ".4f", lambda name: runs[name]["bits_per_byte"]),
  )
  others = ", ".join(AXES[axis] for axis in AXES if not lines_by_axis[axis])
  warm = ", ".join(n for n, run in runs.items() if run.get("begins_with"))
  return Section(
    table=table,
    notes=[f"Not varied alone: {others}."] * bool(others)
    + [f"Began with given weights (student.init): {warm}."] * bool(warm)
    + comparable.in_words(figures.get("left_out", ())),
    pictures=[
      (_picture(axis, families), AXES[axis])
      for axis, families in lines_by_axis.items()
      if families
    ],
  )


def _picture(axis: str, families: Sequence[Mapping[str, Any]]) -> str:
  figure, ax = plots.axes(
    f"Held-out loss by {axis}".replace("kept", "α"),
    AXES[axis],
    "nats per token",
  )
  for style, line in zip(plots.LINES, families):
    label = plots.plain(line["label"])
    ax.plot(line["values"], line["losses"], **style, marker="o", label=label)
  if axis != "kept":
    ax.set_xscale("log")
  plots.legend(ax)
  return plots.picture(figure)


ANALYSIS = Analysis(
  "Ablations",
  "Every student of the workdir that was evaluated. α is the share of the rows "
  "of D that its selection kept; sizes are parameters of the models whose "
  "scores it stands on. Held-out loss in nats (mean over rows of the mean per "
  "token). A line joins students that differ in the one thing alone: the same "
  "shape, training, objective and other settings of the selection. One seed "
  "each unless there are more.",
  measure,
  render,
)
