"""Files that appear whole or not at all, and their fingerprints.

A path may be local or remote (gs://); `etils.epath` hides the difference.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import errors, owner
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.gs import SCHEME, file_system, is_local, upload

_CHUNK = 1 << 20  # bytes that are hashed at a time
_SETTLED = 10**9  # nanoseconds; clocks of disks tick more often


# The scratch file of a process; versions before November 2026 named none.
_SCRATCH = re.compile(r"\..+?(?:\.(?P<host>[\w-]+)-(?P<pid>\d+))?\.partial")
_FOREIGN_AGE = 86_400  # seconds; nobody writes a file without a byte a day

# What each raises keeps a file from appearing and from going, see `guarded`.
_guards: list[Callable[[], None]] = []


@contextlib.contextmanager
def guarded(guards: Sequence[Callable[[], None]]) -> Iterator[None]:
  """Has these asked before a file appears or goes, while the body runs.

  A process may sleep between two files until its folder is another's: then
  each raises an error. Pickled, they can be asked in another process, see
  `guards`.
  """
  _guards.extend(guards)
  try:
    yield
  finally:
    for one in guards:
      _guards.remove(one)


def guards() -> tuple[Callable[[], None], ...]:
  """Returns those that are asked here, for a process that this one starts."""
  return tuple(_guards)


def guard():
  """Raises an error if nothing may be written or removed here any more."""
  for one in guards():
    one()


@contextlib.contextmanager
def replacing(
  path: epath.PathLike, only_new: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a scratch file that becomes `path` when the body succeeds.

  Local: written beside, fsynced, renamed. Remote: written locally, then
  uploaded as one object. Every process has a scratch file of its own: of
  several that write one path, one's file stands, whole.

  Raises:
    FileExistsError: with `only_new`, which is for local ones, there is a file.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  tail = f"{owner.machine()}-{os.getpid()}.partial"
  scratch = pathlib.Path(path.parent, f".{path.name}.{tail}")
  if not is_local(path):
    name = digest(os.fspath(path))[:16]
    scratch = pathlib.Path(tempfile.gettempdir(), f".{name}.{tail}")
    sweep(scratch.parent.glob(f".{name}.*"))
  try:
    with errors.naming(path):
      scratch.touch()
      mode = scratch.stat().st_mode  # by the umask
      yield scratch
      if is_local(path):
        if scratch.stat().st_mode != mode:  # safetensors': the owner's alone
          scratch.chmod(mode)
        _fsync(scratch)
        guard()
        _rename(scratch, path, only_new)
        # CIFS, sshfs and WSL cannot do this. What a power cut may undo there
        # is the renaming, and a manifest names what must be there.
        with contextlib.suppress(OSError):
          _fsync(path.parent)
      else:
        guard()
        upload(scratch, path)
  finally:
    scratch.unlink(missing_ok=True)


def _rename(scratch: pathlib.Path, path: epath.Path, only_new: bool):
  if only_new:
    try:
      os.link(scratch, path)
      return
    except FileExistsError:
      raise
    except OSError as e:  # a mount without links: nearly as good
      if path.exists():
        raise FileExistsError(e.errno, "there is one", str(path)) from e
  os.replace(scratch, path)


def _fsync(path: epath.PathLike):
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def is_passing(path: epath.PathLike) -> bool:
  """Returns whether it is a scratch file or a lock, in use or left by a kill.

  Scratch files are those of `replacing`, locks are tensorstore's.
  """
  name = os.path.basename(os.fspath(path))
  return bool(_SCRATCH.fullmatch(name)) or name.endswith(".__lock")


def sweep(paths: Iterable[epath.PathLike]):
  """Removes those scratch files of this machine whose process has ended.

  One of another machine goes when nobody has written to it for a day.
  """
  for path in map(pathlib.Path, paths):
    if not (named := _SCRATCH.fullmatch(path.name)):
      continue
    made_by = {"host": named["host"], "pid": int(named["pid"] or 0)}
    with contextlib.suppress(OSError):  # it has become what it was to be
      is_old = path.stat().st_mtime < time.time() - _FOREIGN_AGE
      if owner.is_dead(made_by) or (is_old and not owner.is_here(made_by)):
        path.unlink()


def store(folder: epath.PathLike, locking: str = "os") -> Any:
  """Opens a folder as tensorstore's store: atomic, conditional writes.

  Locks and renames on a disk, generation preconditions on gs://; several
  processes may write one file. For what fits in memory and, on a disk, need
  not outlive a power cut. `locking` is "lockfile" on mounts without locks.
  """
  import tensorstore

  folder = epath.Path(folder)
  if is_local(folder):
    spec = {
      "driver": "file",
      "path": f"{folder.resolve()}/",
      "file_io_locking": {"mode": locking},
      "file_io_sync": False,  # of folders too, which not every mount can
    }
  else:
    if not os.fspath(folder).startswith(SCHEME):
      raise UserError(
        "files cannot be written here",
        str(folder),
        "give a local path or gs://",
      )
    bucket, _, path = os.fspath(folder)[len(SCHEME) :].partition("/")
    path = f"{path.rstrip('/')}/" if path else ""
    spec = {"driver": "gcs", "bucket": bucket, "path": path}
  return tensorstore.KvStore.open(spec).result()


def can_lock(folder: epath.Path) -> bool:
  """Makes a folder; returns whether its mount has locks, as gs:// has."""
  if not is_local(folder):
    return True
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile(dir=folder) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
      return False
  return True


