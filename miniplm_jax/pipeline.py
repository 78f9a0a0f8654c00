"""The stages in order, and running those that were asked for."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence

from etils import epath, epy
from ml_collections import ConfigDict

from miniplm_jax import config as config_lib
from miniplm_jax import export, generate
from miniplm_jax.config import Config
from miniplm_jax.core import backend, distributed, gs
from miniplm_jax.core.claims import Board
from miniplm_jax.core.decide import decide
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.execute import execute
from miniplm_jax.core.log import log, warn
from miniplm_jax.core.step import Input, Step
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.corpus import convert_step as convert
from miniplm_jax.corpus import step as tokenize
from miniplm_jax.distillation import proxy_step as proxy
from miniplm_jax.evaluate import step as evaluate
from miniplm_jax.evaluate import tasks_step
from miniplm_jax.evaluate.subjects import Subject
from miniplm_jax.forecast import step as plan
from miniplm_jax.methods import MethodNames
from miniplm_jax.models.ref import REFERENCE, ROLES, TEACHER, ModelRef
from miniplm_jax.report import model_card
from miniplm_jax.report import selection_step as selection_report
from miniplm_jax.report import step as report
from miniplm_jax.report import tasks_step as tasks
from miniplm_jax.report.analyses import step as analyze
from miniplm_jax.score import step as score
from miniplm_jax.select import materialize_step as materialize
from miniplm_jax.select import step as select
from miniplm_jax.trainings import Trainings

with epy.lazy_imports():  # it imports JAX
  from miniplm_jax.forecast import outlook


# Stage modules import nothing heavy; what they run does.
class Stages:
  """The steps of each stage, composed from the config."""

  def __init__(self, config: Config, workdir: Workdir):
    self.config, self.workdir = config, workdir
    self.trainings = Trainings(config, workdir)

  def steps(self, stage: str) -> list[Step]:
    """The steps of one stage, in the order in which they run.

    Raises:
      UserError: something that the config names is not there.
    """
    return getattr(self, stage)()

  def tokenize(self) -> list[Step]:
    """Text → rows."""
    config, folder = self.config, self.workdir.corpus
    return [tokenize.step(config.corpus, folder, config.run)]

  def teacher(self) -> list[Step]:
    """A teacher that is trained here."""
    return self.trainings.scorer_steps(TEACHER)

  def reference(self) -> list[Step]:
    """The reference, if it is trained here."""
    return self.trainings.scorer_steps(REFERENCE)

  def score(self) -> list[Step]:
    """A score table for each model."""
    c = self.config
    return score.steps(
      c.score,
      c.verify,
      self.workdir.corpus / MANIFEST,
      self._scored_models(),
      self.workdir,
      c.run,
      # A selection by rows or tokens has no share of its own.
      alpha=c.select.ratio or 0.5,
    )

  def verify(self, dry_run: bool):
    """Looks at finished score tables."""
    c, models = self.config, self._scored_models()
    corpus = self.workdir.corpus / MANIFEST
    score.verify_tables(c.score, c.verify, corpus, models, c.run, dry_run)

  def _scored_models(self) -> list[ModelRef]:
    """Those that a table is made of: teacher, reference, and more."""
    refs = [self.trainings.ref(role) for role in self.config.scorers]
    more = self.config.score.more
    return refs + [ModelRef.named(item, self.workdir) for item in more]

  def proxy(self) -> list[Step]:
    """The proxy, and its score table."""
    c = self.config
    if not c.uses_proxy:
      return []
    models = {role: self.trainings.ref(role) for role in ROLES}
    # A selection by rows or tokens has no share of its own.
    alpha = c.select.ratio or 0.5
    return proxy.steps(
      c.proxy, c.score, models, alpha, self.workdir, c.run, c.verify
    )

  def select(self) -> list[Step]:
    """A selection for each way to rank, and its report."""
    # What only the reports need is looked at before there is anything to show.
    check = functools.partial(selection_report.check, self.config, self.workdir)
    c, workdir = self.config, self.workdir
    sections = {**c.roles, "proxy": c.proxy}
    tables = {role: workdir.scores(s.name) for role, s in sections.items()}
    corpus = workdir.corpus / MANIFEST
    criteria = {n.selection: n.definition for n in c.names}  # two may share one
    rows = [
      select.step(c.select, how, tables, corpus, workdir.selection(name), check)
      for name, how in criteria.items()
    ]
    reports = selection_report.steps(self.config, self.workdir, rows)
    return [*rows, *reports]

  def materialize(self) -> list[Step]:
    """Kept rows as files."""
    return materialize.steps(self.config, self.workdir)

  def seqkd(self) -> list[Step]:
    """Rows that the teacher goes on with."""
    generated = map(self.trainings.generated, self.config.names)
    return [rows.step(self.config.run) for rows in generated if rows]

  def convert(self) -> list[Step]:
    """Kept rows in a student's own tokens."""
    config, workdir = self.config, self.workdir
    if not config.student.tokenizer:
      return []
    return [
      convert.step(
        config.student,
        config.corpus,
        workdir.student(names.student) / "corpus",
        {
          "corpus": workdir.corpus / MANIFEST,
          "selection": workdir.selection(names.selection) / MANIFEST,
          **self.trainings.generated_inputs(names),
        },
        names.selection,
        config.run,
      )
      for names in config.names
    ]

  def logits(self) -> list[Step]:
    """What a teacher says of the tokens of kept rows."""
    labels = filter(None, map(self.trainings.labels, self.config.names))
    by_folder = {str(stored.folder): stored for stored in labels}
    return [stored.step(self.config.run) for stored in by_folder.values()]

  def train(self) -> list[Step]:
    """The students."""
    return [self.trainings.student_step(names) for names in self.config.names]

  def evaluate(self) -> list[Step]:
    """Held-out losses and tasks of every model."""
    c = self.config
    losses = [
      evaluate.step(it, c.evaluate, c.score, c.run) for it in self._subjects()
    ]
    models = self._subjects(c.evaluation.scorers) if c.evaluation.tasks else []
    measures = tasks_step.steps(
      models, c.evaluation, c.corpus.max_length, c.score.batch_tokens, c.run
    )
    table = tasks.steps(models, c.evaluation, self.workdir)
    return [*losses, *measures, *table]

  def _subjects(self, with_scorers: bool = True) -> list[Subject]:
    """The students, and teacher and reference where they score here."""
    c, workdir = self.config, self.workdir
    folder, dtype = workdir.student, c.train.dtype
    students = [
      Subject(m, n.student, folder(n.student), self._corpus_of(n), dtype)
      for m, n in zip(c.methods, c.names)
    ]
    return students + [
      Subject.scorer(
        self.trainings.ref(r), workdir.corpus / MANIFEST, c.score.dtype
      )
      for r in c.roles_with_model
      if with_scorers
    ]

  def _corpus_of(self, names: MethodNames) -> dict[str, Input]:
    """The inputs that are a student's corpus."""
    c, student = self.config, names.student
    return convert.corpus_inputs(c.student, c.corpus, self.workdir, student)

  def export(self) -> list[Step]:
    """The students as Hugging Face directories."""
    c, workdir = self.config, self.workdir
    return [
      export.step(
        names.student,
        workdir.student(names.student),
        self._corpus_of(names),
        workdir.selection(names.selection) / MANIFEST,
        c.export,
        c.run,
        model_card.write,
      )
      for names in c.names
    ]

  def generate(self, dry_run: bool):
    """Looks at what a model writes."""
    c = self.config
    student = self.workdir.student(c.names_of(c.method).student)
    generate.look(c.generate, student, c.run, dry_run)

  def plan(self, dry_run: bool):
    """Looks at what the run would take on TPUs."""
    plan.run(self.config, self.workdir, dry_run, self.trainings.students)

  def analyze(self) -> list[Step]:
    """What all runs of the workdir say together."""
    return analyze.steps(self.config, self.workdir)

  def report(self) -> list[Step]:
    """The report of the run."""

    def plan(path: epath.Path):
      return outlook.section(path)  # it imports JAX: not before the step runs

    return report.steps(self.config, self.workdir, plan)


