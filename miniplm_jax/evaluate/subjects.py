"""The models of a run that are evaluated."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from miniplm_jax.convert import step as convert_stage
from miniplm_jax.core.step import Input
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.training import step as training_step


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model to evaluate.

  Attributes:
    label: its method, or its role.
    name: its own.
    folder: with its manifest.
    corpus: the inputs that are its corpus, for `store.open_corpus`.
    dtype: of the computation of its held-out loss.
    load: makes the `Decoder` of (inputs, mesh, dtype).
    ref: of a teacher or reference; a student trains on no held-out rows.
  """

  label: str
  name: str
  folder: epath.Path
  corpus: Mapping[str, Input]
  dtype: str
  load: Callable[..., Any]
  ref: ModelRef | None = None


def subjects(config, workdir: Workdir, scorers: bool = True) -> list[Subject]:
  """The students, and with `scorers` teacher and reference."""
  found = [_student(config, workdir, method) for method in config.methods]
  if scorers:
    found += [
      _scorer(
        config, workdir, ModelRef.of_role(role, config.roles[role], workdir)
      )
      for role in config.roles_with_model
    ]
  return found


def _student(config, workdir: Workdir, method: str) -> Subject:
  name = config.names_of(method).student

  def load(inputs, mesh, unused_dtype):
    return training_step.restore(inputs["model"], mesh)

  corpus = convert_stage.corpus_inputs(config, workdir, name)
  folder = workdir.student(name)
  return Subject(method, name, folder, corpus, config.train.dtype, load)


def _scorer(config, workdir: Workdir, ref: ModelRef) -> Subject:
  def load(inputs, mesh, dtype):
    from miniplm_jax.corpus.store import Corpus

    return ref.load_as_scored(Corpus(inputs["corpus"]), mesh, dtype)

  corpus = {"corpus": workdir.corpus / MANIFEST}
  dtype = config.score.dtype
  return Subject(ref.role, ref.name, ref.table, corpus, dtype, load, ref)
