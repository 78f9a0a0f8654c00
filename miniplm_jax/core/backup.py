"""What was made before stands until what replaces it is finished.

What a step makes again is renamed, `x` to `.x.old` beside it, and goes when the
new manifest stands. Until then it can be put back, wherever a kill strikes:

- The old manifest is the first to be renamed and the last to be put back.
  While it is aside and there is no other, the new is not finished.
- The new partial manifest comes when all of the old is aside, and is renamed
  before the first of the new is removed. Without one, all that is not aside is
  old too.

On gs:// a folder is renamed file by file: what lies in both places is the same.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

from etils import epath

from miniplm_jax.core import files


def is_old(path: epath.Path) -> bool:
  """Returns whether a file or folder was renamed by `Backup`."""
  return path.name.startswith(".") and path.name.endswith(".old")


def aside(path: epath.Path) -> epath.Path:
  """Returns where a file is kept while it is made again."""
  return path.parent / f".{path.name}.old"


def _own(path: epath.Path) -> epath.Path:
  return path.parent / path.name[1:].removesuffix(".old")


def clear(outputs: Sequence[epath.Path]):
  """Removes what lies in files, folders and patterns, but for what was renamed.

  A folder that is a link to another disk stays, empty.
  """
  for path in _contents(outputs):
    if not is_old(path):
      files.remove(path)
  _remove_empty(outputs)


def _remove_empty(folders: Sequence[epath.Path]):
  for path in folders:
    with contextlib.suppress(OSError):  # not empty, no folder, or a link
      os.rmdir(path)


def _contents(outputs: Sequence[epath.Path]) -> Iterator[epath.Path]:
  """Yields what lies in these outputs, whatever was renamed included."""
  for path in outputs:
    if path.is_dir():
      yield from list(path.iterdir())
    elif "*" in path.name:
      for pattern in (path.name, aside(path).name):
        yield from list(path.parent.glob(pattern))
    else:
      yield from (p for p in (path, aside(path)) if p.exists())


class Backup:
  """Keeps what a step made before, while it is made again."""

  def __init__(self, manifest, partial, outputs: Sequence[epath.Path]):
    """Takes the paths and patterns of files of a step; touches none yet."""
    self._new, self._partial, self._outputs = manifest, partial, outputs
    self.manifest = aside(manifest)
    self._void = aside(partial)  # the new is to be removed

  def exists(self) -> bool:
    """Returns whether the old is aside, or on its way."""
    return self.manifest.exists()

  def set_aside(self):
    """Renames what is finished, so that it can be made again."""
    files.remove(self._partial)  # of what went on from it
    try:
      files.move(self._new, self.manifest)
      for path in self._ours(are_old=False):
        files.move(path, aside(path))
    except OSError:
      if self.exists():
        self.put_back()
      raise

  def put_back(self):
    """Removes what was made of the new; the old is as it was."""
    if self._partial.exists():
      files.move(self._partial, self._void)
    if self._void.exists():
      clear(self._outputs)
      self._void.unlink()
    for path in self._ours(are_old=True):
      files.move(path, _own(path))
    files.move(self.manifest, self._new)

  def drop(self):
    """Removes the old, if the new is finished."""
    if self.exists():
      for path in self._ours(are_old=True):
        files.remove(path)
      _remove_empty(self._outputs)
      files.remove(self.manifest)

  def _ours(self, are_old: bool) -> Iterator[epath.Path]:
    others = self._new, self._partial, self.manifest, self._void
    for path in _contents(self._outputs):
      if path not in others and is_old(path) == are_old:
        yield path
