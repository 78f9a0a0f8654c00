"""What a student may spend, and what was spent before it trains."""

import dataclasses
from collections.abc import Mapping

from etils import epath

from miniplm_jax.config import TrainConfig
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.step import Input
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.criteria import CRITERIA
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.training import flops


def schedule(config, arch: Architecture, token_flops: float) -> TrainConfig:
  """The train section of a student, with the steps that it can afford.

  With `equal_flops` those whose step costs more take fewer: together as many
  FLOPs as `train.steps` steps of the next-token loss (paper, section 3.1). The
  warm-up stays the same share of the steps.

  Args:
    config: the configuration.
    arch: the student's shape.
    token_flops: of training on an input token; 0 is the next-token loss.
  """
  train = config.train
  if not (config.equal_flops and token_flops):
    return train
  plain = flops.next_token(arch, config.corpus.max_length)
  steps = max(round(train.steps * plain / token_flops), 1)
  warmup = train.warmup_steps * steps // train.steps
  return dataclasses.replace(train, steps=steps, warmup_steps=warmup)


def in_words(config, train: TrainConfig) -> str:
  """Why a student takes other steps, for its summary; or nothing."""
  if train.steps == config.train.steps:
    return ""
  return f" ({config.train.steps:,} of the next-token loss)"


def offline(
  config, workdir: Workdir, names, inputs: Mapping[str, Input]
) -> dict[str, float | None]:
  """FLOPs that a method took before its training, by part; None: not known.

  Scores and reference of its selection, and what its objective reads. What
  several students share counts whole for each. Left out is the teacher's own
  training: it was there before.

  Args:
    config: the configuration.
    workdir: of the run.
    names: of the method, from `Config.names_of`.
    inputs: what its objective reads beside corpus and selection.
  """
  reads = CRITERIA[names.definition].reads
  made = _read(workdir.selection(names.selection) / MANIFEST)
  tables = made.settings.get("scores", {}) if made else {}
  found = flops.spent(
    {
      f"scoring by {role}": _read(
        workdir.scores(tables.get(role, getattr(config, role).name)) / MANIFEST,
        made and made.inputs.get(role),
      )
      for role in reads
    }
  )
  c = config.reference
  if not c.path and not c.scores and {"reference", "proxy"} & set(reads):
    made = _read(workdir.scorer("reference") / MANIFEST)
    trained = made.details.get("train_flops") if made else None
    found["training of reference"] = trained
  # Of these not all took FLOPs: a teacher's manifest has no such part.
  others = {
    name: made
    for name, source in inputs.items()
    if isinstance(source, epath.Path)
    and (made := _read(source))
    and flops.OFFLINE in made.details
  }
  return found | flops.spent(others)


def _read(path: epath.Path, fingerprint: str | None = None):
  """A manifest, unless it is missing or of another fingerprint."""
  try:
    manifest = manifest_lib.read(path)
  except UserError:  # whoever depends on it says so
    return None
  is_other = manifest and fingerprint and manifest.fingerprint != fingerprint
  return None if is_other else manifest
