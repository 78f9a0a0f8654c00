"""Contenders in processes of their own, that take turns.

Each loads what it needs beside the others. Then one after another compiles and
warms up, so that nobody's choice of a kernel is made beside another's work.
Then all take turns, in both orders alternately. What is to be quoted is the
ratio within a turn. One that fails, dies or is late is reported, and the
others go on.
"""

import dataclasses
import multiprocessing
import os
import re
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

from benchmarks.accelerator import program
from benchmarks.accelerator.results import reason

OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut ?[Oo]f ?[Mm]emory")


class Entrant(NamedTuple):
  """A contender that is warm.

  Attributes:
    first: what it tells when it is ready.
    run: a turn; what it returns is kept.
    end: what it tells at the end.
  """

  first: Any
  run: Callable[[], Any]
  end: Callable[[], Any] = lambda: None


@dataclasses.dataclass(frozen=True)
class Contender:
  """A contender before it begins.

  Attributes:
    name: of the results.
    make: loads, and returns a function that compiles, warms up and returns
      an `Entrant`. Of a module's top level.
    arguments: of `make`.
    environment: of its process.
  """

  name: str
  make: Callable[..., Callable[[], Entrant]]
  arguments: tuple[Any, ...] = ()
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Turn(NamedTuple):
  """What a turn took; CPU seconds are of all threads."""

  seconds: float
  cpu_seconds: float
  value: Any


@dataclasses.dataclass
class Outcome:
  """What a contest came to, by contender.

  Attributes:
    first: what it told when it was ready.
    ready: after how many seconds.
    turns: that it took.
    ended: what it told at the end.
    failed: why it did not get there.
    alone: those that had no room beside the others, and came after them.
  """

  first: dict[str, Any] = dataclasses.field(default_factory=dict)
  ready: dict[str, float] = dataclasses.field(default_factory=dict)
  turns: dict[str, list[Turn]] = dataclasses.field(default_factory=dict)
  ended: dict[str, Any] = dataclasses.field(default_factory=dict)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)
  alone: list[str] = dataclasses.field(default_factory=list)

  def seconds(self, name: str) -> list[float]:
    """Of each turn."""
    return [turn.seconds for turn in self.turns.get(name, [])]

  def ratio(self, name: str, to: str) -> tuple[float, float, float] | None:
    """How many times as long `to` takes: median, least and most of a turn."""
    pairs = zip(self.seconds(name), self.seconds(to))
    found = [b / a for a, b in pairs]
    return (statistics.median(found), min(found), max(found)) if found else None


def fitting(rows: int, attempt: Callable[[int], Any], whole: int = 0):
  """The most rows that fit, halved, a part of `whole`; and what was made."""
  while True:
    while whole % rows:
      rows -= 1
    try:
      return rows, attempt(rows)
    except Exception as e:
      if rows == 1 or not OUT_OF_MEMORY.search(f"{type(e).__name__} {e}"):
        raise
    rows //= 2  # here the frames that held the memory are gone


def _until(by: float) -> float | None:
  """Seconds; None is for ever."""
  return None if by == float("inf") else max(by - time.time(), 0)


class _Member:
  """A contender's process, seen from outside."""

  def __init__(self, contender: Contender, context):
    self.name = contender.name
    self.pipe, theirs = context.Pipe()
    # No daemon: those may have no processes, and torch.compile wants some.
    self.process = context.Process(target=_serve, args=(theirs, contender))
    self.process.start()
    theirs.close()  # or recv would wait for one that died

  def receive(self, by: float) -> tuple[str, Any]:
    """A message; of one that is late or has died, ("failed", why)."""
    try:
      if not self.pipe.poll(_until(by)):
        self.kill()
        return "failed", "it took longer than it was given"
      return self.pipe.recv()
    except (EOFError, OSError):
      self.process.join(10)
      code = self.process.exitcode
      if code is not None and code < 0:
        return (
          "failed",
          f"the process was ended by {signal.Signals(-code).name}",
        )
      return "failed", f"the process ended with exit status {code}"

  def send(self, text: str):
    """To one that may have died: `receive` says so."""
    try:
      self.pipe.send(text)
    except OSError:
      return

  def kill(self):
    """Ends it, if it has not ended."""
    self.process.kill()
    self.process.join(10)
    self.pipe.close()


