"""Stage score_documents: whole documents under models that are given.

Nothing is packed: a model reads each document by its own tokenizer, after its
own beginning of a text, in windows if it is long.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.config import (
  CorpusConfig,
  DocumentsConfig,
  RunConfig,
  ScoreConfig,
)
from miniplm_jax.core import distributed
from miniplm_jax.core.code import Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus import datasets, sources
from miniplm_jax.corpus.documents import Fields
from miniplm_jax.models import hub
from miniplm_jax.models.ref import ModelRef

with epy.lazy_imports():
  from miniplm_jax.evaluation import documents as documents_lib
  from miniplm_jax.evaluation import texts
  from miniplm_jax.models import huggingface, sharding

STAGE = "score_documents"
_CODE = ("evaluation/documents.py", "models/huggingface.py")


@dataclasses.dataclass(frozen=True)
class Source:
  """The documents, as an input of a step."""

  corpus: CorpusConfig  # where they are from
  workdir: epath.Path  # what stages wrote there is none of them

  @property
  def path(self) -> str:
    """The name that the config has for it."""
    return self.corpus.source

  def __call__(self) -> str:
    """The fingerprint; nothing is fetched for it."""
    c = self.corpus
    if datasets.is_named(c.source):
      commit = datasets.commit(c.source)
      return datasets.identity(c.source, c.split, commit)
    return sources.fingerprint(self.chunks())

  def chunks(self) -> list[sources.Chunk]:
    """Its chunks, see `sources.list_chunks`."""
    c = self.corpus
    fields = Fields(c.text_field, c.domain_field, c.id_field)
    how = c.split, c.part_bytes, self.workdir
    return sources.list_chunks(c.source, fields, *how)


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How documents are scored, by whatever model."""

  documents: DocumentsConfig
  corpus: CorpusConfig  # the source, its split and its fields
  score: ScoreConfig  # dtype and size of a batch
  folder: epath.Path  # in which each model has one
  workdir: epath.Path  # what stages wrote there is no document
  run: RunConfig

  def steps(self, models: Sequence[ModelRef]) -> list[Step]:
    """One step a model.

    Raises:
      UserError: one of documents.models is none that has weights.
    """
    models = [m for m in models if isinstance(m, ModelRef) and not m.scores]
    by_name = {name: ref for ref in models for name in (ref.name, ref.role)}
    chosen = self.documents.models or [ref.name for ref in models]
    for name in chosen or [""]:
      if name not in by_name:
        raise UserError(
          f"no language model {name} is given",
          f"config.documents.models={self.documents.models}",
          f"choose from {', '.join(m.name for m in models)}: of others there "
          "are scores or counts alone",
        )
    unique = dict.fromkeys(by_name[name].name for name in chosen)
    return [self._step(by_name[name]) for name in unique]

  def _step(self, ref: ModelRef) -> Step:
    c, score, corpus = self.documents, self.score, self.corpus
    folder = self.folder / ref.name
    source = Source(corpus, self.workdir)
    inputs = {"source": source, "weights": ref.as_input()}
    if ref.path:
      inputs["tokenizer"] = hub.GivenTokenizer(ref.path, ref.revision)
    settings = dataclasses.asdict(c)
    del settings["models"]
    names = ("split", "text_field", "domain_field", "id_field")
    settings |= {name: getattr(corpus, name) for name in names}
    names = ("dtype", "batch_tokens")
    settings |= {name: getattr(score, name) for name in names}
    return Step(
      stage=STAGE,
      manifest=folder / MANIFEST,
      settings=settings,
      inputs=inputs,
      outputs=(folder,),
      summary=f"documents of {corpus.source} under {ref.name} {ref.origin}, "
      f"{score.dtype}",
      code=Version(_CODE, ("jax", "tokenizers"), self.run.any_code),
      run=lambda unused_inputs: self._run(ref, folder, source),
    )

  def _run(
    self, ref: ModelRef, folder: epath.Path, source: Source
  ) -> dict[str, Any]:
    c, run, score = self.documents, self.run, self.score
    mesh = sharding.mesh_of(run)
    model = texts.TextModel.load(ref.folder(), mesh, score.dtype)
    scorer = texts.TextScorer(
      model,
      batch_tokens=score.batch_tokens,
      max_length=c.max_length,
      overlap=c.overlap,
      stage=STAGE,
      log_every_seconds=run.log_every_seconds,
    )
    weights = huggingface.weights_fingerprint(model.decoder)
    made_by = weights, model.decoder.arch.fingerprint
    items = documents_lib.read(source.chunks())
    names = documents_lib.fill(
      folder, items, scorer, c.part_bytes, made_by, STAGE
    )
    fields = distributed.agree(lambda: documents_lib.merge(folder, names))
    counts, details = fields["counts"], fields["details"]
    log(
      STAGE,
      f"{ref.name}: {counts['scored']:,} of {counts['documents']:,} documents "
      f"scored, {counts['tokens']:,} tokens, "
      f"{details['bits_per_byte']:.4f} bits per byte",
    )
    for reason, n in details["unscored"].items():
      log(STAGE, f"{ref.name}: {n:,} documents have no score: {reason}")
    details["architecture"] = model.decoder.arch.fingerprint
    return fields | {"weights": weights}
