"""Models that score, where other stages use them."""

from collections.abc import Mapping
from typing import Any

from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.score import stage as stage_lib


def load(source: stage_lib.Source, inputs, name: str, corpus, mesh, dtype):
  """The model, checked against the corpus; and its files, if made here.

  Args:
    source: the model.
    inputs: manifests by name.
    name: of the input that `weights_input` made; a model that was not trained
      here has no manifest.
    corpus: what it is used on.
    mesh: where to put it.
    dtype: of its weights.
  """
  if name in inputs:
    inputs[name].check_sizes()
  return stage_lib.load_checked(source, corpus, mesh, dtype)


def as_configured(
  source: stage_lib.Source, settings: Mapping[str, Any], path, stage: str
) -> str:
  """A digest of how a stage uses a model; what it made must be so.

  Args:
    source: the model.
    settings: of the stage's job.
    path: the manifest of what it made, with an input "weights".
    stage: its name.

  Raises:
    UserError: it was made otherwise; names the first difference.
  """
  weights = stage_lib.weights_input(source)
  if callable(weights):
    weights = weights()
  elif trained := manifest_lib.read(weights):
    weights = trained.fingerprint
  wanted = {"settings": settings, "inputs": {"weights": str(weights)}}
  if made := manifest_lib.read(path):
    inputs = {"weights": made.inputs["weights"]}
    found = {"settings": made.settings, "inputs": inputs}
    if difference := manifest_lib.first_difference(found, wanted):
      raise UserError(
        f"stage {stage} was run otherwise: {difference}",
        str(path),
        f"put it back, or make it again with --stages={stage} --force",
      )
  return files.digest(wanted)
