"""The one error that a user is meant to read, and stopping on a signal."""

import contextlib
import signal
from collections.abc import Iterator


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