def run(
  config: ConfigDict,
  where: str,
  stages: Sequence[str],
  *,
  force: bool,
  dry_run: bool,
  prompt: Sequence[str] = (),
):
  """Runs stages in the order of the data.

  Args:
    config: the configuration.
    where: its file, for messages.
    stages: which; empty runs those that the config lists.
    force: redo them even if nothing has changed.
    dry_run: print what would run, on what, and why; run nothing.
    prompt: what stage generate continues, beside the config's own.

  Raises:
    UserError: something that the user can put right.
  """
  config = config_lib.from_dict(config, where)
  with config_lib.naming("config", "command line"):
    config = dataclasses.replace(config, stages=tuple(stages) or config.stages)
  prompts = (*config.generate.prompts, *prompt)
  with config_lib.naming("config.generate", "command line"):
    looks = dataclasses.replace(config.generate, prompts=prompts)
  config = dataclasses.replace(config, generate=looks)
  if prompt and "generate" not in config.stages:
    raise UserError(
      "there is a prompt, and nothing that reads it",
      "command line",
      "add --stages=generate",
    )
  for bucket in buckets(config):
    gs.check(bucket)
  workdir = Workdir(epath.Path(config.workdir))
  all_steps, run = Stages(config, workdir), config.run
  if not dry_run:
    backend.prepare(run.compilation_cache, workdir.root, run.deterministic)
  if run.coordinator and not dry_run:
    distributed.initialize(
      run.coordinator, run.processes, run.process_id, run.lost_after
    )
    backend.refuse_if_different(dataclasses.asdict(config), force)
  if dry_run:
    print(f"{where} in {workdir.root}:")
  order = config_lib.STAGES + config_lib.LOOKS
  with contextlib.ExitStack() as stack:
    board = None
    if not dry_run:
      board = Board(workdir.claims, run.lease_seconds)
      stack.enter_context(board)
    last = max(map(order.index, config.stages))
    if not dry_run:
      distributed.agree(lambda: _refuse_left_out(all_steps, order[: last + 1]))
    makers: dict[epath.Path, Step] = {}  # all steps up to here, asked or not
    for stage in order[: last + 1]:
      is_asked = stage in config.stages
      if stage in config_lib.LOOKS:
        look = functools.partial(getattr(all_steps, stage), dry_run)
        # It compiles for devices that are not here: one process can do that.
        if is_asked:
          distributed.agree(look) if stage == plan.STAGE else look()
        continue
      steps = _steps(all_steps, stage, is_asked)
      if stage != tokenize.STAGE:  # looked at by a check of its own
        makers |= {step.manifest: step for step in steps}
      if not is_asked:
        continue
      if stage != tokenize.STAGE:
        steps = [_checked(j, config, workdir, makers) for j in steps]
      if stage == report.STAGE:
        _say_made_otherwise(*steps, makers)
      _refuse_outside(steps, workdir)
      if not steps and stage in stages:
        log(stage, "skipped, this config leaves it nothing to do")
      if not dry_run:
        execute(steps, force, board)
        continue
      for step in steps:
        print(f"  {stage:11} {decide(step, force)}")
        print(f"              {step.summary}")
  if not dry_run:
    backend.note()


