"""Given models: named by path or hub id, read when they are needed."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.api import border
from miniplm_jax.api.students import DocumentScores, Student
from miniplm_jax.config import (
  CorpusConfig,
  DocumentsConfig,
  GenerateConfig,
  RunConfig,
  ScoreConfig,
)
from miniplm_jax.core import fields
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus.sources import CorpusSource
from miniplm_jax.evaluation import generate as generate_lib
from miniplm_jax.evaluation import score_documents_step
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ref import ROLES, ModelRef
from miniplm_jax.scoring.ngram import PREFIX, NgramRef

with epy.lazy_imports():  # JAX, NumPy: planning needs neither
  from miniplm_jax.evaluation import divergence as divergence_lib
  from miniplm_jax.evaluation import texts as texts_lib
  from miniplm_jax.models import sharding
  from miniplm_jax.scoring import importing


@dataclasses.dataclass(frozen=True)
class Model:
  """A Hugging Face directory or hub id, read when it is needed."""

  path: str
  revision: str = "main"  # branch, tag or commit of a hub id
  dtype: str = "bfloat16"  # of weights and computation

  @property
  def shape(self) -> Architecture:
    """Its shape; no weight is fetched for it."""
    return ModelRef("", self.path, self.revision).shape()

  def loaded(self, run: RunConfig = RunConfig()) -> "texts_lib.TextModel":
    """The decoder with its tokenizer; kept, for this process's devices."""
    return _loaded(self, run.data, run.fsdp, run.tensor)


@functools.lru_cache(maxsize=2)  # a student and its teacher
def _loaded(model: Model, *mesh: int) -> "texts_lib.TextModel":
  folder = ModelRef("", model.path, model.revision).folder()
  return texts_lib.TextModel.load(
    folder, sharding.make_mesh(*mesh), model.dtype
  )


@border.in_python()
def load_model(
  path: epath.PathLike, *, revision: str = "main", dtype: str = "bfloat16"
) -> Model:
  """Names a model of a directory or of the hub; safetensors, no remote code.

  Raises:
    UserError: there is none, or it is of no known family.
  """
  hint = "give a directory, a hub id or a model; n-grams are for score alone"
  model = Model(border.path_of(path, "model", hint), revision, dtype)
  if model.path.startswith(PREFIX):
    hint = f"give mp.ngram({model.path.removeprefix(PREFIX)!r}), to score"
    raise UserError("n-grams are no model of the hub", model.path, hint)
  _ = model.shape
  return model


@dataclasses.dataclass(frozen=True)
class Ngram:
  """A model that counts hashed n-grams of a text; see `ngram`."""

  text: str


@border.in_python()
def ngram(text: epath.PathLike) -> Ngram:
  """An n-gram model for `score`: DSIR's log p of a row, on the CPU alone.

  Args:
    text: a split of the corpus that is scored, such as "reference" or "train",
      or files as `tokenize` reads them, with the corpus's fields. It is counted
      when it is first scored with, in `ScoreConfig.ngram_buckets` buckets.
  """
  return Ngram(border.path_of(text, "text"))


def ref_of(
  name: str, model, root: epath.Path, tables=None, corpus=None
) -> ModelRef | NgramRef:
  """What steps read a model by; n-grams only where a corpus is scored."""
  if not fields.is_name(name):
    raise UserError(f"a model is called {name!r}", "score", fields.NAME_TODO)
  role = name if name in ROLES else ""
  table = (tables or root / "scores") / name
  if isinstance(model, Ngram) and corpus:
    return NgramRef(name, model.text, table, corpus)
  if isinstance(model, Student):
    hf, own = str(exported(model)), model.manifest.inputs["corpus"]
    if corpus is None or manifest_lib.require(corpus).fingerprint == own:
      return ModelRef(
        name, role=role, trained=model.path, model=model.shape, table=table
      )
    model = hf  # of another corpus: it is known by what it holds
  if isinstance(model, (str, os.PathLike)) and importing.published(model):
    scores = os.fspath(model)
    return ModelRef(name, role=role, scores=scores, table=table)
  model = model if isinstance(model, Model) else load_model(model)
  return ModelRef(name, model.path, model.revision, role, table=table)


