r"""Kills, signals, pairs and full disks at random moments of whole pipelines.

  python tests/sweeps/kills.py [--kills=50 --signals=50 --pairs=20 --disks=10]

Run by hand: about 25 minutes on two cores. Each try runs every stage of
tests/tiny_config.py in a workdir of its own, is disturbed, and is started
again until it ends. What it made is then compared bit by bit with a run that
was not disturbed: rows, scores, weights, evaluations, the losses of every
step. Exits 1 unless nothing is lost or changed, no signal is swallowed and
nothing ends with a traceback.

  kills    SIGKILL, to the process or to it and its children
  signals  SIGTERM or SIGINT, likewise: it must end with 143 or 130, in time
  pairs    two runs of one workdir at once: each ends well, or with one line
  disks    a tmpfs that is too small, then made larger; without the right to
           mount, no file may grow beyond a limit (RLIMIT_FSIZE)
"""

import argparse
import collections
import concurrent.futures as futures
import functools
import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import helpers

_IN_TIME = 20  # seconds from a signal to the end of the process
_AT_MOST = 600  # seconds of any process
_FLAWS = ("lost", "changed", "swallowed", "traceback", "unclear")
_TRACES = (
  "Traceback (most recent",
  "Exception ignored",
  "Fatal Python error",
  "Event loop is closed",
)
# Files that must be the same to the bit, below the workdir.
_COMPARED = (
  "corpus/instances-*",
  "corpus/index-*",
  "scores/*/part-*.parquet",
  "selection/*/rows.npy",
  "**/hf/*.safetensors",
)


class Run:
  """One process of the pipeline in `folder`/run."""

  def __init__(self, folder: pathlib.Path, *arguments: str, limit: int = 0):
    def prepare():
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
    self.process = subprocess.Popen(
      helpers.command(folder, *arguments, source=TEXT),
      env=helpers.environment() | {"PYTHONPATH": str(helpers.ROOT)},
      stdout=self._log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
      preexec_fn=prepare if limit else None,
    )

  def began(self):
    """Waits until signals are handled: before, they are Python's own."""
    path = pathlib.Path(f"/proc/{self.process.pid}/status")
    while self.process.poll() is None:
      (caught,) = [
        s for s in path.read_text().splitlines() if s[:6] == "SigCgt"
      ]
      if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
        return
      time.sleep(0.002)

  def send(self, number: int, to_all: bool) -> bool:
    """Sends a signal; False if the process had ended before."""
    if self.process.poll() is not None:
      return False
    (os.killpg if to_all else os.kill)(self.process.pid, number)
    return True

  def ended(self, seconds: float = _AT_MOST) -> int | None:
    """Its status; None if it did not end in time, and was killed."""
    try:
      return self.process.wait(seconds)
    except subprocess.TimeoutExpired:
      os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()
      return None

  def said(self) -> str:
    """What it printed."""
    self._log.seek(0)
    return self._log.read()


def content(folder: pathlib.Path) -> dict[str, str]:
  """What is compared of a workdir, by name."""
  root, found = folder / "run", {}
  for pattern in _COMPARED:
    for path in sorted(root.glob(pattern)):
      digest = hashlib.sha256(path.read_bytes()).hexdigest()
      found[str(path.relative_to(root))] = digest
  for path in sorted(root.rglob("evaluation.json")):
    details = json.loads(path.read_text())["details"]
    del details["seconds"]
    found[str(path.relative_to(root))] = json.dumps(details, sort_keys=True)
  for path in sorted(root.rglob("metrics.jsonl")):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
      for name in helpers.OF_THE_CLOCK:
        line.pop(name, None)
    found[str(path.relative_to(root))] = json.dumps(lines)
  return found


