"""The whole config: its sections, and what they must be together."""

import dataclasses
import os
import re
from collections.abc import Iterable

from miniplm_jax.config import sections as s
from miniplm_jax.config.compare import CompareConfig
from miniplm_jax.config.corpus import CorpusConfig
from miniplm_jax.config.methods import MethodSections
from miniplm_jax.config.run import RunConfig
from miniplm_jax.core import fields as f
from miniplm_jax.core.fields import Section
from miniplm_jax.core.workdir import FOLDERS, UNREADABLE
from miniplm_jax.criteria import canonical, criterion
from miniplm_jax.methods import METHODS, OBJECTIVES, MethodNames, Objective

# In the order of the data. A config lists those that it wants.
STAGES = (
  "tokenize",
  "teacher",
  "reference",
  "conditional",
  "score",
  "proxy",
  "select",
  "materialize",
  "seqkd",
  "convert",
  "logits",
  "train",
  "evaluate",
  "compare",
  "export",
  "analyze",
  "report",
)
# Run when they are named.
ON_REQUEST = ("score_documents", "publish")
# Look at what is there, or at what would be; nothing depends on them.
LOOKS = ("plan", "verify", "generate")
ROLES = ("teacher", "reference")
STUDENT = "student"  # in staged.definition, the student as it is then


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MethodSections):
  """Everything that a run may be told."""

  # Where everything is written, local or gs://.
  workdir: str = f.path("", is_needed=True)
  # What runs when --stages is not given.
  stages: tuple[str, ...] = f.several(
    f.word("", STAGES + ON_REQUEST + LOOKS, analyse="analyze"),
    *(stage for stage in STAGES if stage != "teacher"),
  )
  # How the student's rows are chosen: miniplm, pretrain (at random),
  # difficulty (high reference loss), teacher_preference (low teacher
  # loss), proxy (miniplm's score as a small model predicts it) or seqkd
  # (pretrain's rows, and the teacher writes the end of each), or staged
  # (again, by what the student itself says). Or what it
  # minimizes on such rows: see docs/training.md for all.
  method: str = f.word("miniplm", METHODS)
  # Further methods to run beside it, for comparison.
  baselines: tuple[str, ...] = f.several(f.word("", METHODS))
  # A student whose step costs more than the next-token loss takes fewer:
  # all train with the FLOPs of train.steps of its steps.
  equal_flops: bool = f.switch(True)
  corpus: CorpusConfig = f.section(CorpusConfig)
  teacher: s.ScorerConfig = f.section(s.ScorerConfig)
  reference: s.ScorerConfig = f.section(
    s.ScorerConfig, name="reference", path=""
  )
  score: s.ScoreConfig = f.section(s.ScoreConfig)
  plan: s.PlanConfig = f.section(s.PlanConfig)
  verify: s.VerifyConfig = f.section(s.VerifyConfig)
  documents: s.DocumentsConfig = f.section(s.DocumentsConfig)
  select: s.SelectConfig = f.section(s.SelectConfig)
  materialize: s.MaterializeConfig = f.section(s.MaterializeConfig)
  student: s.StudentConfig = f.section(s.StudentConfig)
  train: s.TrainConfig = f.section(s.TrainConfig)
  evaluate: s.EvaluateConfig = f.section(s.EvaluateConfig)
  evaluation: s.EvaluationConfig = f.section(s.EvaluationConfig)
  compare: CompareConfig = f.section(CompareConfig)
  export: s.ExportConfig = f.section(s.ExportConfig)
  generate: s.GenerateConfig = f.section(s.GenerateConfig)
  run: RunConfig = f.section(RunConfig)

  @property
  def methods(self) -> tuple[str, ...]:
    """All methods of the run, the main one first."""
    return tuple(dict.fromkeys((self.method, *self.baselines)))

  @property
  def names(self) -> list[MethodNames]:
    """What is made for each of `methods`."""
    return [self.names_of(method) for method in self.methods]

  def names_of(self, method: str) -> MethodNames:
    """What is made for one method."""
    spec = METHODS[method]
    return MethodNames(
      selection=self.select.name.replace("{method}", spec.selection),
      student=self.student.name.replace("{method}", method),
      definition=spec.criterion or canonical(self.select.definition),
      objective=spec.objective,
      generated=spec.generated,
      staged=spec.staged,
    )

  @property
  def _is_staged(self) -> bool:
    return any(names.staged for names in self.names)

  @property
  def compared(self) -> dict[str, dict[int, MethodNames]]:
    """What stage compare makes, by criterion and seed.

    A student that is one of the run's own has its name: it is trained once.
    """
    compared = self.compare.names(self.select, self.student.name)
    own = {n.made_by: n for n in self.names}
    seed = self.train.seed
    for by_seed in compared.values():
      made = by_seed.get(seed)
      if made and self.compare.selects_as(self.select, made.definition, seed):
        by_seed[seed] = own.get(made.made_by, made)
    return compared

  def section_of(self, objective: Objective) -> Section | None:
    """What an objective may be told; None is nothing."""
    return getattr(self, objective.section) if objective.section else None

  @property
  def roles(self) -> dict[str, s.ScorerConfig]:
    """The sections of the teacher and of the reference."""
    return {"teacher": self.teacher, "reference": self.reference}

  @property
  def tables(self) -> dict[str, str]:
    """The names of the score tables, by role: teacher, reference, proxy."""
    return {role: getattr(self, role).name for role in (*ROLES, "proxy")}

  def folder_of(self, table: str) -> str:
    """The name of a score table's folder, by its name in formulas."""
    return self.tables.get(table, table)

  @property
  def alpha(self) -> float:
    """The share of D by which rankings are compared.

    A selection by rows or tokens has none of its own.
    """
    return self.select.ratio or 0.5

  @property
  def all_names(self) -> list[MethodNames]:
    """Of all methods, and of what stage compare makes beside them."""
    own = self.names
    compared = [n for names in self.compared.values() for n in names.values()]
    return [*own, *(n for n in compared if n not in own)]

  @property
  def _definitions(self) -> list[str]:
    """By what rows are ranked in this run."""
    definitions = [n.definition for n in self.all_names]
    return definitions + [self.staged.definition] * self._is_staged

  @property
  def scorers(self) -> tuple[str, ...]:
    """Those of teacher and reference that must score D.

    Both in a run whose methods read no scores: there they are for later.
    """
    read = {r for each in self._definitions for r in criterion(each).reads}
    # The proxy learns from both, and int8 is judged by the ranking of both.
    if not read or "proxy" in read or self.score.int8_teacher:
      return ROLES
    return tuple(role for role in ROLES if role in read)

  @property
  def roles_with_model(self) -> tuple[str, ...]:
    """Those of `scorers` that score here; of others only scores are known."""
    return tuple(role for role in self.scorers if not self.roles[role].scores)

  def _rules(self):
    path = self.workdir
    good = path.startswith("gs://") or not re.match(r"\w+:/", path)
    yield "workdir", good, "give a folder of this machine or gs://BUCKET/…"
    good = not UNREADABLE.intersection(os.path.abspath(path))
    hint = "give one without any of " + " ".join(sorted(UNREADABLE))
    yield "workdir", good, hint
    yield "stages", bool(self.stages), "name what is to run"
    good = not (self.conditional.source and self.reference.scores)
    hint = "give the reference's weights, not its scores: it is trained on"
    yield "conditional.source", good, hint
    yield from self._proxy_rules()
    yield from self._compare_rules()
    yield from self._staged_rules()
    yield from self._generated_rules()
    yield from self._model_rules()
    good = not (self.score.int8_teacher and self.reference.scores)
    hint = "let the reference be scored here: the ranking is compared"
    yield "score.int8_teacher", good, hint
    good = not (self.evaluation.divergence and self.teacher.scores)
    hint = "give 0, or the teacher's weights: it writes samples"
    yield "evaluation.divergence", good, hint
    cache = self.run.compilation_cache
    if "://" not in cache:
      cache = os.path.join(path, cache)
    root, cache = map(os.path.realpath, (path, cache))
    good = os.path.relpath(cache, root).partition("/")[0] not in FOLDERS
    hint = "name a folder that nothing else is in"
    yield "run.compilation_cache", good, hint
    yield from self._field_rules()
    yield from self._name_rules()

  def _field_rules(self):
    """What field("NAME") reads has one place."""
    fields, files = self.corpus.field_names, self.select.files
    good = files.keys().isdisjoint(fields)
    hint = "give names that no field of corpus.fields has"
    yield "select.columns", good, hint
    read = {
      name: each
      for each in self._definitions
      for name in criterion(each).formula.fields
    }
    for name, definition in read.items():
      names = ", ".join([*fields, *files]) or "none"
      hint = f"there is no field {name!r}, but {names}: name it in "
      hint += "corpus.fields or select.columns"
      yield "select.definition", name in {*fields, *files}, hint, definition

  def _model_rules(self):
    """Methods that run another model need its weights, and its tokens."""
    for method in self.methods:
      generated = METHODS[method].generated
      objective = OBJECTIVES[METHODS[method].objective]
      role = objective.role(self.section_of(objective))
      role = "teacher" if generated else role
      good = not (role and self.roles[role].scores)
      hint = f"give its weights, or another method: {method} runs it"
      yield f"{role}.scores", good, hint
      good = not (role and self.student.tokenizer) or generated
      hint = f"give none, or another method: {method} needs the corpus's tokens"
      yield "student.tokenizer", good, hint
      good = not self.train.z_loss or objective.has_z_loss
      yield "train.z_loss", good, f"give 0: {method} does not have it"

  def _proxy_rules(self):
    """Which rows are scored, and what the proxy may be."""
    share, proxy = self.score.share, self.proxy
    is_alone = set(self.methods) == {"proxy"} and not self.compare.criteria
    good = share == 1 or is_alone
    hint = "use method proxy alone, or 1: other methods need every row's score"
    yield "score.share", good, hint
    given = [role for role in ROLES if self.roles[role].scores]
    hint = f"give 1: {' and '.join(given)}.scores must be of every row"
    yield "score.share", share == 1 or not given, hint
    good = proxy.sample < share or "proxy" not in self.methods
    hint = "give less than score.share: the rest tests the proxy"
    yield "proxy.sample", good, hint
    good = not (proxy.from_reference and self.reference.scores)
    hint = "say False: there are scores of the reference, not its weights"
    yield "proxy.from_reference", good, hint

  def _compare_rules(self):
    """What the students of stage compare learn from."""
    is_compared = "proxy" in self.compare.definitions.values()
    hint = "add --config.baselines=proxy, whose scores it ranks by"
    good = not is_compared or "proxy" in self.methods
    yield "compare.criteria", good, hint
    spec = METHODS[self.method]
    good = spec.objective == "next_token" and not spec.generated | spec.staged
    good |= self.stages != ("compare",) or not self.compare.criteria
    hint = "say --config.method=miniplm: stage compare trains on next tokens "
    yield "method", good, f"{hint}of selections as they are"

  def stage_tables(self, names: MethodNames) -> list[str]:
    """The score tables of a student in stages, of all but the first."""
    reads = criterion(self.staged.definition).reads
    stages = range(1, len(self.staged.ends(self.train.steps)))
    uses = names.staged and STUDENT in reads
    return [f"{names.student}-{k}" for k in stages if uses]

  def _staged_rules(self):
    """The student is scored on the way, in the tokens of the corpus."""
    steps, staged = self.train.steps, self.staged
    good = max(staged.at, default=0) < steps or not self._is_staged
    yield "staged.at", good, f"give steps before the last, {steps}"
    good = staged.stages <= steps or bool(staged.at) or not self._is_staged
    yield "staged.stages", good, f"give at most train.steps, {steps}"
    good = not (self._is_staged and self.student.tokenizer)
    hint = "give none, or another method: staged needs the corpus's tokens"
    yield "student.tokenizer", good, hint

  def _generated_rules(self):
    """Where the teacher or the student goes on after a prompt."""
    length, student = self.corpus.max_length, self.student
    uses = any(METHODS[method].generated for method in self.methods)
    good = round(self.seqkd.prompt_share * length) >= 1 or not uses
    hint = "let it be at least one token of max_length"
    yield "seqkd.prompt_share", good, hint
    joins = student.tokenizer and student.conversion != "one_to_one"
    hint = "say one_to_one: seqkd's rows do not join"
    yield "student.conversion", not (uses and joins), hint
    prompt = f.of(self.minillm.prompt_share, length)
    good = 2 <= prompt < length or "minillm" not in self.methods
    hint = "let there be 2 or more of max_length before it, and some after it"
    yield "minillm.prompt_share", good, hint

  def _name_rules(self):
    """Nothing may be written over something else."""
    own = [n for names in self.names for n in self.stage_tables(names)]
    tables = [
      *[("staged.definition", STUDENT)] * self._is_staged,
      *(("student.name", name) for name in own),
      *((f"{role}.name", name) for role, name in self.tables.items()),
      *[("conditional.source", "conditional")] * bool(self.conditional.source),
      *(("score.more", text.partition("=")[0]) for text in self.score.more),
    ]
    for i, (name, value) in enumerate(tables):
      others = [other for _, other in tables[:i]]
      good = _folders_differ([value, *others]) or not _folders_differ(others)
      hint = "give a name that no other table of scores has"
      yield name, good, hint, value
    # Scores that are there would be read for the other model's.
    for role, name in self.tables.items():
      good = name.casefold() not in self.tables.keys() - {role}
      yield f"{role}.name", good, "give a name that is not another's role"
    students = [n.student for n in self.all_names]
    selections = [n.selection for n in self.all_names]
    for name, folders in ("student", students), ("select", selections):
      good = all(map(f.is_name, folders))
      yield f"{name}.name", good, f"it is a folder's: {f.NAME_TODO}", folders
    good = _folders_differ(students)
    yield "student.name", good, "put {method} into it: two methods have one"
    # One selection may serve two methods that rank alike.
    ranked = {
      (n.selection, n.definition, n.staged): n.selection for n in self.all_names
    }
    good = _folders_differ(ranked.values())
    hint = "put {method} into it: two methods that rank differently have one"
    if "{method}" in self.select.name:
      hint = "a method and one of compare.criteria have a name and rank "
      hint += "differently: call that one otherwise, or compare none"
    yield "select.name", good, hint


def _folders_differ(names: Iterable[str]) -> bool:
  """Whether all differ, also where folders do not tell A from a."""
  return f.differ(name.casefold() for name in names)
