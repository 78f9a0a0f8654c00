"""Students beside each other: what they saw, what they cost, what they know."""

import collections
import dataclasses
import inspect
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.api import border, steps
from miniplm_jax.api.artifacts import ToPandas
from miniplm_jax.api.scores import Scores
from miniplm_jax.api.students import CriteriaComparison, Run, Student
from miniplm_jax.config import (
  EvaluateConfig,
  RunConfig,
  ScoreConfig,
  SelectConfig,
  TrainConfig,
)
from miniplm_jax.config.compare import CompareConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import shown
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.report import compare_step
from miniplm_jax.training import comparable

with epy.lazy_imports():
  import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Comparison(ToPandas):
  """A line for each student, or for each group that differs in its seed."""

  lines: list[dict[str, Any]]

  def to_arrow(self) -> "pa.Table":
    """A table of name, rows, steps, tokens, flops, seeds, loss, loss_std.

    The loss is held out, the mean over rows of nats per token; its standard
    deviation is that over seeds, null for one.
    """
    return pa.Table.from_pylist(self.lines)

  def __repr__(self) -> str:
    width = max(len(line["name"]) for line in self.lines)
    return "\n".join(
      f"{line['name']:{width}}  {line['steps']:9,} steps  "
      f"{line['flops']:.2e} FLOPs  loss {line['loss']:.4f}"
      + (f" ± {line['loss_std']:.4f}" if line["seeds"] > 1 else "")
      for line in self.lines
    )


_BY_CRITERION = "definition", "name"  # of a selection


@border.in_python()
def compare(
  given: Scores | Run | Iterable[Student],
  criteria: Mapping[str, str] | Sequence[str] = (),
  *,
  shape: Architecture | str | None = None,
  seeds: int | Sequence[int] = 3,
  baseline: str = "random",
  oracle: str = "",
  select: SelectConfig = SelectConfig(),
  evaluate: EvaluateConfig = EvaluateConfig(),
  to: epath.PathLike | None = None,
  run: RunConfig = RunConfig(),
  force: bool = False,
  **options: Any,
) -> "CriteriaComparison | Comparison":
  """Compares criteria over score tables, or students that there are.

  Of score tables it makes what stage compare makes: of each criterion and seed
  a selection and a student with its held-out losses, and a table with
  intervals. Of students, best first, `given` alone counts.

  Args:
    given: score tables; or students, trained and evaluated on the same rows.
    criteria: formulas by name, or names of `criteria.CRITERIA`.
    shape: of the students, or the name of one of `presets`.
    seeds: how many, from 10, or which.
    baseline: the criterion beside which the others stand.
    oracle: that of them whose selection is the best there can be.
    select: how much each keeps, and under which name, with {method} in it.
    evaluate: on which held-out rows; with others they are measured again.
    to: a folder for selections/, students/ and compare/; None is the corpus's.
    force: make all of it again, if it was made otherwise, too.
    **options: fields of `TrainConfig` but for the seed.

  Raises:
    UserError: a student is not evaluated, or was evaluated on other rows.
  """
  if not isinstance(given, Scores):
    if criteria:
      hint = "give what score returns"
      raise UserError("criteria rank rows of score tables", "compare", hint)
    return _of_students(given)
  if type(seeds) is int:  # not True
    seeds = range(10, 10 + seeds)
  for name, value, kind, hint in (
    ("criteria", criteria, Iterable, "give formulas by name, or names"),
    ("seeds", seeds, Iterable, "give how many, as 3, or which, as (10, 11)"),
    ("select", select, SelectConfig, "give such as SelectConfig(ratio=0.2)"),
    ("evaluate", evaluate, EvaluateConfig, "give an EvaluateConfig"),
    ("run", run, RunConfig, "give such as RunConfig(eval_every=20)"),
  ):
    border.of_kind(value, kind, name, hint)
  _refuse_unused(select, options)
  items = border.several(criteria)
  if isinstance(criteria, Mapping):
    items = [n if n == how else f"{n}={how}" for n, how in criteria.items()]
  section = CompareConfig(
    criteria=tuple(items) or ("random",),
    seeds=tuple(seeds),
    baseline=baseline,
    oracle=oracle,
  )
  root = border.folder_of(to) if to else given.corpus.path.parent
  names = section.names(select, "{method}")
  workdir = Workdir(root)
  how = {"run": run, "force": force}
  selected = []  # all, before the first student is trained
  for seed in section.seeds:
    for one in (by_seed[seed] for by_seed in names.values()):
      by = vars(section.select_of(select, one.definition, seed))
      by = {k: v for k, v in by.items() if k not in _BY_CRITERION}
      name, folder = one.selection, workdir.selection(one.selection)
      rows = given.select(one.definition, name=name, to=folder, **how, **by)
      selected.append((one.student, seed, rows))
  for name, seed, rows in selected:
    student = steps.train(
      shape,
      rows,
      to=workdir.student(name),
      ignore_domains=evaluate.ignore_domains,
      **how,
      **options | {"seed": seed},
    )
    losses = steps.measuring(student, evaluate, ScoreConfig(), run, True)
    border.execute([losses], run, force)
  corpus = given.corpus.path / MANIFEST
  table = compare_step.step(section, names, workdir, corpus)
  border.execute([table], run, force)
  return CriteriaComparison(workdir.compared())


