"""Shards by several processes, of this machine or of a Beam runner."""

import concurrent.futures as futures
import contextlib
import functools
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from miniplm_jax.core import errors, files, signals
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus.chunks import Chunk
from miniplm_jax.corpus.shard import Maker, Recipe

# A shard to be made: its number, how many there are, and its chunk.
Task = tuple[int, int, Chunk]


def make_here(
  recipe: Recipe,
  tasks: Sequence[Task],
  workers: int,
  on_text: Callable[[int], Any],
  on_shard: Callable[[Chunk, Mapping[str, int]], Any],
):
  """Makes shards with so many processes; 0 is one a core.

  In this process `on_text` is called with bytes of text, now and then, and
  `on_shard` with the chunk and the counts of each, which may raise.

  Raises:
    UserError: of the first worker that has one; the others stop.
  """
  workers = min(workers or _cores(), len(tasks))
  if workers <= 1:
    maker = Maker(recipe, on_text)
    for task in tasks:
      on_shard(task[-1], maker.make(*task))
    return
  context = multiprocessing.get_context("spawn")
  done, stop = context.Value("q", 0), context.Event()
  pool = futures.ProcessPoolExecutor(workers, context, _start, (done, stop))
  try:
    # They start with these signals blocked, and stop when this process says so:
    # a terminal sends them to all, also while a worker is still importing.
    blocked = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
      guards = files.guards()
      with _without_main():
        tasks = {
          pool.submit(_make, recipe, guards, *task): task for task in tasks
        }
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
    reported, waiting = 0, set(tasks)
    while waiting:
      finished, waiting = futures.wait(waiting, 0.5, futures.FIRST_COMPLETED)
      for one in finished:
        on_shard(tasks[one][-1], one.result())
      now = done.value
      on_text(now - reported)
      reported = now
  except futures.process.BrokenProcessPool as e:
    # One that was killed may hold the lock of the queue on which others wait,
    # and they do not hear the SIGTERM that they are now sent.
    for worker in multiprocessing.active_children():
      worker.kill()
    raise UserError(
      "a worker died, perhaps for want of memory",
      "tokenize",
      "run it again, with fewer --config.run.tokenize_workers",
    ) from e
  finally:
    stop.set()
    pool.shutdown(cancel_futures=True)
    # A traceback holds them, and Python would warn of semaphores at its end.
    del pool, done, stop


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
  """No process that starts in the body runs the caller's script again.

  `spawn` runs what `__main__` names, for functions that are defined there; a
  script that calls the library without a guard would tokenize in each worker.
  """
  main = sys.modules["__main__"]
  sys.modules["__main__"] = types.ModuleType("__main__")
  try:
    yield
  finally:
    sys.modules["__main__"] = main


def _cores() -> int:
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


_told: tuple[Any, Any] | None = None  # a worker's bytes of text, and its stop


def _start(done, stop):
  """What a worker does first."""
  global _told
  threading.Thread(target=_end_with_parent, daemon=True).start()
  _told = done, stop


def _on_text(n_bytes: int):
  if _told:  # not in Beam
    done, stop = _told
    if stop.is_set():
      raise InterruptedError("told to stop")
    with done.get_lock():
      done.value += n_bytes


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)


@functools.lru_cache(maxsize=1)
def _maker(recipe: Recipe) -> Maker:
  _on_text(0)  # loading takes seconds
  # One thread for each process of several; before a tokenizer is used.
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  return Maker(recipe, _on_text)


def _make(recipe: Recipe, guards, *task) -> Mapping[str, int]:
  with files.guarded(guards):
    return _maker(recipe).make(*task)


def make_with_beam(recipe: Recipe, tasks: Sequence[Task], options: str):
  """Makes shards as an Apache Beam pipeline, on one machine or many.

  All machines must see the recipe's directory. Options are the pipeline's,
  such as "--runner=DataflowRunner --region=…".

  Raises:
    UserError: Beam is not installed, or a worker has found a user's error.
  """
  what = "tokenizing on several machines needs Apache Beam"
  hint = "pip install apache-beam==2.77.0 google-crc32c"
  where = f"config.run.beam={options}"
  beam = errors.library("apache_beam", what, where, hint)
  from apache_beam.options.pipeline_options import PipelineOptions

  try:
    parsed = PipelineOptions(shlex.split(options))
    _ = parsed.get_all_options()  # complains here or later
  except (ValueError, SystemExit) as e:
    raise UserError(
      f"these are no pipeline options ({e})", "config.run.beam", "mend them"
    ) from e
  make = functools.partial(_make, recipe, files.guards())
  try:
    with beam.Pipeline(options=parsed) as p:
      # Reshuffle: without it all shards would be one worker's.
      steps = p | beam.Create(list(tasks)) | beam.Reshuffle()
      _ = steps | beam.MapTuple(make)
  except Exception as e:  # whatever a runner makes of a worker's error
    message = re.search(
      r"UserError: ([^\n]*?)(?= \[while running|\\n|\n|$)", f"{e}"
    )
    signals.raise_if_stopped()
    if not message:
      raise
    raise UserError(message[1], "in a Beam worker", "see above") from e
