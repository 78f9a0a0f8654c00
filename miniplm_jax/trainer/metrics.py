"""Metrics of a run: JSON lines, TensorBoard events, and the log line."""

import json
from collections.abc import Mapping

import jax
from etils import epath

from miniplm_jax.core import files

# bf16 peak per chip, FLOP/s, from the vendor's product pages.
_PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str = "") -> float | None:
  """Peak FLOP/s of one device; None where it is not known (CPU).

  Args:
    device_kind: as JAX calls it; by default that of this machine's devices.
  """
  return _PEAK_FLOPS.get(device_kind or jax.devices()[0].device_kind)


class Metrics:
  """Writes `metrics.jsonl` and event files; one process does."""

  def __init__(self, directory: epath.Path, first_step: int):
    """Continues after `first_step`; later lines, of a killed run, go."""
    from tensorboardX import SummaryWriter

    self._lines = [m for m in read(directory) if m["step"] <= first_step]
    self._path = directory / "metrics.jsonl"
    directory.mkdir(parents=True, exist_ok=True)
    self._flush()
    self._board = SummaryWriter(
      str(directory), purge_step=first_step + 1 if first_step else None
    )

  def write(self, step: int, values: Mapping[str, float]):
    """Adds values after `step` steps."""
    self._lines.append({"step": step, **values})
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def _flush(self):
    text = "".join(json.dumps(line) + "\n" for line in self._lines)
    files.write_bytes(self._path, text.encode())

  def save(self):
    """Puts all lines on disk; called with every checkpoint."""
    self._flush()
    self._board.flush()

  def close(self):
    """Saves and closes the event file."""
    self.save()
    self._board.close()


def read(directory: epath.Path) -> list[dict[str, float]]:
  """The lines of `metrics.jsonl`; empty if there is none."""
  path = directory / "metrics.jsonl"
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]
