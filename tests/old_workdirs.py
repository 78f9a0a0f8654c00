r"""Workdirs that an older release made, opened by this one.

  python tests/old_workdirs.py CHECKOUT [--folder=DIR]

CHECKOUT is a working copy of the older release. Its code makes, with its own
tests/tiny_config.py, a run of all stages, and one that was killed in each of
some stages. This code then opens copies of them: what is finished is skipped,
what was begun goes on to the same rows and scores or is refused with what to
do, and no file changes that the command does not make. Exits 1 otherwise.
About six minutes on two cores; with --folder what was made is kept there and
not made again, and two minutes do.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import helpers
import numpy as np
import pyarrow.parquet as pq

from miniplm_jax.core import distributed, errors

# Of the finished run: one student of each kind of objective and of extra steps.
METHODS = ("pretrain", "proxy", "seqkd", "sparse_kd", "token_selection")
PARTS = (  # several of each kind, so that a kill leaves some
  "--config.corpus.part_bytes=8192",
  "--config.score.rows_per_part=16",
)
EVERY = (
  *PARTS,
  f"--config.baselines={METHODS!r}",
  "--config.materialize.format=array_record",
)
# A student with a tokenizer of its own, in the same workdir.
OWN = (
  *PARTS,
  "--config.student.name=own",
  "--config.student.eos_token=</s>",
  "--config.select.name=miniplm",
)
# Where a run is killed: its stage, what of the finished run is taken away
# before, and of what two appear while the stage works.
KILLS = {
  "tokenize": (".", "corpus/index-*.parquet"),
  "score": ("scores", "scores/*/part-*.parquet"),
  "train": ("students/miniplm", "students/miniplm/checkpoints/[1-9]*[048]"),
  "seqkd": ("students/seqkd", "students/seqkd/generated/index-*.parquet"),
}


def asked(stage: str) -> tuple[str, ...]:
  """The arguments of the run that is killed in a stage."""
  if stage == "train":  # of one student, long enough to be killed in
    return *PARTS, helpers.LONG, "--stages=train"
  return *EVERY, f"--stages={stage}"


def own(folder: pathlib.Path) -> tuple[str, ...]:
  """The arguments of the student with a tokenizer of its own."""
  return (*OWN, f"--config.student.tokenizer={folder / 'tokens'}")


class Release:
  """The older code, in processes of its own."""

  def __init__(self, checkout: pathlib.Path):
    self._checkout = checkout
    sections = (checkout / "miniplm_jax" / "config").glob("*.py")
    is_new = any('"analyze"' in path.read_text() for path in sections)
    self.analyze = "analyze" if is_new else "analyse"  # before 2026-11-28

  def start(self, folder: pathlib.Path, *arguments: str) -> subprocess.Popen:
    """Starts its command line; both streams go to `folder`/log."""
    config = self._checkout / "tests" / "tiny_config.py"
    with (folder / "log").open("a") as log:
      return subprocess.Popen(
        helpers.command(folder, *arguments, config=config),
        cwd=self._checkout,
        env=helpers.environment() | {"PYTHONPATH": str(self._checkout)},
        stdout=log,
        stderr=subprocess.STDOUT,
      )

  def run(self, folder: pathlib.Path, *arguments: str):
    """Runs it to its end."""
    status = self.start(folder, *arguments).wait(helpers.LIMIT)
    assert status == 0, (folder / "log").read_text()

  def run_and_kill(self, folder: pathlib.Path, appears: str, *arguments: str):
    """Kills it once two of `appears` are in the workdir.

    Raises:
      AssertionError: it ended before.
    """
    process = self.start(folder, *arguments)
    while len(list((folder / "run").glob(appears))) < 2:
      assert process.poll() is None, (folder / "log").read_text()
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"{appears}: it had ended"


def write_tokenizer(folder: pathlib.Path):
  """A tokenizer that is not the corpus's."""
  import tokenizers

  engine = tokenizers.ByteLevelBPETokenizer()
  text = (helpers.ROOT / "README.md").read_text()
  engine.train_from_iterator(text.splitlines(), 400, special_tokens=["</s>"])
  folder.mkdir()
  engine.save(str(folder / "tokenizer.json"))


