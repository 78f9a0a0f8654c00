"""ArrayRecord files that are open for reading, as many as a process may have.

A large corpus has thousands of shards, and a process may open 1,024 files, or
256. So the files that were read last stay open, whatever corpus or table they
are of, and the one that was not read for longest is closed for another. The
copies of gs:// files go with them: what is closed may leave the disk.
"""

import collections
import contextlib
import dataclasses
import itertools
import resource
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
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
    weakref.finalize(self, _POOL.gone.append, self._owner)

  def read(self, number: int, places: Sequence[int]) -> list[bytes]:
    """Returns records of a file, by their places in it, in this order."""
    key = self._owner, number
    with _POOL.reader(key, lambda: self._path_of(number)) as reader:
      return reader.read(places)


@dataclasses.dataclass
class _Open:
  """An open file, how to close it, and how many threads read it now."""

  reader: Any
  close: Callable[[], None]
  users: int = 0


class _Pool:
  """The open files of this process, those that were read last at the end."""

  def __init__(self):
    self.gone: collections.deque[int] = collections.deque()  # owners
    self._open: collections.OrderedDict[tuple[int, int], _Open] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._open)

  @contextlib.contextmanager
  def reader(self, key, path_of: Callable[[], epath.Path]) -> Iterator[Any]:
    """Yields the reader of a file, which stays open at least until the end."""
    with self._lock:
      if key not in self._open:
        self._open[key] = self._opened(path_of())
      self._open.move_to_end(key)
      file = self._open[key]
      file.users += 1
    try:
      yield file.reader
    finally:
      with self._lock:
        file.users -= 1

  def _opened(self, path: epath.Path) -> _Open:
    from array_record.python.array_record_module import ArrayRecordReader

    while self.gone:
      owner = self.gone.popleft()
      for key in [key for key in self._open if key[0] == owner]:
        self._open.pop(key).close()
    while len(self._open) >= most_open() and self._close_oldest():
      pass
    with contextlib.ExitStack() as stack:
      while True:
        try:
          copy = stack.enter_context(gs.local(path))
          break
        except gs.NoRoomError:
          if not self._close_oldest():
            raise
      reader = ArrayRecordReader(str(copy), _OPTIONS)
      stack.callback(_close, reader)
      return _Open(reader, stack.pop_all().close)

  def _close_oldest(self) -> bool:
    """Closes the file that was not read for longest, if one is not in use."""
    for key, file in self._open.items():
      if not file.users:
        self._open.pop(key).close()
        return True
    return False


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


_POOL = _Pool()
_OWNERS = itertools.count()
