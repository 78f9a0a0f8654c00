"""Compiled programs on disk, which JAX runs without comparing them.

Of 47 times that one bit of one was flipped, JAX noticed 32; 7 times the process
crashed, at each start, and 3 times a loss was another, without a word.
"""

import contextlib
import json

from etils import epath

from miniplm_jax.core import files, gs
from miniplm_jax.core.log import warn

HASHES = "sha256.json"  # of the entries, by name


def check(folder: epath.Path):
  """Removes entries that are not as they were noted, and notes new ones.

  Args:
    folder: JAX's cache; what is not of this machine's disks is left alone.
  """
  if not gs.is_local(folder) or not folder.exists():
    return
  noted, hashes = _noted(folder / HASHES), {}
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


def _noted(path: epath.Path) -> dict[str, str]:
  try:
    return dict(json.loads(path.read_text()))
  except (OSError, ValueError, TypeError, RecursionError):
    return {}  # none yet, or damaged
