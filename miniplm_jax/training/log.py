"""What a run says of its steps."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from miniplm_jax.core import files, hosts
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import duration, log
from miniplm_jax.training import boards, clock, comparable, heldout, metrics


class Log:
  """Metrics one step late, the check that they are finite, the log line."""

  def __init__(self, spec, first: int, timer: clock.Clock, is_same_curve: bool):
    """Takes a `loop.Run` that goes on after step `first`.

    Its learning curve begins anew unless what is there is of the same rows.
    """
    self._spec, self._clock = spec, timer
    timer.starts_after(first)
    self._metrics = None
    if hosts.is_first():
      self._metrics = metrics.Metrics(
        spec.directory / "metrics", first, _boards(spec, first)
      )
      if not is_same_curve and self._metrics.drop(heldout.PREFIX):
        log(
          spec.name,
          "the learning curve begins anew: "
          f"{comparable.CURVE_OF} are not those of its earlier points",
        )
    self._pending = None
    self._first = first
    self._start = self._said = self._fetched = time.monotonic()
    length = spec.corpus.max_length
    self._tokens = spec.train.batch_size * length / jax.device_count()
    self._flops = spec.step_flops / jax.device_count()
    self.note = ""
    if not metrics.peak_flops() and jax.default_backend() != "cpu":
      kind = jax.devices()[0].device_kind
      log(spec.name, f"no bf16 peak of {kind} is known: no train/mfu")

  def add(self, step: int, found: dict[str, Any], row_ids: np.ndarray):
    """Takes the metrics of a dispatched step, fetches those before it."""
    self.fetch()
    self._pending = step, found, row_ids

  def fetch(self):
    """Waits for the pending metrics, checks and writes them."""
    if self._pending is None:
      return
    step, found, row_ids = self._pending
    self._pending = None
    found = {k: float(v) for k, v in jax.device_get(found).items()}
    for name in ("train/loss", "train/grad_norm"):
      if not np.isfinite(found[name]):
        self._not_finite(name, found[name], step, row_ids)
    now = time.monotonic()
    seconds = max(now - self._fetched, 1e-9)
    self._fetched = now
    if step == self._first + 1:  # what came before says nothing of the rest
      self._start = now
    found["train/tokens_per_second"] = (
      self._tokens * jax.device_count() / seconds
    )
    found["train/goodput"] = self._clock.goodput()
    if peak := metrics.peak_flops():
      found["train/mfu"] = self._flops / seconds / peak
    self.write(step, found)
    self.note = f"loss {found['train/loss']:.3f}"
    every = self._spec.run.log_every_seconds
    if now - self._said >= every or step == self._spec.train.steps:
      self._said = now
      log(
        self._spec.name,
        f"completed step: {step}, seconds: {seconds:.3f}, "
        f"TFLOP/s/device: {self._flops / seconds / 1e12:.3f}, "
        f"Tokens/s/device: {self._tokens / seconds:.1f}, "
        f"total_weights: {found['train/total_weights']:.0f}, "
        f"loss: {found['train/loss']:.4f}, "
        f"left: {duration(self._seconds_left(step, now))}",
      )

  def _seconds_left(self, step: int, now: float) -> float:
    done = max(step - self._first - 1, 1)
    return (now - self._start) / done * (self._spec.train.steps - step)

  def _not_finite(self, name, value, step, row_ids):
    # Every process has rows of its own.
    name = f"not_finite{hosts.own_suffix()}.json"
    path = self._spec.directory / "metrics" / name
    files.write_json(
      path, {"step": step, "name": name, "row_ids": row_ids.tolist()}
    )
    raise UserError(
      f"{name} is {value} at step {step}",
      f"{self._spec.name}; the batch's row ids are in {path}",
      "the last checkpoint is sound: look at the rows; or lower the learning "
      "rate, and give another name or remove what is there to start over",
    )

  def write(self, step: int, values: dict[str, float]):
    """Writes values to the metrics files."""
    if self._metrics:
      self._metrics.write(step, values)

  @contextlib.contextmanager
  def outside(self, what: str) -> Iterator[None]:
    """For what is no part of a step: that ends before the body begins."""
    self.fetch()
    with self._clock.spent_on(what):
      yield
    self._fetched = time.monotonic()

  def save(self, step: int):
    """Puts the metrics on disk, before checkpoint `step`."""
    if self._metrics:
      self._metrics.save()
    self._clock.checkpoint(step)

  def close(self):
    """Saves and closes."""
    self._clock.switch("saving")  # and what is still being saved
    if self._metrics:
      self._metrics.close()


def _boards(spec, first: int) -> list[boards.Board]:
  """Those that the config asks for; in the first process alone."""
  directory = spec.directory / "metrics"
  directory.mkdir(parents=True, exist_ok=True)
  found = [boards.TensorBoard(directory, first)]
  if spec.run.wandb_project:
    settings = {
      "model": dataclasses.asdict(spec.arch),
      "train": dataclasses.asdict(spec.train),
    }
    found.append(
      boards.Wandb(spec.run.wandb_project, spec.name, directory, settings)
    )
  return found