def hold(
  contenders: Sequence[Contender],
  turns: int,
  *,
  ready_by: float = float("inf"),
  until: float = float("inf"),
  say: Callable[[str], Any] = lambda text: None,
  kept: Callable[[Outcome], Any] = lambda outcome: None,
) -> Outcome:
  """Holds a contest.

  Args:
    contenders: in the order of the first turn.
    turns: of each.
    ready_by: when those that are not ready are left out, `time.time()`.
    until: after this no further round begins, if one was taken.
    say: for progress.
    kept: called with what there is so far, after every round.
  """
  outcome = Outcome()
  _hold(contenders, turns, ready_by, until, say, kept, outcome)
  for contender in contenders if len(contenders) > 1 else ():
    why = outcome.failed.get(contender.name, "")
    if OUT_OF_MEMORY.search(why) and time.time() < until:
      say(f"{contender.name}: once more, alone")
      del outcome.failed[contender.name]
      outcome.alone.append(contender.name)
      outcome.turns.pop(contender.name, None)  # those were beside others
      _hold([contender], turns, until, until, say, kept, outcome)
  return outcome


def _hold(contenders, turns, ready_by, until, say, kept, outcome):
  context = multiprocessing.get_context("spawn")
  members = [_Member(contender, context) for contender in contenders]
  try:
    playing = _prepare(members, ready_by, say, outcome)
    longest = 0.0
    for i in range(turns):
      start = time.time()
      if not playing or (i and start + longest > until):
        break
      for member in playing[:: -1 if i % 2 else 1]:
        member.send("turn")
        kind, value = member.receive(max(until, start + 30))
        if kind == "failed":
          outcome.failed[member.name] = value
          playing.remove(member)
          say(f"{member.name}: failed, {value}")
        else:
          outcome.turns.setdefault(member.name, []).append(value)
      longest = max(longest, time.time() - start)
      kept(outcome)
    for member in playing:
      member.send("end")
      kind, value = member.receive(max(until, time.time() + 30))
      (outcome.failed if kind == "failed" else outcome.ended)[member.name] = (
        value
      )
  finally:
    for member in members:
      member.kill()


def _prepare(members, by, say, outcome) -> list[_Member]:
  """Those that are ready, in the order of `members`."""
  start = time.time()
  pending, loaded, ready, told = list(members), [], [], None
  while pending:
    # In the order of the members: the last cannot keep the first waiting.
    if pending[0] in loaded and pending[0] is not told:
      told = pending[0]
      told.send("go")
    heard = connection.wait([m.pipe for m in pending], _until(by))
    # When time is up, `receive` ends all that have not spoken.
    for member in [m for m in pending if m.pipe in heard or not heard]:
      kind, value = member.receive(by)
      if kind == "loaded":
        loaded.append(member)
        continue
      pending.remove(member)
      seconds = time.time() - start
      if kind == "failed":
        outcome.failed[member.name] = value
        say(f"{member.name}: failed after {seconds:.0f} s, {value}")
      else:
        outcome.first[member.name] = value
        outcome.ready[member.name] = seconds
        ready.append(member)
        say(f"{member.name}: ready after {seconds:.0f} s")
  return [m for m in members if m in ready]


def _serve(pipe, contender: Contender):
  """A contender's process: does what it is told to."""
  program.end_with_parent()
  os.environ.update(contender.environment)
  try:
    prepare = contender.make(*contender.arguments)
    pipe.send(("loaded", None))
    pipe.recv()
    entrant = prepare()
    pipe.send(("ready", entrant.first))
    while pipe.recv() == "turn":
      start, busy = time.perf_counter(), time.process_time()
      value = entrant.run()
      wall = time.perf_counter() - start
      pipe.send(("turn", Turn(wall, time.process_time() - busy, value)))
    pipe.send(("end", entrant.end()))
  except Exception as e:
    pipe.send(("failed", reason(e)))


def process_gib(field: str) -> float:
  """A size of this process, VmHWM or VmRSS, from Linux."""
  with open("/proc/self/status") as status:
    for line in status:
      if line.startswith(field):
        return int(line.split()[1]) / 2**20
  raise ValueError(field)
