"""Says where a run stands when a step does not end."""

import contextlib
import faulthandler
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

from etils import epath

from miniplm_jax.core import files, hosts
from miniplm_jax.core.log import duration, log


class Watchdog:
  """Writes the stack of every thread when `beat` is not called for long.

  It ends nothing: what is waited for may still come. It writes once for
  every `seconds` without a beat, and not before the first beat, since the
  first step is compiled.
  """

  def __init__(self, name: str, directory: epath.Path, seconds: float):
    """Takes the run's name, its metrics folder, and the patience; 0 is off."""
    self._name, self._directory, self._seconds = name, directory, seconds
    self._last = self._since = None
    self._ended = threading.Event()

  def beat(self, step: int):
    """Step `step` was dispatched, and with it the one before has ended."""
    self._last, self._since = step, time.monotonic()

  @contextlib.contextmanager
  def watching(self) -> Iterator[None]:
    """Watches during the body."""
    if not self._seconds:
      yield
      return
    thread = threading.Thread(target=self._watch, daemon=True)
    thread.start()
    try:
      yield
    finally:
      self._ended.set()
      thread.join()

  def _watch(self):
    while not self._ended.wait(self._seconds / 10):
      since = self._since
      if since is None or time.monotonic() - since < self._seconds:
        continue
      self._dump()
      if self._since == since:  # the next one after as long again
        self._since = time.monotonic()

  def _dump(self):
    with tempfile.TemporaryFile("w+") as scratch:
      faulthandler.dump_traceback(scratch, all_threads=True)
      scratch.seek(0)
      text = scratch.read()
    # Each process its own: the one that hangs is the one to look for.
    name = f"stacks-{self._last}{hosts.own_suffix()}.txt"
    path = self._directory / name
    print(text, file=sys.stderr, flush=True)
    log(
      self._name,
      f"nothing has ended for {duration(self._seconds)} after step "
      f"{self._last} was begun: it goes on waiting; the stacks of all threads "
      f"are in {path}",
    )
    with contextlib.suppress(OSError, ValueError):  # the disk may be what hangs
      files.write_bytes(path, text.encode())
