"""Parts training and more_training: whole steps, beside transformers."""

import time

import numpy as np

from benchmarks.accelerator import models, ours, races, theirs
from benchmarks.accelerator.contest import Contender
from benchmarks.accelerator.results import Store
from benchmarks.accelerator.settings import Settings

REMAT = "dots"
_DTYPE = "bfloat16"


def _agree(ours_first, theirs_first):
  """Losses of the first two steps: the second is that of changed weights."""
  a, b = ours_first["losses"], theirs_first["losses"]
  off = np.abs(np.subtract(a, b))
  return {"losses_ours": a, "losses_theirs": b, "most": float(off.max())}


def run(settings: Settings, store: Store):
  """Measures each shape of the part."""
  planned = getattr(settings.plan, settings.part)
  todo = [
    shape
    for shape in planned
    if settings.wants(shape) and not store.is_done(settings.key(shape))
  ]
  for i, shape in enumerate(todo):
    start = time.time()
    seconds = (settings.left - 5) / (len(todo) - i)
    key = settings.key(shape)
    try:
      _one(settings, store, shape, planned[shape], key, start, seconds)
    except Exception as e:
      store.fail(key, f"{type(e).__name__}: {e}")


def _one(settings, store, shape, amount, key, start, seconds):
  plan, arch = settings.plan, settings.plan.shapes[shape]
  length, variant = plan.length, settings.variant
  devices = store.facts["devices"]
  model = models.ready(settings, shape)
  rows = amount.rows * devices
  remat, at_a_time = variant.remat or REMAT, variant.rows or amount.ours
  split = rows, at_a_time * devices
  arguments = model, split, length, amount.steps, remat, _DTYPE, variant
  contenders = [
    Contender(races.OURS, ours.trainer, arguments, ours.ENVIRONMENT)
  ]
  if races.theirs_of(settings, store):
    by, platform = races.ready_by(start, seconds), store.facts["platform"]
    split, last = (rows, amount.theirs), (_DTYPE, by, settings.compiled)
    arguments = arch.vocab_size, split, length, amount.steps, *last
    contenders.append(
      Contender(races.THEIRS, theirs.trainer, (model, platform, *arguments))
    )
  tokens = amount.steps * rows * length
  races.race(
    settings,
    store,
    key,
    contenders,
    seconds,
    tokens=tokens,
    flops=tokens * 3 * arch.forward_flops(length),
    start=start,
    agree=_agree,
  )
