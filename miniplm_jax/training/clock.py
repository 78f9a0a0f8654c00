"""Where the wall time of a run goes, and which share of it was progress."""

import collections
import contextlib
import json
import time
from collections.abc import Iterator

from etils import epath

from miniplm_jax.core import errors, files, hosts
from miniplm_jax.core.log import duration, log

STEPS = "steps"
_REPLAYED = "steps done again"
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

  @contextlib.contextmanager
  def spent_on(self, what: str) -> Iterator[None]:
    """Counts the body's time as `what`."""
    before = self.switch(what)
    try:
      yield
    finally:
      self.switch(before)

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
    if not hosts.is_first():
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(
      self._path,
      {"seconds": dict(self._seconds), "checkpoints": self._checkpoints},
    )
