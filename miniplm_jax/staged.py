"""Method staged: rows are selected again while a student is trained.

As RHO-LOSS (arXiv 2206.07137) does for each batch, with the student as it is,
a stage at a time. Stage k of K is three ordinary steps, in this order:

  scores/<student>-k      the rest of D under the student, unless k is 0 or
                          its criterion does not read that
  selection/<name>-k      its share of the budget, of the rest of D
  students/<student>/<student>-k
                          trained on those, from where stage k − 1 ended

The last training is students/<student> itself. Before it selection/<name> is
written, the rows of all stages, for whoever asks what the student has seen. The
first selection is a step of stage select, all others are of stage train.
"""

import dataclasses
from collections.abc import Callable

from etils import epath, epy

from miniplm_jax.config.root import STUDENT
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.criteria import canonical
from miniplm_jax.criteria.formula import renamed
from miniplm_jax.methods import MethodNames
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.report import selection_report_step
from miniplm_jax.scoring import score_step
from miniplm_jax.selection import materialize_step, select_step
from miniplm_jax.training import train_step
from miniplm_jax.training.trained import OF_SELECTION
from miniplm_jax.trainings import Trainings

with epy.lazy_imports():
  import numpy as np

  from miniplm_jax.corpus import store
  from miniplm_jax.selection import index

STAGE = "train"


@dataclasses.dataclass(frozen=True)
class Staged:
  """A student that is trained in stages."""

  trainings: Trainings
  names: MethodNames
  # Criterion → folders of the score tables that it reads, by name.
  tables: Callable[[str], dict[str, epath.Path]]

  @property
  def _ends(self) -> tuple[int, ...]:
    config = self.trainings.config
    return config.staged.ends(config.train.steps)

  def first(self, check: Callable[[Manifest], None] = lambda _: None) -> Step:
    """The selection of the first stage; see `select_step`."""

    def check_all(corpus: Manifest):
      check(corpus)
      self._refuse_empty(corpus)

    return self._selection(0, check_all)

  def steps(self) -> list[Step]:
    """All others, in their order."""
    last, steps = len(self._ends) - 1, []
    for k in range(last):
      steps += [self._training(k), *self._scores(k + 1), self._selection(k + 1)]
    steps += [*self._union(), self._training(last)]
    return [dataclasses.replace(step, made_in=STAGE) for step in steps]

  def _refuse_empty(self, corpus: Manifest):
    """Raises UserError if a stage's share of the budget is nothing."""
    select, last = self.trainings.config.select, self._ends[-1]
    drawn = store.Corpus(corpus), select.share, select.seed
    budget = select.budget(index.size_drawn(*drawn))
    for k in range(len(self._ends)):
      first, end = self._between(k)
      if budget * end // last == budget * first // last:
        unit = "tokens" if select.tokens else "rows"
        raise UserError(
          f"all stages together keep {budget:,} {unit}, and that for steps "
          f"{first:,} to {end:,} of {last:,} none of them",
          "config.select.ratio, rows and tokens",
          "keep more, or give fewer stages in config.staged",
        )

  def _between(self, k: int) -> tuple[int, int]:
    return (0, *self._ends)[k], self._ends[k]

  def _name(self, k: int) -> str:
    return f"{self.names.student}-{k}"

  def _student(self, k: int) -> epath.Path:
    folder = self.trainings.workdir.student(self.names.student)
    return folder if k == len(self._ends) - 1 else folder / self._name(k)

  def _selected(self, k: int) -> epath.Path:
    return self.trainings.workdir.selection(f"{self.names.selection}-{k}")

  def _kept(self, stages: int) -> dict[str, epath.Path]:
    """The selections of so many stages, as inputs."""
    kept = {f"selection {k}": self._selected(k) for k in range(stages)}
    return {name: folder / MANIFEST for name, folder in kept.items()}

  def _scores(self, k: int) -> list[Step]:
    """The rest of D under the student after stage k − 1, if that is read."""
    t, c = self.trainings, self.trainings.config
    ref = ModelRef(
      self._name(k),
      trained=self._student(k - 1),
      model=c.student.model,
      table=t.workdir.scores(self._name(k)),
    )
    score = c.score.replace(int8_teacher=False)
    scoring = score_step.Scoring(
      score, c.verify, t.corpus, [ref], t.workdir, c.run, c.alpha, self._kept(k)
    )
    return scoring.steps() if c.stage_tables(self.names) else []

  def _selection(self, k: int, check=lambda _: None) -> Step:
    t, c = self.trainings, self.trainings.config
    definition = self.names.definition
    if k:
      definition = renamed(c.staged.definition, STUDENT, self._name(k))
    return select_step.Selecting(
      c.select,
      definition,
      self.tables(definition),
      t.corpus,
      self._selected(k),
      check,
      (*self._between(k), self._ends[-1]),
      self._kept(k),
    ).step()

  def _union(self) -> list[Step]:
    """The rows of all stages, and what else is made of a selection."""
    t, c = self.trainings, self.trainings.config
    folder = t.workdir.selection(self.names.selection)
    then = {"definition": canonical(c.staged.definition), "ends": self._ends}
    parts = self._kept(len(self._ends))
    rows = select_step.union(self.first(), parts, then, folder)
    every, form = c.run.log_every_seconds, c.materialize.format
    report = selection_report_step.step(c.select, rows, t.workdir, every)
    copy = materialize_step.step(form, folder, t.corpus, c.run)
    return [rows, report] + [copy] * (form != "none")

  def _training(self, k: int) -> Step:
    t, spec = self.trainings, self.trainings.student(self.names)
    inputs = t.student_inputs(self.names) | self._kept(k + 1)
    changes = {}
    if k < len(self._ends) - 1:
      del inputs["selection"]  # of all stages
      name, folder = self._selected(k).name, self._student(k)
      changes = {"folder": folder, "rows": f"{OF_SELECTION}{name}"}
      changes |= {"offline": None, "writes_hf": True}
    if k:
      changes |= {"begin": None, "goes_on": f"training {k - 1}"}
      inputs[changes["goes_on"]] = self._student(k - 1) / MANIFEST
    spec = dataclasses.replace(
      spec,
      between=self._between(k),
      row_ids=lambda _, made: kept_rows(made[f"selection {k}"]),
      all_row_ids=lambda _, made: np.sort(
        np.concatenate([kept_rows(made[name]) for name in self._kept(k + 1)])
      ),
      **changes,
    )
    return train_step.step(spec, inputs)
