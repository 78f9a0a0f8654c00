r"""Kills scoring workers at random moments; the table must come out the same.

  python tests/kill_workers.py --kills=50 --workers=2 [--folder=DIR]

DIR has text.jsonl and a workdir run/ whose teacher and reference are
trained; without it both are made first. Real processes on one workdir, each
killed with kill -9 after a random time or when a chosen part appears (the
last one: between part and manifest) and replaced, until so many have died;
then workers run to the end. The parts are compared, byte for byte, with those
of a worker that nobody disturbed.
"""

import argparse
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time

from helpers import LONG, command, environment, run_as_process, write_corpus

_MODELS = ("teacher", "reference")
# Small units: there is always something between two parts.
_ARGUMENTS = (
  LONG,
  "--stages=score",
  "--config.score.rows_per_part=4",
  "--config.run.lease_seconds=2.0",
)


def parts(folder: pathlib.Path) -> dict[str, bytes]:
  """All parts of both tables, by name."""
  return {
    f"{model}/{path.name}": path.read_bytes()
    for model in _MODELS
    for path in sorted((folder / "run/scores" / model).glob("*.parquet"))
  }


def undisturbed(folder: pathlib.Path) -> dict[str, bytes]:
  """The parts as one worker makes them."""
  shutil.rmtree(folder / "run" / "scores", ignore_errors=True)
  run_as_process(folder, *_ARGUMENTS)
  return parts(folder)


def disturbed(
  folder: pathlib.Path, kills: int, workers: int, last: list[str], seed: int
) -> tuple[dict[str, bytes], int]:
  """The parts after so many kills; and how many were killed at work.

  Args:
    folder: of the run.
    kills: how many workers die.
    workers: how many there are at a time.
    last: names of parts that are finished last.
    seed: of the moments.
  """
  shutil.rmtree(folder / "run" / "scores", ignore_errors=True)
  chance, died, alive = random.Random(seed), 0, []

  def start():
    process = subprocess.Popen(
      command(folder, *_ARGUMENTS),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      env=environment(),
    )
    # Import and compilation take a while: most moments lie after them.
    late = chance.random() < 0.7
    after = chance.uniform(4, 9) if late else chance.uniform(0, 4)
    part = chance.choice([None, None, chance.choice(last)])
    alive.append((process, time.monotonic() + after, part))

  def at_work() -> bool:
    return any((folder / "run/scores").rglob("*.parquet"))

  busy = 0
  while died < kills:
    while len(alive) < workers:
      start()
    time.sleep(0.02)
    for entry in list(alive):
      process, moment, part = entry
      if process.poll() is not None:
        assert process.returncode == 0, process.stderr.read()
        alive.remove(entry)
        # Done before its time came: begin anew, to have more to kill. All end
        # first: who still lives notes its seconds in the folder that is gone.
        for other in alive:
          other[0].kill()
          other[0].wait()
        alive.clear()
        shutil.rmtree(folder / "run" / "scores", ignore_errors=True)
        break
      there = part and (folder / "run/scores" / part).exists()
      if there or time.monotonic() > moment:
        busy += at_work()
        process.send_signal(signal.SIGKILL)
        process.wait()
        alive.remove(entry)
        died += 1
  while len(alive) < workers:
    start()
  for process, *_ in alive:
    assert process.wait(300) == 0, process.stderr.read()
  return parts(folder), busy


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=pathlib.Path)
  given = parser.parse_args()
  folder = given.folder or pathlib.Path(tempfile.mkdtemp())
  if not (folder / "run" / "reference").exists():
    write_corpus(folder / "text.jsonl")
    run_as_process(folder, LONG, "--stages=tokenize,teacher,reference")
  wanted = undisturbed(folder)
  last = sorted(wanted)[-3:]
  start = time.monotonic()
  found, busy = disturbed(folder, given.kills, given.workers, last, given.seed)
  assert found == wanted, "the tables differ"
  print(
    f"{given.kills} of {given.workers} workers at a time killed, {busy} with "
    f"parts on disk, in {time.monotonic() - start:.0f} s: all {len(wanted)} "
    "parts are the same bytes"
  )


if __name__ == "__main__":
  main()
