"""What the package says: lines by `logging`, and progress of long loops.

A library writes nothing to standard output. All lines are INFO or WARNING of
the logger "miniplm_jax"; a program decides what becomes of them, and `show` is
what our command line does.
"""

import logging
import sys
import time

from tqdm import tqdm

from miniplm_jax.core import distributed

LOGGER = logging.getLogger("miniplm_jax")


def log(stage: str, text: str):
  """Logs one line of a stage; of several processes the first one does."""
  if distributed.is_first():
    LOGGER.info("[%s] %s", stage, text)


def warn(stage: str, text: str):
  """Logs what somebody should look at, although it goes on."""
  if distributed.is_first():
    LOGGER.warning("[%s] warning: %s", stage, text)


def plain(text: str):
  """Logs what a stage was asked for, a table or a text, as it stands."""
  if distributed.is_first():
    LOGGER.info("%s", text)


def show(handler: logging.Handler | None = None):
  """Prints whatever is logged to standard output, at once; for programs.

  Or hands it to a handler of another kind.
  """
  if handler or not any(isinstance(h, _Printer) for h in LOGGER.handlers):
    LOGGER.addHandler(handler or _Printer())
  LOGGER.setLevel(logging.INFO)
  LOGGER.propagate = False  # a library's root handler would print it again


class _Printer(logging.Handler):
  """Prints above the bars of tqdm, to what standard output is by then."""

  def emit(self, record: logging.LogRecord):
    """Raises what printing raises: a full disk, a reader that has gone."""
    tqdm.write(record.getMessage(), file=sys.stdout)
    sys.stdout.flush()


def duration(seconds: float) -> str:
  """Returns seconds in words: 12.3 s, 4 min 5 s, 2 h 3 min."""
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} min {rest} s"
  return f"{minutes // 60} h {minutes % 60} min"


def short(number: float) -> str:
  """Returns a number as people read it: 12, 9.6k, 0.307M, 7.15M, 52.4B."""
  for least, size, unit in ((1e9, 1e9, "B"), (1e5, 1e6, "M"), (1e3, 1e3, "k")):
    if number >= least:
      return f"{number / size:.3g}{unit}"
  return f"{number:.3g}"


class Progress:
  """Shows the progress of a long loop.

  On a terminal a tqdm bar; otherwise one line every `every` seconds, so
  that a log of a day-long run can be read. Its pace is that since the first
  units were done: before, programs were loaded and compiled, which may take
  longer than all the rest.
  """

  def __init__(
    self,
    stage: str,
    total: int | None,
    unit: str,
    done: int = 0,
    every: float = 30.0,
  ):
    """Starts at `done` of `total` units; None is not known."""
    self._stage, self._total, self._unit = stage, total, unit
    self._every, self._first, self._done = every, done, done
    self._start, self._last = None, time.monotonic()
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm(
        total=total,
        initial=done,
        unit=unit,
        desc=stage,
        dynamic_ncols=True,
        unit_scale=True,
        smoothing=0,  # the pace is that since the beginning
      )

  def update(self, units: float = 1, note: str = "", apart: float = 0.0):
    """Counts `units` more as done; raises Stopped if a signal has come.

    `apart` are seconds since the last call that say nothing of the pace.
    """
    distributed.raise_if_stopped()
    now, bar = time.monotonic(), self._bar
    self._done += units
    is_first = self._start is None and units
    if is_first:
      self._start, self._first, apart = now, self._done, 0.0
    elif self._start is not None:
      self._start += apart
    if bar is not None:
      if is_first:  # its clock, too, begins now
        bar.unpause()
        bar.initial = self._done
      bar.start_t += apart
      bar.update(units)
      if note:
        bar.set_postfix_str(note)
      return
    if now - self._last >= self._every:
      self._last, seconds = now, now - (self._start or now)
      of = "" if self._total is None else f"/{self._total:,}"
      words = [f"{self._done:,.0f}{of} {self._unit}"]
      # Of less, what chance has of it would be all.
      if self._done > self._first and seconds >= self._every / 2:
        rate = (self._done - self._first) / seconds
        words.append(f"{short(rate)} {self._unit}/s")
        if of:
          words.append(f"{duration((self._total - self._done) / rate)} left")
      log(self._stage, ", ".join(words + [note] * bool(note)))

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    if self._bar is not None:
      self._bar.close()
