"""Who works on what, when several processes share a folder.

A claim is a small file that is created only if it is absent, renewed while
its owner lives, and taken over when it has not been renewed for a while. It
saves work and guards nothing: whoever holds one wrongly does work twice, and
`publish` lets the result stand that came first.

Files are written with tensorstore's conditional writes, which are locks and
renames on a disk and generation preconditions on gs://.
"""

import json
import os
import socket
import threading
import time
import uuid
from typing import Any

from etils import epath

from miniplm_jax.core import files


def _write(store: Any, name: str, content: bytes | None, expected: bytes):
  """Writes, or with None deletes, if the generation is as expected.

  Returns:
    The new generation, or None if it was another.
  """
  try:
    stamp = store.write(name, content, if_equal=expected).result()
  except ValueError as e:  # tensorstore's; callers know OSError
    raise OSError(f"{name} cannot be written: {e}") from e
  return stamp.generation or None


def publish(path: epath.Path, content: bytes) -> bool:
  """Writes a file, whole or not at all, unless there is one.

  Returns:
    Whether it was written; False if there was one.
  """
  store = files.store(path.parent)
  return _write(store, path.name, content, _absent(store)) is not None


def _absent(store: Any) -> bytes:
  """The generation of a file that is not there."""
  return store.read(f"{uuid.uuid4()}").result().stamp.generation


def _machine() -> str:
  """This machine, as it was booted: names may be the same on several."""
  boot = epath.Path("/proc/sys/kernel/random/boot_id")
  boot_id = boot.read_text().strip() if boot.exists() else ""
  return f"{socket.gethostname()} {boot_id}"


class Board:
  """The claims in one folder, and those that this process holds."""

  def __init__(self, folder: epath.Path, seconds: float):
    """Starts to renew what is claimed; use as a context.

    Args:
      folder: of the claims; all workers name the same.
      seconds: a claim that is not renewed for so long is taken over.
    """
    self._folder, self._seconds = folder, seconds
    self._store = files.store(folder)
    self._absent = _absent(self._store)
    self._me = {
      "host": _machine(),
      "pid": os.getpid(),
      "worker": uuid.uuid4().hex,
    }
    self._held: dict[str, bytes] = {}  # generation of each claim
    self._seen: dict[str, tuple[bytes, float]] = {}  # and since when
    self._lock = threading.Lock()
    self._closing = threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True)

  def claim(self, name: str) -> bool:
    """Whether this process now has `name`, and nobody else should."""
    found = self._store.read(name).result()
    expected = self._absent
    if found.state == "value":
      if not self._is_abandoned(name, found):
        return False
      expected = found.stamp.generation
    with self._lock:
      made = _write(self._store, name, self._content(), expected)
      if made is not None:
        self._held[name] = made
    return made is not None

  def release(self, name: str):
    """Gives `name` back, if it has not been taken over."""
    with self._lock:
      made = self._held.pop(name, None)
      if made is not None:
        _write(self._store, name, None, made)

  def _content(self) -> bytes:
    return json.dumps(self._me | {"renewed": time.time()}).encode()

  def _is_abandoned(self, name: str, found: Any) -> bool:
    """Whether its owner is dead, or has not renewed it while we watched.

    No clocks of different machines are compared.
    """
    if self._owner_is_dead(found.value):
      return True
    generation, now = found.stamp.generation, time.monotonic()
    seen, since = self._seen.get(name, (None, now))
    if seen != generation:
      self._seen[name] = generation, now
      return False
    return now - since > self._seconds

  def _owner_is_dead(self, content: bytes) -> bool:
    try:
      owner = json.loads(content)
      if owner["host"] != self._me["host"]:
        return False
      os.kill(owner["pid"], 0)
    except ProcessLookupError:
      return True
    except (ValueError, KeyError, TypeError, PermissionError):
      return False
    # In a container every run may have the same number.
    return owner["pid"] == os.getpid() and owner["worker"] != self._me["worker"]

  def _renew(self):
    while not self._closing.wait(self._seconds / 3):
      with self._lock:
        for name, generation in list(self._held.items()):
          try:
            made = _write(self._store, name, self._content(), generation)
          except OSError:  # the store is out of reach; it may come back
            continue
          if made is None:
            del self._held[name]  # taken over
          else:
            self._held[name] = made

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *unused):
    self._closing.set()
    self._thread.join()
    for name in list(self._held):
      self.release(name)
