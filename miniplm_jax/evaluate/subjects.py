"""The models of a run that are evaluated."""

import dataclasses
from collections.abc import Mapping

from etils import epath, epy

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.corpus import convert_step
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.training import trained

with epy.lazy_imports():
  from miniplm_jax.corpus import store


@dataclasses.dataclass(frozen=True)
class Subject:
  """A student, or a teacher or reference that scores here."""

  label: str  # its method, or its role
  name: str  # its own
  folder: epath.Path  # with its manifest
  corpus: Mapping[str, Input]  # the inputs for `store.open_corpus`
  dtype: str  # of the computation of its held-out loss
  ref: ModelRef | None = None  # of a scorer; None is a student

  def load(self, inputs: Mapping[str, Manifest], mesh, dtype: str):
    """The `Decoder`; a student's parameters are as it was trained.

    Args:
      inputs: manifests of its corpus and, as "model", its own.
      mesh: where to put it.
      dtype: of a scorer's parameters.
    """
    if self.ref:
      corpus = store.Corpus(inputs["corpus"])
      return self.ref.load_as_scored(corpus, mesh, dtype)
    return trained.restore(inputs["model"], mesh)


def subjects(config, workdir: Workdir, scorers: bool = True) -> list[Subject]:
  """The students, and with `scorers` teacher and reference."""
  students = [_student(config, workdir, method) for method in config.methods]
  return students + [
    _scorer(config, workdir, role) for role in config.roles_with_model
  ] * bool(scorers)


def _student(config, workdir: Workdir, method: str) -> Subject:
  name = config.names_of(method).student
  corpus = convert_step.corpus_inputs(
    config.student, config.corpus, workdir, name
  )
  folder = workdir.student(name)
  return Subject(method, name, folder, corpus, config.train.dtype)


def _scorer(config, workdir: Workdir, role: str) -> Subject:
  ref = ModelRef.of_role(role, config.roles[role], workdir)
  corpus = {"corpus": workdir.corpus / MANIFEST}
  return Subject(role, ref.name, ref.table, corpus, config.score.dtype, ref)