def write_bytes(path: epath.PathLike, content: bytes):
  """Writes `content` to `path`, whole or not at all."""
  with replacing(path) as scratch:
    scratch.write_bytes(content)


def below(folder: epath.Path) -> list[epath.Path]:
  """Returns all files in a folder and below it, none of them hidden.

  Links are followed, but not to a folder that they lie in. epath has no rglob.

  Raises:
    UserError: something there is neither a file nor a folder.
    OSError: a folder cannot be read.
  """
  if is_local(folder):
    return [epath.Path(p) for p in _below(os.fspath(folder), ())]
  paths = objects(folder)
  return [p for p in paths if "/." not in f"/{p.relative_to(folder)}"]


def objects(folder: epath.Path) -> list[epath.Path]:
  """Returns all files below a folder of gs://, hidden ones too."""
  # Names without their scheme; a / ends what only marks a folder.
  names = file_system().find(os.fspath(folder))
  return [epath.Path(SCHEME + n) for n in names if not n.endswith("/")]


def _below(folder: str, above: tuple[str, ...]) -> Iterator[str]:
  above = (*above, os.path.realpath(folder))
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.name.startswith("."):
        continue
      if entry.is_file():
        yield entry.path
      elif not entry.is_dir():
        raise UserError(
          "this is no file, no folder and no link to one",
          entry.path,
          "remove it, or give the files that are meant by a glob",
        )
      elif os.path.realpath(entry.path) not in above:
        yield from _below(entry.path, above)


def move(source: epath.Path, target: epath.Path):
  """Renames a file or folder; on gs:// a folder's files, one by one."""
  guard()
  if is_local(source):
    os.replace(source, target)
    return
  for path in objects(source) or [source]:
    end = os.fspath(path).removeprefix(os.fspath(source))
    file_system().mv(os.fspath(path), f"{target}{end}")


def remove(path: epath.Path):
  """Removes a file, a link or a folder, if it is there."""
  guard()
  with contextlib.suppress(FileNotFoundError):  # removed meanwhile
    if path.is_dir() and not os.path.islink(path):
      path.rmtree()
    else:
      path.unlink()


def walk(paths: Iterable[epath.Path]) -> Iterator[epath.Path]:
  """Yields the files that are there: of files, in folders, by patterns."""
  pending = list(paths)
  while pending:
    path = pending.pop()
    if path.is_dir():
      with contextlib.suppress(FileNotFoundError):  # removed meanwhile
        pending += path.iterdir()
    elif "*" in path.name:
      pending += path.parent.glob(path.name)
    elif path.exists():
      yield path


def write_json(path: epath.PathLike, content: Any):
  """Writes JSON with sorted keys, whole or not at all."""
  text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
  write_bytes(path, (text + "\n").encode())


def read_json(path: epath.Path) -> dict[str, Any]:
  """Reads the JSON object of a note; {} without one, or if it is damaged."""
  try:
    return dict(json.loads(path.read_bytes()))
  except (OSError, ValueError, TypeError, RecursionError):
    return {}


def digest(content: Any) -> str:
  """Returns the sha256 of a JSON value, independent of key order."""
  text = json.dumps(content, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def sha256(
  path: epath.PathLike, ranges: tuple[tuple[int, int], ...] = ()
) -> str:
  """Returns a file's sha256; it is read once while it stays as it is.

  It is the same file if its inode and `identity` are the same, and the last
  change lies so far back that the clock would show another. `ranges` are
  (start, end) of the bytes that are meant, else all of them.
  """
  if not is_local(path):
    return _sha256(os.fspath(path), ranges)
  facts = os.stat(path)
  if time.time_ns() - facts.st_ctime_ns < _SETTLED:
    return _sha256(os.fspath(path), ranges)
  times = facts.st_mtime_ns, facts.st_ctime_ns
  known = facts.st_ino, facts.st_size, *times
  return _known_sha256(os.fspath(path), ranges, *known)


def _sha256(path: str, ranges: tuple[tuple[int, int], ...]) -> str:
  with epath.Path(path).open("rb") as f:
    if not ranges:
      return hashlib.file_digest(f, "sha256").hexdigest()
    total = hashlib.sha256()
    for start, end in ranges:
      f.seek(start)
      while chunk := f.read(min(end - f.tell(), _CHUNK)):
        total.update(chunk)
    return total.hexdigest()


@functools.lru_cache(1 << 16)
def _known_sha256(path: str, ranges, *unused_facts) -> str:
  return _sha256(path, ranges)


def describe(path: epath.PathLike) -> dict[str, Any]:
  """Returns what a manifest says of a file: bytes and sha256."""
  path = epath.Path(path)
  return {"bytes": path.stat().length, "sha256": sha256(path)}
