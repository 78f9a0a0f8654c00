"""Several processes as one program: who speaks, and agreeing on a decision.

Every process of a pod runs the same stages. The first one looks at the
workdir, decides and writes; the others follow. They talk through JAX's
coordination service, so that waiting for hours needs no device, and a process
that fails is noticed by those that wait for it.
"""

import contextlib
import itertools
import json
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from miniplm_jax.core import errors, signals
from miniplm_jax.core.errors import UserError

# How long one look at what another process says may take, in milliseconds:
# between two of them a signal can stop this process.
_PATIENCE = 500
# A stop is this many steps ahead of the first process: a step is dispatched
# when the one before the last is done everywhere, so none is further ahead.
_STOP_AHEAD = 3
# What the processes say is kept in the first: when it ends, the others are
# aborted. So it waits for them, in seconds, unless they hang.
_FAREWELL = 10
_SIGNALS = 128  # exit statuses above it are those of signals
# What JAX says of a device without room, and of a process that is gone: by its
# status, or in gloo's words on CPU.
_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory")
_LOST = re.compile(
  "UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|[Gg]loo|[Cc]onnection|"
  "heartbeat|coordination"
)
_FAILED, _LEFT, _STOP, _STOP_AT = "failed", "left", "stop", "stop_at"

_index, _count, _client = 0, 1, None
_decisions, _meetings = itertools.count(), itertools.count()
_leaving = threading.Lock()  # held by the thread that ends the process
_is_deciding = False  # the first process, while the others wait for it


def initialize(
  coordinator: str, processes: int, process_id: int, lost_after: int
):
  """Joins the other processes, before anything touches JAX.

  Args:
    coordinator: HOST:PORT of the first process; "auto" lets JAX find out on
      a TPU pod.
    lost_after: seconds after which a process that is not heard of is lost,
      and the others end.

  Raises:
    UserError: they did not come together.
  """
  global _index, _count, _client
  import jax
  from jax._src import distributed  # its client has no public name

  # The CPU backend has no collectives across processes unless told so.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would take SIGTERM away from `core/signals.py`.
  jax.config.update("jax_enable_preemption_service", False)
  is_auto = coordinator == "auto"
  place = () if is_auto else (coordinator, processes, process_id)
  try:
    jax.distributed.initialize(*place, heartbeat_timeout_seconds=lost_after)
  except (RuntimeError, ValueError) as e:
    raise UserError(
      f"the processes did not come together ({e})",
      f"config.run.coordinator={coordinator}",
      "start all of them, with the same coordinator and number",
    ) from e
  _index, _count = jax.process_index(), jax.process_count()
  _client = distributed.global_state.client
  if _count > 1:
    threading.Thread(target=_watch, daemon=True).start()


def is_first() -> bool:
  """Returns whether this process decides, writes and speaks."""
  return _index == 0


def own_suffix() -> str:
  """Returns "" in the first, else ".N", for files that every process writes."""
  return "" if is_first() else f".{_index}"


def agree(decide: Callable[[], Any]) -> Any:
  """Returns what the first process decides, in all of them.

  Args:
    decide: called in the first process only; returns a JSON value.

  Raises:
    UserError: in all processes, if `decide` raised one, or an OSError, in
      the first; or another process failed. Whatever else it raised stays in
      the first, and ends the others with one.
    signals.Stopped: in all processes, if a signal has come to one before.
  """
  global _is_deciding
  if _count == 1 or _is_deciding:
    signals.raise_if_stopped()
    return decide()
  key = f"decision {next(_decisions)}"
  _pass_on(signals.stop_requested())
  if not is_first():
    heard = json.loads(_wait_for(key))
    if "error" in heard:
      raise UserError(*heard["error"])
    if "stopped" in heard:
      raise signals.Stopped(heard["stopped"])
    return heard["value"]
  _is_deciding = True
  try:
    signals.raise_if_stopped(_get(_STOP))
    decision = {"value": decide()}
  except UserError as e:
    _put(key, {"error": [e.what, e.where, e.hint]})
    raise
  except signals.Stopped as e:
    _put(key, {"stopped": e.signum})
    raise
  except BaseException as e:
    what = str(e) if isinstance(e, OSError) else f"{type(e).__name__}: {e}"
    _put(key, {"error": [what, "in the first process", "look at its log"]})
    raise
  finally:
    _is_deciding = False
  _put(key, decision)
  return decision["value"]


