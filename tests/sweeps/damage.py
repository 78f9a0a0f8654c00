"""Damages the files of a finished run one by one, and sees who notices.

By hand, not by pytest (minutes):

  JAX_PLATFORMS=cpu PYTHONPATH=. python tests/sweeps/damage.py --count=250

A tiny run is made, another with other seeds and a third that is given its
teacher and reference. Then, each in a copy of its own: one file is flipped in
a bit, cut, emptied, removed, filled with rubbish, exchanged for that of the
other run or of a neighbor, or a digit in it is changed; and the stage that
reads it is run in this process. What comes out counts as

  refused     one line that names the file or its folder
  unnamed     one line that does not
  harmless    the result is the same, bit by bit
  silent      the result is another
  traceback   anything else

Exits with 1 if there is something silent or a traceback.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import helpers  # noqa: E402  (before JAX)
import pyarrow.parquet as pq  # noqa: E402
import tiny_config  # noqa: E402

from miniplm_jax import pipeline  # noqa: E402
from miniplm_jax.core import distributed, errors, signals  # noqa: E402

# Files, the stage that reads them, and what of it is removed before.
READERS = (
  ("corpus/instances-*", "score", ("scores",)),
  ("corpus/index-*", "select", ("selection",)),
  ("corpus/tokenizer/tokenizer.json", "export", ("students/miniplm/hf",)),
  ("corpus/manifest.json", "select", ("selection",)),
  ("t*/hf/*", "score", ("scores/teacher",)),
  ("reference/hf/*", "score", ("scores/reference",)),
  ("*e*er*/manifest.json", "score", ("scores",)),
  ("scores/*/part-*", "select", ("selection",)),
  ("scores/*/manifest.json", "select", ("selection",)),
  ("scores/*/workers/*", "score", ("scores/*/manifest.json",)),
  ("scores/*/evaluation.json", "report", ("report.*",)),
  ("scores/*/evaluation.arrow", "analyze", ("analysis",)),
  ("selection/*/rows.npy", "report", ("report.*",)),
  ("selection/*/manifest.json", "report", ("report.*",)),
  ("students/*/manifest.json", "evaluate", ("students/*/evaluation.json",)),
  ("students/*/checkpoints/8/**/*", "evaluate", ("students/*/eva*.json",)),
  ("students/*/metrics/metrics.jsonl", "report", ("report.*",)),
  ("students/*/evaluation.json", "report", ("report.*",)),
  ("students/*/evaluation.arrow", "analyze", ("analysis",)),
  ("students/*/hf/*", "generate", ()),
  ("analysis/*.json", "report", ("report.*",)),
)
# Of a run that is given what it scores with, beside its finished scores.
GIVEN = (
  ("../model/*", "score", ()),
  ("../scores.*", "score", ()),
  ("../text.jsonl", "tokenize", ()),
)
# Of a run that was stopped before it said that it was done.
BEGUN = (
  ("corpus/index-*", "tokenize", ("corpus/manifest.json",)),
  ("scores/*/part-*", "score", ("scores/*/manifest.json",)),
)


def execute(folder: pathlib.Path, *stages: str, **settings) -> str:
  """Runs stages in this process; returns what they printed."""
  config = tiny_config.get_config()
  config.workdir = str(folder / "run")
  config.corpus.source = str(folder / "text.jsonl")
  config.generate.prompts = ("The",)
  config.generate.max_new_tokens = 4
  config.update_from_flattened_dict(settings)
  said = io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    pipeline.run(config, "sweep", stages, force=False, dry_run=False)
  return said.getvalue()


def result(folder: pathlib.Path, stage: str, said: str) -> object:
  """What a stage came to, without what differs from run to run."""
  run = folder / "run"

  def content(*patterns):
    paths = sorted(p for pattern in patterns for p in run.glob(pattern))
    return {str(p.relative_to(run)): p.read_bytes() for p in paths}

  def tables(pattern):
    found = content(pattern).values()
    return [pq.read_table(io.BytesIO(x)).to_pydict() for x in found]

  def fields(*patterns):
    found = [json.loads(x) for x in content(*patterns).values()]
    return [(m["details"].get("loss"), m["weights"], m["files"]) for m in found]

  return {
    "tokenize": lambda: (
      content("corpus/inst*"),
      tables("corpus/index*"),
      json.loads((run / "corpus/manifest.json").read_text())["counts"],
    ),
    "score": lambda: tables("scores/*/part-*"),
    "select": lambda: content("selection/*/rows.npy"),
    "export": lambda: content("students/*/hf/*.safetensors", "*/*/hf/tok*"),
    "evaluate": lambda: fields("students/*/evaluation.json"),
    "analyze": lambda: content("analysis/*.json").keys() and fields(),
    "report": lambda: _shown((run / "report.html").read_text()),
    "generate": lambda: re.sub(r"\[generate\].*", "", said),
  }[stage]()


def _shown(html: str) -> str:
  """A page without seconds, rates and what links to their manifests."""
  return re.sub(r"<t[dh][^>]*>[^<]*</t[dh]>", "", html)


def flip(content: bytes, rng, unused):
  """One bit."""
  found = bytearray(content or b"a")
  found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
  return bytes(found)


def cut(content: bytes, rng, unused):
  """The end is missing."""
  return content[: rng.randrange(len(content) or 1)]


def empty(unused, also_unused, still_unused):
  """Nothing."""
  return b""


def missing(*unused):
  """No file."""


def rubbish(content: bytes, rng, unused):
  """Random bytes of the same size."""
  return rng.randbytes(len(content))


def structure(unused, rng, also_unused):
  """JSON of another kind."""
  kinds = b"{}", b"[]", b"null", b'{"a": 1}', b"[[1], {}]", b"[" * 99999
  return rng.choice(kinds)


def digit(content: bytes, rng, unused):
  """Another digit, where there is one."""
  places = [m.start() for m in re.finditer(rb"[0-9]", content)]
  if not places:
    return flip(content, rng, unused)
  at = rng.choice(places)
  new = str((int(content[at : at + 1]) + 1 + rng.randrange(8)) % 10)
  return content[:at] + new.encode() + content[at + 1 :]


def foreign(unused, also_unused, other: pathlib.Path):
  """That of another run."""
  return other.read_bytes() if other.is_file() else b"another"


def neighbor(content: bytes, rng, other: pathlib.Path):
  """The file beside it, under its name."""
  kin = [p for p in other.parent.glob(f"*{other.suffix}") if p != other]
  return rng.choice(kin).read_bytes() if kin else flip(content, rng, other)


KINDS = (flip, cut, empty, missing, rubbish, structure, digit)
KINDS += (foreign, neighbor, flip, digit, foreign)


def make(folder: pathlib.Path, seed: int, **settings):
  """A finished run of all stages."""
  folder.mkdir()
  helpers.write_corpus(folder / "text.jsonl", 16)
  settings |= {"corpus.seed": seed, "train.seed": seed}
  settings |= {"teacher.train.seed": seed, "reference.train.seed": seed}
  execute(folder, **settings)


def give(folder: pathlib.Path, source: pathlib.Path):
  """A run whose teacher is a folder, and whose reference a file of scores."""
  shutil.copytree(source, folder)
  shutil.copytree(folder / "run/teacher/hf", folder / "model")
  parts = sorted((folder / "run/scores/reference").glob("part-*"))
  pq.write_table(
    pq.read_table(parts).replace_schema_metadata({}), folder / "scores.parquet"
  )
  corpus = json.loads((folder / "run/corpus/manifest.json").read_text())
  said = {"corpus": corpus["fingerprint"], "model": "other", "nll": "sum"}
  (folder / "scores.parquet.json").write_text(json.dumps(said))
  shutil.rmtree(folder / "run/scores")
  execute(folder, "score", **settings_of(folder))


def settings_of(folder: pathlib.Path) -> dict[str, str]:
  """What `give` gives."""
  return {
    "teacher.path": str(folder / "model"),
    "reference.scores": str(folder / "scores.parquet"),
  }


class Sweep:
  """Damages files of runs in copies, and counts what comes of it."""

  def __init__(self, folder: pathlib.Path, rng: random.Random):
    self._folder, self._rng = folder, rng
    self.counts = collections.Counter()
    self.bad: list[str] = []
    self._good = {}

  def once(self, run: str, case, damage: Callable):
    """One file of a case."""
    pattern, stage, gone = case
    base, other = self._folder / run, self._folder / "other"
    paths = [p for p in sorted((base / "run").glob(pattern)) if p.is_file()]
    path = self._rng.choice(paths).resolve().relative_to(base.resolve())
    good = self._expected(run, case)
    content = damage((base / path).read_bytes(), self._rng, other / path)
    if content == (base / path).read_bytes():
      return
    with self._copy(base, gone) as copy:
      if content is None:
        (copy / path).unlink(missing_ok=True)
      else:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(content)
      outcome, line = self._outcome(run, copy, stage, path, good)
    self.counts[outcome] += 1
    if outcome not in ("refused", "harmless"):
      self.bad.append(f"{outcome}: {path}, {damage.__name__}, {stage}: {line}")

  def _outcome(self, run, copy, stage, path, good) -> tuple[str, str]:
    try:
      said = self._run(run, copy, stage)
    except BaseException as e:
      shown = distributed.explained(e)
      if shown is None or isinstance(shown, signals.Stopped):
        return "traceback", "".join(traceback.format_exception(e)[-3:])
      line = errors.one_line(shown)
      # A checkpoint is a folder of many files.
      folders = [str(p) for p in path.parents if len(p.parts) > 3]
      names = (path.name, path.parent.name, *folders)
      if "\n" not in line and any(name in line for name in names):
        return "refused", line
      return "unnamed", line
    is_same = result(copy, stage, said) == good
    return ("harmless" if is_same else "silent"), said[-300:]

  def _run(self, run, copy, stage) -> str:
    settings = settings_of(copy) if run == "given" else {}
    return execute(copy, stage, **settings)

  def _expected(self, run, case):
    if (run, case) not in self._good:
      with self._copy(self._folder / run, case[2]) as copy:
        said = self._run(run, copy, case[1])
        self._good[run, case] = result(copy, case[1], said)
    return self._good[run, case]

  @contextlib.contextmanager
  def _copy(self, base: pathlib.Path, gone):
    copy = self._folder / "copy"
    shutil.copytree(base, copy)
    try:
      for pattern in gone:
        for path in (copy / "run").glob(pattern):
          if path.name == "manifest.json":  # as a run that was stopped
            path.rename(path.with_name("manifest.partial.json"))
          else:
            shutil.rmtree(path) if path.is_dir() else os.unlink(path)
      yield copy
    finally:
      shutil.rmtree(copy)


def main() -> int:
  """Sweeps; prints figures and what was not right."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--count", type=int, default=250)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  rng = random.Random(given.seed)
  with tempfile.TemporaryDirectory(prefix="miniplm_jax_damage_") as name:
    folder = pathlib.Path(name)
    make(folder / "one", 10)
    make(folder / "other", 11)
    give(folder / "given", folder / "one")
    cases = [("one", case) for case in READERS + BEGUN]
    cases += [("given", case) for case in GIVEN]
    sweep, start, tries = Sweep(folder, rng), time.monotonic(), 0
    while sum(sweep.counts.values()) < given.count:
      run, case = cases[tries % len(cases)]
      sweep.once(run, case, KINDS[(tries // len(cases) + tries) % len(KINDS)])
      tries += 1
    seconds = time.monotonic() - start
  for line in sweep.bad:
    print(line)
  print(
    f"{sum(sweep.counts.values())} files, {seconds:.0f} s, seed {given.seed}"
  )
  for outcome in ("refused", "harmless", "unnamed", "silent", "traceback"):
    print(f"{outcome:10} {sweep.counts[outcome]}")
  return int(sweep.counts["silent"] + sweep.counts["traceback"] > 0)


if __name__ == "__main__":
  sys.exit(main())