def make(release: Release, folder: pathlib.Path):
  """Makes what is not in `folder` yet: whole, and killed-in-STAGE."""
  with _whole(folder / "whole") as whole:
    if whole:
      helpers.write_corpus(whole / "text.jsonl")
      write_tokenizer(whole / "tokens")
      release.run(whole, *EVERY)
      release.run(whole, *own(whole), "--stages=convert,train,evaluate,export")
      release.run(whole, *EVERY, f"--stages={release.analyze},report")
  for stage, (removed, appears) in KILLS.items():
    with _whole(folder / f"killed-in-{stage}") as killed:
      if killed:
        shutil.copytree(folder / "whole", killed, dirs_exist_ok=True)
        shutil.rmtree(killed / "run" / removed)
        release.run_and_kill(killed, appears, *asked(stage))


@contextlib.contextmanager
def _whole(folder: pathlib.Path):
  """A folder that is being made; None if it was made before."""
  if folder.exists():
    yield None
    return
  beside = folder.with_name(f"{folder.name}.partial")
  shutil.rmtree(beside, ignore_errors=True)
  beside.mkdir(parents=True)
  yield beside
  beside.rename(folder)


@dataclasses.dataclass(frozen=True)
class Check:
  """A command of this release on a copy of what the older one made."""

  name: str
  made: str  # whole, or killed-in-STAGE
  arguments: tuple[str, ...]
  # Patterns of the files that may change or go, and of those that may be new,
  # as paths below the workdir.
  changed: str = ""
  new: str = ""
  # A pattern of how it may be refused, or must be; "" is not at all.
  refusal: str = ""
  must_refuse: bool = False
  said: str = ""  # a pattern of what each line about a step says


# The text is a copy: it is read once more, and that is noted. The config is
# that of the last run that made something.
_NOTED = r"corpus/source_seen\.json|config\.json"
_OF_STEP = r"\s+\w+ +(done|would .*)|\[\w+\] (skipped|done in|resuming).*"
_VIEWS = r"report\.(html|json)|analysis/.*"
_OTHERWISE = "there and .* here.*put the setting back.*--force"
# Equal FLOPs give its schedule other warmup steps than at 6232891.
_WARMUP = f"warmup_steps is 2 {_OTHERWISE}"
_BEGUN = (
  f"{_OTHERWISE}|(finish it|score) with (that version|what began).*"
  "(--force|score again)"
)


def checks(folder: pathlib.Path) -> list[Check]:
  """All checks of what lies in `folder`."""
  one = (*PARTS, "--config.baselines=('pretrain','proxy','seqkd','sparse_kd')")
  one += ("--config.materialize.format=array_record",)
  stages = "select,train,evaluate,export"
  found = [
    Check(
      "dry run",
      "whole",
      (*one, "--dry_run"),
      said=r"^\s+(analyze|report) |done",
    ),
    Check("again", "whole", one, _VIEWS, said="skipped|(analyze|report)"),
    Check("all methods", "whole", EVERY, _VIEWS, refusal=_WARMUP),
    Check(
      "own tokenizer",
      "whole",
      (*own(folder / "whole"), "--stages=convert,train,evaluate,export"),
      said="skipped",
    ),
    Check(
      "another method",
      "whole",
      (*PARTS, "--config.method=difficulty", f"--stages={stages}"),
      new="(selection|students)/difficulty/.*",
    ),
    Check(
      "more steps",
      "whole",
      (*PARTS, "--config.train.steps=12", "--stages=train"),
      refusal=f"train.steps is 8 {_OTHERWISE}",
      must_refuse=True,
    ),
  ]
  for stage in ("report", "analyze"):
    found.append(Check(stage, "whole", (*one, f"--stages={stage}"), _VIEWS))
  for stage in ("evaluate", "export"):
    found.append(
      Check(stage, "whole", (*one, f"--stages={stage}"), said="skipped")
    )
  found.append(Check("verify", "whole", (*one, "--stages=verify")))
  for stage, (removed, _) in KILLS.items():
    made, inside = f"killed-in-{stage}", f"(\\.claims/)?{removed}/.*"
    if removed == ".":
      inside = ".*"
    dry = (*asked(stage), "--dry_run")
    found.append(
      Check(
        f"{stage}, dry run",
        made,
        dry,
        refusal=_BEGUN,
        said="would (resume|be refused)",
      )
    )
    for code in ("False", "True"):
      found.append(
        Check(
          f"{stage}, any code {code}",
          made,
          (*asked(stage), f"--config.run.any_code={code}"),
          inside,
          inside,
          _BEGUN,
        )
      )
  return found