def meet():
  """Waits for all processes; raises UserError if another one failed."""
  if _count == 1:
    return
  key = f"meeting {next(_meetings)}"
  _client.key_value_increment(key, 1)
  while int(_get(key)) < _count:
    _raise_if_failed()
    time.sleep(_PATIENCE / 1e4)


def stops_at(step: int, signum: int | None) -> int | None:
  """Returns the signal that all processes stop for after this step.

  It is the same in all of them: on a pod signals arrive at different steps.

  Args:
    step: the one that was dispatched last; it grows by one a call.
    signum: the signal that arrived here.
  """
  if _count == 1:
    return signum
  _pass_on(signum)
  if is_first() and not _get(_STOP_AT) and (stop := _get(_STOP)):
    _put(_STOP_AT, [step + _STOP_AHEAD, int(stop)])
  if not (stop_at := _get(_STOP_AT)):
    return None
  at, signum = json.loads(stop_at)
  return signum if step >= at else None


def raise_if_stopped():
  """Raises Stopped if a signal has come; those of a pod stop in `agree`."""
  if _count == 1:
    signals.raise_if_stopped()


def _pass_on(signum: int | None):
  """Lets the first process know of a signal that came to this one."""
  if signum and not _get(_STOP):
    _client.key_value_set(_STOP, str(signum), allow_overwrite=True)


def explained(e: BaseException) -> BaseException | None:
  """Returns what to tell the user of an error; None if nobody knows.

  Of what comes from outside that it does, see `errors.from_outside`; of an
  error of JAX that memory ran out, that there is no such device, that another
  process failed, if it said so, or that one seems to be gone. After a signal
  whatever else is raised is a part of the end. It is a UserError, an OSError or
  a Stopped.
  """
  cause = e
  while cause and not (shown := _explained(cause)):
    cause = cause.__cause__
  if cause:
    return shown
  return (stop := signals.stop_requested()) and signals.Stopped(stop)


def _explained(e: BaseException) -> BaseException | None:
  if isinstance(e, signals.Stopped):
    return e
  if type(e).__name__ != "JaxRuntimeError":
    if isinstance(e, RuntimeError) and "initialize backend" in str(e):
      return UserError(
        f"JAX has no such device ({errors.shortened(e)})",
        f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}",
        "see that the driver is installed and no other process holds the "
        "device, or name another platform",
      )
    return errors.from_outside(e)
  words = " ".join(str(e).split())
  where = f"process {_index} of {_count}"
  if is_out_of_memory(e):
    return UserError(
      f"out of memory on a device ({words[:200]})",
      where if _count > 1 else "this process",
      "take fewer rows at a time (config.run.per_device_batch_size in "
      "training, config.score.batch_tokens, config.seqkd.batch_size), one "
      "model at a time (config.run.score_together=False), or split the "
      "weights over more devices (config.run.fsdp, config.run.tensor)",
    )
  if _count == 1:
    return None
  with contextlib.suppress(Exception):  # the first may be the one that is gone
    if failed := _failure():
      return _as_error(*failed)
  if not _LOST.search(words):
    return None
  return UserError(
    f"lost another process, or the way to it ({words[:200]})",
    where,
    "look at the logs of the others; when all have ended, start them again: "
    "they go on",
  )


def is_out_of_memory(e: Exception) -> bool:
  """Returns whether JAX says that a device has no room."""
  is_jax = type(e).__name__ == "JaxRuntimeError"
  return is_jax and bool(_OUT_OF_MEMORY.search(str(e)))


def fail(e: BaseException, debug: bool) -> NoReturn:
  """Ends the process, and says why: in one line, if `explained` knows it.

  If not, or with `debug`, after the traceback.
  """
  shown = explained(e)
  if debug or not shown:
    traceback.print_exception(e)
  if _count == 1 and isinstance(shown, BrokenPipeError) and _is_unread():
    os._exit(_SIGNALS + signal.SIGPIPE)  # as others of which `head` has enough
  if isinstance(shown, signals.Stopped):
    leave(shown.exit_code, f"stopped by {shown}; goes on without --force")
  if not shown:
    leave(1, f"{type(e).__name__}: {e}")
  leave(1, f"error: {errors.one_line(shown)}")


