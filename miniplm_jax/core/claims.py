"""Who works on what, when several processes share a folder.

A claim is a small file that is created only if it is absent, renewed while
its owner lives, and taken over when its owner has ended or, on another
machine, has not renewed it for a while. `take` lets one process alone make
what a manifest will describe. `claim` shares work out and guards nothing:
whoever holds one wrongly does work twice, and `publish` lets the result stand
that came first.

Claims are written with tensorstore's conditional writes, which are locks and
renames on a disk and generation preconditions on gs://.
"""

import contextlib
import dataclasses
import json
import os
import threading
import time
import uuid
from collections.abc import Container, Mapping, Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import distributed, errors, files, gs, owner
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.step import Step


def publish(path: epath.Path, content: bytes) -> bool:
  """Writes a file, whole or not at all; returns False if there is one."""
  if gs.is_local(path):
    try:
      with files.replacing(path, only_new=True) as scratch:
        scratch.write_bytes(content)
    except FileExistsError:
      return False
    return True
  files.guard()
  board = Board(path.parent, 0)
  return board.write(path.name, content) is not None


def _owner(content: bytes) -> dict[str, Any]:
  """Returns what a claim says of its owner; nothing if it is damaged."""
  try:
    body = json.loads(content)
  except ValueError:
    return {}
  return body if isinstance(body, dict) else {}


class Board:
  """The claims in one folder, and those that this process holds."""

  def __init__(self, folder: epath.Path, seconds: float):
    """Renews what is claimed while it is a context.

    Args:
      folder: of the claims; all workers name the same.
      seconds: a claim that is not renewed for so long is taken over; who has
        it may ask for more.
    """
    self._folder, self._seconds = folder, seconds
    self._store = files.store(folder)
    self._absent = self._store.read(f"{uuid.uuid4()}").result().stamp.generation
    self._me = owner.this_process() | {
      "worker": uuid.uuid4().hex,
      "since": time.time(),
      "seconds": seconds,
    }
    self._reads: dict[str, list[str]] = {}  # by each claim
    self._has_written = False
    self._held: dict[str, bytes] = {}  # generation of each claim
    # Of claims of others: the generation, and since when it is that.
    self._watched: dict[str, tuple[bytes, float]] = {}
    self._lock = threading.Lock()
    self._closing = threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True)

  def name_of(self, path: epath.Path) -> str:
    """Returns the claim of what lies beside the folder of claims."""
    return os.path.relpath(path, self._folder.parent)

  def claim(self, name: str, reads: Sequence[str] = ()) -> bool:
    """Returns whether this process now has `name`; nobody else should.

    Meanwhile nobody may remove what it `reads`, see `refuse_if_taken`.
    """
    self._reads[name] = list(reads)
    stored = self._store.read(name).result()
    expected = None
    if stored.state == "value":
      if not self._is_abandoned(name, stored):
        return False
      expected = stored.stamp.generation
    with self._lock:
      generation = self.write(name, self._content(name), expected)
      if generation is not None:
        self._held[name] = generation
    return generation is not None

  def take(self, name: str, stage: str, reads: Sequence[str] = ()):
    """Claims, as `claim`; raises UserError if another process is making it."""
    watched = None  # the generation of another machine's claim
    while name not in self._held and not self.claim(name, reads):
      stored = self._store.read(name).result()
      if stored.state != "value":
        continue  # given back meanwhile
      who, generation = _owner(stored.value), stored.stamp.generation
      if owner.is_here(who) or watched not in (None, generation):
        raise self._refusal(name, who)
      if watched is None:
        busy = self._refusal(name, who).what
        log(
          stage, f"{busy}; waiting up to {self._patience(who):g} s for its sign"
        )
      watched = generation
      distributed.raise_if_stopped()
      time.sleep(min(self._seconds / 10, 1))

  def refuse_if_taken(self, names: Sequence[str], stage: str):
    """Raises UserError if another process has a claim on, below or to read."""
    for other in self._names():
      content = _owner(self._store.read(other).result().value)
      is_read = not set(names).isdisjoint(content.get("reads", ()))
      is_below = any(other == n or other.startswith(f"{n}/") for n in names)
      if (is_read or is_below) and other not in self._held:
        self.take(other, stage)
        self.release(other)

  def guard(self, name: str, what: epath.Path) -> "Guard":
    """Returns what refuses to write `what` when `name` is another program's."""
    holds = 0.0 if gs.is_local(self._folder) else self._seconds / 10
    return Guard(self._folder / name, self._me["worker"], what, holds)

  def release(self, name: str):
    """Gives `name` back, if it has not been taken over."""
    with self._lock:
      generation = self._held.pop(name, None)
      if generation is not None:
        # On a full disk, where something worse is being said; then it goes
        # like that of a process that was killed.
        with contextlib.suppress(OSError):
          self.write(name, None, generation)

  def clear(self, names: Container[str]):
    """Removes the claims `names`, whoever has them, and those of the dead.

    One by one: who renews or releases one that is gone sees that it is, where
    a folder that goes meanwhile is an error.
    """
    for name in self._names():
      stored = self._store.read(name).result()
      is_void = name in names or owner.is_dead(_owner(stored.value))
      if stored.state == "value" and is_void:
        self.write(name, None, stored.stamp.generation)

  def write(self, name: str, content: bytes | None, expected=None):
    """Writes, or with None deletes, a file if its generation is as expected.

    None expects that there is no file. Returns the new generation, or None if
    it was another.
    """
    expected = expected or self._absent
    if not self._has_written and not files.can_lock(self._folder):
      self._store = files.store(self._folder, "lockfile")
    self._has_written = True
    try:
      stamp = self._store.write(name, content, if_equal=expected).result()
    except ValueError as e:  # tensorstore's; callers know OSError
      with errors.naming(self._folder / name):
        raise OSError(f"{name} cannot be written: {e}") from e
    return stamp.generation or None

  def _names(self) -> list[str]:
    return [key.decode() for key in self._store.list().result()]

  def _content(self, name: str) -> bytes:
    now = {"renewed": time.time(), "reads": self._reads[name]}
    return json.dumps(self._me | now).encode()

  def _is_abandoned(self, name: str, stored: Any) -> bool:
    """Returns whether its owner is dead, or silent while we watched.

    No clocks of different machines are compared.
    """
    who = _owner(stored.value)
    if owner.is_dead(who):
      return True
    generation, now = stored.stamp.generation, time.monotonic()
    last, since = self._watched.get(name, (None, now))
    if last != generation:
      self._watched[name] = generation, now
      return False
    return now - since > self._patience(who)

  def _patience(self, who: Mapping[str, Any]) -> float:
    """Returns the seconds for which the owner of a claim may be silent."""
    asked = who.get("seconds")
    return max(self._seconds, asked if isinstance(asked, int | float) else 0)

  def _refusal(self, name: str, who: Mapping[str, Any]) -> UserError:
    since = time.strftime("%F %T", time.localtime(who.get("since", 0)))
    what = str(self._folder.parent / name).removesuffix("/manifest.json")
    return UserError(
      f"{what} is being made by {who.get('pid')} on {who.get('name')} since "
      f"{since}",
      f"claim {self._folder / name}",
      "wait for that process or stop it, then run this again",
    )

  def _renew(self):
    while not self._closing.wait(self._seconds / 3):
      with self._lock:
        for name, generation in list(self._held.items()):
          try:
            renewed = self.write(name, self._content(name), generation)
          except OSError:  # the store is out of reach; it may come back
            continue
          if renewed is None:
            del self._held[name]  # taken over
          else:
            self._held[name] = renewed

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *unused):
    self._closing.set()
    self._thread.join()
    for name in list(self._held):
      self.release(name)


