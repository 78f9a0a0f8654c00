"""What is left of a training: its model, its rows, its corpora."""

import contextlib

from etils import epy

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import CONVERTED, GENERATED, MANIFEST
from miniplm_jax.corpus.kept_rows import kept_rows

with epy.lazy_imports():
  from miniplm_jax.corpus import trained_rows
  from miniplm_jax.models import architecture, huggingface
  from miniplm_jax.training import checkpoints, loop, objective

# Before the name of its selection, in a student's settings.rows.
OF_SELECTION = "selection "


def own_corpora(trained: Manifest) -> dict[str, Manifest]:
  """The corpora beside a student that it was trained on, by input."""
  places = {
    name: trained.directory / folder / MANIFEST
    for name, folder in ((GENERATED, "generated"), (CONVERTED, "corpus"))
    if name in trained.inputs
  }
  # One that was removed when it had been used is no other.
  manifests = {name: manifest_lib.read(path) for name, path in places.items()}
  return {name: made for name, made in manifests.items() if made}


def row_ids(corpus, inputs):
  """The rows that a student is trained on, int64 ids: the kept ones.

  A corpus of the student's own has no others to train on.
  """
  if CONVERTED in inputs or GENERATED in inputs:
    return corpus.rows_of("train")
  return kept_rows(inputs["selection"])


def save(folder, model, corpus, row_ids, extra=None, **how):
  """Writes a model that was trained here, and which rows it has seen.

  `extra` are further files by name. See `huggingface.save` for the folder,
  for `how` the weights are written, and for what is returned.
  """
  rows = {trained_rows.NAME: trained_rows.encode(corpus, row_ids)}
  return huggingface.save(
    folder,
    model,
    corpus.eos_id,
    {**corpus.tokenizer().to_files(corpus.max_length), **rows, **(extra or {})},
    bos_id=corpus.bos_id,
    as_llama=not corpus.tokenizer().is_qwens,
    **how,
  )


def restore(trained: Manifest, mesh, new_model=None):
  """The model of a finished run, checked against its manifest.

  Its shape is what the manifest says: many fields of it no weight tells. Of
  the checkpoint the parameters alone are read, a third of it: AdamW's two means
  are neither held in memory nor need they be sound.

  Returns:
    What the objective trains: a `Decoder`, or what its own `new_model` makes.

  Raises:
    UserError: the last checkpoint is missing or not the one that was made.
  """
  new_model = new_model or objective.NextToken.new_model
  shape = architecture.of(trained.settings["model"])
  part = loop.abstract_state(shape, None, mesh, new_model)
  return restore_state(trained, part, is_part=True).model


def restore_state(trained: Manifest, abstract, is_part: bool = False):
  """The state that a finished run ended with, or a part of it.

  See `restore`; `abstract` are its shapes and shardings.
  """
  folder = trained.directory / "checkpoints"
  stored = checkpoints.Checkpoints(folder, keep=None)
  with contextlib.closing(stored):
    state, latest = None, stored.latest()
    if latest == trained.counts["steps"]:
      state = stored.restore(latest, abstract, is_part)
  weights = state and huggingface.weights_fingerprint(state.model)
  if weights != trained.weights:
    raise UserError(
      f"checkpoint {trained.counts['steps']} is missing or another",
      str(folder),
      checkpoints.GO_ON,
    )
  return state
