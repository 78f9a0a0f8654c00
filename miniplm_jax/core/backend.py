"""What JAX is told before it touches a device, and that all are told alike."""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

from etils import epath

from miniplm_jax.core import distributed, files, gs, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import warn

CACHE = "JAX_COMPILATION_CACHE_DIR"
HASHES = "sha256.json"  # of the cache's entries, by name
_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def prepare(cache: str, workdir: epath.Path, is_deterministic: bool):
  """Sets the environment for this process and its children.

  Args:
    cache: the folder of compiled programs; a relative one is below `workdir`.
      "" is none. What the environment says already counts instead.
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
  """Removes compiled programs that are not as they were noted; notes new ones.

  JAX runs them without comparing them: of 47 times that one bit of one was
  flipped, it noticed 32; 7 times the process crashed, at each start, and 3
  times a loss was another, without a word. What is not of this machine's disks
  is left alone.
  """
  cache = os.environ.get(CACHE)
  if not cache or not gs.is_local(cache) or not os.path.exists(cache):
    return
  folder = epath.Path(cache)
  noted, hashes = files.read_json(folder / HASHES), {}
  for path in folder.glob("*-cache"):
    with contextlib.suppress(OSError):  # another process removed it
      hashes[path.name] = files.sha256(path)
      if hashes[path.name] != noted.get(path.name, hashes[path.name]):
        del hashes[path.name]
        path.unlink(missing_ok=True)
        warn("jax", f"this compiled program was damaged: {path}")
  if hashes != noted:
    with contextlib.suppress(OSError):  # a disk that can only be read
      files.write_json(folder / HASHES, hashes)


def _processor() -> str:
  """Returns a name of this machine's kind of CPU."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:  # not Linux
    lines = []
  named = [
    x for x in lines if x.startswith(("flags", "Features", "model name"))
  ]
  features = "\n".join(sorted(set(named))) or platform.processor()
  digest = hashlib.sha256(features.encode()).hexdigest()
  return f"{platform.machine()}-{digest[:8]}"


def refuse_if_different(config: Mapping[str, Any], force: bool):
  """Raises UserError unless all processes of a program were told the same."""
  import jax

  mine = {
    "config": json.loads(json.dumps(config)),
    "force": force,
    "code": manifest.code_version(),
    "jax": jax.__version__,
  }
  del mine["config"]["run"]["process_id"]
  first = distributed.agree(lambda: mine)
  if difference := manifest.first_difference(first, mine):
    raise UserError(
      f"this process was not started like the first: {difference}",
      f"process {jax.process_index()} of {jax.process_count()}",
      "start all with the same command but for --config.run.process_id",
    )
  distributed.meet()
