"""What a student may spend, and what was spent before it trains."""

import dataclasses
from collections.abc import Mapping

from etils import epath

from miniplm_jax.config import TrainConfig
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.ref import CONDITIONAL, REFERENCE
from miniplm_jax.training import flops


def affordable(
  train: TrainConfig, shape: Architecture, max_length: int, token_flops: float
) -> TrainConfig:
  """The training of a student, with the steps that it can afford.

  One whose step costs more takes fewer: together as many FLOPs as
  `train.steps` steps of the next-token loss (paper, section 3.1). The warm-up
  stays the same share of the steps. `token_flops` is what training on an input
  token takes; 0 is the next-token loss.
  """
  if not token_flops:
    return train
  plain = flops.next_token(shape, max_length)
  steps = max(round(train.steps * plain / token_flops), 1)
  warmup = train.warmup_steps * steps // train.steps
  return dataclasses.replace(train, steps=steps, warmup_steps=warmup)


def offline(
  workdir: Workdir,
  selection: epath.Path | None,
  inputs: Mapping[str, Input],
  tables: Mapping[str, str] | None = None,
  is_reference_trained: bool | None = None,
) -> dict[str, float | None]:
  """FLOPs that a method took before its training, by part; None: not known.

  Scores and reference of its selection, and what its objective reads. What
  several students share counts whole for each. Left out is the teacher's own
  training: it was there before.

  Args:
    selection: the manifest of its rows, once there is one.
    inputs: what its objective reads beside corpus and selection.
    tables: names of the score tables that are to rank its rows, by role; those
      of a selection that is there are its own.
    is_reference_trained: here, for those that rank by it; None is as its table
      says.
  """
  selected = selection and _read(selection)
  names = dict(tables or {})
  names |= selected.settings.get("scores", {}) if selected else {}
  scored = {
    role: _read(
      workdir.scores(name) / MANIFEST, selected and selected.inputs.get(role)
    )
    for role, name in names.items()
  }
  spent = flops.spent({f"scoring by {r}": made for r, made in scored.items()})
  table = scored.get(REFERENCE)
  weights = table and table.inputs.get("weights")
  if is_reference_trained is None:  # what is given is named by its path
    named = table and table.details.get(manifest_lib.NAMED, {})
    is_reference_trained = bool(weights) and "weights" not in named
  trained = {}
  if is_reference_trained and {REFERENCE, "proxy"} & set(names):
    trained[REFERENCE] = weights
  if CONDITIONAL in names:
    table = scored[CONDITIONAL]
    trained[CONDITIONAL] = (table and table.inputs.get("weights")) or "none"
  for role, weights in trained.items():
    made = _read(workdir.scorer(role) / MANIFEST, weights)
    spent[f"training of {role}"] = made and made.details.get("train_flops")
  # Of these not all took FLOPs: a teacher's manifest has no such part.
  others = {
    name: manifest
    for name, source in inputs.items()
    if isinstance(source, epath.Path)
    and (manifest := _read(source))
    and flops.OFFLINE in manifest.details
  }
  return spent | flops.spent(others)


def _read(path: epath.Path, fingerprint: str | None = None) -> Manifest | None:
  """A manifest, unless it is missing or of another fingerprint."""
  try:
    manifest = manifest_lib.read(path)
  except UserError:  # whoever depends on it says so
    return None
  is_other = manifest and fingerprint and manifest.fingerprint != fingerprint
  return None if is_other else manifest
