"""What JAX is told before it touches a device."""

import hashlib
import os
import pathlib
import platform
import sys

from etils import epath

from miniplm_jax.core import compiled, gs

CACHE = "JAX_COMPILATION_CACHE_DIR"
_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def prepare(cache: str, workdir: epath.Path, is_deterministic: bool):
  """Sets the environment for this process and its children.

  Args:
    cache: the folder of compiled programs; a relative one is below `workdir`.
      "" is none. What the environment says already counts instead.
    workdir: of the run.
    is_deterministic: GPUs give the same bits each time. XLA then adds up in a
      fixed order where it would as results come in, and does not choose
      kernels by timing them.
  """
  if cache:
    # Programs for a CPU have its instructions in them, and JAX does not look.
    root = epath.Path(cache)
    if gs.is_local(cache):
      root = gs.absolute(workdir / root)
    folder = os.environ.setdefault(CACHE, os.fspath(root / _processor()))
    if "jax" in sys.modules:  # by a config file, or a program that calls this
      sys.modules["jax"].config.update("jax_compilation_cache_dir", folder)
  note()
  flags = os.environ.get("XLA_FLAGS", "")
  if is_deterministic and _DETERMINISTIC not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC}".strip()


def note():
  """Compares what is compiled with what was noted of it; notes what is new."""
  if folder := os.environ.get(CACHE):
    compiled.check(epath.Path(folder))


def _processor() -> str:
  """A name of this machine's kind of CPU."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:  # not Linux
    lines = []
  told = [x for x in lines if x.startswith(("flags", "Features", "model name"))]
  features = "\n".join(sorted(set(told))) or platform.processor()
  digest = hashlib.sha256(features.encode()).hexdigest()
  return f"{platform.machine()}-{digest[:8]}"
