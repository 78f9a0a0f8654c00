"""ArrayRecord files that are open for reading, as many as a process may have.

A large corpus has thousands of shards, and a process may open 1,024 files, or
256. So the files that were read last stay open, whatever corpus or table they
are of, and the one that was not read for longest is closed for another. The
copies of gs:// files go with them: what is closed may leave the disk.
"""

import collections
import contextlib
import itertools
import resource
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import gs

# The default read-ahead of 16 MiB is for scans; this is random access.
_OPTIONS = "readahead_buffer_size:0"
_FILES = 1 << 13  # of 10⁵ records each takes 1 MB of memory


class Readers:
  """Random access to the records of numbered files."""

  def __init__(self, path_of: Callable[[int], epath.Path]):
    """Opens none yet; `path_of` gives the file with a number."""
    self._path_of, self._owner = path_of, next(_OWNERS)
    weakref.finalize(self, _GONE.append, self._owner)

  def read(self, number: int, places: Sequence[int]) -> list[bytes]:
    """Returns records of a file, by their places in it, in this order."""
    key = self._owner, number
    with _LOCK:
      file = _OPEN.get(key) or _opened(self._path_of(number))
      _OPEN[key] = file
      _OPEN.move_to_end(key)
    return file.reader.read(places)


class _File:
  """An open file, which is closed when nobody has it any more."""

  def __init__(self, path: epath.Path):
    from array_record.python.array_record_module import ArrayRecordReader

    with contextlib.ExitStack() as stack:
      copy = stack.enter_context(gs.local(path))
      self.reader = ArrayRecordReader(str(copy), _OPTIONS)
      stack.callback(_close, self.reader)
      weakref.finalize(self, stack.pop_all().close).atexit = False


def _opened(path: epath.Path) -> _File:
  """Opens a file, in the place of those that were not read for longest."""
  while _GONE:
    owner = _GONE.popleft()
    for key in [key for key in _OPEN if key[0] == owner]:
      del _OPEN[key]
  while len(_OPEN) >= most_open():
    _OPEN.popitem(last=False)
  while True:
    try:
      return _File(path)
    except gs.NoRoomError:
      if not _OPEN:
        raise
      _OPEN.popitem(last=False)


def _close(reader: Any):
  # It raises again what was wrong with the file, now to whoever opens another.
  with contextlib.suppress(RuntimeError):
    reader.close()


def most_open() -> int:
  """Returns how many files stay open; raises the process's limit first.

  A third of the descriptors: a copy of a gs:// file takes two.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  limit = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
  if soft < limit:
    # macOS has a limit of its own, below the one that it tells.
    with contextlib.suppress(ValueError, OSError):
      resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
      soft = limit
  return max(min(soft, _FILES) // 3, 1)


# The open files of this process, those that were read last at the end, by
# their owner and number. A thread that reads one has it until it has read.
_OPEN: collections.OrderedDict[tuple[int, int], _File] = (
  collections.OrderedDict()
)
_LOCK = threading.Lock()
_OWNERS = itertools.count()
_GONE: collections.deque[int] = collections.deque()  # owners
