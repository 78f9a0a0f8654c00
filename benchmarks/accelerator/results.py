"""Results on disk: what was measured on what, kept after every figure."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

_ROOT = pathlib.Path(__file__).parents[2]
_PACKAGES = (
  "jax",
  "jaxlib",
  "jax-cuda13-plugin",
  "jax-cuda12-plugin",
  "nvidia-cudnn-cu13",
  "nvidia-cudnn-cu12",
  "libtpu",
  "flax",
  "optax",
  "numpy",
  "torch",
  "transformers",
  "triton",
)
# A process that ends while it makes one of these leaves this behind.
_BEGUN = "the process ended while this was measured"
FACTS = "facts.json"


def reason(e: BaseException) -> str:
  """An error for the results: what, and where it was raised."""
  frames = traceback.extract_tb(e.__traceback__)
  where = "; ".join(
    f"{pathlib.Path(f.filename).name}:{f.lineno} in {f.name}"
    for f in frames[-1:-4:-1]
  )
  text = " ".join(str(e).split())
  if len(text) > 900:  # compilers quote whole programs
    text = f"{text[:600]} … {text[-300:]}"
  return f"{type(e).__name__}: {text} ({where})"


def plain(value: Any) -> Any:
  """A value as JSON has it: no numpy, and None for what is not finite."""
  if isinstance(value, dict):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if hasattr(value, "tolist"):
    return plain(value.tolist())
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  return value


def read(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object; empty if there is none that can be read."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return {}


def write(path: pathlib.Path, text: str):
  """Writes a file whole or not at all."""
  scratch = path.with_name(f".{path.name}.partial")
  scratch.write_text(text)
  os.replace(scratch, path)


def public(text: str) -> str:
  """A text without the paths of this machine, for others to read."""
  return text.replace(f"{_ROOT}/", "").replace(str(pathlib.Path.home()), "~")


def _command(*words: str) -> str:
  """What a program prints; "" if it is not here or fails."""
  try:
    done = subprocess.run(
      words, capture_output=True, text=True, timeout=20, check=False
    )
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return done.stdout.strip() if done.returncode == 0 else ""


def _source() -> str:
  """A digest of the package's code: a copy without git has no commit."""
  total = hashlib.sha256()
  for path in sorted((_ROOT / "miniplm_jax").rglob("*.py")):
    total.update(path.read_bytes())
  return total.hexdigest()[:12]


def facts(size: str) -> dict[str, Any]:
  """What is measured on, and what; touches the device."""
  import jax

  import miniplm_jax
  from miniplm_jax.trainer import metrics

  versions = {"python": platform.python_version()}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  device = jax.devices()[0]
  stats = device.memory_stats() or {}
  query = "name,driver_version,memory.total,power.limit,clocks.max.sm"
  return {
    "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
    "size": size,
    "platform": device.platform,
    "device_kind": device.device_kind,
    "devices": jax.device_count(),
    "memory_gib": stats.get("bytes_limit", 0) / 2**30 or None,
    "nvidia_smi": _command(
      "nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"
    ),
    "peak_flops": metrics.peak_flops(device.device_kind),
    "cores": os.cpu_count(),
    "versions": versions,
    "package": miniplm_jax.__version__,
    "commit": _command("git", "-C", str(_ROOT), "describe", "--always"),
    "source": _source(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
  }


# Results of other facts than these are set aside.
_BINDING = ("size", "platform", "device_kind", "devices", "versions", "source")
_BINDING += ("xla_flags",)


class Store:
  """The results of one part, by key; every change is on disk at once."""

  def __init__(self, settings):
    self._settings = settings
    out = pathlib.Path(settings.out)
    self.facts = read(out / FACTS)
    self.path = out / f"{settings.part}.json"
    binding = {name: self.facts.get(name) for name in _BINDING}
    self._content = read(self.path)
    if self._content and self._content["binding"] != binding:
      os.replace(self.path, self.path.with_suffix(".old"))
      settings.say(f"results of other versions: set aside as {self.path.stem}")
      self._content = {}
    self._content = {
      "binding": binding,
      "results": {},
      "failed": {},
    } | self._content

  @property
  def results(self) -> dict[str, Any]:
    """By key; of what is not whole `partial` is set."""
    return self._content["results"]

  def is_done(self, key: str) -> bool:
    """Whether there is nothing to do: it is there, or it failed before."""
    if key in self._content["failed"]:
      done = not self._settings.again
    else:
      found = self.results.get(key, {"partial": True})
      again = self._settings.again and found.get("failed")
      done = not (found.get("partial") or again)
    if done:
      self._settings.say(f"{key}: was there")
    return done

  def put(self, key: str, value: dict[str, Any], partial: bool = False):
    """Keeps a result."""
    self._content["failed"].pop(key, None)
    value = plain(value) | {"date": self.facts.get("date")}
    self.results[key] = value | ({"partial": True} if partial else {})
    self._write()

  def fail(self, key: str, why: str):
    """Keeps why there is none."""
    self._content["failed"][key] = why
    self._write()
    if why != _BEGUN:
      self._settings.say(f"{key}: failed, {why}")

  def attempt(self, key: str, make: Callable[..., dict[str, Any]], *arguments):
    """Keeps what `make` returns, or why it did not."""
    if self.is_done(key):
      return
    self.fail(key, _BEGUN)  # should it take the process with it
    start = time.monotonic()
    try:
      value = make(*arguments)
    except Exception as e:
      self.fail(key, reason(e))
    else:
      self.put(key, value)
      self._settings.say(f"{key}: {time.monotonic() - start:.1f} s")

  def _write(self):
    text = json.dumps(self._content, indent=1, sort_keys=True, allow_nan=False)
    write(self.path, text + "\n")


def collect(out: pathlib.Path) -> dict[str, Any]:
  """All parts with their facts, as result.json has them."""
  parts = {}
  for path in sorted(out.glob("*.json")):
    content = read(path)
    if "results" in content:
      parts[path.stem] = content
  return {
    "facts": read(out / FACTS),
    "run": read(out / "run.json"),
    "parts": parts,
  }


if __name__ == "__main__":
  found = plain(facts(sys.argv[2]))
  write(pathlib.Path(sys.argv[1]) / FACTS, json.dumps(found, indent=1) + "\n")
