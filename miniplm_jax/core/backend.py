"""What JAX is told before it touches a device, and that all are told alike."""

import hashlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

from etils import epath

from miniplm_jax.core import compiled, distributed, gs, manifest
from miniplm_jax.core.errors import UserError

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
  """Refuses processes of one program that were not started alike.

  Args:
    config: all of it, as it would be written to JSON.
    force: whether they redo what is done.

  Raises:
    UserError: another process than the first was told something else.
  """
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
