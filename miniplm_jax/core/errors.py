"""The one error that a user is meant to read, and stopping on a signal."""

import contextlib
import os
import re
import signal
import traceback
from collections.abc import Iterator, Sequence


class UserError(Exception):
  """Something that the user can put right, told in one line.

  Attributes:
    what: what is wrong.
    where: the file, row, field or stage in which it was found.
    todo: what to do about it.
  """

  def __init__(self, what: str, where: str, todo: str):
    self.what, self.where, self.todo = what, where, todo
    super().__init__(" ".join(f"{what}, {where}, {todo}".split()))

  def __reduce__(self):
    return UserError, (self.what, self.where, self.todo)  # between processes


def one_line(e: UserError | OSError) -> str:
  """WHAT, WHERE, WHAT TO DO."""
  if isinstance(e, UserError):
    return str(e)
  what = e.strerror or " ".join(str(e).split())
  return f"{what}, {e.filename or 'a file'}, check that it can be used"


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
  """What an error says, without the whole config that a ConfigDict adds."""
  said = e.args[0] if isinstance(e, KeyError) and e.args else e
  listed = r"Other fields present: .*?(?=Did you mean|\Z)"
  return re.sub(listed, "", str(said), flags=re.DOTALL)


class Stopped(BaseException):
  """The process was asked to end by SIGINT or SIGTERM.

  A BaseException, so that no `except Exception` on the way swallows it.
  """

  def __init__(self, signum: int):
    self.signum = signum
    self.exit_code = 128 + signum  # 130 on SIGINT, 143 on SIGTERM
    super().__init__(signal.Signals(signum).name)


_pending: list[int] = []
_deferring = False


def _on_signal(signum, unused_frame):
  _pending.append(signum)
  if not _deferring or len(_pending) > 2:
    raise Stopped(signum)


def handle_signals():
  """Makes SIGINT and SIGTERM raise `Stopped` in the main thread."""
  _pending.clear()
  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, _on_signal)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
  """Holds signals back; the body asks `stop_requested` where it can stop.

  The third signal is not held back: somebody is insisting. One that the body
  did not act on is raised at its end.
  """
  global _deferring
  _deferring = True
  try:
    yield
  finally:
    _deferring = False
  if _pending:
    raise Stopped(_pending[0])


def stop_requested() -> int | None:
  """The signal that arrived inside `signals_deferred`, if any."""
  return _pending[0] if _pending else None