class Sweep:
  """Tries, and the count of what went wrong."""

  def __init__(self, base: pathlib.Path, seed: int):
    self._base, self._seed = base, seed
    self._lock = threading.Lock()
    self.counts: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    whole = self._folder("whole")
    run = Run(whole)  # compiles
    assert run.ended() == 0, run.said()
    print(f"the first run took {time.monotonic() - start:.1f} s", flush=True)
    self._wanted = content(whole)
    self._bytes = sum(
      p.stat().st_size for p in (whole / "run").rglob("*") if p.is_file()
    )
    start = time.monotonic()
    again = self._folder("again")
    assert Run(again).ended() == 0
    found, wanted = content(again), self._wanted
    assert found == wanted, [k for k in wanted if found.get(k) != wanted[k]]
    self.seconds = time.monotonic() - start
    print(f"the second, compiled, {self.seconds:.1f} s", flush=True)

  def _folder(self, name: str) -> pathlib.Path:
    folder = self._base / name
    folder.mkdir()
    return folder

  def _flaw(self, kind: str, name: str, what: str):
    with self._lock:
      self.counts[kind] += 1
    print(f"{kind.upper()} in {name}: {what}", flush=True)

  def _count(self, kind: str) -> int:
    with self._lock:
      self.counts[kind] += 1
      return self.counts[kind]

  def _look(self, name: str, run: Run):
    said = run.said()
    if any(trace in said for trace in _TRACES):
      self._flaw("traceback", name, said[-3000:])

  def _refused(self, name: str, run: Run, status: int | None, why: str):
    """It ended with one line of error."""
    errors = [s for s in run.said().splitlines() if s.startswith("error: ")]
    if status != 1 or len(errors) != 1:
      self._flaw("unclear", name, f"{why}: {status}, {run.said()[-1500:]}")
    else:
      print(f"  {name}: {why}: {errors[0][:200]}", flush=True)

  def _finish(self, name: str, folder: pathlib.Path):
    """Goes on to the end, and compares."""
    run = Run(folder)
    status = run.ended()
    self._look(name, run)
    if status:
      self._flaw(
        "lost", name, f"does not go on: {status}, {run.said()[-1500:]}"
      )
      return
    found = content(folder)
    for path in sorted(self._wanted.keys() | found.keys()):
      if path not in found:
        self._flaw("lost", name, path)
      elif found[path] != self._wanted.get(path):
        self._flaw("changed", name, path)

  def disturbed(self, number: int, kind: str, most: int):
    """A pipeline that is killed or signalled again and again."""
    draw = random.Random(f"{self._seed} {kind} {number}")
    name = f"{kind} {number}"
    folder = self._folder(name.replace(" ", "-"))
    for _ in range(3):
      if self.counts[kind] >= most:
        break
      run = Run(folder)
      run.began()
      time.sleep(draw.uniform(0, self.seconds))
      signals = [signal.SIGTERM, signal.SIGINT]
      if kind == "kills":
        signals = [signal.SIGKILL]
      signum, to_all = draw.choice(signals), draw.random() < 0.5
      if not run.send(signum, to_all):
        break  # it was done
      sent = time.monotonic()
      status = run.ended(_IN_TIME)
      took = time.monotonic() - sent
      self._look(name, run)
      done = self._count(kind)
      word = signal.Signals(signum).name
      last = (run.said().splitlines() or [""])[-1][:60]
      print(
        f"{kind} {done}: {word}, {status} after {took:.1f} s: {last}",
        flush=True,
      )
      # -N: it came after the last line of main, which nothing follows; 0: it
      # had ended, and its memory was still being given back, as 1 of 50 SIGKILL
      # shows, which no process can swallow.
      is_over = status == 0 and took < 1 and "[report] done in" in last
      if status not in (128 + signum, -signum) and not is_over:
        self._flaw("swallowed", name, f"{word}: {status}\n{run.said()[-1500:]}")
    self._finish(name, folder)
    shutil.rmtree(folder)

  def pair(self, number: int):
    """Two at once; every other time in the stage that they share."""
    draw = random.Random(f"{self._seed} pair {number}")
    name = f"pair {number}"
    folder = self._folder(name.replace(" ", "-"))
    stages = []
    if number % 2:
      assert Run(folder, "--stages=tokenize,teacher,reference").ended() == 0
      stages = ["--stages=score,select"]
    first = Run(folder, *stages)
    time.sleep(draw.choice([0, draw.uniform(0, self.seconds / 2)]))
    second = Run(folder, *stages)
    for run in (first, second):
      status = run.ended()
      self._look(name, run)
      if status:
        self._refused(name, run, status, "one of two")
    print(f"pairs {self._count('pairs')}", flush=True)
    self._finish(name, folder)
    shutil.rmtree(folder)

  def disk(self, number: int, mounts: bool):
    """A disk that is full, and then is not."""
    draw = random.Random(f"{self._seed} disk {number}")
    name = f"disk {number}"
    folder = self._folder(name.replace(" ", "-"))
    size = int(self._bytes * draw.uniform(0.02, 0.95))
    if mounts:
      subprocess.run(_mount(folder, size), check=True)
      run = Run(folder)
    else:
      size = int(10 ** draw.uniform(2, 5))
      run = Run(folder, limit=size)
    status = run.ended()
    self._look(name, run)
    if status:
      self._refused(name, run, status, f"{size:,} bytes")
    elif mounts:
      print(f"  {name}: {size:,} bytes were enough", flush=True)
    if mounts:
      more = _mount(folder, 4 * self._bytes, "remount,")
      subprocess.run(more, check=True)
    print(f"disks {self._count('disks')}", flush=True)
    self._finish(name, folder)
    if mounts:
      subprocess.run(["umount", str(folder)], check=True)
    shutil.rmtree(folder)