def exported(student: Student) -> epath.Path:
  """The Hugging Face directory of a student; UserError if there is none."""
  if not student.hf.exists():
    hint = "call student.save_pretrained(student.hf) first"
    raise UserError("no Hugging Face directory yet", str(student.hf), hint)
  return student.hf


@border.in_python()
def generate(
  model: Student | Model | str,
  prompts: str | Sequence[str],
  *,
  run: RunConfig = RunConfig(),
  **options: Any,
) -> list[list["generate_lib.Continuation"]]:
  """Draws continuations of each prompt.

  Args:
    model: a given model, or a student with a Hugging Face directory.
    **options: fields of `GenerateConfig`: samples, max_new_tokens, ….
  """
  own = {"dtype": model.dtype} if isinstance(model, Model) else {}
  section = GenerateConfig(**own | options)
  loaded = _given(model, section.dtype).loaded(run)
  prompts = border.texts_of(prompts)
  return generate_lib.continue_prompts(loaded, prompts, section)[0]


@border.in_python()
def nll(
  model: Student | Model | str,
  texts: str | Sequence[str],
  *,
  dtype: str = "",
  batch_tokens: int = 0,
  max_length: int = 0,
  overlap: float = 0.5,
  run: RunConfig = RunConfig(),
) -> list["texts_lib.TextScore"]:
  """Σ −log p of whole texts, in nats, with their tokens and UTF-8 bytes.

  Args:
    model: a given model, or a student with a Hugging Face directory.
    texts: one that cannot be scored, as it is empty, has None for its Σ and a
      reason.
    dtype: of weights and computation; "" is a given model's own, or float32.
    batch_tokens: inputs of a batch over all devices, padding included; 0 is
      by the kind of device, as `score.batch_tokens`.
    max_length: inputs of a window of a longer text; 0 is a student's corpus's,
      or what a given model says.
    overlap: how much of a window, in [0, 1), is context alone, whose tokens the
      window before scores; 0 are the rolling windows of lm_eval.
  """
  texts = border.texts_of(texts)
  if isinstance(model, Student):
    max_length = max_length or model.corpus.max_length
  how = DocumentsConfig(max_length=max_length, overlap=overlap)
  loaded, every = _given(model, dtype).loaded(run), run.log_every_seconds
  rows = texts_lib.RowScorer(loaded, batch_tokens, every, "nll")
  size, tokens = sum(len(text.encode()) for text in texts), rows.batch_tokens
  log(
    "nll",
    f"{size:,} bytes of text in batches of up to {tokens:,} tokens; compiling "
    "the first",
  )
  return texts_lib.TextScorer(loaded, how, rows)(texts)


