"""The one error that a user is meant to read, and stopping on a signal."""

import contextlib
import errno
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class UserError(Exception):
  """Something that the user can put right, told in one line."""

  def __init__(self, what: str, where: str, hint: str):
    """Takes what is wrong, in which file, row or field, and what to do."""
    self.what, self.where, self.hint = what, where, hint
    super().__init__(" ".join(f"{what}, {where}, {hint}".split()))

  def __reduce__(self):
    return UserError, (self.what, self.where, self.hint)  # between processes


class GoneError(UserError):
  """What a step read is not there: what is finished of it stands without."""


_ROOM = "make room, then run it again: it goes on"
_LIMIT = "raise the limit (ulimit -n), then run it again: it goes on"
_USABLE = "check that it can be used"
# What the system says of a disk or of its limits, and what to do about it.
_OF_THE_SYSTEM = {
  errno.ENOSPC: _ROOM,
  errno.EDQUOT: _ROOM,
  errno.EFBIG: _ROOM,
  errno.EMFILE: _LIMIT,
  errno.ENFILE: _LIMIT,
  errno.EIO: _USABLE,
  errno.EROFS: _USABLE,
  errno.ESTALE: _USABLE,
  errno.EACCES: _USABLE,
}
# Libraries whose errors are those of a network, a server or a login.
_OF_THE_NETWORK = (
  "aiohttp",
  "gcsfs",
  "google",
  "httpcore",
  "httpx",
  "huggingface_hub",
  "requests",
  "urllib3",
)
# tensorstore's words for the same, of gs://.
_STATUS = re.compile(
  "(UNAVAILABLE|UNAUTHENTICATED|PERMISSION_DENIED|DEADLINE_EXCEEDED|ABORTED): "
)


def shortened(text: Any) -> str:
  """What may be pages as one line: its first words, and the last."""
  text = " ".join(f"{text}".split())
  return text if len(text) <= 200 else f"{text[:100]} … {text[-100:]}"


def one_line(e: UserError | OSError) -> str:
  """WHAT, WHERE, WHAT TO DO."""
  if isinstance(e, UserError):
    return str(e)
  what = e.strerror or shortened(e) or type(e).__name__
  hint = _OF_THE_SYSTEM.get(_errno(e), _USABLE)
  return f"{what}, {e.filename or 'a file'}, {hint}"


@contextlib.contextmanager
def naming(path: os.PathLike | str) -> Iterator[None]:
  """An OSError of the body says of which file it is, if it did not."""
  try:
    yield
  except OSError as e:
    if e.errno is None:  # of a library, in words alone
      number = _errno(e) or errno.EIO
      raise OSError(number, shortened(e), os.fspath(path)) from e
    e.filename = e.filename or os.fspath(path)
    raise


@contextlib.contextmanager
def parsing(path: os.PathLike | str, hint: str) -> Iterator[None]:
  """The body reads a file that we wrote: what it trips over is damage.

  Raises:
    UserError: the file is not as it was written, with what to do.
  """
  try:
    yield
  except (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,  # of C++, and RecursionError
    OSError,  # of pyarrow, that has no number
  ) as e:
    if is_of_the_machine(e) or getattr(e, "errno", None) is not None:
      raise
    what = f"the file is damaged ({type(e).__name__}: {shortened(e)})"
    raise UserError(what, os.fspath(path), hint) from e


def _errno(e: BaseException) -> int | None:
  """What the system said; libraries in C++ say it in words alone."""
  if number := getattr(e, "errno", None):
    return number
  words = str(e)
  return next((n for n in _OF_THE_SYSTEM if os.strerror(n) in words), None)


def _is_of_the_network(e: BaseException) -> bool:
  root = type(e).__module__.partition(".")[0]
  return root in _OF_THE_NETWORK or bool(_STATUS.match(str(e)))


def is_of_the_machine(e: BaseException) -> bool:
  """Whether memory, disk, limits, network or login failed: no file did."""
  is_system = _errno(e) in _OF_THE_SYSTEM
  return is_system or isinstance(e, MemoryError) or _is_of_the_network(e)


def from_outside(e: BaseException) -> UserError | OSError | None:
  """What to tell of an error of memory, network, login or disk; else None."""
  kind = f"{type(e).__module__}.{type(e).__name__}"
  if isinstance(e, UserError):
    return e
  if _is_of_the_network(e):
    return UserError(
      f"the network, a server or a login failed ({kind}: {shortened(e)})",
      "a request to a bucket or to the hub",
      "look at the network, log in again (for gs://: `gcloud auth "
      "application-default login`), then run it again: it goes on",
    )
  if isinstance(e, OSError):
    return e
  if isinstance(e, MemoryError):
    return UserError(
      f"out of memory ({shortened(e) or kind})",
      "this machine",
      "give it more, or let fewer programs and workers run on it",
    )
  if number := _errno(e):
    hint = _OF_THE_SYSTEM.get(number, _USABLE)
    return UserError(os.strerror(number), shortened(e), hint)
  return None