@dataclasses.dataclass(eq=False)
class Guard:
  """Refuses what this program makes when another has taken it over.

  Whoever was suspended, and goes on, asks before it writes. It is no part of
  the `Board`, so that child processes can ask too.
  """

  claim: epath.Path  # the file
  worker: str  # who has to have it
  what: epath.Path  # is made under the claim
  # Seconds for which an answer is good. Nobody takes over what was renewed so
  # lately, and on gs:// each question is a request.
  holds: float
  _asked: tuple[float, ...] = ()

  def __call__(self):
    """Raises UserError if the claim is gone, or another's."""
    # Two clocks: one of them may stand while a machine is suspended.
    now = time.monotonic(), time.time()
    since = [a - b for a, b in zip(now, self._asked)]
    if since and all(0 <= seconds < self.holds for seconds in since):
      return
    try:
      content = self.claim.read_bytes()
    except FileNotFoundError:
      content = b""
    if _owner(content).get("worker") != self.worker:
      raise UserError(
        "another program has taken over what this one was making",
        str(self.what),
        "what that one makes stands; run this again when it has ended",
      )
    self._asked = now


class Claim:
  """Lets this program alone make a folder, or take part in making it."""

  def __init__(self, board: Board | None, step: Step):
    """Claims nothing yet; without a board no other program can be there."""
    self._board, self._step = board, step
    self._name, self._guarding = "", contextlib.ExitStack()

  @property
  def is_taken(self) -> bool:
    """Returns whether this program has it, for all that it knows."""
    return not self._board or bool(self._name)

  def take(self):
    """Claims it; raises UserError if another program makes it.

    Until it is given back, nothing is written once another has taken it over,
    and no forced run of another program may remove the step's inputs; those
    of another workdir, whose claims are there, it may.
    """
    if not self._board:
      return
    step, name_of = self._step, self._board.name_of
    reads = [name_of(path) for path in step.input_manifests.values()]
    if not step.policy.is_shared:
      name = name_of(step.manifest)
      self._board.take(name, step.stage, reads)
    else:
      name = f"{name_of(step.manifest.parent)}/{uuid.uuid4().hex}"
      self._board.claim(name, reads)
    self._name = name
    guard = self._board.guard(name, step.manifest)
    self._guarding.enter_context(files.guarded([guard]))

  def refuse_others(self):
    """Raises UserError if another program makes what is to be removed."""
    if self._board:
      step = self._step
      paths = {step.manifest, *step.outputs}
      if step.policy.is_shared:  # others have claimed parts of the folder
        paths.add(step.manifest.parent)
      names = [self._board.name_of(path) for path in paths]
      self._board.refuse_if_taken(names, step.stage)

  def release(self):
    """Gives it back, if it was claimed."""
    if self._name:
      self._guarding.close()
      self._board.release(self._name)
