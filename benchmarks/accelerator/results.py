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

from benchmarks.accelerator import sizes

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
  """A value as JSON has it: no numpy; "nan" for what is not a number."""
  if isinstance(value, dict):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if hasattr(value, "tolist"):
    return plain(value.tolist())
  if isinstance(value, float):
    return value if math.isfinite(value) else str(value)
  return value


def _of_strings(value: Any, change: Callable[[str], Any]) -> Any:
  """The value with every string in it changed, those of keys left."""
  if isinstance(value, dict):
    return {k: _of_strings(v, change) for k, v in value.items()}
  if isinstance(value, list):
    return [_of_strings(v, change) for v in value]
  return change(value) if isinstance(value, str) else value


def read(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object; empty if there is none that can be read."""
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  back = {str(x): x for x in map(float, ("nan", "inf", "-inf"))}
  found = _of_strings(found, lambda text: back.get(text, text))
  return found if isinstance(found, dict) else {}


def write(path: pathlib.Path, text: str):
  """Writes a file whole or not at all."""
  scratch = path.with_name(f".{path.name}.partial")
  scratch.write_text(text)
  os.replace(scratch, path)


def write_json(path: pathlib.Path, value: Any):
  """Writes what `read` reads."""
  text = json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False)
  write(path, text + "\n")


def public(value: Any) -> Any:
  """A value without the paths of this machine, for others to read."""
  home = os.path.expanduser("~").rstrip("/")

  def change(text: str) -> str:
    text = text.replace(f"{_ROOT}/", "")
    return text.replace(f"{home}/", "~/") if len(home) > 1 else text

  return _of_strings(value, change)


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
  """A digest of both packages' code: a copy without git has no commit."""
  import miniplm_jax

  total = hashlib.sha256()
  # Ours may be installed from a wheel, and not lie beside the benchmarks.
  for folder in (*miniplm_jax.__path__, pathlib.Path(__file__).parent):
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
      total.update(path.read_bytes())
  return total.hexdigest()[:12]


def facts(size: str) -> dict[str, Any]:
  """What is measured on, and what; touches the device."""
  import jax

  import miniplm_jax
  from miniplm_jax.training import flops as flops_lib

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
    "peak_flops": flops_lib.peak_flops(device.device_kind),
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


def _binding(facts: dict[str, Any]) -> dict[str, Any]:
  return {name: facts.get(name) for name in _BINDING}


def _fits(content: dict[str, Any], facts: dict[str, Any]) -> bool:
  """Whether it is a part's file, and of these facts."""
  found, failed = content.get("results"), content.get("failed")
  return (
    content.get("binding") == _binding(facts)
    and isinstance(found, dict)
    and all(isinstance(one, dict) for one in found.values())
    and isinstance(failed, dict)
  )


class Store:
  """The results of one part, by key; every change is on disk at once."""

  def __init__(self, settings):
    self._settings = settings
    out = pathlib.Path(settings.out)
    self.facts = read(out / FACTS)
    self.path = out / f"{settings.part}.json"
    self._content = read(self.path)
    if not _fits(self._content, self.facts):
      if self.path.exists():
        old = self.path.with_suffix(".old")
        os.replace(self.path, old)
        settings.say(f"results of other versions: set aside as {old.name}")
      binding = _binding(self.facts)
      self._content = {"binding": binding, "results": {}, "failed": {}}

  @property
  def results(self) -> dict[str, Any]:
    """By key; of what is not whole `partial` is set."""
    return self._content["results"]

  def is_done(self, key: str, **asked: int) -> bool:
    """Whether it is there with all that is asked, or it failed before."""
    if key in self._content["failed"]:
      done = not self._settings.again
    else:
      found = self.results.get(key, {"partial": True})
      sides = [one for one in found.values() if isinstance(one, dict)]
      again = found.get("failed") or any("note" in one for one in sides)
      before = found.get("asked", {})
      less = any(before.get(name, 0) < most for name, most in asked.items())
      done = not (found.get("partial") or less)
      done &= not (self._settings.again and again)
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
    write_json(self.path, self._content)


def collect(out: pathlib.Path) -> dict[str, Any]:
  """All parts with their facts, as result.json has them; which did not fit."""
  facts, parts, other = read(out / FACTS), {}, []
  for name in sizes.SIZES["full"].limits:
    path = out / f"{name}.json"
    content = read(path)
    if _fits(content, facts):
      parts[name] = content
    elif path.exists():
      other.append(name)
  run = read(out / "run.json")
  return {"facts": facts, "run": run, "parts": parts, "other": other}


if __name__ == "__main__":
  write_json(pathlib.Path(sys.argv[1]) / FACTS, facts(sys.argv[2]))
