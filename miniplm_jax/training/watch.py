"""Looking into a run: its memory, the stacks of a step that hangs, a trace."""

import contextlib
import faulthandler
import math
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from miniplm_jax.core import distributed, files
from miniplm_jax.core.log import duration, log
from miniplm_jax.training.spec import TrainSpec
from miniplm_jax.training.telemetry import Telemetry


def memory_report(state, frozen: Any, compiled: jax.stages.Compiled) -> str:
  """One line: what a device holds, and what the compiled step needs.

  The `loop.State` is of arrays or ShapeDtypeStructs with shardings.
  """
  held = {
    "weights": state.model,
    "optimizer state": state.opt_state,
    "frozen": frozen,
  }
  parts = [f"{name} {amount(bytes_of(tree))}" for name, tree in held.items()]
  text = f"memory of a device: {', '.join(parts)}"
  needed = compiled.memory_analysis()
  if needed is None:
    return text
  # Donated arguments are counted once. The compiler's own peak knows of
  # buffers that share their place; on CPU it leaves temporaries out.
  arguments = needed.argument_size_in_bytes + needed.output_size_in_bytes
  total = arguments - needed.alias_size_in_bytes + needed.temp_size_in_bytes
  peak = getattr(needed, "peak_memory_in_bytes", 0)
  if peak > needed.temp_size_in_bytes + needed.argument_size_in_bytes:
    total = peak
  text += (
    f"; the step needs {amount(needed.temp_size_in_bytes)} of temporaries "
    f"beside {amount(needed.argument_size_in_bytes)} of arguments, "
    f"{amount(total)} in all"
  )
  limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
  if limit:
    text += f", {total / limit:.0%} of {amount(limit)}"
  return text


def bytes_of(tree: Any) -> int:
  """Bytes that one device holds of arrays with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def amount(size: float) -> str:
  """Bytes as a person would say them: 12 B, 3.4 KiB, 15.8 GiB."""
  units = ("B", "KiB", "MiB", "GiB", "TiB")
  power = min(int(math.log(max(size, 1), 1024)), len(units) - 1)
  return f"{size / 1024**power:.{1 if power else 0}f} {units[power]}"


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
    name = f"stacks-{self._last}{distributed.own_suffix()}.txt"
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


class Profile:
  """Traces the steps that the config asks for into metrics/profile."""

  def __init__(self, spec: TrainSpec, telemetry: Telemetry):
    self._first = spec.run.profile_first_step
    self._last = self._first + spec.run.profile_steps - 1
    self._name, self._telemetry = spec.name, telemetry
    self._directory = spec.folder / "metrics" / "profile"
    self._scratch = None

  def before(self, step: int):
    """Called before step `step` is dispatched."""
    if self._scratch is None and self._first <= step <= self._last:
      with self._telemetry.outside("profile"):
        self._scratch = tempfile.TemporaryDirectory()
        jax.profiler.start_trace(self._scratch.name)

  def after(self, step: int):
    """Called after step `step` was dispatched."""
    if self._scratch is not None and step >= self._last:
      with self._telemetry.outside("profile"):  # waits for the step
        self.close()

  def close(self):
    """Writes the trace, if one is being made."""
    if self._scratch is None:
      return
    jax.profiler.stop_trace()
    # The profiler writes to disks alone, and file by file.
    root = pathlib.Path(self._scratch.name)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
      target = self._directory / path.relative_to(root)
      target.parent.mkdir(parents=True, exist_ok=True)
      epath.Path(path).copy(target, overwrite=True)
    self._scratch.cleanup()
    self._scratch = None
    log(self._name, f"wrote a profile to {self._directory}")
