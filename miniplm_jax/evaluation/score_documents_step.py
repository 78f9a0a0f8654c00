"""Stage score_documents: whole documents under models that are given.

Nothing is packed: a model reads each document by its own tokenizer, after its
own beginning of a text, in windows if it is long.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.config import DocumentsConfig, RunConfig, ScoreConfig
from miniplm_jax.core import distributed, files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.code import Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log, warn
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus.sources import CorpusSource
from miniplm_jax.models import hub
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.scoring.ngram import NgramRef

with epy.lazy_imports():
  from miniplm_jax.corpus import trained_rows
  from miniplm_jax.evaluation import documents as documents_lib
  from miniplm_jax.evaluation import texts
  from miniplm_jax.models import huggingface, sharding

STAGE = "score_documents"
_CODE = ("evaluation/documents.py", "models/huggingface.py")


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How documents are scored, by whatever model."""

  documents: DocumentsConfig
  source: CorpusSource  # of the documents
  score: ScoreConfig  # dtype and size of a batch
  folder: epath.Path  # in which each model has one
  run: RunConfig

  def steps(self, models: Sequence[ModelRef | NgramRef]) -> list[Step]:
    """One step a language model.

    Raises:
      UserError: one of documents.models is none that has weights.
    """
    models = [m for m in models if isinstance(m, ModelRef) and not m.scores]
    by_name = {name: ref for ref in models for name in (ref.name, ref.role)}
    chosen = self.documents.models or [ref.name for ref in models]
    for name in chosen or ["at all"]:
      if name not in by_name:
        names = ", ".join(ref.name for ref in models) or "none: give one"
        raise UserError(
          f"no language model {name} is given",
          f"config.documents.models={self.documents.models}",
          f"there is {names}; of others there are scores or counts alone",
        )
    unique = dict.fromkeys(by_name[name].name for name in chosen)
    return [self._step(by_name[name]) for name in unique]

  def _step(self, ref: ModelRef) -> Step:
    c, score, corpus = self.documents, self.score, self.source.corpus
    folder = self.folder / ref.name
    inputs = {"source": self.source, "weights": ref.as_input()}
    if ref.path:
      inputs["tokenizer"] = hub.GivenTokenizer(ref.path, ref.revision)

    def check():
      """All models are there before the first one scores; none is fetched."""
      is_given = ref.path and not (folder / MANIFEST).exists()
      if is_given and not hub.may_be_hub_id(ref.path):
        ref.shape()
        inputs["tokenizer"]()

    settings = dataclasses.asdict(c)
    del settings["models"]
    names = ("split", "text_field", "domain_field", "id_field")
    settings |= {name: getattr(corpus, name) for name in names}
    settings |= {"dtype": score.dtype, "batch_tokens": score.most_tokens}
    return Step(
      stage=STAGE,
      manifest=folder / MANIFEST,
      settings=settings,
      effect=ScoreConfig.effect,
      inputs=inputs,
      outputs=(folder,),
      summary=f"documents of {corpus.source} under {ref.name} {ref.origin}, "
      f"{score.dtype}",
      code=Version(_CODE, ("jax", "tokenizers"), self.run.any_code),
      checks=(check,),
      run=lambda unused_inputs: self._run(ref, folder),
    )

  def _run(self, ref: ModelRef, folder: epath.Path) -> dict[str, Any]:
    c, run, score = self.documents, self.run, self.score
    mesh = sharding.mesh_of(run)
    model = texts.TextModel.load(ref.folder(), mesh, score.dtype)
    self._warn_of_training(ref.name, model.folder)
    rows = texts.RowScorer(
      model, score.batch_tokens, run.log_every_seconds, STAGE
    )
    scorer = texts.TextScorer(model, c, rows)
    weights = huggingface.weights_fingerprint(model.decoder)
    tokens = files.sha256(model.folder / "tokenizer.json")
    made_by = weights, model.decoder.arch.fingerprint, tokens, model.first_id
    items = documents_lib.read(self.source.chunks())
    names = documents_lib.fill(
      folder, items, scorer, c.part_bytes, made_by, STAGE
    )
    if not names:
      where = f"config.corpus.source={self.source.path}"
      hint = "give a source that has some"
      raise UserError("there is no document", where, hint)
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
    return fields | {"weights": weights, "tokenizer": tokens}

  def _warn_of_training(self, name: str, folder: epath.Path):
    """Warns if it was trained on rows that may be these documents.

    Rows are no documents, so nobody can tell which.
    """
    home = folder.parent  # of what was trained here, whose hf/ this is
    is_listed = any((f / trained_rows.NAME).exists() for f in (folder, home))
    made, which = manifest_lib.read(home / MANIFEST), "a corpus"
    if not is_listed and not (made and made.weights):
      return
    for above in home.parents[:2]:  # WORKDIR/reference, WORKDIR/students/NAME
      corpus = manifest_lib.read(above / "corpus" / MANIFEST)
      if made and corpus and made.inputs.get("corpus") == corpus.fingerprint:
        is_same = corpus.inputs.get("source") == self.source()
        which = "a corpus of this very source" if is_same else which
    warn(
      STAGE,
      f"{name} was trained on rows of {which}: documents that it has seen are "
      "not left out, and their scores say nothing",
    )