@border.in_python()
def divergence(
  student: Student | Model | str,
  teacher: Student | Model | str,
  *,
  samples: int = 256,
  tokens: int = 128,
  starts: str | Sequence[str] = (),
  seed: int = 10,
  dtype: str = "",
  max_length: int = 0,
  batch_tokens: int = 16_384,
  run: RunConfig = RunConfig(),
) -> "divergence_lib.Divergence":
  """Measures KL(q ‖ p) and KL(p ‖ q) of a student q and its teacher p.

  Both by what each writes, see docs/evaluation.md. What the teacher writes is
  kept for the next student, as long as nothing else is asked of it. Its texts
  end as the student's, if its tokenizer has that token, else as it says itself.

  Args:
    student: a given model, or a student with a Hugging Face directory.
    teacher: likewise.
    samples: of each.
    tokens: of a sample at most, in the ids of whoever writes it.
    starts: beginnings of texts that samples go on from in turn; () are the
      first words of held-out rows of a student's corpus, and of a given model
      the start of a text.
    seed: of what is drawn.
    dtype: of weights and computation; "" is a given model's own, or float32.
    max_length: inputs of a row; 0 is a student's corpus's, or what each model
      says.
    batch_tokens: inputs of a batch over all devices, padding included.

  Raises:
    UserError: a start leaves no room, or a model's logits are not finite.
  """
  for name, value, least in ("samples", samples, 2), ("tokens", tokens, 1):
    if type(value) is not int or value < least:
      hint = f"give {least} or more"
      raise UserError(f"{name} is {fields.shown(value)}", "divergence", hint)
  q = _given(student, dtype).loaded(run)
  if isinstance(student, Student):
    corpus = student.corpus.reader
    max_length = max_length or corpus.max_length
    starts = starts or divergence_lib.first_words(corpus, samples)
  starts = tuple(border.texts_of(starts or ""))
  how = max_length, batch_tokens, run.log_every_seconds
  end, draws = q.engine.id_to_token(q.eot_id), (starts, samples, tokens, seed)
  p = _teacher(_given(teacher, dtype), run, end, how, draws)
  reader = divergence_lib.Reader(q, *how)
  return divergence_lib.measure(reader, p, tokens, seed)


@functools.lru_cache(maxsize=1)
def _teacher(
  given: Model, run: RunConfig, end: str, how, draws
) -> "divergence_lib.Teacher":
  """The teacher with its samples; kept for the next student."""
  model = given.loaded(run)
  if (end_id := model.engine.token_to_id(end)) not in (None, model.end_id):
    # A BOS that the tokenizer puts before texts stands, none that it knows.
    bos_id = next(iter(model.engine.encode("").ids), None)
    model = dataclasses.replace(model, end_id=end_id, bos_id=bos_id)
  reader = divergence_lib.Reader(model, *how)
  return divergence_lib.Teacher(reader, reader.write(*draws))


@border.in_python()
def score_documents(
  source: epath.PathLike,
  models: Mapping[str, Model | Student | str],
  *,
  to: epath.PathLike,
  split: str = "train",
  text_field: str = "text",
  domain_field: str = "domain",
  id_field: str = "",
  score: ScoreConfig = ScoreConfig(),
  run: RunConfig = RunConfig(),
  force: bool = False,
  **options: Any,
) -> dict[str, DocumentScores]:
  """Scores whole documents under each model, by its own tokenizer.

  Args:
    source: of documents, as that of `tokenize`.
    models: by what they are called.
    to: the folder, in which each model has one.
    split: of a source that has splits.
    text_field: where a record has its text, a dotted path.
    domain_field: likewise its domain, which becomes corpus_id.
    id_field: likewise its id; one without it is called by its text's sha256.
    score: dtype and batch_tokens.
    force: make it again, if it was made otherwise, too.
    **options: fields of `DocumentsConfig`: overlap, max_length, ….
  """
  folder = border.folder_of(to)
  corpus = CorpusConfig(
    source=border.path_of(source, "source"),
    split=split,
    text_field=text_field,
    domain_field=domain_field,
    id_field=id_field,
  )
  border.of_kind(models, Mapping, "models", 'name each: {"small": …}')
  refs = [ref_of(name, model, folder) for name, model in models.items()]
  section = DocumentsConfig(**options)
  at = CorpusSource(corpus, Workdir(border.root_of(folder)).corpus)
  scoring = score_documents_step.Scoring(section, at, score, folder, run)
  steps = scoring.steps(refs)
  border.execute(steps, run, force)
  return {step.name: DocumentScores(step.manifest.parent) for step in steps}


def _given(model, dtype: str) -> Model:
  """A model of any kind, by its path and dtype."""
  if not isinstance(model, Model):
    path = exported(model) if isinstance(model, Student) else model
    model = load_model(path, dtype="float32")
  return dataclasses.replace(model, dtype=dtype or model.dtype)
