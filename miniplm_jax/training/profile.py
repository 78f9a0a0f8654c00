"""A trace of some steps, for xprof, TensorBoard or Perfetto."""

import pathlib
import tempfile

import jax
from etils import epath

from miniplm_jax.core.log import log


class Profile:
  """Traces the steps that the config asks for into metrics/profile."""

  def __init__(self, spec, metrics):
    """Takes a `loop.Run` and its `Log`."""
    self._first = spec.run.profile_first_step
    self._last = self._first + spec.run.profile_steps - 1
    self._name, self._metrics = spec.name, metrics
    self._directory = spec.directory / "metrics" / "profile"
    self._scratch = None

  def before(self, step: int):
    """Called before step `step` is dispatched."""
    if self._scratch is None and self._first <= step <= self._last:
      with self._metrics.outside("profile"):
        self._scratch = tempfile.TemporaryDirectory()
        jax.profiler.start_trace(self._scratch.name)

  def after(self, step: int):
    """Called after step `step` was dispatched."""
    if self._scratch is not None and step >= self._last:
      with self._metrics.outside("profile"):  # waits for the step
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
