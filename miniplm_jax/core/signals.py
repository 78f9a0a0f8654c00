"""Stopping on a signal: it interrupts nothing, and loops ask for it."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


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


def handle(leave: Callable[[int, str], Any]):
  """Takes SIGINT and SIGTERM for a wish, which interrupts nothing.

  An exception out of a handler is raised wherever Python is, also in what
  drops exceptions, such as a callback of the garbage collector. So loops ask:
  `raise_if_stopped` after each batch, unit and step. A call that lasts longer
  than `_PATIENCE`, such as a compilation or a download, is not waited for:
  files appear whole or not at all, so ending there loses nothing but time. A
  second signal is not made to wait either. Then a thread calls `leave`, which
  ends the process, with the status and a line.
  """
  global _write_end
  release()
  for signum in _SIGNALS:
    signal.signal(signum, _on_signal)
  read_end, _write_end = os.pipe()
  os.set_blocking(_write_end, False)
  # The interpreter writes the signal's number there also while this thread is
  # in a long call, when no handler can run.
  signal.set_wakeup_fd(_write_end, warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(read_end, leave), daemon=True).start()


def release() -> int | None:
  """Lets a signal end the process at once; returns one that came before."""
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
      f"{name}: ends soon and keeps what is finished; a second one ends it now",
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
def deferred() -> Iterator[None]:
  """Does not hurry the body, which saves what would be lost.

  It asks `stop_requested` where it can stop. A signal that it did not act on
  is raised at its end. Where `handle` was not called, as in a notebook, the
  first Ctrl-C is such a signal too during the body, and a KeyboardInterrupt at
  its end; the second interrupts. A handler of the caller's own stays.
  """
  global _is_deferring
  with contextlib.ExitStack() as stack:
    if (
      threading.current_thread() is threading.main_thread()
      and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
      stack.enter_context(_interrupts_wait())
    _is_deferring = True
    try:
      yield
    finally:
      _is_deferring = False
    raise_if_stopped()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
  """Takes Ctrl-C for a wish, once, and leaves no trace."""
  global _requested, _is_stopping

  def once(signum, frame):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _on_signal(signum, frame)

  signal.signal(signal.SIGINT, once)
  try:
    yield
  except Stopped:
    raise KeyboardInterrupt from None
  finally:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _requested, _is_stopping = None, False


def stop_requested() -> int | None:
  """Returns the signal that asks this process to end, if any."""
  return _requested


def raise_if_stopped(elsewhere: int | str | None = None):
  """Raises Stopped if a signal has come, here or elsewhere, not deferred."""
  if (signum := _requested or elsewhere) and not _is_deferring:
    raise Stopped(int(signum))