def _is_unread() -> bool:
  """Returns whether standard output is a pipe whose reader has gone."""
  look = select.poll()
  look.register(sys.stdout, 0)  # for errors, which are always told
  return bool(look.poll(0))


def finish(status: int) -> NoReturn:
  """Ends a process whose work is done, when the others' is.

  At once then: what Python tears down takes seconds, and a library's thread can
  abort it meanwhile (1 in 100 runs: "FATAL: exception not rethrown").
  """
  if _count > 1:
    import jax

    jax.distributed.shutdown()
  with contextlib.suppress(OSError):
    sys.stdout.flush()
  os._exit(status)


def leave(status: int, line: str) -> NoReturn:
  """Says why this process failed, also to the others if there are any.

  Then it ends, at once. The ordinary end waits for the others, as they wait for
  this one; and threads of libraries that were still starting can abort it
  with another status (seen in two runs of the whole suite, never alone).
  """
  while not _leaving.acquire(timeout=_FAREWELL):
    pass  # another thread is about to end the process
  _print(line)
  try:
    if _count > 1:
      _part(status, line)
  except Exception as e:  # the first process, which keeps it, is gone
    _print(f"cannot tell the others: {type(e).__name__}")
  os._exit(status)


def _print(line: str):
  with contextlib.suppress(OSError):  # nobody reads it any more
    sys.stdout.flush()
  with contextlib.suppress(OSError):
    print(line, file=sys.stderr, flush=True)


def _part(status: int, line: str):
  # The first failure stands: those that follow from it say nothing new.
  with contextlib.suppress(Exception):
    _client.key_value_set(_FAILED, json.dumps([_index, status, line]))
  _client.key_value_increment(_LEFT, 1)
  deadline = time.monotonic() + _FAREWELL
  while is_first() and int(_get(_LEFT)) < _count:
    if time.monotonic() > deadline:
      return
    time.sleep(_PATIENCE / 1e4)
  if is_first():
    # Those that have said so are not gone yet: on a busy machine one was
    # aborted between its word and its end.
    time.sleep(1)


def _wait_for(key: str) -> str:
  while True:
    try:
      return _client.blocking_key_value_get(key, _PATIENCE)
    except Exception as e:
      if "DEADLINE_EXCEEDED" not in str(e):
        raise
    _raise_if_failed()


def _failure() -> tuple[int, UserError] | None:
  """Returns status and words of the process that failed first, if one did."""
  if not (failed := _get(_FAILED)):
    return None
  index, status, line = json.loads(failed)
  return status, UserError(
    f"process {index} failed: {line}",
    f"noticed by process {_index} of {_count}",
    "put that right and start all of them again",
  )


def _raise_if_failed():
  if failed := _failure():
    raise _as_error(*failed)


def _as_error(status: int, error: UserError) -> UserError | signals.Stopped:
  """Returns the error, or Stopped if a signal ended that process."""
  return signals.Stopped(status - _SIGNALS) if status > _SIGNALS else error


def _watch():
  """Ends this process, with the reason, when another has failed.

  The main thread may wait for that one in a collective, which never returns;
  JAX would abort it, without a word of why. Not after a signal: who was
  stopped by one may leave while this process completes the checkpoint.
  """
  while True:
    time.sleep(1)
    try:
      failed = _failure()
    except Exception:  # the first process, which keeps it, is gone
      return
    if failed and failed[0] < _SIGNALS:
      time.sleep(2)  # a main thread that is not stuck says it itself
      leave(failed[0], f"error: {failed[1]}")


def _put(key: str, value: Any):
  _client.key_value_set(key, json.dumps(value), allow_overwrite=True)


def _get(key: str) -> str | None:
  try:
    return _client.key_value_try_get(key)
  except Exception as e:
    if "NOT_FOUND" not in str(e):
      raise
    return None
