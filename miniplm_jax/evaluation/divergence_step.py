"""The part of stage evaluate that measures how far students are from p.

The teacher writes its samples once; a student is a step of its own.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.config import EvaluateConfig, EvaluationConfig, RunConfig
from miniplm_jax.core import distributed, files
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.evaluation import divergence
from miniplm_jax.evaluation.subjects import Subject

with epy.lazy_imports():
  from miniplm_jax.corpus import store
  from miniplm_jax.models import huggingface, sharding

STAGE = "evaluate"
SAMPLES = "samples.json"  # beside the teacher's score table
_TEXTS = "samples.jsonl"  # of the teacher's samples
_COUNTS = "samples", "tokens", "n_bytes"
_TOKENS, _SEED = 128, 10  # of a sample at most; of what is drawn


@dataclasses.dataclass(frozen=True)
class Runner:
  """Measures students beside one teacher."""

  teacher: Subject
  evaluation: EvaluationConfig  # how many samples, and the dtype
  evaluate: EvaluateConfig  # whose held-out rows samples begin as
  batch_tokens: int  # inputs of a batch over all devices, padding included
  run: RunConfig
  is_view: bool = False  # measured again, not refused, with other settings
  # The teacher with its samples, for the next student.
  loaded: dict[str, Any] = dataclasses.field(default_factory=dict)

  def steps(self, students: Sequence[Subject]) -> list[Step]:
    """The teacher's samples, and a step for each student; none if not asked."""
    if not (self.evaluation.divergence and students):
      return []
    p, settings = self.teacher, self._settings
    path = p.folder / SAMPLES
    ignored = list(self.evaluate.ignore_domains)
    samples = Step(
      stage=STAGE,
      manifest=path,
      settings=settings | {"ignore_domains": ignored},
      inputs={**p.corpus, "weights": p.ref.as_input()},
      outputs=(p.folder / _TEXTS,),
      policy=Policy(is_view=self.is_view, is_measure=True),
      summary=f"{settings['samples']:,} samples of {p.name}",
      run=self._write,
    )
    last = students[-1]
    return [samples, *(self._step(it, path, it is last) for it in students)]

  @property
  def _settings(self) -> dict[str, Any]:
    c = self.evaluation
    how = {"tokens": _TOKENS, "seed": _SEED, "dtype": c.dtype}
    return {"samples": c.divergence, **how}

  def _step(self, it: Subject, samples: epath.Path, is_last: bool) -> Step:
    return Step(
      stage=STAGE,
      manifest=it.folder / divergence.MANIFEST,
      settings=self._settings,
      inputs={**it.corpus, "model": it.folder / MANIFEST, "samples": samples},
      outputs=(),
      policy=Policy(is_view=self.is_view, is_measure=True),
      summary=f"divergence from {self.teacher.name} of",
      subject=it.name,
      run=functools.partial(self._measure, it, is_last),
    )

  def _reader(self, it: Subject, inputs: Mapping[str, Manifest]):
    corpus, run = store.open_corpus(inputs), self.run
    model = it.text_model(inputs, sharding.mesh_of(run), self.evaluation.dtype)
    return divergence.Reader(
      model, corpus.max_length, self.batch_tokens, run.log_every_seconds
    )

  def _teacher_reader(self, corpus: Manifest):
    if corpus.fingerprint not in self.loaded:
      reader = self._reader(self.teacher, {"corpus": corpus})
      self.loaded[corpus.fingerprint] = reader
    return self.loaded[corpus.fingerprint]

  def _write(self, inputs: Mapping[str, Manifest]) -> dict[str, Any]:
    """Draws the teacher's samples."""
    reader, path = self._teacher_reader(inputs["corpus"]), self.teacher.folder
    corpus, n = store.Corpus(inputs["corpus"]), self.evaluation.divergence
    ignored = self.evaluate.ignore_domains
    starts = divergence.first_words(corpus, n, ignored)
    written = reader.write(starts, n, _TOKENS, _SEED)
    lines = [json.dumps(sample._asdict()) for sample in written]

    def described():
      files.write_bytes(path / _TEXTS, "\n".join([*lines, ""]).encode())
      return {_TEXTS: files.describe(path / _TEXTS)}

    return {
      "weights": huggingface.weights_fingerprint(reader.model.decoder),
      "counts": {"samples": n, "tokens": sum(len(s.ids) for s in written)},
      "files": distributed.agree(described),
    }

  def _measure(
    self, it: Subject, is_last: bool, inputs: Mapping[str, Manifest]
  ) -> dict[str, Any]:
    """Draws the student's samples, and compares."""
    samples, student = inputs["samples"], self._reader(it, inputs)
    if samples.fingerprint not in self.loaded:
      with samples.reading(_TEXTS) as path:
        lines = map(json.loads, path.read_text().splitlines())
        written = [divergence.Sample(**line) for line in lines]
      reader = self._teacher_reader(inputs["corpus"])
      teacher = divergence.Teacher(reader, written)
      self.loaded[samples.fingerprint] = teacher
    teacher = self.loaded[samples.fingerprint]
    measured = divergence.measure(student, teacher, _TOKENS, _SEED)
    if is_last:  # what is trained then needs the memory
      self.loaded.clear()
    value, low, high = measured.reverse_kl
    log(
      STAGE,
      f"{it.name}: reverse KL {value:.4f} ({low:.4f} to {high:.4f}) bits per "
      f"byte of {measured.samples:,} samples",
    )
    return {
      "weights": inputs["model"].weights,
      "counts": {name: getattr(measured, name) for name in _COUNTS},
      "details": {"divergence": dataclasses.asdict(measured)},
    }
