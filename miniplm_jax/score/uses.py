"""Models that score, where other stages use them."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.score import step as stage_lib

_HINT = (
  "give the model that scored (of a hub id the same commit as its revision), "
  "or score again with --stages=score --force"
)


def fingerprint(source: stage_lib.Source, made: Manifest | None) -> str:
  """Of a model as it is now, in the form that `made`, if any, has it in."""
  weights = stage_lib.weights_input(source)
  if callable(weights):
    return made.fingerprint_by("weights", weights) if made else weights()
  trained = manifest_lib.read(weights)
  return trained.fingerprint if trained else str(weights)


def load(source: stage_lib.Source, corpus, mesh, dtype):
  """A model that has the corpus's tokenizer, and made its table if it has one.

  It may be another that lies under its name: a hub id's branch moves.

  Args:
    source: the model.
    corpus: that it reads.
    mesh: where to load it.
    dtype: of its parameters.

  Raises:
    UserError: it has another tokenizer, or the table is another model's.
  """
  import jax
  import jax.numpy as jnp

  from miniplm_jax.models import decoder

  made = None
  if source.table:
    made = manifest_lib.read(epath.Path(source.table) / MANIFEST)
  if made is None or "weights" not in made.inputs:  # scores of elsewhere
    return stage_lib.load_checked(source, corpus, mesh, dtype)
  facts = {
    "weights": made.weights,
    "dtype": made.settings["dtype"],
    "architecture": made.details.get("architecture"),
  }
  # From the wider of the two the other can be had.
  wide = jnp.promote_types(dtype, facts["dtype"])
  model = stage_lib.load_checked(source, corpus, mesh, wide)
  check_loaded(source, model, facts)
  if wide == dtype:
    return model
  like, tree = jax.tree.flatten(decoder.abstract(model.arch, dtype))
  leaves = zip(jax.tree.leaves(model), like)
  return jax.tree.unflatten(tree, [x.astype(y.dtype) for x, y in leaves])


def check_loaded(source: stage_lib.Source, model, facts: Mapping[str, Any]):
  """Raises UserError unless a model is the one that a table was made by.

  Args:
    source: the model.
    model: loaded in the table's dtype, or in a wider one.
    facts: `weights`, `dtype` and `architecture` of the table; None is not
      known.
  """
  from miniplm_jax.models import huggingface

  now = {
    "weights": huggingface.weights_fingerprint(model, facts["dtype"]),
    "architecture": model.arch.fingerprint,
  }
  for name, found in now.items():
    then = facts.get(name) or found
    if found != then:
      raise UserError(
        f"{source.name} was scored by {name} {then[:12]}, here it is "
        f"{found[:12]}",
        f"{source.path or source.trained}",
        _HINT,
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
    settings: of the stage's step.
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
