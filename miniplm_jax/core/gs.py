"""gs:// paths: what reads them, and copies for what reads only a disk.

`etils.epath` goes through gcsfs and tensorstore has its own driver. The
readers of ArrayRecord and safetensors and memory maps take files of this
machine, so those are copied here first.
"""

import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from miniplm_jax.core.errors import UserError, library, shortened

# Read when the libraries are imported, by this process and its children.
for _name, _value in {
  # epath would take TensorFlow: 6 s to import, and errors of its own.
  "EPATH_USE_TF": "false",
  # Other workers write too: a listing that is kept would hide their parts.
  "FSSPEC_GCS": '{"use_listings_cache": false}',
  # It asks another API, which needs a right more, of what kind a bucket is.
  "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}.items():
  os.environ.setdefault(_name, _value)

SCHEME = "gs://"
_SPARE = 0.1  # of the disk with the copies stays free
_CHUNK = 1 << 24  # bytes of a copy that are asked for at once
# Beside a copy: who holds the lock reads it, or is making it.
_LOCK = ".lock"
_SCRATCH = ".partial-"


def is_local(path: epath.PathLike) -> bool:
  """Returns whether a path is of this machine's file system."""
  return "://" not in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
  """Returns the path from the root; epath's takes gs:// for a folder."""
  if is_local(path):
    path = os.path.abspath(path)
  return epath.Path(path)


def file_system() -> Any:
  """Returns gcsfs, for what epath does not do."""
  import fsspec

  return fsspec.filesystem("gcs")


def upload(path: pathlib.Path, target: epath.Path):
  """Makes a local file an object, which appears when its last byte is there.

  epath's copy would end it where a signal stopped it.
  """
  file_system().put_file(str(path), os.fspath(target))


def sizes(folder: epath.Path, names: Iterable[str]) -> dict[str, int]:
  """Returns the bytes of those of the files that are there.

  On gs:// it takes a request for each folder that they lie in, and one more
  for every 1,000 objects, where two for each file are minutes.
  """
  result: dict[str, int] = {}
  if is_local(folder):
    for name in names:
      with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        result[name] = os.stat(folder / name).st_size
    return result
  objects = {}
  for parent in {os.path.dirname(name) for name in names}:
    with contextlib.suppress(FileNotFoundError):
      for facts in file_system().ls(os.fspath(folder / parent), detail=True):
        objects[SCHEME + facts["name"]] = facts["size"]
  paths = {name: os.fspath(folder / name) for name in names}
  return {
    name: objects[path] for name, path in paths.items() if path in objects
  }


def check(path: str):
  """Raises UserError unless the bucket of a gs:// path can be listed."""
  bucket = path.removeprefix(SCHEME).partition("/")[0]
  hint = "pip install gcsfs, or give a local path"
  library("gcsfs", "gs:// paths need gcsfs", path, hint)
  try:
    # It logs tracebacks of what it raises or tries again.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # Not the bucket itself: that takes a right that objectAdmin lacks.
    file_system().call("GET", "b/{}/o", bucket, maxResults=1)
  except FileNotFoundError as e:
    raise UserError(
      f"there is no bucket {bucket}",
      path,
      f"make it: gcloud storage buckets create {SCHEME}{bucket}",
    ) from e
  except Exception as e:  # of aiohttp, google.auth or gcsfs
    words = f"{type(e).__name__}: {shortened(e)}"
    raise UserError(
      f"the bucket {bucket} cannot be read ({words})",
      path,
      "log in with `gcloud auth application-default login`, or give this "
      "machine's account roles/storage.objectAdmin",
    ) from e


class NoRoomError(UserError):
  """A copy does not fit beside those that are in use."""


@contextlib.contextmanager
def local(path: epath.PathLike) -> Iterator[pathlib.Path]:
  """Yields the path itself if it is local, else that of a copy here.

  A copy lies in $MINIPLM_CACHE/gs, else ~/.cache/miniplm_jax/gs, under the
  object's name and generation, so that one that was written anew is copied
  anew. While the context is open it stays, in whatever process of this machine
  that is; of the others, those that were not used for longest go when a tenth
  of the disk is left.

  Raises:
    FileNotFoundError: there is no such object.
    NoRoomError: it does not fit on the disk.
  """
  if is_local(path):
    yield pathlib.Path(path)
    return
  name = os.fspath(path)
  facts = file_system().info(name)
  folder = _cache() / name.removeprefix(SCHEME) / facts["generation"]
  folder.mkdir(parents=True, exist_ok=True)
  copy = folder / epath.Path(path).name
  with _locked(folder) as lock:
    while True:
      lock(fcntl.LOCK_SH)
      if copy.exists():
        break
      lock(fcntl.LOCK_EX)  # one of several workers copies, the others wait
      if not copy.exists():
        _make_room(facts["size"], name)
        scratch = folder / f"{_SCRATCH}{os.getpid()}-{threading.get_ident()}"
        try:
          file_system().get_file(name, str(scratch), chunksize=_CHUNK)
          scratch.replace(copy)
        finally:
          scratch.unlink(missing_ok=True)
    os.utime(copy)  # used now
    yield copy


def copied(path: epath.PathLike) -> pathlib.Path:
  """Returns what `local` yields; a copy stays until this process ends."""
  return _kept.enter_context(local(path))


_kept = contextlib.ExitStack()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[Callable[[int], None]]:
  """Takes and changes the lock of a copy's folder: shared is "in use"."""
  handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)

  def lock(how: int):
    try:
      fcntl.flock(handle, how)
    except OSError:
      # A file system without locks: copies can be made, and stay.
      if how & fcntl.LOCK_NB:
        raise

  try:
    yield lock
  finally:
    os.close(handle)  # and with it the lock


def _cache() -> pathlib.Path:
  given = os.environ.get("MINIPLM_CACHE", "~/.cache/miniplm_jax")
  return pathlib.Path(given).expanduser() / "gs"


def _make_room(size: int, name: str):
  """Removes copies that are not in use until `size` bytes fit."""
  root = _cache()
  for folder in (*_oldest_first(root), None):
    disk = shutil.disk_usage(root)
    if disk.free - size >= _SPARE * disk.total:
      return
    if folder is None:
      break
    with _locked(folder) as lock, contextlib.suppress(OSError):
      lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
      for path in _contents(folder):
        path.unlink(missing_ok=True)
  raise NoRoomError(
    f"a copy of {size:,} bytes would leave less than {_SPARE:.0%} of the disk",
    f"{name} to {root}",
    "set MINIPLM_CACHE to a folder of a larger disk",
  )


def _contents(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns a generation's copy, and what a kill left of one."""
  if not folder.name.isdigit():
    return []
  paths = [folder / folder.parent.name, *folder.glob(f"{_SCRATCH}*")]
  return [path for path in paths if path.is_file()]


def _oldest_first(root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders that hold something, by when it was used last."""
  used = {}
  for folder in root.rglob("*"):
    for path in _contents(folder):
      # Another process may have removed it since.
      with contextlib.suppress(FileNotFoundError):
        used[folder] = path.stat().st_mtime
  return sorted(used, key=used.__getitem__)