def of_command_line(e: BaseException, argv: Sequence[str]) -> UserError | None:
  """What flags, or the config file that they name, raised.

  Args:
    e: the error.
    argv: the command line.

  Returns:
    None after --help, which raises SystemExit as well.
  """
  named = {a.rpartition("=")[2].partition(":")[0] for a in argv[1:]}
  paths = {os.path.abspath(path): path for path in named if path}
  chain = [e]
  while cause := chain[-1].__cause__ or chain[-1].__context__:
    chain.append(cause)
  for error in reversed(chain):
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError):
      places.append((error.filename or "", error.lineno))
    for name, line in reversed(places):
      if path := paths.get(os.path.abspath(name)):
        what = f"{type(error).__name__}: {_without_fields(error)}"
        return UserError(what, f"{path}:{line}", "mend the config file")
  if isinstance(e, SystemExit):
    return None
  unknown = isinstance(e, (AttributeError, KeyError))
  what = "no such field" if unknown else type(e).__name__
  what += f": {_without_fields(e)}"
  return UserError(what, "flags or config file", "see --help")


def _without_fields(e: BaseException) -> str:
  """What it says, less the whole config or traceback of ml_collections."""
  words = e.args[0] if isinstance(e, KeyError) and e.args else e
  odd = r"Other fields present: .*?(?=Did you mean|\Z)|Traceback .*\n(?=\S)"
  return re.sub(odd, "", str(words), flags=re.DOTALL).strip()


class Stopped(BaseException):
  """The process was asked to end by SIGINT or SIGTERM.

  A BaseException, so that no `except Exception` on the way swallows it. Once
  there is one the process is ending, and no deadline counts any more: what is
  on the way out may be a checkpoint that is still being written.
  """

  def __init__(self, signum: int):
    global _is_stopping
    _is_stopping = True
    self.signum = signum
    self.exit_code = 128 + signum  # 130 on SIGINT, 143 on SIGTERM
    super().__init__(signal.Signals(signum).name)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal and a wrapper may both pass on one Ctrl-C: what follows the first
# signal in this many seconds is the same wish.
_SAME = 2.0
# Seconds until a wish that nothing asked for is granted: clouds and clusters
# give 30 before they kill.
_PATIENCE = 10.0

_requested: int | None = None  # the signal that asks for an end
_is_deferring = False  # what runs would be lost, and saves it
_is_stopping = False  # `Stopped` is on its way
_write_end: int | None = None  # of the pipe that `_watch` reads


def _exit(status: int, line: str):
  print(line, file=sys.stderr, flush=True)
  os._exit(status)


def handle_signals(leave: Callable[[int, str], Any] = _exit):
  """Takes SIGINT and SIGTERM for a wish, which interrupts nothing.

  An exception out of a handler is raised wherever Python is, also in what
  drops exceptions, such as a callback of the garbage collector. So loops ask:
  `raise_if_stopped` after each batch, unit and step. A call that lasts longer
  than `_PATIENCE`, such as a compilation or a download, is not waited for:
  files appear whole or not at all, so ending there loses nothing but time. A
  second signal is not made to wait either.

  Args:
    leave: ends the process with this status and line; called from a thread.
  """
  global _write_end
  release_signals()
  for signum in _SIGNALS:
    signal.signal(signum, _on_signal)
  read_end, _write_end = os.pipe()
  os.set_blocking(_write_end, False)
  # The interpreter writes the signal's number there also while this thread is
  # in a long call, when no handler can run.
  signal.set_wakeup_fd(_write_end, warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(read_end, leave), daemon=True).start()


def release_signals() -> int | None:
  """From now on a signal ends the process at once, without a word.

  Returns:
    One that had come before.
  """
  global _requested, _is_stopping, _write_end
  if _write_end is None:
    return None
  for signum in _SIGNALS:
    signal.signal(signum, signal.SIG_DFL)
  signal.set_wakeup_fd(-1)
  os.close(_write_end)
  requested, _requested = _requested, None
  _is_stopping, _write_end = False, None
  return requested


def _on_signal(signum, unused_frame):
  global _requested
  _requested = _requested or signum


def _watch(read_end: int, leave: Callable[[int, str], Any]):
  """Ends the process if the wish is repeated, or nobody asks for it."""
  with open(read_end, "rb", buffering=0) as pipe:
    while (first := pipe.read(1)) and first[0] not in _SIGNALS:
      pass
    if not first:
      return  # released
    name = signal.Signals(first[0]).name
    time.sleep(_SAME)
    os.set_blocking(read_end, False)
    if pipe.read(1 << 16) == b"":
      return
    print(
      f"{name}: ends where nothing is lost; a second one ends it now",
      file=sys.stderr,
      flush=True,
    )
    deadline = time.monotonic() + _PATIENCE - _SAME
    while time.monotonic() < deadline or _is_deferring or _is_stopping:
      if select.select([pipe], [], [], 0.2)[0]:
        if not pipe.read(1):
          return
        break
  leave(128 + first[0], f"stopped by {name}; goes on without --force")


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
  """The body saves what would be lost, so it is not made to hurry.

  It asks `stop_requested` where it can stop. A signal that it did not act on
  is raised at its end.
  """
  global _is_deferring
  _is_deferring = True
  try:
    yield
  finally:
    _is_deferring = False
  raise_if_stopped()


def stop_requested() -> int | None:
  """The signal that asks this process to end, if any."""
  return _requested


def raise_if_stopped(elsewhere: int | str | None = None):
  """Raises Stopped if a signal has come, but not in `signals_deferred`.

  Args:
    elsewhere: one that came to another process.
  """
  if (signum := _requested or elsewhere) and not _is_deferring:
    raise Stopped(int(signum))
