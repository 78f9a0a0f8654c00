"""What a run says of its steps and its losses, and where its time goes."""

import collections
import contextlib
import functools
import json
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from miniplm_jax.core import distributed, errors, files
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import duration, log
from miniplm_jax.corpus import batching
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import likelihood, placement
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.training import comparable, flops, metrics
from miniplm_jax.training.spec import TrainSpec

STEPS = "steps"
_REPLAYED = "steps done again"
_CURVE = "eval/"  # before the names of held-out losses
_BEAT = 60.0  # seconds after which the file says again how far it is


class Clock:
  """Seconds by what they were spent on, over all starts of a run.

  The time between two starts is not known and does not count. Steps after
  the checkpoint that a start goes on from were no progress: they are done
  again.
  """

  def __init__(self, directory: epath.Path):
    """Goes on with `directory`/wall_time.json, if it is there."""
    self._path = directory / "wall_time.json"
    kept = {"seconds": {}, "checkpoints": []}
    hint = "remove it: then only the time from now on is known"
    with errors.parsing(self._path, hint):
      if self._path.exists():
        kept = json.loads(self._path.read_bytes())
      self._seconds = collections.Counter(
        {what: float(spent) for what, spent in kept["seconds"].items()}
      )
      # Seconds of steps up to each.
      self._checkpoints = [[int(s), float(t)] for s, t in kept["checkpoints"]]
    self._what, self._since = "start", time.monotonic()
    self._written = self._since

  def starts_after(self, first: int):
    """The restored checkpoint is `first`; what was done after it is lost."""
    self._checkpoints = [c for c in self._checkpoints if c[0] <= first]
    good = self._checkpoints[-1][1] if self._checkpoints else 0.0
    if lost := self._seconds[STEPS] - good:
      self._seconds[_REPLAYED] += lost
      self._seconds[STEPS] = good

  def switch(self, what: str) -> str:
    """From now on it is `what`; returns what it was."""
    before, now = self._what, time.monotonic()
    self._seconds[before] += now - self._since
    self._what, self._since = what, now
    if now - self._written > _BEAT:
      self._write()
    return before

  def checkpoint(self, step: int):
    """A checkpoint of `step` is about to be saved."""
    self.switch(self._what)
    self._checkpoints.append([step, self._seconds[STEPS]])
    self._write()

  def goodput(self) -> float:
    """Share of the wall time that went into steps that were kept."""
    self.switch(self._what)
    return self._seconds.get(STEPS, 0) / max(self._seconds.total(), 1e-9)

  def close(self, name: str):
    """Says and keeps where the time went, if there was any step."""
    share = self.goodput()
    if STEPS not in self._seconds:
      return
    spent = [f"{k} {duration(s)}" for k, s in self._seconds.most_common() if s]
    total = duration(self._seconds.total())
    log(name, f"goodput {share:.1%} of {total}: {', '.join(spent)}")
    self._write()

  def _write(self):
    self._written = time.monotonic()
    if not distributed.is_first():
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(
      self._path,
      {"seconds": dict(self._seconds), "checkpoints": self._checkpoints},
    )


class Heldout:
  """The held-out losses of a learning curve: on the same rows each time."""

  def __init__(
    self, corpus: Corpus, row_ids: np.ndarray, dtype, mesh: Mesh, size: int
  ):
    """Compiles nothing yet; `size` is the rows of a batch."""
    self._corpus, self._row_ids = corpus, row_ids
    self._mesh, self._size = mesh, size
    self._row_nll = placement.program(
      likelihood.row_nll, mesh, eos_id=corpus.eos_id, dtype=dtype
    )

  def __call__(self, model: Decoder) -> dict[str, float]:
    """The losses now, in nats."""
    corpus, ids, size = self._corpus, self._row_ids, self._size
    nll, count = np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int32)
    planned = [
      batching.Planned(places, corpus.max_length, size)
      for places in np.split(np.arange(len(ids)), range(size, len(ids), size))
    ]
    stream = batching.ReadAhead(corpus, ids, planned, self._mesh)
    run = functools.partial(self._row_nll, model)
    for places, values in placement.run_rows(run, stream, self._mesh):
      nll[places], count[places] = values
    real = count > 0
    mean, token_mean = likelihood.mean_losses(nll[real], count[real])
    return {f"{_CURVE}loss": mean, f"{_CURVE}loss_token_mean": token_mean}


