"""Parts scoring, training and more_training: contests with transformers."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from benchmarks.accelerator import models, ours, theirs
from benchmarks.accelerator.contest import Contender, Outcome, hold
from benchmarks.accelerator.results import Store, reason
from benchmarks.accelerator.settings import Settings

OURS, THEIRS = "ours", "transformers"
REMAT = "dots"
_DTYPE = "bfloat16"
_READY = 0.8  # the share of a contest's time in which to get ready
_SECONDS = 75  # that a contest gets, if need be of those that come after it
_LEAST = 8  # without which none is begun
_KEPT = ("rows", "program_gib", "way", "ways", "note", "compiling_layers")
_KEPT += ("compiling_whole",)


def run(settings: Settings, store: Store):
  """Measures each shape of the part."""
  planned = getattr(settings.plan, settings.part)
  one = _scoring if settings.part == "scoring" else _training
  pending = [
    shape
    for shape in planned
    if settings.wants(shape)
    and not store.is_done(settings.key(shape), **_asked(settings, store))
  ]
  for i, shape in enumerate(pending):
    left = settings.left - 3
    key, seconds = settings.key(shape), max(left / (len(pending) - i), _SECONDS)
    seconds = min(seconds, left)
    if seconds < _LEAST:
      settings.say(f"{key}: no time left")
      continue
    try:
      _Race(settings, store, shape, time.time() + seconds).hold(
        one, planned[shape]
      )
    except Exception as e:
      store.fail(key, reason(e))


def crash(*unused):
  """A contender of the tests."""
  raise RuntimeError("it was told to crash")


def has_theirs(settings: Settings, store: Store) -> bool:
  """Whether the other side takes part: on CPU and GPU."""
  return settings.against and store.facts.get("platform") in ("cpu", "gpu")


def _asked(settings: Settings, store: Store) -> dict[str, int]:
  """What a race is measured anew for, if it was measured with less."""
  # They use one device.
  both = has_theirs(settings, store) and store.facts["devices"] == 1
  compiled = both and settings.compiled
  return {"against": both, "compiled": compiled, "turns": settings.turns}


class _Race:
  """One shape."""

  def __init__(self, settings, store, shape, until):
    self.settings, self.store, self.shape = settings, store, shape
    self.key, self.until = settings.key(shape), until
    self.ready_by = until - (1 - _READY) * (until - time.time())
    self.arch = settings.plan.shapes[shape]
    self.length = settings.plan.length
    self.devices, self.platform = (
      store.facts[name] for name in ("devices", "platform")
    )

  def hold(self, make: Callable[..., Any], amount):
    """Holds the contest; its figures are kept after every round."""
    model = models.ready(self.settings, self.shape)
    contenders, tokens, passes, agree = make(self, model, amount)
    asked = _asked(self.settings, self.store)
    if not asked["against"]:
      del contenders[THEIRS]
    if self.settings.crash in contenders:
      contenders[self.settings.crash] = (crash,)
    flops = passes * tokens * self.arch.forward_flops(self.length)

    def figures(outcome: Outcome) -> dict[str, Any]:
      found = {
        "variant": str(self.settings.variant),
        "asked": asked,
        "failed": outcome.failed,
        "ratio": outcome.ratio(OURS, THEIRS),
      }
      for name in outcome.turns:
        found[name] = self._side(outcome, name, tokens, flops)
      if contenders.keys() <= outcome.first.keys() and len(contenders) > 1:
        found["agree"] = agree(outcome.first[OURS], outcome.first[THEIRS])
      return found

    outcome = hold(
      [Contender(name, c[0], c[1:]) for name, c in contenders.items()],
      self.settings.turns,
      ready_by=self.ready_by,
      until=self.until,
      say=lambda text: self.settings.say(f"{self.key}: {text}"),
      kept=lambda o: (
        OURS in o.turns and self.store.put(self.key, figures(o), partial=True)
      ),
    )
    if OURS not in outcome.turns:
      why = outcome.failed.get(OURS, "no turn was taken in its time")
      self.store.fail(self.key, why)
      return
    found = figures(outcome)
    self.store.put(self.key, found)
    told = [
      f"{name} {found[name]['tokens_per_second']:,.0f} tokens/s"
      for name in (OURS, THEIRS)
      if name in found
    ]
    told += [f"ratio {found['ratio'][0]:.2f}"] if found["ratio"] else []
    self.settings.say(f"{self.key}: {', '.join(told)}")

  def _side(self, outcome, name, tokens, flops) -> dict[str, Any]:
    seconds = outcome.seconds(name)
    median = statistics.median(seconds)
    rate = flops / median / self.devices
    peak, first = self.store.facts.get("peak_flops"), outcome.first[name]
    return {
      "tokens_per_second": tokens / median,
      "flops_per_second": rate,  # of a device
      "mfu": rate / peak if peak else None,
      "seconds": seconds,
      "ready_seconds": outcome.ready[name],
      "memory": outcome.ended.get(name),
      "alone": name in outcome.alone,
      **{field: first[field] for field in _KEPT if field in first},
    }


# Of either: contenders by name as (make, *arguments), tokens of a turn, forward
# passes that a token costs, and (what ours told, what they told) → how they
# differ.


def _scoring(race: _Race, model: str, amount):
  """Rows of equal length, so that nobody pads."""
  settings, length = race.settings, race.length
  count = amount.rows * race.devices
  rows = next(models.batches(race.arch.vocab_size, count, length))
  corpus = epath.Path(settings.scratch) / f"rows-{race.shape}"
  models.write_corpus(corpus, list(rows), length, models.EOS)
  at_a_time = min(settings.variant.rows or amount.ours, amount.rows)
  at_a_time *= race.devices
  own = model, str(corpus), length, at_a_time, settings.variant
  other = model, race.platform, rows, amount.theirs
  contenders = {
    OURS: (ours.scorer, *own),
    THEIRS: (theirs.scorer, *other, race.ready_by, settings.compiled),
  }

  def agree(a: Mapping[str, Any], b: Mapping[str, Any]):
    return {
      "nll_ours": np.mean(a["nll"]),
      "nll_theirs": np.mean(b["nll"]),
      "most_of_a_row": np.abs(a["nll"] - b["nll"]).max(),
    }

  return contenders, count * length, 1, agree


def _training(race: _Race, model: str, amount):
  """Whole steps of as many rows on either side."""
  settings, variant = race.settings, race.settings.variant
  rows = amount.rows * race.devices
  at_a_time = (variant.rows or amount.ours) * race.devices
  own = (rows, at_a_time), race.length, amount.steps, variant.remat or REMAT
  other = (rows, amount.theirs), race.length, amount.steps, _DTYPE
  vocabulary = race.arch.vocab_size
  contenders = {
    OURS: (ours.trainer, model, *own, _DTYPE, variant),
    THEIRS: (
      theirs.trainer,
      model,
      race.platform,
      vocabulary,
      *other,
      race.ready_by,
      settings.compiled,
    ),
  }

  def agree(a: Mapping[str, Any], b: Mapping[str, Any]):
    """The second loss is that of weights that a step has changed."""
    off = np.abs(np.subtract(a["losses"], b["losses"]))
    return {
      "losses_ours": a["losses"],
      "losses_theirs": b["losses"],
      "most_of_a_loss": off.max(),
    }

  tokens = amount.steps * rows * race.length
  return contenders, tokens, 3, agree
