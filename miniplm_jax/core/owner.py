"""Which process something belongs to, and whether that one still lives."""

import functools
import os
import pathlib
import re
import socket
from collections.abc import Mapping
from typing import Any

_PROC = pathlib.Path("/proc")


@functools.cache
def machine() -> str:
  """Names this machine as it was booted, and the space of its pids.

  Host names may be the same on several machines, and so may pids in several
  containers of one.
  """
  known = [socket.gethostname()]
  try:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    space = os.readlink(_PROC / "self/ns/pid")
    known += [boot[:13], re.sub(r"\D", "", space)]
  except OSError:
    pass  # not Linux
  return "-".join(re.sub(r"[^\w-]", "_", part) for part in known)


def this_process() -> dict[str, Any]:
  """Returns what `is_dead` needs to know of this process, JSON."""
  pid = os.getpid()
  return {
    "name": socket.gethostname(),
    "host": machine(),
    "pid": pid,
    "began": _began(pid),
  }


def is_here(owner: Mapping[str, Any]) -> bool:
  """Returns whether a process is of this machine: `is_dead` is then certain."""
  return owner.get("host") == machine()


def is_dead(owner: Mapping[str, Any]) -> bool:
  """Returns whether a process of this machine has ended; else False."""
  pid = owner.get("pid")
  if not is_here(owner) or not isinstance(pid, int) or pid < 1:
    return False
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  except (PermissionError, OverflowError):
    return False
  # A pid is given anew, after a while.
  began = owner.get("began")
  return bool(began) and began != _began(pid)


def _began(pid: int) -> str:
  """Returns when a process was started, in the kernel's ticks, or "".

  Nor of one that has ended and that its parent, as in a container, never reaps.
  """
  try:
    stat = (_PROC / f"{pid}/stat").read_text()
  except OSError:
    return ""
  facts = stat.rpartition(")")[2].split()
  return "" if facts[0] in "ZX" else facts[19]
