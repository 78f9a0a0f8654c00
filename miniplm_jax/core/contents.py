"""Whether files hold what they held before.

What is read whole is hashed whole. Of terabytes that are read once, `probe` is
known before, `identity` at any time, and `of` when they have been read:
it is compared when the identity has changed.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.gs import file_system, is_local

_PROBE_BYTES = 1 << 16


def identity(path: epath.PathLike) -> list[Any]:
  """Returns what tells at once whether a file may have other content.

  On a disk its size and the times of its content and of its entry, which no
  edit leaves as they are; on gs:// the object's generation. Another one says
  nothing: a copy has the same content.
  """
  if is_local(path):
    facts = os.stat(path)
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
  return [file_system().info(os.fspath(path))["generation"]]


def of(
  paths: Iterable[epath.PathLike], ranges: tuple[tuple[int, int], ...] = ()
) -> str:
  """Returns the kind and the digest of what files hold, in `ranges` or whole.

  A range is (start, end). Of an object on gs:// the bucket has a checksum, so
  that nothing is read, of whatever ranges.
  """
  if all(map(is_local, paths := list(paths))):
    kind, digests = "sha256", [files.sha256(path, ranges) for path in paths]
  else:
    facts = [file_system().info(os.fspath(path)) for path in paths]
    kind, digests = "crc32c", [[one["size"], one["crc32c"]] for one in facts]
  return f"{kind} {files.digest(digests)}"


def may_be(old: str, new: str) -> bool:
  """Returns whether two results of `of` may be of one content."""
  return old == new or old.split()[:1] != new.split()[:1]


@dataclasses.dataclass(frozen=True)
class Whole:
  """Files that are read whole, as an input of a step."""

  paths: Callable[[], Iterable[epath.PathLike]]  # gives them as they are now
  path: str = ""  # by which a config names them

  def __call__(self) -> str:
    """Returns the fingerprint: their names and all that they hold."""
    return _named(self.paths(), lambda path, unused_size: files.sha256(path))

  def former(self) -> tuple[str]:
    """Returns it as earlier versions had it: the same up to 128 KiB a file."""
    return (probe(self.paths()),)


def probe(paths: Iterable[epath.PathLike]) -> str:
  """Returns a fingerprint of large files before they are read.

  Names, sizes, and the first and last 64 KiB: a terabyte of input is
  recognized in seconds. Whoever goes on from it compares `identity` and
  `of`, too: an edit in the middle that keeps the size is not seen.
  """

  def ends(path: epath.Path, size: int) -> str:
    with path.open("rb") as f:
      total = hashlib.sha256(f.read(_PROBE_BYTES))
      if size > _PROBE_BYTES:
        f.seek(max(size - _PROBE_BYTES, _PROBE_BYTES))
        total.update(f.read())
    return total.hexdigest()

  return _named(paths, ends)


def _named(paths, content: Callable[[epath.Path, int], str]) -> str:
  described = []
  for path in sorted(map(epath.Path, paths)):
    size = path.stat().length
    described.append([path.name, size, content(path, size)])
  return files.digest(described)