def _refuse_left_out(all_steps: Stages, stages: Sequence[str]):
  """Before hours are spent: what is read is there, or made by then."""
  makers: dict[epath.Path, str] = {}
  for stage in stages:
    if stage in config_lib.LOOKS:
      continue
    steps = _steps(all_steps, stage, False)
    makers |= {step.manifest: stage for step in steps}
    for path in (p for step in steps for p in step.input_manifests):
      maker = makers.get(path, stage)
      asked = all_steps.config.stages
      is_made = maker in asked or stage not in asked
      if not is_made and not path.exists():
        raise UserError(
          f"stage {stage} reads what stage {maker} makes, and has not made",
          str(path),
          f"add {maker} to --stages",
        )


def _steps(all_steps: Stages, stage: str, is_asked: bool) -> list[Step]:
  """Of one that was not asked none, if a model that it read is gone since."""
  try:
    return all_steps.steps(stage)
  except UserError:
    if is_asked:
      raise
    return []


def _checked(
  step: Step, config, workdir: Workdir, makers: Mapping[epath.Path, Step]
) -> Step:
  """With the checks of what any stage finds by its name."""
  corpus, folder, run = config.corpus, workdir.corpus, config.run
  checks = [functools.partial(tokenize.check, corpus, folder, run)]
  if step.stage != analyze.STAGE:  # it shows what there is, of any config
    checks.append(functools.partial(_refuse_made_otherwise, step, makers))
  return dataclasses.replace(step, checks=(*checks, *step.checks))


def _refuse_made_otherwise(step: Step, makers: Mapping[epath.Path, Step]):
  if step.stage == report.STAGE:  # of students it says how they were trained
    tables = score.STAGE, proxy.STAGE
    makers = {k: m for k, m in makers.items() if m.stage in tables}
  step.refuse_made_otherwise(makers)


def _say_made_otherwise(step: Step, makers: Mapping[epath.Path, Step]):
  """Says what a report shows that the config has otherwise."""
  try:
    step.refuse_made_otherwise(makers)
  except UserError as e:
    warn(step.stage, f"shown as it was made: {e.what}, {e.where}")


def buckets(config: Config) -> list[str]:
  """Those that the config's paths are in, as gs://NAME."""
  remote = [p for p in config_lib.paths(config) if p.startswith(gs.SCHEME)]
  return sorted({"/".join(path.split("/")[:3]) for path in remote})


def _refuse_outside(steps: Sequence[Step], workdir: Workdir):
  """Refuses a step that would write or remove what is not in the workdir."""
  root = gs.absolute(workdir.root)
  for path in (p for step in steps for p in (step.manifest, *step.outputs)):
    if root not in gs.absolute(path).parents:
      raise UserError("not in the workdir", str(path), "give other names")
