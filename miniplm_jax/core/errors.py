"""The one error that a user is meant to read, and what others mean."""

import contextlib
import difflib
import errno
import importlib
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
  """Returns what may be pages as one line: its first and last words."""
  text = " ".join(f"{text}".split())
  return text if len(text) <= 200 else f"{text[:100]} … {text[-100:]}"


def one_line(e: UserError | OSError) -> str:
  """Returns one line: WHAT, WHERE, WHAT TO DO."""
  if isinstance(e, UserError):
    return str(e)
  what = e.strerror or shortened(e) or type(e).__name__
  hint = _OF_THE_SYSTEM.get(_errno(e), _USABLE)
  return f"{what}, {e.filename or 'a file'}, {hint}"


def did_you_mean(
  name: str, names: Iterable[str], otherwise: str, cutoff: float = 0.7
) -> str:
  """Returns the question for a name that is none of these; or `otherwise`."""
  near = difflib.get_close_matches(name, names, cutoff=cutoff)
  return f"did you mean {' or '.join(near)}?" if near else otherwise


@contextlib.contextmanager
def rewording(words: Mapping[str, Any]) -> Iterator[None]:
  """Lets a UserError of the body say other words, as another field's name.

  They are by the pattern that they stand for, both as `re.sub` takes them.
  """
  try:
    yield
  except UserError as e:
    said = [e.what, e.where, e.hint]
    for pattern, instead in words.items():
      said = [re.sub(pattern, instead, text) for text in said]
    UserError.__init__(e, *said)
    raise


@contextlib.contextmanager
def naming(path: os.PathLike | str) -> Iterator[None]:
  """Lets an OSError of the body say of which file it is."""
  try:
    yield
  except OSError as e:
    if e.errno is None:  # of a library, in words alone
      number = _errno(e) or errno.EIO
      raise OSError(number, shortened(e), os.fspath(path)) from e
    e.filename = e.filename or os.fspath(path)
    raise


@contextlib.contextmanager
def parsing(
  where: os.PathLike | str | Callable[[], str],
  hint: str,
  what: str = "the file is damaged",
) -> Iterator[None]:
  """Makes whatever a parser raises on the bytes of a file a UserError.

  What is of this machine or the network stays so. `where` may say how far it
  came.
  """
  try:
    yield
  except Exception as e:  # parsers do not say what they raise
    # Arrow's and zlib's of bad bytes are OSErrors that have no number.
    if not isinstance(e, OSError) or _errno(e):
      known = from_outside(e)
      if known is e:
        raise
      if known:
        raise known from e
    if "too much memory for decoding" in f"{e}":  # zstd of more than 128 MiB
      hint = "its window is long: repack it by zstd -d --long=31 and zstd"
    said = ": ".join(filter(None, [type(e).__name__, shortened(e)]))
    place = where() if callable(where) else os.fspath(where)
    raise UserError(f"{what} ({said})", place, hint) from e


def library(name: str, what: str, where: str, hint: str) -> Any:
  """Imports what not every installation has; else UserError, with these."""
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise UserError(f"{what} ({e})", where, hint) from e


def _errno(e: BaseException) -> int | None:
  """Returns what the system said; libraries in C++ say it in words alone."""
  if number := getattr(e, "errno", None):
    return number
  words = str(e)
  return next((n for n in _OF_THE_SYSTEM if os.strerror(n) in words), None)


def _is_of_the_network(e: BaseException) -> bool:
  root = type(e).__module__.partition(".")[0]
  return root in _OF_THE_NETWORK or bool(_STATUS.match(str(e)))


def is_of_the_machine(e: BaseException) -> bool:
  """Returns whether memory, disk, limits, network or login failed."""
  is_system = _errno(e) in _OF_THE_SYSTEM
  return is_system or isinstance(e, MemoryError) or _is_of_the_network(e)


def from_outside(e: BaseException) -> UserError | OSError | None:
  """Returns what to tell of memory, network, login or disk; else None."""
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


def of_command_line(
  e: BaseException, argv: Sequence[str], advice: Mapping[str, str] = {}
) -> UserError | None:
  """Returns what to tell of an error of flags or the config; None of --help.

  `advice` says of a field, such as config.train.steps, what it takes.
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
        if isinstance(error, UserError):  # it says itself what to do
          return error
        what = f"{type(error).__name__}: {_without_fields(error)}"
        return UserError(what, f"{path}:{line}", "mend the config file")
  if isinstance(e, SystemExit):
    return None
  said = _without_fields(e)
  if value := re.match(r"flag --(config\.\S+?)=(.*?): (.*)", said, re.DOTALL):
    name, given, why = value.groups()
    hint = advice.get(name) or why
    return UserError(f"{name} is {given!r}", f"--{name}={given}", hint)
  return UserError(said, "flags or config file", "see --help")


def _without_fields(e: BaseException) -> str:
  """Returns what it says, less ml_collections' whole config or traceback."""
  words = e
  # One is put into the other, and would show the text as it is in Python.
  while isinstance(words, (KeyError, AttributeError)) and words.args:
    words = words.args[0]
  odd = r"Other fields present: .*?(?=Did you mean|\Z)|Traceback .*\n(?=\S)"
  return re.sub(odd, "", str(words), flags=re.DOTALL).strip()
