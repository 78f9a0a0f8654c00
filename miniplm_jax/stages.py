"""The steps of each stage, composed from the config."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

from etils import epath, epy

from miniplm_jax import hf_export
from miniplm_jax.config import Config
from miniplm_jax.config.root import STUDENT
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.corpus import convert_step, tokenize_step
from miniplm_jax.corpus.sources import CorpusSource
from miniplm_jax.criteria import CRITERIA, criterion
from miniplm_jax.distillation import proxy_step
from miniplm_jax.evaluation import (
  divergence_step,
  evaluate_step,
  generate,
  score_documents_step,
  tasks_step,
)
from miniplm_jax.evaluation.subjects import Subject
from miniplm_jax.forecast import plan_step
from miniplm_jax.methods import MethodNames
from miniplm_jax.models.ref import REFERENCE, ROLES, TEACHER
from miniplm_jax.report import (
  compare_step,
  model_card,
  publish_step,
  report_step,
  selection_report_step,
  tasks_report_step,
)
from miniplm_jax.report.analyses.analyze_step import Analyses
from miniplm_jax.scoring import score_step
from miniplm_jax.scoring.ngram import PREFIX
from miniplm_jax.selection import materialize_step, select_step
from miniplm_jax.staged import Staged
from miniplm_jax.trainings import Trainings

with epy.lazy_imports():  # it imports JAX
  from miniplm_jax.forecast import outlook_page


# Stage modules import nothing heavy; what they run does.
class Stages:
  """The steps of each stage, composed from the config."""

  def __init__(
    self,
    config: Config,
    workdir: Workdir,
    names: Mapping[str, MethodNames] | None = None,
  ):
    """Those of the config's methods, or of others by their labels."""
    self.config, self.workdir = config, workdir
    self.by_label = names or dict(zip(config.methods, config.names))
    self.names = [*self.by_label.values()]
    self.trainings = Trainings(config, workdir)
    self.corpus = workdir.corpus / MANIFEST

  def steps(self, stage: str) -> list[Step]:
    """The steps of one stage, in the order in which they run.

    Raises:
      UserError: something that the config names is not there.
    """
    return getattr(self, stage)()

  def tokenize(self) -> list[Step]:
    """Text → rows."""
    c = self.config
    return [tokenize_step.step(c.corpus, self.workdir.corpus, c.run)]

  def teacher(self) -> list[Step]:
    """A teacher that is trained here."""
    return self.trainings.scorer_steps(TEACHER)

  def reference(self) -> list[Step]:
    """The reference, if it is trained here."""
    return self.trainings.scorer_steps(REFERENCE)

  def conditional(self) -> list[Step]:
    """The reference, trained on target text, if the config names some."""
    return self.trainings.conditional_steps()

  def score(self) -> list[Step]:
    """A score table for each model."""
    return self._scoring().steps()

  def verify(self, dry_run: bool):
    """Looks at finished score tables."""
    self._scoring().look(dry_run)

  def _scoring(self) -> score_step.Scoring:
    """The tables of teacher, reference, and more."""
    c, models = self.config, self.trainings.scored()
    return score_step.Scoring(
      c.score, c.verify, self.corpus, models, self.workdir, c.run, c.alpha
    )

  def proxy(self) -> list[Step]:
    """The proxy, and its score table."""
    c = self.config
    if "proxy" not in c.methods:
      return []
    models = {role: self.trainings.ref(role) for role in ROLES}
    table, how = self.workdir.scores(c.proxy.name), (c.run, c.verify)
    score = score_step.with_parts(c.score, self.corpus, [table])
    of = models, c.alpha, self.workdir
    return proxy_step.Proxy(c.proxy, score, *of, *how).steps()

  def select(self) -> list[Step]:
    """A selection for each way to rank, and its report."""
    c, workdir, corpus = self.config, self.workdir, self.corpus
    # Two may share one.
    criteria = {n.selection: n.definition for n in self.names if not n.staged}
    # What only the reports need is looked at before there is anything to show.
    check = functools.partial(
      selection_report_step.check, c.select, criteria.keys(), workdir
    )
    rows = [
      select_step.Selecting(
        c.select,
        definition,
        self._tables(definition),
        corpus,
        workdir.selection(name),
        check,
      ).step()
      for name, definition in criteria.items()
    ]
    rows += [staged.first(check) for staged in self._staged()]
    every = c.run.log_every_seconds
    reports = [
      selection_report_step.step(c.select, each, workdir, every)
      for each in rows
    ]
    return [*rows, *reports]

  def _staged(self) -> list[Staged]:
    """The students that are trained in stages."""
    names = [n for n in self.names if n.staged]
    if names:  # it is read when a stage has ended, and refused before
      self._tables(self.config.staged.definition, "staged", [STUDENT])
    return [Staged(self.trainings, n, self._tables) for n in names]

  def _tables(
    self, definition: str, section: str = "select", more: Sequence[str] = ()
  ) -> dict[str, epath.Path]:
    """The score tables that a criterion reads, by their names in it.

    Args:
      section: that has it, for messages.
      more: names that it has beside those of tables.

    Raises:
      UserError: no model has such a name, and no table is there.
    """
    c, scores = self.config, self.workdir.root / "scores"
    offered = {*ROLES, *(ref.name for ref in self.trainings.more()), *more}
    staged = (table for n in self.names for table in c.stage_tables(n))
    names, tables = {*c.tables, *offered, *staged}, {}
    for name in criterion(definition).reads:
      tables[name] = self.workdir.scores(c.folder_of(name))
      if name not in names and not tables[name].exists():
        offered.update(
          path.parent.name for path in scores.glob(f"*/{MANIFEST}")
        )
        offered.update(["proxy"] * ("proxy" in c.methods))
        raise UserError(
          f"there is no criterion and no score table {name}",
          f"config.{section}.definition={definition}",
          f"criteria are {', '.join(CRITERIA)}; tables "
          f"{', '.join(sorted(offered))}",
        )
    return tables

  def materialize(self) -> list[Step]:
    """Kept rows as files."""
    c, form = self.config, self.config.materialize.format
    if form == "none":
      return []
    # What is selected as it is trained is done with then.
    plain = [names for names in self.names if not names.staged]
    selections = dict.fromkeys(names.selection for names in plain)
    folders = map(self.workdir.selection, selections)
    return [
      materialize_step.step(form, each, self.corpus, c.run) for each in folders
    ]

  def seqkd(self) -> list[Step]:
    """Rows that the teacher goes on with."""
    generated = map(self.trainings.generated, self.names)
    return [rows.step(self.config.run) for rows in generated if rows]

  def convert(self) -> list[Step]:
    """Kept rows in a student's own tokens."""
    c, workdir = self.config, self.workdir
    if not c.student.tokenizer:
      return []
    return [
      convert_step.step(
        c.student,
        c.corpus,
        workdir.student(names.student) / "corpus",
        {
          "corpus": self.corpus,
          "selection": workdir.selection(names.selection) / MANIFEST,
          **self.trainings.generated_inputs(names),
        },
        names.selection,
        c.run,
      )
      for names in self.names
    ]

  def logits(self) -> list[Step]:
    """What a teacher says of the tokens of kept rows."""
    labels = filter(None, map(self.trainings.labels, self.names))
    by_folder = {str(stored.folder): stored for stored in labels}
    return [stored.step(self.config.run) for stored in by_folder.values()]

  def train(self) -> list[Step]:
    """The students."""
    plain = [n for n in self.names if not n.staged]
    steps = [self.trainings.student_step(names) for names in plain]
    return steps + [s for staged in self._staged() for s in staged.steps()]

  def evaluate(self) -> list[Step]:
    """Held-out losses and tasks of every model."""
    c, losses = self.config, self._losses(self._subjects())
    models = self._subjects(c.evaluation.scorers) if c.evaluation.tasks else []
    runner = tasks_step.Runner(
      c.evaluation, c.corpus.max_length, c.score.batch_tokens, c.run
    )
    table = tasks_report_step.steps(models, c.evaluation, self.workdir)
    apart = self._divergences(self._subjects(with_scorers=False))
    return [*losses, *runner.steps(models), *table, *apart]

  def _losses(self, models: Iterable[Subject]) -> list[Step]:
    """Held-out losses, see `evaluate_step.step`.

    Students' are views: stages evaluate and compare may share one, and say
    otherwise which rows. Of a teacher they take too long for that.
    """
    c = self.config
    options = c.evaluate, c.score, c.run
    return [evaluate_step.step(m, *options, m.ref is None) for m in models]

  def _divergences(
    self, students: Sequence[Subject], is_view: bool = False
  ) -> list[Step]:
    """How far students are from the teacher, if that is asked."""
    c, ref = self.config, self.trainings.ref(TEACHER)
    teacher = Subject.scorer(ref, self.corpus, c.score.dtype)
    how = c.evaluation, c.evaluate, c.score.batch_tokens, c.run, is_view
    return divergence_step.Runner(teacher, *how).steps(students)

  def compare(self) -> list[Step]:
    """Criteria × seeds: selections, students, losses; what they come to."""
    c, compared = self.config, self.config.compared
    selections, students, subjects = [], [], []
    for seed in c.compare.seeds:
      train = c.train.replace(seed=seed)
      for name, by_seed in compared.items():
        definition = by_seed[seed].definition
        select = c.compare.select_of(c.select, definition, seed)
        section = c.replace(select=select, train=train)
        one = Stages(section, self.workdir, {name: by_seed[seed]})
        selections += one.select()
        students += [*one.convert(), *one.train()]
        subjects += one._subjects(with_scorers=False)
        students += one._losses(subjects[-1:])
    if not c.compare.criteria:
      return []
    steps = {}  # one selection may serve all seeds
    apart = self._divergences(subjects, is_view=True)
    for step in (*selections, *students, *apart):
      step = dataclasses.replace(step, made_in=compare_step.STAGE)
      steps.setdefault(step.manifest, step)
    where = self.workdir, self.corpus
    table = compare_step.step(c.compare, compared, *where, bool(apart))
    return [*steps.values(), table]

  def _subjects(self, with_scorers: bool = True) -> list[Subject]:
    """The students, and teacher and reference where they score here."""
    c, folder = self.config, self.workdir.student
    students = [
      Subject(
        m,
        n.student,
        folder(n.student),
        self.trainings.corpus_inputs(n),
        c.train.dtype,
      )
      for m, n in self.by_label.items()
    ]
    return students + [
      Subject.scorer(self.trainings.ref(r), self.corpus, c.score.dtype)
      for r in c.roles_with_model
      if with_scorers
    ]

  def export(self) -> list[Step]:
    """The students as Hugging Face directories."""
    c, workdir = self.config, self.workdir
    return [
      hf_export.Export(
        names.student,
        workdir.student(names.student),
        self.trainings.corpus_inputs(names),
        workdir.selection(names.selection) / MANIFEST,
        c.export,
        c.run,
        model_card.write,
      ).step()
      for names in self.names
    ]

  def score_documents(self) -> list[Step]:
    """Whole documents under each model."""
    c = self.config
    return score_documents_step.Scoring(
      c.documents,
      CorpusSource(c.corpus, self.workdir.corpus),
      c.score,
      self.workdir.document_scores,
      c.run,
    ).steps(self.trainings.scored())

  def publish(self) -> list[Step]:
    """The score tables, for others."""
    tables = {ref.name: ref.table for ref in self.trainings.scored()}
    return [publish_step.step(tables, self.corpus, self.workdir.published)]

  def generate(self, dry_run: bool):
    """Looks at what a model writes."""
    c = self.config
    student = self.workdir.student(c.names_of(c.method).student)
    generate.look(c.generate, student, c.run, dry_run)

  def plan(self, dry_run: bool):
    """Looks at what the run would take on TPUs."""
    c, of = self.config, self.trainings
    what = of.on_tpus, of.not_on_tpus
    plan_step.look(c.plan, c.run, *what, self.workdir, dry_run)

  def analyze(self) -> list[Step]:
    """What all runs of the workdir say together."""
    return [self.analyses.step()]

  @property
  def analyses(self) -> Analyses:
    """The analyses of the workdir."""
    c = self.config
    models = {role: c.tables[role] for role in ROLES}
    more = [text for text in c.score.more if f"={PREFIX}" not in text]
    return Analyses(self.workdir, models, more, c.select.ratio)

  def report(self) -> list[Step]:
    """The report of the run."""
    c, workdir = self.config, self.workdir
    roles, proxy = c.scorers, None
    if "proxy" in c.methods:
      roles, proxy = (*roles, "proxy"), (c.proxy.sample, c.score.seed, c.alpha)
    tables = {role: workdir.scores(c.tables[role]) for role in roles}
    for names in self.names:
      tables |= self._tables(names.definition)
    return [
      report_step.Report(
        self.by_label,
        tables,
        c.roles_with_model,
        bool(c.evaluation.tasks),
        bool(c.evaluation.divergence),
        workdir,
        self.analyses,
        lambda path: outlook_page.section(path),
        proxy,
      ).step()
    ]
