r"""Measures this accelerator, beside transformers, within a few minutes.

  python -m benchmarks.accelerator [--size=full] [--minutes=8]

Parts, in this order: device, correctness, scoring, training, more_training,
pieces, resume, demo. Each has a time limit and a process of its own; what is
there when time is up is kept, and the same command goes on with the rest.
Results: --out has a JSON of each part, result.json with all and page.md.
docs/accelerators/README.md says what is measured and how to read it.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from benchmarks.accelerator import models, program, results, settings, sizes

_USUAL = 8  # minutes; with more each part may take longer
PARTS = tuple(sizes.SIZES["full"].limits)

_SIZE = flags.DEFINE_enum("size", "full", list(sizes.SIZES), "Of everything.")
_MINUTES = flags.DEFINE_float("minutes", _USUAL, "For all parts together.", 0.1)
_OUT = flags.DEFINE_string("out", "runs/accelerator", "For the results.")
_ONLY = flags.DEFINE_list("only", [], f"Parts: {', '.join(PARTS)}.")
_SHAPES = flags.DEFINE_list("shapes", [], "Of scoring and training; by name.")
_AGAIN = flags.DEFINE_bool("again", False, "Try what failed once more.")
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of either side.", 1)
_ALONE = flags.DEFINE_bool("alone", False, "Our side only; so in a sweep.")
_COMPILE = flags.DEFINE_bool(
  "compile", None, "Try torch.compile; by default not of size tiny."
)
_PUBLISH = flags.DEFINE_bool(
  "publish", False, "Copy the page and result.json to docs/accelerators/."
)
_SWEEP = flags.DEFINE_string(
  "sweep", "", "Variants, such as tile:2048,8192;remat:dots,none."
)
_VARIANT = (
  flags.DEFINE_integer("tile", 0, "Of ours: tokens with logits at a time."),
  flags.DEFINE_string("logits", "", "Of ours: dtype of the logits."),
  flags.DEFINE_integer("passes", 0, "Of ours: over logits for sums.", 0, 2),
  flags.DEFINE_string("remat", "", "Of ours: full, dots or none."),
  flags.DEFINE_integer("rows", 0, "Of ours: rows of a device at a time."),
  flags.DEFINE_integer("unroll", 0, "Of ours: layers per turn of the scan."),
)
_CRASH = flags.DEFINE_string("crash", "", "A contender that is to crash.")

_GRACE = 5  # seconds to end in before a part is killed
_PROBE = 120  # seconds to find the device in, and to make models
_SWEPT = ("scoring", "training", "more_training", "pieces")


class _Run:
  """The parts of one command, one after the other."""

  def __init__(self, scratch: str, variants: list[settings.Variant]):
    self.scratch, self.out = scratch, pathlib.Path(_OUT.value)
    self.variants = variants
    self.start = time.time()
    self.end = self.start + 60 * _MINUTES.value
    self.size, self.notes, self.children = sizes.SIZES[_SIZE.value], {}, []
    self.builder = None

  def say(self, text: str):
    """A line of progress."""
    self._settings("all", self.variants[0], self.end).say(text)

  def _settings(self, part, variant, deadline) -> settings.Settings:
    return settings.Settings(
      part=part,
      out=str(self.out),
      scratch=self.scratch,
      size=_SIZE.value,
      variant=variant,
      against=not (_ALONE.value or _SWEEP.value),
      compiled=self.size.compiled if _COMPILE.value is None else _COMPILE.value,
      turns=_TURNS.value,
      shapes=tuple(_SHAPES.value),
      again=_AGAIN.value,
      crash=_CRASH.value,
      start=self.start,
      deadline=deadline,
      end=self.end,
    )

  def child(self, command: list[str], log: str) -> subprocess.Popen:
    """A process of a session of its own, in which all that it starts is."""
    with (self.out / log).open("ab") as errors:
      found = subprocess.Popen(
        command,
        stderr=errors,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ,
      )
    self.children.append(found)
    return found

  def ended(self, child: subprocess.Popen, seconds: float) -> str:
    """Waits for it; returns what went wrong, and ends all of its session."""
    try:
      code = child.wait(seconds)
      return f"it ended with exit status {code}" if code else ""
    except subprocess.TimeoutExpired:
      return f"it was ended at its limit of {seconds:.0f} s"
    finally:
      _end(child)
      self.children.remove(child)

  def facts(self) -> dict:
    """What is measured on; what is wrong if there is nothing."""
    path = self.out / results.FACTS
    path.unlink(missing_ok=True)
    words = results.__name__, str(self.out), _SIZE.value
    child = self.child(program.command(*words), "device.log")
    seconds = min(_PROBE, max(self.end - time.time(), 0))
    if why := self.ended(child, seconds):
      if seconds < _PROBE and "limit" in why:
        why += f": give at least --minutes={_PROBE // 60}"
      sys.exit(f"error: no device was found, {why}; {self.out}/device.log")
    return results.read(path)

  def begin_models(self, parts: list[str]):
    """Makes the models that will be wanted, while nothing is timed."""
    names = []
    for part in ("scoring", "training"):
      told = self._settings(part, self.variants[0], self.end)
      there = results.Store(told).results
      names += [
        shape
        for shape in getattr(self.size, part)
        if part in parts and told.wants(shape) and told.key(shape) not in there
      ]
    if names:
      names = dict.fromkeys([models.EXACT, *names])
      arguments = models.command(self.scratch, _SIZE.value, names)
      self.builder = self.child(arguments, "models.log")

  def end_models(self):
    """Waits until they are made: nothing is to be timed beside that."""
    if self.builder:
      why = self.ended(self.builder, min(_PROBE, self.end - time.time()))
      self.notes |= {"models": why} if why else {}
      self.builder = None

  def part(self, name: str, variant: settings.Variant, later: list[str]):
    """Runs a part within its limit; what is to come later keeps its time."""
    limits, now = self.size.limits, time.time()
    kept = sum(limits[p].kept for p in later)
    most = limits[name].most * max(_MINUTES.value / _USUAL, 1)
    seconds = min(most, self.end - now - kept - _GRACE)
    key = f"{name} {variant}".strip()
    if seconds < limits[name].least:
      self.notes[key] = "there was no time left"
      self.say(f"{key}: no time left")
      return
    told = self._settings(name, variant, now + seconds)
    told.say(f"begins, {seconds:.0f} s at most; {str(variant) or 'no variant'}")
    words = program.command("benchmarks.accelerator.part", told.text())
    why = self.ended(self.child(words, f"{name}.log"), seconds + _GRACE)
    if why:
      log = (self.out / f"{name}.log").read_bytes()[-1500:]
      log = " ".join(log.decode(errors="replace").split())
      self.notes[key] = f"{why}; the end of its log: {log}"
      told.say(why)

  def parts(self, names: list[str], platform: str):
    """Runs them in this order, each with its variants."""
    for i, name in enumerate(names):
      # A TPU has one process at a time.
      if name == "correctness" and platform != "tpu":
        self.begin_models(names)
      for variant in self.variants if name in _SWEPT else self.variants[:1]:
        self.part(name, variant, names[i + 1 :])
        self.end_models()
        self.write()

  def write(self):
    """What there is so far."""
    from benchmarks.accelerator import page

    run = {
      "command": " ".join(["python -m benchmarks.accelerator", *sys.argv[1:]]),
      "seconds": round(time.time() - self.start, 1),
      "notes": self.notes,
    }
    results.write_json(self.out / "run.json", run)
    found = results.public(results.collect(self.out))
    results.write_json(self.out / "result.json", found)
    try:
      text = page.text(found)
    except Exception as e:  # must not end the measurement
      text = f"The page could not be written: {results.reason(e)}\n"
      self.say(text.strip())
    results.write(self.out / "page.md", text)


def _lock(out: pathlib.Path):
  """Keeps the folder for this process while what is returned is open."""
  try:
    out.mkdir(parents=True, exist_ok=True)
    lock = (out / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    sys.exit(f"error: another command writes to --out={out}; give another")
  except OSError as e:
    sys.exit(f"error: --out={out}: {e.strerror}")
  return lock


def _end(child: subprocess.Popen):
  """Ends a process with all that it started; returns when they are gone."""
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(child.pid, signal.SIGKILL)
  child.wait(10)
  # A process that was killed holds memory of the device until it is gone.
  with contextlib.suppress(ChildProcessError):
    while True:
      os.waitpid(-child.pid, 0)


def main(argv: list[str]):
  """Runs the parts; writes the page after each."""
  del argv
  parts = _ONLY.value or list(PARTS if not _SWEEP.value else _SWEPT[1:2])
  if wrong := set(parts) - set(PARTS):
    sys.exit(f"error: no such part: {', '.join(wrong)}; see --help")
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  size = sizes.SIZES[_SIZE.value]
  if wrong := set(_SHAPES.value) - set(size.shapes):
    known = ", ".join(size.shapes)
    sys.exit(f"error: no such shape: {', '.join(wrong)}; there are {known}")
  try:
    base = settings.Variant(*(flag.value for flag in _VARIANT))
    variants = list(settings.sweep(_SWEEP.value, base))
  except ValueError as e:
    sys.exit(f"error: {e}")
  lock = _lock(pathlib.Path(_OUT.value))
  program.adopt_orphans()
  scratch = tempfile.mkdtemp(prefix="accelerator-")
  run, is_interrupted = _Run(scratch, variants), False
  try:
    found = run.facts()
    count, kind = found["devices"], found["device_kind"]
    is_cpu = found["platform"] == "cpu"
    if is_cpu and _SIZE.value == "full" and not os.environ.get("JAX_PLATFORMS"):
      sys.exit(
        "error: JAX sees no accelerator; see device.log, or give --size=tiny"
      )
    run.say(f"{count} × {kind}, {found['versions']}")
    try:
      run.parts(parts, found["platform"])
    finally:  # also when it is interrupted
      run.write()
    run.say(f"written: {run.out}/page.md and result.json")
  except KeyboardInterrupt:
    is_interrupted = True
  finally:
    for child in run.children:
      _end(child)
    shutil.rmtree(scratch, ignore_errors=True)
    lock.close()
  if is_interrupted:  # said when nobody is left to say anything
    print("interrupted; the same command goes on", file=sys.stderr)
    sys.exit(130)
  if _PUBLISH.value:
    from benchmarks.accelerator import page

    print(page.publish(run.out))


if __name__ == "__main__":
  app.run(main)