def _refuse_unused(select: SelectConfig, options: Mapping[str, Any]):
  """Refuses what the criteria, the seeds or another argument say."""
  unused = {
    "seed": ("seed" in options, "give seeds=, the students'"),
    "select.name": ("{method}" not in select.name, "put {method} into it"),
    "select.seed": (select.seed != SelectConfig.seed, "give seeds="),
    "select.definition": (
      select.definition != SelectConfig.definition,
      "give it among the criteria",
    ),
  }
  values = options | {f"select.{k}": v for k, v in vars(select).items()}
  for name, (is_given, hint) in unused.items():
    if is_given:
      what = f"{name} is {shown(values[name])}"
      raise UserError(what, "compare has one of each criterion and seed", hint)
  own = inspect.signature(steps.train).parameters.keys()
  for name in options.keys() - own - vars(TrainConfig()).keys():
    for kind in SelectConfig, EvaluateConfig, RunConfig:
      if name in vars(kind()):
        argument = kind.__name__.removesuffix("Config")
        hint = f"{argument.lower()}={kind.__name__}"
        hint += f"({name}={shown(options[name])})"
        raise UserError(f"{name} is no option", "compare", f"give {hint}")


def _of_students(students: Run | Iterable[Student]) -> Comparison:
  if isinstance(students, Run):
    students = students.students.values()
  is_several = isinstance(students, Iterable)
  students = list(students) if is_several else []
  if not students or not all(isinstance(one, Student) for one in students):
    hint = "give a list of students, as train returns them, or a Run"
    raise UserError("these are no students to compare", "compare", hint)
  rows = {
    student.evaluated and comparable.rows_of(student.evaluated)
    for student in students
  }
  if len(rows - {None}) > 1:
    names = ", ".join(student.name for student in students)
    hint = "evaluate all on the same rows"
    raise UserError("evaluated on different held-out rows", names, hint)
  groups = collections.defaultdict(list)
  for student in students:
    groups[_settings(student)].append(student)
  lines = [_line(group) for group in groups.values()]
  return Comparison(sorted(lines, key=lambda line: line["loss"]))


def _settings(student: Student) -> str:
  """All that decides the model but the seed."""
  settings = dict(student.settings)
  settings["train"] = settings["train"] | {"seed": None}
  return repr((settings, sorted(student.manifest.inputs.items())))


def _line(group: list[Student]) -> dict[str, Any]:
  first, losses = group[0], [one.evaluation.loss for one in group]
  counts = first.manifest.counts
  return {
    "name": first.name,
    "rows": first.settings["rows"],
    "steps": counts["steps"],
    "tokens": counts["tokens"],
    "flops": first.manifest.details["train_flops"],
    "seeds": len(group),
    "loss": statistics.mean(losses),
    "loss_std": statistics.stdev(losses) if len(losses) > 1 else None,
  }
