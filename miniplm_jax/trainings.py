"""The models that a run trains, composed from the config.

Teacher and reference where none is given, and a student for each method.
"""

import dataclasses
import functools
from collections.abc import Mapping

from etils import epy

from miniplm_jax.config import Config
from miniplm_jax.core.step import Input, Step
from miniplm_jax.core.workdir import MANIFEST, TARGET, Workdir
from miniplm_jax.corpus import convert_step, tokenize_step
from miniplm_jax.criteria import criterion
from miniplm_jax.distillation import objectives
from miniplm_jax.distillation.logits_step import StoredLabels
from miniplm_jax.distillation.seqkd_step import GeneratedRows
from miniplm_jax.methods import INIT, OBJECTIVES, MethodNames
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ref import (
  CONDITIONAL,
  REFERENCE,
  ROLES,
  TEACHER,
  ModelRef,
)
from miniplm_jax.scoring.ngram import NgramRef
from miniplm_jax.training import budget, train_step, trained, warm_start
from miniplm_jax.training.spec import TrainSpec

with epy.lazy_imports():  # they import JAX, or Arrow
  from miniplm_jax.corpus import store, trained_rows
  from miniplm_jax.forecast import workload


class Trainings:
  """What is trained, and what it is made of."""

  def __init__(self, config: Config, workdir: Workdir):
    self.config, self.workdir = config, workdir
    self.corpus = workdir.corpus / MANIFEST

  def ref(self, role: str) -> ModelRef:
    """The teacher or the reference."""
    return ModelRef.of_role(role, self.config.roles[role], self.workdir)

  def scorer(self, role: str) -> TrainSpec | None:
    """How a teacher or a reference is trained, if it is trained here."""
    c, section, ref = self.config, self.config.roles[role], self.ref(role)
    if ref.path or ref.scores:
      return None
    return TrainSpec(
      stage=role,
      folder=ref.trained,
      shape=section.model,
      train=section.train,
      run=c.run,
      max_length=c.corpus.max_length,
      rows=f"split {role}",
      row_ids=lambda corpus, unused_inputs: corpus.rows_of(role),
      ignore_domains=c.evaluate.ignore_domains,
      writes_hf=True,
    )

  def scorer_steps(self, role: str) -> list[Step]:
    """A teacher or a reference, if it is trained here."""
    spec = self.scorer(role)
    return [train_step.step(spec, {"corpus": self.corpus})] if spec else []

  @property
  def conditional(self) -> ModelRef | None:
    """The reference that goes on with target text, if there is any."""
    if not self.config.conditional.source:
      return None
    return ModelRef(
      CONDITIONAL,
      trained=self.workdir.scorer(CONDITIONAL),
      table=self.workdir.scores(CONDITIONAL),
    )

  def conditional_steps(self) -> list[Step]:
    """Rows of the target text, and the reference that goes on with them."""
    c, ref = self.config, self.conditional
    if not ref:
      return []
    target = tokenize_step.target_step(
      c.conditional, c.corpus, self.corpus, ref.trained / "corpus", c.run
    )
    inputs = {
      "corpus": self.corpus,
      TARGET: target.manifest,
      INIT: self.ref(REFERENCE).as_input(),
    }
    return [target, train_step.step(self._conditional_spec(), inputs)]

  def _conditional_spec(self) -> TrainSpec:
    c, ref, begin = self.config, self.conditional, self.ref(REFERENCE)
    return TrainSpec(
      stage=CONDITIONAL,
      folder=ref.trained,
      shape=begin.shape(),
      train=c.conditional.train,
      run=c.run,
      max_length=c.corpus.max_length,
      begin=functools.partial(warm_start.load, begin),
      rows="target text",
      row_ids=lambda corpus, inputs: trained_rows.new_rows(
        corpus, store.Corpus(inputs["corpus"])
      ),
      writes_hf=True,
    )

  def more(self) -> list[ModelRef | NgramRef]:
    """Models that are scored beside teacher and reference."""
    workdir = self.workdir
    return [self.conditional] * bool(self.conditional) + [
      NgramRef.named(item, workdir, self.corpus)
      or ModelRef.named(item, workdir)
      for item in self.config.score.more
    ]

  def scored(self) -> list[ModelRef | NgramRef]:
    """All models that say something of D."""
    return [*map(self.ref, self.config.scorers), *self.more()]

  def networks(self) -> list[ModelRef]:
    """Those of them that run over D: no counts, no scores from elsewhere."""
    models = [m for m in self.scored() if isinstance(m, ModelRef)]
    return [m for m in models if not m.scores]

  def generated(self, names: MethodNames) -> GeneratedRows | None:
    """The rows that the teacher continues for a student, or None."""
    c, workdir = self.config, self.workdir
    if not names.generated:
      return None
    return GeneratedRows(
      folder=workdir.generated(names.student),
      corpus=self.corpus,
      selection=workdir.selection(names.selection) / MANIFEST,
      teacher=self.ref(TEACHER),
      options=c.seqkd,
      train=c.train,
      max_length=c.corpus.max_length,
      eos_token=c.corpus.eos_token,
    )

  def generated_inputs(self, names: MethodNames) -> dict[str, Input]:
    """Inputs of the steps that read generated rows; empty without any."""
    generated = self.generated(names)
    return generated.as_inputs() if generated else {}

  def labels(self, names: MethodNames) -> StoredLabels | None:
    """What a frozen model has stored for a student's objective, or None."""
    c, objective = self.config, OBJECTIVES[names.objective]
    if not objective.labels:
      return None
    asked = objective.labels(c.section_of(objective))
    return StoredLabels.of(
      asked,
      self.ref(asked.role),
      self.workdir.selection(names.selection) / MANIFEST,
      self.corpus,
      c.score,
      c.logits.rows_per_part,
    )

  @property
  def init(self) -> ModelRef | None:
    """The model whose weights students begin with, if there is one."""
    c = self.config.student
    return ModelRef("student.init", c.init, c.init_revision) if c.init else None

  def student(self, names: MethodNames) -> TrainSpec:
    """How a student is trained.

    Raises:
      UserError: the teacher's shape is needed, and not known.
    """
    c, workdir, student = self.config, self.workdir, self.config.student
    objective = objectives.spec(
      names.objective,
      c.section_of(OBJECTIVES[names.objective]),
      train=c.train,
      shape=student.model,
      max_length=c.corpus.max_length,
      teacher=self.ref(TEACHER),
      labels=self.labels(names),
      finished=workdir.student(names.student) / MANIFEST,
    )
    token_flops = objective.token_flops if c.equal_flops else 0.0
    train = budget.affordable(
      c.train, student.model, c.corpus.max_length, token_flops
    )
    inputs = {**self.generated_inputs(names), **objective.inputs}
    begin = self.init and functools.partial(warm_start.load, self.init)
    return TrainSpec(
      stage="train",
      folder=workdir.student(names.student),
      shape=student.model,
      train=train,
      run=c.run,
      max_length=c.corpus.max_length,
      objective=objective,
      begin=begin,
      rows=f"{trained.OF_SELECTION}{names.selection}",
      row_ids=trained.row_ids,
      ignore_domains=c.evaluate.ignore_domains,
      export=c.export,
      plain_steps=c.train.steps,
      offline=functools.partial(self.spent_before, names, inputs),
    )

  def spent_before(
    self, names: MethodNames, inputs: Mapping[str, Input]
  ) -> dict[str, float | None]:
    """FLOPs of a method before its training, by part; None is not known."""
    c = self.config
    is_reference_trained = not (c.reference.path or c.reference.scores)
    tables = {n: c.folder_of(n) for n in criterion(names.definition).reads}
    selection = self.workdir.selection(names.selection) / MANIFEST
    # Before there are the rows of all stages, some are still to be scored.
    if names.staged and selection.exists():
      tables |= {name: name for name in c.stage_tables(names)}
    return budget.offline(
      self.workdir, selection, inputs, tables, is_reference_trained
    )

  def corpus_inputs(self, names: MethodNames) -> dict[str, Input]:
    """The inputs that are a student's corpus."""
    c, name = self.config, names.student
    return convert_step.corpus_inputs(c.student, c.corpus, self.workdir, name)

  def student_inputs(self, names: MethodNames) -> dict[str, Input]:
    """What it reads, beside what its objective does."""
    inputs = {
      **self.corpus_inputs(names),
      "selection": self.workdir.selection(names.selection) / MANIFEST,
      **self.generated_inputs(names),
    }
    if self.init:
      inputs[INIT] = self.init.as_input()
    return inputs

  def student_step(self, names: MethodNames) -> Step:
    """The step that trains a student; raises UserError as `student`."""
    return train_step.step(self.student(names), self.student_inputs(names))

  def on_tpus(self) -> "list[workload.Program]":
    """What TPUs would have to run, in the order of the stages.

    Raises:
      UserError: the shape of a given model is needed, and not known.
    """
    c, programs = self.config, []
    rows = workload.rows_of_d(self.corpus, c.plan)
    specs = {role: self.scorer(role) for role in ROLES}
    if self.conditional:
      specs[CONDITIONAL] = self._conditional_spec()
    for role, spec in specs.items():
      if spec:
        programs.append(workload.training(f"train {role}", spec))
    for ref in self.networks():
      name = f"{workload.SCORE_BY}{ref.role or ref.name}"
      shape = ref.shape() or self.ref(REFERENCE).shape()
      programs.append(self._scoring(name, shape, rows * c.score.share))
    if "proxy" in c.methods:
      length = c.corpus.max_length
      programs += workload.regression(c.proxy, c.score, c.run, length, rows)
    kept = c.select.budget(rows)
    kept /= c.corpus.max_length if c.select.tokens else 1
    for method, names in zip(c.methods, c.names):
      programs += self._of_method(method, names, rows, kept)
    if students := c.all_names[len(c.names) :]:
      spec = self.student(students[0])
      one = workload.training("train students of compare", spec)
      programs.append(dataclasses.replace(one, models=len(students)))
    return programs

  def _scoring(self, name: str, shape: Architecture, rows: float):
    c = self.config
    return workload.scoring(name, shape, c.score, c.corpus.max_length, rows)

  def _of_method(
    self, method: str, names: MethodNames, rows: int, kept: float
  ) -> "list[workload.Program]":
    """What TPUs run for one method, of D's rows and those that it keeps."""
    c, length, programs = self.config, self.config.corpus.max_length, []
    spec, teacher = self.student(names), self.ref(TEACHER)
    if generated := self.generated(names):
      programs.append(
        workload.Decoding(
          f"generate for {method}",
          (teacher.shape(),),
          c.seqkd.dtype,
          generated.prompt_tokens,
          length + 1 - generated.prompt_tokens,
          c.seqkd.batch_size,
          min(generated.settings["rows"], round(kept)),
          "seqkd.batch_size",
        )
      )
    if labels := self.labels(names):
      name = f"logits for {method}"
      programs.append(self._scoring(name, labels.model.shape(), kept))
    if c.stage_tables(names):
      *ends, last = c.staged.ends(c.train.steps)
      rest = sum(rows - kept * end / last for end in ends)
      name = f"score between stages of {method}"
      programs.append(self._scoring(name, c.student.model, rest))
    programs.append(workload.student_training(method, spec, teacher))
    programs += workload.sampling(method, spec, teacher)
    return programs

  @property
  def not_on_tpus(self) -> list[str]:
    """What TPUs would have to run beside `on_tpus`, in words."""
    c = self.config
    parts = ["held-out losses of stage evaluate and on the way"]
    if c.evaluation.tasks:
      parts.append(f"tasks ({', '.join(c.evaluation.tasks)})")
    return [*parts, "stages that run by name alone (score_documents, generate)"]
