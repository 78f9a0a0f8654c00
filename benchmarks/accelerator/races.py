"""What scoring and training have in common: a contest as a result."""

import statistics
from typing import Any

from benchmarks.accelerator.contest import Contender, Outcome, hold
from benchmarks.accelerator.settings import Settings

OURS, THEIRS = "ours", "transformers"
_READY = 0.75  # the share of a contest's time in which to get ready
_KEPT = ("rows", "program_gib", "way", "note")
_KEPT += ("eager_seconds", "compiled_seconds", "compiling_seconds")


def crash(*unused):
  """A contender of the tests."""
  raise RuntimeError("it was told to crash")


def race(
  settings: Settings,
  store,
  key: str,
  contenders: list[Contender],
  seconds: float,
  *,
  tokens: float,
  flops: float,
  start: float,
  agree,
):
  """Holds a contest and keeps its figures after every round.

  Args:
    settings: of the part.
    store: of its results.
    key: of this one.
    contenders: ours first.
    seconds: that it may take.
    tokens: of a turn.
    flops: of the model, of a turn.
    start: when the time began.
    agree: (what ours told first, what they told) → how they differ.
  """
  contenders = [
    Contender(c.name, crash) if c.name == settings.crash else c
    for c in contenders
  ]

  def figures(outcome: Outcome) -> dict[str, Any]:
    found = {"variant": str(settings.variant), "failed": outcome.failed}
    for name in outcome.turns:
      found[name] = _side(outcome, name, tokens, flops, store.facts)
    if ratio := outcome.ratio(OURS, THEIRS):
      found["ratio"] = ratio
    if OURS in outcome.first and THEIRS in outcome.first:
      found["agree"] = agree(outcome.first[OURS], outcome.first[THEIRS])
    return found

  outcome = hold(
    contenders,
    settings.turns,
    ready_by=ready_by(start, seconds),
    until=start + seconds,
    say=lambda text: settings.say(f"{key}: {text}"),
    kept=lambda outcome: store.put(key, figures(outcome), partial=True),
  )
  if OURS not in outcome.turns:
    store.fail(key, outcome.failed.get(OURS, "no turn was taken in its time"))
    return
  # What is failed at the other side is not tried again, unless told so.
  store.put(key, figures(outcome))
  settings.say(f"{key}: {_line(store.results[key])}")


def ready_by(start: float, seconds: float) -> float:
  """When contenders are to be ready."""
  return start + _READY * seconds


def _side(outcome, name, tokens, flops, facts) -> dict[str, Any]:
  seconds = outcome.seconds(name)
  median = statistics.median(seconds)
  per_device = flops / median / (facts.get("devices") or 1)
  peak, first = facts.get("peak_flops"), outcome.first[name]
  return {
    "tokens_per_second": tokens / median,
    "flops_per_second": per_device,
    "mfu": per_device / peak if peak else None,
    "seconds": seconds,
    "ready_seconds": outcome.ready[name],
    "memory": outcome.ended.get(name),
    "alone": name in outcome.alone,
    **{field: first[field] for field in _KEPT if field in first},
  }


def _line(found) -> str:
  text = ", ".join(
    f"{name} {found[name]['tokens_per_second']:,.0f} tokens/s"
    for name in (OURS, THEIRS)
    if name in found
  )
  return text + (f", ratio {found['ratio'][0]:.2f}" if "ratio" in found else "")


def theirs_of(settings: Settings, store) -> bool:
  """Whether the other side takes part: on CPU and GPU."""
  return settings.against and store.facts.get("platform") in ("cpu", "gpu")
