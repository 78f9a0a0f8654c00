"""Part scoring: rows of equal length, no padding, beside transformers."""

import time

import numpy as np
from etils import epath

from benchmarks.accelerator import models, ours, races, theirs
from benchmarks.accelerator.contest import Contender
from benchmarks.accelerator.results import Store
from benchmarks.accelerator.settings import Settings


def _agree(ours_first, theirs_first):
  """Nats per token, of the mean of each row."""
  off = np.abs(ours_first["nll"] - theirs_first["nll"])
  return {
    "nll_ours": float(np.mean(ours_first["nll"])),
    "nll_theirs": float(np.mean(theirs_first["nll"])),
    "row_most": float(off.max()),
  }


def run(settings: Settings, store: Store):
  """Measures each shape."""
  plan = settings.plan
  todo = [
    shape
    for shape in plan.scoring
    if settings.wants(shape) and not store.is_done(settings.key(shape))
  ]
  for i, shape in enumerate(todo):
    start = time.time()
    seconds = (settings.left - 5) / (len(todo) - i)
    key, devices = settings.key(shape), store.facts["devices"]
    try:
      _one(settings, store, shape, key, start, seconds, devices)
    except Exception as e:
      store.fail(key, f"{type(e).__name__}: {e}")


def _one(settings, store, shape, key, start, seconds, devices):
  plan, arch = settings.plan, settings.plan.shapes[shape]
  amount, length = plan.scoring[shape], plan.length
  model = models.ready(settings, shape)
  count = amount.rows * devices
  rows = next(models.batches(arch.vocab_size, count, length))
  corpus = epath.Path(settings.scratch) / f"rows-{shape}"
  models.write_corpus(corpus, list(rows), length, models.EOS)
  at_a_time = (settings.variant.rows or amount.ours) * devices
  contenders = [
    Contender(
      races.OURS,
      ours.scorer,
      (model, str(corpus), length, at_a_time, settings.variant),
      ours.ENVIRONMENT,
    )
  ]
  if races.theirs_of(settings, store):
    by, platform = races.ready_by(start, seconds), store.facts["platform"]
    arguments = model, platform, rows, amount.theirs, by, settings.compiled
    contenders.append(Contender(races.THEIRS, theirs.scorer, arguments))
  races.race(
    settings,
    store,
    key,
    contenders,
    seconds,
    tokens=count * length,
    flops=count * length * arch.forward_flops(length),
    start=start,
    agree=_agree,
  )
