"""What is evaluated: a student, or a teacher or reference that scores."""

import dataclasses
from collections.abc import Mapping

from etils import epath, epy

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.training import trained

with epy.lazy_imports():
  from miniplm_jax.corpus import store
  from miniplm_jax.evaluation import texts


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model, the corpus that it reads, and where its results go."""

  label: str  # its method, or its role
  name: str  # its own
  folder: epath.Path  # with its manifest
  corpus: Mapping[str, Input]  # the inputs for `store.open_corpus`
  dtype: str  # of the computation of its held-out loss
  ref: ModelRef | None = None  # of a scorer; None is a student

  @classmethod
  def scorer(cls, ref: ModelRef, corpus: epath.Path, dtype: str) -> "Subject":
    """A teacher or reference; its results lie beside its score table."""
    return cls(ref.role, ref.name, ref.table, {"corpus": corpus}, dtype, ref)

  def load(self, inputs: Mapping[str, Manifest], mesh, dtype: str):
    """The `Decoder`; a student's parameters are as it was trained.

    Args:
      inputs: manifests of its corpus and, as "model", its own.
      dtype: of a scorer's parameters.
    """
    if self.ref:
      corpus = store.Corpus(inputs["corpus"])
      return self.ref.load_as_scored(corpus, mesh, dtype)
    return trained.restore(inputs["model"], mesh)

  def text_model(self, inputs: Mapping[str, Manifest], mesh, dtype: str):
    """The `TextModel`, with its corpus's tokenizer; see `load`."""
    corpus = store.open_corpus(inputs)
    return texts.TextModel(
      self.load(inputs, mesh, dtype),
      corpus.tokenizer().text_engine(),
      mesh,
      self.folder,
      dtype,
      end_id=corpus.eos_id,
      bos_id=corpus.bos_id,
    )
