"""The functions of the library that make artifacts, as stages do."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath, epy
from ml_collections import ConfigDict

from miniplm_jax import pipeline
from miniplm_jax.api import border
from miniplm_jax.api.artifacts import Corpus, Rows, ScoreTable, Selection
from miniplm_jax.api.models import Model, Ngram, exported, ref_of
from miniplm_jax.api.scores import Scores
from miniplm_jax.api.students import Evaluation, Run, Student
from miniplm_jax.config import (
  Config,
  CorpusConfig,
  EvaluateConfig,
  ExportConfig,
  RunConfig,
  ScoreConfig,
  TrainConfig,
  VerifyConfig,
  lookup,
)
from miniplm_jax.core import fields
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import Section
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.corpus import tokenize_step
from miniplm_jax.distillation import objectives
from miniplm_jax.evaluation import evaluate_step
from miniplm_jax.evaluation.subjects import Subject
from miniplm_jax.methods import INIT, OBJECTIVES
from miniplm_jax.models.architecture import SHAPES, Architecture
from miniplm_jax.models.ref import ROLES, TEACHER
from miniplm_jax.report import publish_step
from miniplm_jax.scoring import score_step
from miniplm_jax.training import budget, train_step, trained, warm_start
from miniplm_jax.training.spec import ObjectiveSpec, TrainSpec

with epy.lazy_imports():  # JAX, NumPy: planning needs neither
  from miniplm_jax.corpus import trained_rows
  from miniplm_jax.evaluation import heldout
  from miniplm_jax.models import sharding
  from miniplm_jax.scoring import importing

presets = SHAPES  # shapes by name

_HELDOUT = "split heldout"

# The section that an objective's options are.
_OPTIONS = {
  name: fields.sections_of(Config)[spec.section]
  for name, spec in OBJECTIVES.items()
  if spec.section
}


@border.in_python()
def tokenize(
  source: epath.PathLike,
  tokenizer: epath.PathLike,
  *,
  to: epath.PathLike,
  run: RunConfig = RunConfig(),
  force: bool = False,
  **options: Any,
) -> Corpus:
  """Makes packed rows of documents, which are split by the hash of each row.

  Args:
    source: files, a folder, a glob; tfds:NAME, hf:ORG/NAME; see docs/data.md.
    tokenizer: a directory or hub id with tokenizer.json, or "train".
    force: make it again, if it was made otherwise, too.
    **options: further fields of `CorpusConfig`.
  """
  folder = border.folder_of(to)
  section = CorpusConfig(
    source=border.path_of(source, "source"),
    tokenizer=border.path_of(tokenizer, "tokenizer"),
    **options,
  )
  if section.vocab_size and section.tokenizer != tokenize_step.TRAIN:
    what = f"vocab_size is {section.vocab_size}, and the tokenizer is given"
    raise UserError(what, section.tokenizer, 'leave it out, or give "train"')
  border.execute([tokenize_step.step(section, folder, run)], run, force)
  return Corpus(folder)


@border.in_python()
def train(
  shape: Architecture | str,
  rows: Rows | Selection,
  *,
  to: epath.PathLike,
  objective: str | Section = "next_token",
  teacher: Model | str | None = None,
  init: Model | Student | str | None = None,
  ignore_domains: Sequence[str] = (),
  run: RunConfig = RunConfig(),
  force: bool = False,
  **options: Any,
) -> Student:
  """Pre-trains a model on rows of a corpus.

  Args:
    shape: a shape, or the name of one of `presets`.
    rows: a split, a selection, or rows of one's own choice. A model that is
      trained on the split "reference" or "teacher" is that one of its workdir.
    objective: a key of `methods.OBJECTIVES` that needs no stored labels, or its
      section, such as `KDConfig(weight=0.3)`.
    teacher: the model that takes part in each step, if the objective has one.
    init: the model of that shape whose weights it begins with, such as a
      reference that goes on with target text; None draws them.
    ignore_domains: not counted in the learning curve.
    force: make it again, if it was made otherwise, too.
    **options: fields of `TrainConfig`: steps, batch_size, learning_rate, ….
  """
  shape = presets.get(shape, shape) if isinstance(shape, str) else shape
  if not isinstance(shape, Architecture):
    hint = f"give a shape, or choose from {', '.join(presets)}"
    raise UserError(f"no shape {fields.shown(shape)}", "train", hint)
  given = rows
  rows = rows.rows if isinstance(rows, Selection) else rows
  if not isinstance(rows, Rows):
    hint = 'give a selection, corpus.split("train") or corpus.rows(ids)'
    raise UserError(f"no rows: {fields.shown(rows)}", "train", hint)
  section, folder = TrainConfig(**options), border.folder_of(to)
  kind, _, name = rows.name.partition(" ")
  inputs = {"corpus": rows.corpus.path / MANIFEST}
  row_ids = lambda corpus, unused_inputs: rows.ids  # noqa: E731
  if kind == "selection":
    inputs["selection"] = rows.path / MANIFEST
    row_ids = trained.row_ids
  is_scorer = kind == "split" and name in ROLES
  minimized = _objective(
    objective, teacher, section, shape, rows.corpus, folder / MANIFEST
  )
  root, begin = rows.corpus.path.parent, None
  if init is not None:
    given_weights = str(exported(init)) if isinstance(init, Student) else init
    first = ref_of(INIT, given_weights, root)
    inputs[INIT] = first.as_input()
    begin = functools.partial(warm_start.load, first)

  before = functools.partial(
    budget.offline, Workdir(root), inputs.get("selection"), minimized.inputs
  )
  spec = TrainSpec(
    stage=name if is_scorer else "train",
    folder=folder,
    shape=shape,
    train=section,
    run=run,
    max_length=rows.corpus.max_length,
    objective=minimized,
    begin=begin,
    rows=rows.name,
    row_ids=row_ids,
    ignore_domains=border.several(ignore_domains),
    writes_hf=is_scorer,
    writes_rows=not is_scorer,
    export=ExportConfig(),
    offline=None if is_scorer else before,
  )
  border.execute([train_step.step(spec, inputs)], run, force)
  return Student(folder, rows.corpus, given)


def _objective(
  objective, teacher, train, shape, corpus: Corpus, finished
) -> ObjectiveSpec:
  """What training minimizes, by a name or by a section of the config."""
  if isinstance(objective, str):
    name, section = objective, _OPTIONS.get(objective, lambda: None)()
    hint = f"choose from {', '.join(OBJECTIVES)}"
  else:
    names = (n for n, kind in _OPTIONS.items() if isinstance(objective, kind))
    name, section = next(names, ""), objective
    hint = "give a section such as KDConfig()"
  if name not in OBJECTIVES:
    raise UserError(f"no objective {objective!r}", "train", hint)
  spec = OBJECTIVES[name]
  if spec.labels:
    hint = f"use run() with a config whose method minimizes {name}"
    raise UserError(f"{name} reads labels that stage logits stores", name, hint)
  if spec.runs_teacher and teacher is None:
    raise UserError(f"{name} needs a teacher", "train", "give teacher=")
  if teacher is not None and not spec.runs_teacher:
    hint = "leave teacher= out, or give objective=, such as KDConfig()"
    raise UserError(f"{name} has no teacher", "train", hint)
  if name == "next_token":
    return ObjectiveSpec()
  root = corpus.path.parent
  return objectives.spec(
    name,
    section,
    train=train,
    shape=shape,
    max_length=corpus.max_length,
    teacher=ref_of(TEACHER, teacher, root) if teacher else None,
    labels={},
    finished=finished,
  )


@border.in_python()
def score(
  corpus: Corpus,
  models: Mapping[str, Model | Student | Ngram | str],
  *,
  to: epath.PathLike | None = None,
  run: RunConfig = RunConfig(),
  verify: VerifyConfig = VerifyConfig(),
  force: bool = False,
  **options: Any,
) -> Scores:
  """Scores every row of D under each model, in one pass over the corpus.

  Args:
    corpus: packed rows, of which the split "train" is scored.
    models: by what they are called; criteria read "teacher" and "reference".
      A published table's folder stands for the model whose scores it has.
    to: the folder of the tables, beside the corpus if it is not given.
    verify: how each table is checked when it is finished.
    force: make it again, if it was made otherwise, too.
    **options: fields of `ScoreConfig`: dtype, batch_tokens, share, ….
  """
  border.of_kind(corpus, Corpus, "corpus", "give what tokenize returns")
  if not isinstance(models, Mapping) or not models:
    hint = 'name each: {"teacher": …, "reference": …}'
    raise UserError(f"models are {fields.shown(models)}", "score", hint)
  folder = border.folder_of(to or corpus.path.parent / "scores")
  root = border.root_of(folder / "x")
  made = corpus.path / MANIFEST
  refs = [
    ref_of(name, model, root, folder, made) for name, model in models.items()
  ]
  scoring = score_step.Scoring(
    ScoreConfig(**options),
    verify,
    made,
    refs,
    Workdir(root),
    run,
    alpha=0.5,
  )
  border.execute(scoring.steps(), run, force)
  return Scores(corpus, {ref.name: ScoreTable(ref.table) for ref in refs})


@border.in_python()
def publish(
  scores: Scores,
  to: epath.PathLike,
  *,
  run: RunConfig = RunConfig(),
  force: bool = False,
) -> epath.Path:
  """Writes score tables for others who have the corpus: no text, no tokens.

  Args:
    to: the folder: Parquet of each table, README.md and manifest.json. A
      README.md that is there stays: its license is the user's to fill in.
    force: make all of it again, if it has other tables, too.
  """
  border.of_kind(scores, Scores, "scores", "give what score returns")
  folder, corpus = border.folder_of(to), scores.corpus.path / MANIFEST
  tables = {name: table.path for name, table in scores.items()}
  border.execute([publish_step.step(tables, corpus, folder)], run, force)
  return folder


@border.in_python()
def take(corpus: Corpus, folder: epath.PathLike, **how: Any) -> Scores:
  """Takes what `publish` wrote, if it is of this corpus's rows.

  Args:
    **how: as of `score`: to, run, force, rows_per_part.

  Raises:
    UserError: rows of D are not among those that were scored.
  """
  files = border.folder_of(folder).glob(f"*/{importing.FILE}")
  tables = {path.parent.name: path.parent for path in sorted(files)}
  if not tables:
    hint = "give the folder that publish wrote"
    raise UserError("no published tables lie here", str(folder), hint)
  return score(corpus, tables, **how)


@border.in_python()
def evaluate(
  model: Student | Model | str,
  rows: Rows | None = None,
  *,
  run: RunConfig = RunConfig(),
  score: ScoreConfig = ScoreConfig(),
  force: bool = False,
  **options: Any,
) -> Evaluation:
  """Measures a model's loss on rows that nothing was trained on, by domain.

  That of a student on the held-out rows is kept beside it; any other is
  measured anew.

  Args:
    model: a student, or a given model of the corpus's tokens.
    rows: of a corpus, none that it was trained on; None are the held-out ones
      of the student's.
    score: how rows are put into batches, and of a given model the dtype.
    force: make it again, if it was made otherwise, too.
    **options: fields of `EvaluateConfig`: max_rows, ignore_domains.
  """
  section = EvaluateConfig(**options)
  if isinstance(model, Student) and (rows is None or rows.name == _HELDOUT):
    border.execute([measuring(model, section, score, run)], run, force)
    return model.evaluation
  if rows is None:
    hint = 'give some in its tokens, such as corpus.split("heldout")'
    raise UserError("no rows to evaluate a given model on", "evaluate", hint)
  border.of_kind(rows, Rows, "rows", 'give such as corpus.split("heldout")')
  mesh = sharding.mesh_of(run)
  corpus = rows.corpus.reader
  if isinstance(model, Student):
    name, decoder = model.name, trained.restore(model.manifest, mesh)
    folder, dtype = model.path, model.settings["train"]["dtype"]
  else:
    ref, dtype = ref_of("model", model, rows.corpus.path.parent), score.dtype
    name, decoder = ref.path, ref.load(corpus, mesh, dtype)
    folder = ref.folder()
  trained_rows.refuse(folder, corpus, rows.ids, name, f"rows of {rows.name}")
  measured = heldout.measure(
    decoder,
    corpus,
    rows.ids,
    mesh,
    score,
    dtype=dtype,
    ignored=section.ignore_domains,
  )
  return Evaluation(name, measured.losses, heldout.of_rows(measured))


def measuring(student: Student, *how: Any) -> Step:
  """The step of a student's held-out losses; `how` as `evaluate_step.step`."""
  corpus = {"corpus": student.corpus.path / MANIFEST}
  dtype = student.settings["train"]["dtype"]
  subject = Subject(student.name, student.name, student.path, corpus, dtype)
  return evaluate_step.step(subject, *how)


def export(student: Student, to: epath.PathLike, **how: Any) -> epath.Path:
  """Writes a Hugging Face directory, see `Student.save_pretrained`."""
  return student.save_pretrained(to, **how)


def run(
  config: ConfigDict | epath.PathLike,
  *,
  stages: str | Sequence[str] = (),
  force: bool = False,
) -> Run:
  """Runs the stages of a config, as the command line does.

  Args:
    config: from `config.default()`, a file with `get_config`, or a name as
      "demo" or "demo:all" of those that the package carries.
    stages: one or several; by default those that the config lists.
    force: make them again even if nothing has changed.
  """
  where = "config"
  if not isinstance(config, ConfigDict):
    where, config = str(config), lookup.load(str(config))
  stages = border.several(stages)
  pipeline.run(config, where, stages, force=force, dry_run=False)
  return Run(config.workdir)