def _mount(folder: pathlib.Path, size: int, how: str = "") -> list[str]:
  options = ["-t", "tmpfs", "-o", f"{how}size={size}"]
  return ["mount", *options, "tmpfs", str(folder)]


def _can_mount(base: pathlib.Path) -> bool:
  folder = base / "mounted"
  folder.mkdir()
  done = subprocess.run(_mount(folder, 1 << 20), capture_output=True)
  if not done.returncode:
    subprocess.run(["umount", str(folder)], check=True)
  return not done.returncode


def main() -> int:
  """All that was asked for; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for kind, count in (("kills", 50), ("signals", 50), ("pairs", 20)):
    parser.add_argument(f"--{kind}", type=int, default=count)
  parser.add_argument("--disks", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--jobs", type=int, default=2, help="tries at once")
  parser.add_argument("--rlimit", action="store_true", help="mount nothing")
  given = parser.parse_args()
  start = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="miniplm_jax_kills_") as name:
    base = pathlib.Path(name)
    global TEXT
    TEXT = base / "text.jsonl"
    helpers.write_corpus(TEXT)
    mounts = not given.rlimit and _can_mount(base)
    print("full disks: " + ("tmpfs" if mounts else "RLIMIT_FSIZE"), flush=True)
    sweep = Sweep(base, given.seed)
    with futures.ThreadPoolExecutor(given.jobs) as pool:
      for kind in ("kills", "signals"):
        most, number = getattr(given, kind), 0
        while sweep.counts[kind] < most:
          tries = range(number, number + given.jobs)
          one = functools.partial(sweep.disturbed, kind=kind, most=most)
          list(pool.map(one, tries))
          number += given.jobs
      list(pool.map(sweep.pair, range(given.pairs)))
      one = functools.partial(sweep.disk, mounts=mounts)
      list(pool.map(one, range(given.disks)))
  for kind in ("kills", "signals", "pairs", "disks", *_FLAWS):
    print(f"{kind}: {sweep.counts[kind]}")
  print(f"{(time.monotonic() - start) / 60:.1f} min, seed {given.seed}")
  return int(any(sweep.counts[kind] for kind in _FLAWS))


if __name__ == "__main__":
  sys.exit(main())
