"""Models that score, where other stages use them."""

from collections.abc import Mapping, Sequence
from typing import Any

from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.score import stage as stage_lib


def fingerprint(source: stage_lib.Source, made: Manifest | None) -> str:
  """Of a model as it is now, in the form that `made`, if any, has it in."""
  weights = stage_lib.weights_input(source)
  if callable(weights):
    return made.fingerprint_by("weights", weights) if made else weights()
  trained = manifest_lib.read(weights)
  return trained.fingerprint if trained else str(weights)


def check_weights(source: stage_lib.Source, made: Manifest):
  """Raises UserError unless a table was made by the model as it is now."""
  now, then = fingerprint(source, made), made.inputs["weights"]
  if now != then:
    raise UserError(
      f"{source.name} was scored by weights {then[:12]}, these are {now[:12]}",
      f"{source.path or source.trained} and {made.path}",
      "give the model that scored, or score again with --stages=score --force",
    )


def as_configured(
  source: stage_lib.Source,
  settings: Mapping[str, Any],
  path,
  stage: str,
  idle: Sequence[str] = (),
) -> str:
  """A digest of how a stage uses a model; what it made must be so.

  Args:
    source: the model.
    settings: of the stage's job.
    path: the manifest of what it made, with an input "weights".
    stage: its name.
    idle: settings without effect: those of what was made hold.

  Raises:
    UserError: it was made otherwise; names the first difference.
  """
  made = manifest_lib.read(path)
  weights = fingerprint(source, made)
  settings = dict(settings)
  wanted = {"settings": settings, "inputs": {"weights": weights}}
  if made:
    settings |= {k: v for k, v in made.settings.items() if k in idle}
    inputs = {"weights": made.inputs["weights"]}
    found = {"settings": made.settings, "inputs": inputs}
    if difference := manifest_lib.first_difference(found, wanted):
      raise UserError(
        f"stage {stage} was run otherwise: {difference}",
        str(path),
        f"put it back, or make it again with --stages={stage} --force",
      )
  return files.digest(wanted)