class Telemetry:
  """Metrics one step late, the check that they are finite, the log line."""

  def __init__(
    self, spec: TrainSpec, first: int, clock: Clock, is_same_curve: bool
  ):
    """Takes a training that goes on after step `first`.

    Its learning curve begins anew unless what is there is of the same rows.
    """
    self._spec, self._clock = spec, clock
    clock.starts_after(first)
    self._metrics = None
    if distributed.is_first():
      folder, run = spec.folder / "metrics", None
      folder.mkdir(parents=True, exist_ok=True)
      if project := spec.run.wandb_project:
        run = metrics.wandb_run(project, spec.name, folder, spec.settings)
      self._metrics = metrics.Metrics(folder, first, run)
      if not is_same_curve and self._metrics.drop(_CURVE):
        log(
          spec.name,
          "the learning curve begins anew: "
          f"{comparable.CURVE_OF} are not those of its earlier points",
        )
    self._pending = None
    self._first, self._compiled = first, set()
    self._start = self._said = self._fetched = time.monotonic()
    self._tokens = spec.step_tokens / jax.device_count()
    self._flops = spec.token_flops * spec.step_tokens / jax.device_count()
    self.note = ""
    if not flops.peak_flops() and jax.default_backend() != "cpu":
      kind = jax.devices()[0].device_kind
      log(spec.name, f"no bf16 peak of {kind} is known: no train/mfu")

  def add(self, step: int, values: dict[str, Any], row_ids: np.ndarray):
    """Takes the metrics of a dispatched step, fetches those before it."""
    self.fetch()
    self._pending = step, values, row_ids

  def fetch(self):
    """Waits for the pending metrics, checks and writes them."""
    if self._pending is None:
      return
    step, values, row_ids = self._pending
    self._pending = None
    values = {k: float(v) for k, v in jax.device_get(values).items()}
    for name in ("train/loss", "train/grad_norm"):
      if not np.isfinite(values[name]):
        self._not_finite(name, values[name], step, row_ids)
    now = time.monotonic()
    seconds = max(now - self._fetched, 1e-9)
    self._fetched = now
    if step == self._first + 1:  # what came before says nothing of the rest
      self._start = now
    tokens = self._tokens * jax.device_count()
    values["train/tokens_per_second"] = tokens / seconds
    values["train/goodput"] = self._clock.goodput()
    if peak := flops.peak_flops():
      values["train/mfu"] = self._flops / seconds / peak
    self.write(step, values)
    self.note = f"loss {values['train/loss']:.3f}"
    every = self._spec.run.log_every_seconds
    last = self._spec.last_step
    if now - self._said >= every or step == last:
      self._said = now
      left = ""
      if measured := step - self._first - 1:
        a_step = (now - self._start) / measured
        left = f", left: {duration(a_step * (last - step))}"
      log(
        self._spec.name,
        f"completed step: {step}, seconds: {seconds:.3f}, "
        f"TFLOP/s/device: {self._flops / seconds / 1e12:.3f}, "
        f"Tokens/s/device: {self._tokens / seconds:.1f}, "
        f"total_weights: {values['train/total_weights']:.0f}, "
        f"loss: {values['train/loss']:.4f}{left}",
      )

  def _not_finite(self, name, value, step, row_ids):
    # Every process has rows of its own.
    name = f"not_finite{distributed.own_suffix()}.json"
    path = self._spec.folder / "metrics" / name
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
    before, begun = self._clock.switch(what), time.monotonic()
    try:
      yield
    finally:
      self._clock.switch(before)
      self._fetched = time.monotonic()
      if what not in self._compiled:  # the first says nothing of the others
        self._compiled.add(what)
        self._start += self._fetched - begun

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