def contents(workdir: pathlib.Path) -> dict[str, str]:
  """The sha256 of each file, by its path below the workdir."""
  paths = [path for path in sorted(workdir.rglob("*")) if path.is_file()]
  digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
  return {
    str(path.relative_to(workdir)): digest
    for path, digest in zip(paths, digests, strict=True)
  }


def flaws(check: Check, folder: pathlib.Path) -> Iterator[str]:
  """Opens a copy of what was made with this release; says what is wrong."""
  with tempfile.TemporaryDirectory(prefix="old_workdirs_") as name:
    copy = pathlib.Path(name) / "copy"
    shutil.copytree(folder / check.made, copy)
    before = contents(copy / "run")
    refusal, lines, is_open = "", [], False
    try:
      lines = helpers.run(copy, *check.arguments).stdout.splitlines()
      is_open = True
    except Exception as e:
      if error := distributed.explained(e):
        refusal = errors.one_line(error)
      else:
        yield f"traceback: {traceback.format_exc()}"
    after = contents(copy / "run")
    what = refusal.replace(str(copy), "") or "done"
    print(f"{check.made}: {check.name}: {what}", flush=True)
    if refusal and not (
      check.refusal and re.search(check.refusal, refusal, re.DOTALL)
    ):
      yield f"refused: {refusal}"
    if check.must_refuse and is_open:
      yield "not refused"
    for line in lines:
      is_of_step = re.fullmatch(_OF_STEP, line)
      if is_of_step and check.said and not re.search(check.said, line):
        yield f"it says: {line}"
    changed = f"{_NOTED}|{check.changed}"
    for path in sorted(before.keys() | after.keys()):
      if path not in before:
        if not re.fullmatch(check.new, path):
          yield f"new: {path}"
      elif after.get(path) != before[path] and not re.fullmatch(changed, path):
        yield f"{'changed' if path in after else 'gone'}: {path}"
    if is_open and "dry" not in check.name:
      yield from _differences(copy / "run", folder / "whole" / "run")


def _differences(workdir: pathlib.Path, whole: pathlib.Path) -> Iterator[str]:
  """Says which rows and scores are others than those of the finished run.

  Programs of two releases may add up in another order: scores of float32 may
  differ by 1e-6 of themselves (2e-7 was seen).
  """
  for path in sorted(whole.rglob("instances-*")):
    ours = workdir / path.relative_to(whole)
    if ours.parent.exists() and ours.read_bytes() != path.read_bytes():
      yield f"other rows: {path.relative_to(whole)}"
  for path in sorted(whole.glob("scores/*/part-*.parquet")):
    ours = workdir / path.relative_to(whole)
    if not ours.parent.exists():  # of a table that was taken away
      continue
    now, before = pq.read_table(ours), pq.read_table(path)
    same = now.schema.equals(before.schema) and all(
      np.allclose(now[name], before[name], rtol=1e-6, atol=0)
      for name in now.column_names
    )
    if not same:
      yield f"other scores: {path.relative_to(whole)}"


def check_all(
  checkout: pathlib.Path, folder: pathlib.Path, only: str = ""
) -> list[str]:
  """Makes what is missing in `folder` and opens it; returns the flaws.

  Args:
    checkout: of the older release.
    folder: where its workdirs lie.
    only: pattern of the checks, as they are printed.
  """
  folder = folder.absolute()
  make(Release(checkout.absolute()), folder)
  found = []
  for check in checks(folder):
    if not re.search(only, f"{check.made}: {check.name}"):
      continue
    for flaw in flaws(check, folder):
      found.append(f"{check.made}: {check.name}: {flaw}")
      print(f"FLAW {found[-1]}", flush=True)
  return found


def main() -> int:
  """Opens all that was asked for; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("checkout", type=pathlib.Path)
  parser.add_argument("--folder", type=pathlib.Path)
  parser.add_argument("--only", default="", help="pattern of checks")
  args = parser.parse_args()
  with contextlib.ExitStack() as stack:
    folder = args.folder or pathlib.Path(
      stack.enter_context(tempfile.TemporaryDirectory(prefix="old_workdirs_"))
    )
    found = check_all(args.checkout, folder, args.only)
  print(f"{len(found)} flaws")
  return int(bool(found))


if __name__ == "__main__":
  sys.exit(main())
