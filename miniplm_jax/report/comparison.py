"""The methods side by side: what each cost, and what it reached."""

from collections.abc import Mapping
from typing import Any

from miniplm_jax.core.groups import ALL
from miniplm_jax.evaluation.heldout import losses
from miniplm_jax.methods import trained_by
from miniplm_jax.report import findings
from miniplm_jax.report.inventory import Student
from miniplm_jax.report.page import Section, Table, or_unknown
from miniplm_jax.training import flops

_LAST = 20  # steps over which the last training loss is a mean


def rows(students: Mapping[str, Student]) -> dict[str, dict[str, Any]]:
  """What each method cost, and what it reached, as report.json has it."""
  return {method: _row(each) for method, each in students.items()}


def _row(student: Student) -> dict[str, Any]:
  training, loss = student.training, losses(student.evaluation)[ALL]
  _, values = student.curve("train/loss")  # none without a record
  last = values[-_LAST:].tolist()
  return {
    "rows_from": student.selection.path.parent.name,
    "objective": trained_by(training.settings),
    "steps": training.counts["steps"],
    "train_flops": training.details["train_flops"],
    # Spent before its training, by part; None is not known.
    "offline_flops": student.offline_by_part,
    # On held-out rows, mean over rows of the mean per token, nats.
    "loss": loss["instance_mean"],
    "bits_per_byte": loss["bits_per_byte"],
    "seconds": training.details["seconds"],  # of the last run of its training
    "first_loss": float(values[0]) if last else None,
    "last_loss": sum(last) / len(last) if last else None,
  }


def table(students: Mapping[str, Student]) -> Table:
  """A row for each method."""
  row_of = rows(students)

  def fall(method: str) -> str | None:
    first, last = (row_of[method][f"{end}_loss"] for end in ("first", "last"))
    return None if first is None else f"{first:.3f} → {last:.3f}"

  return Table.of(
    students,
    ("student", "", str),
    ("rows from", "", lambda m: row_of[m]["rows_from"]),
    ("ranked by", "", lambda m: students[m].selection.settings["definition"]),
    ("objective", "", lambda m: row_of[m]["objective"]),
    ("steps", ",", lambda m: row_of[m]["steps"]),
    ("training FLOPs", ".3g", lambda m: row_of[m]["train_flops"]),
    ("offline FLOPs", ".3g", lambda m: or_unknown(students[m].offline_flops)),
    ("held-out loss", ".4f", lambda m: row_of[m]["loss"]),
    ("bits per byte", ".4f", lambda m: row_of[m]["bits_per_byte"]),
    ("seconds", ",.1f", lambda m: row_of[m]["seconds"]),
    ("training loss", ">", fall),
  )


def section(students: Mapping[str, Student]) -> Section:
  """The table, and what it means."""
  main = next(iter(students))
  row_steps = students[main].training.counts["steps"]
  return Section(
    "Methods",
    [
      "Held-out loss in nats, mean over rows of the mean per token. Training "
      "FLOPs hold the teacher's passes where it reads along, and padding; what "
      "rematerialization computes again does not count. "
      "Offline FLOPs are what came before: scoring, the reference, the proxy, "
      "what the teacher wrote; parts that several methods share count whole "
      "for each, the teacher's own training does not count. Training loss: "
      f"first step → mean of the last {_LAST}; those of different objectives "
      "do not compare."
    ],
    table=table(students),
    notes=[
      *(
        f"{method}: {findings.steps_in_words(main, students[main], one)}."
        for method, one in students.items()
        if one.training.counts["steps"] != row_steps
      ),
      *(
        f"{method}, offline: {flops.in_words(one.offline_by_part)}."
        for method, one in students.items()
        if one.offline_by_part
      ),
    ],
  )
