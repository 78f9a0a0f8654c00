"""Part resume: the program killed and resumed, beside one that was not.

The command line itself, on texts that every Python has: tokenize and select
once, then the same training in a copy each, in one go, and with kill -9 after
a checkpoint. On GPU both again with deterministic operations, and what those
cost: the seconds of a step of the runs that went in one go, which run side by
side.
"""

import pathlib
import shutil
import signal
import statistics
import subprocess
import time
from typing import Any

from benchmarks.accelerator import program
from benchmarks.accelerator.results import Store
from benchmarks.accelerator.settings import Settings

_STAGES = ("--config.method=pretrain", "--config.baselines=()")
_ROWS, _LENGTH = 8, 128  # of a step
_COMPARED = ("train/loss", "train/grad_norm")
_MODES = {"as it is": (), "deterministic": ("--config.run.deterministic=True",)}


def run(settings: Settings, store: Store):
  """Runs all modes side by side."""
  modes = [
    mode
    for mode, flag in _MODES.items()
    if (not flag or store.facts["platform"] == "gpu")
    and not store.is_done(mode)
  ]
  if not modes:
    return
  try:
    found = _all(settings, modes, store.facts["platform"])
  except Exception as e:
    found = dict.fromkeys(modes, e)
  for mode in modes:
    if isinstance(found[mode], Exception):
      store.fail(mode, f"{type(found[mode]).__name__}: {found[mode]}")
    else:
      store.put(mode, found[mode])
      settings.say(f"{mode}: {found[mode]}")


def _all(settings: Settings, modes: list[str], platform: str) -> dict[str, Any]:
  steps, every = settings.plan.resume
  given = [
    *_STAGES,
    f"--config.corpus.max_length={_LENGTH}",
    f"--config.train.batch_size={_ROWS}",
    f"--config.train.steps={steps}",
    f"--config.train.warmup_steps={steps // 10}",
    f"--config.run.checkpoint_every={every}",
    "--config.run.eval_every=0",
    # The model is the demo's; what it computes in is that of large ones.
    f"--config.train.dtype={'float32' if platform == 'cpu' else 'bfloat16'}",
  ]
  scratch = pathlib.Path(settings.scratch, "resume")
  shutil.rmtree(scratch, ignore_errors=True)
  scratch.mkdir()
  source = program.texts(scratch / "text.jsonl")
  base, log = scratch / "base", pathlib.Path(settings.out, "resume.log")
  stages = "--stages=tokenize,select"
  _finish(program.start(base, source, log, stages, *given), settings)
  settings.say("tokenized")

  def begin(mode: str, kind: str):
    folder = scratch / f"{mode}-{kind}".replace(" ", "-")
    if not folder.exists():
      shutil.copytree(base, folder)
    process = program.start(
      folder, source, log, "--stages=train", *given, *_MODES[mode]
    )
    return folder, process

  whole, killed, found = {}, {}, {}
  for mode in modes:
    whole[mode] = begin(mode, "whole")
    if platform == "tpu":  # which one process has at a time
      _finish(whole[mode][1], settings)
    killed[mode] = begin(mode, "killed")
  for mode in modes:
    try:
      found[mode] = _kill(*killed[mode], settings)
      killed[mode] = begin(mode, "killed")
    except RuntimeError as e:
      found[mode] = e
  for mode in modes:
    if isinstance(found[mode], Exception):
      continue
    try:
      for _, process in (whole[mode], killed[mode]):
        _finish(process, settings)
      both = (program.metrics(side[mode][0]) for side in (whole, killed))
      found[mode] = found[mode] | _compare(*both, steps)
    except RuntimeError as e:
      found[mode] = e
  return found


def _finish(process: subprocess.Popen, settings: Settings):
  """Waits for its end.

  Raises:
    RuntimeError: it failed, or the time is up.
  """
  try:
    code = process.wait(max(settings.left - 2, 0.1))
  except subprocess.TimeoutExpired as e:
    process.kill()
    raise RuntimeError("the time was up") from e
  if code:
    raise RuntimeError(f"exit status {code}, see resume.log")


def _kill(folder, process, settings: Settings) -> dict[str, int]:
  """Kills it once there is a checkpoint; says after which.

  Raises:
    RuntimeError: it ended before, or the time is up.
  """
  while not (saved := _checkpoints(folder)):
    if process.poll() is not None:
      raise RuntimeError(f"it ended before, exit status {process.returncode}")
    if settings.left < 2:
      raise RuntimeError("there was no checkpoint in time")
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  if process.wait() != -signal.SIGKILL:
    raise RuntimeError("it ended before it was killed: make it longer")
  return {"killed_after": max(saved)}


def _checkpoints(folder: pathlib.Path) -> list[int]:
  """Steps of those that are whole: others have a longer name."""
  found = folder.glob("students/pretrain/checkpoints/*")
  return [int(path.name) for path in found if path.name.isdigit()]


def _compare(whole, resumed, steps: int) -> dict[str, Any]:
  """Of every step.

  Raises:
    RuntimeError: steps are missing.
  """
  if [line["step"] for line in whole] != list(range(1, steps + 1)) or (
    len(resumed) != len(whole)
  ):
    raise RuntimeError(f"{len(whole)} and {len(resumed)} steps, not {steps}")
  found = {"steps": steps, "equal": True, "last_loss": whole[-1]["train/loss"]}
  rates = [line["train/tokens_per_second"] for line in whole]
  found["step_seconds"] = _ROWS * _LENGTH / statistics.median(rates)
  for name in _COMPARED:
    off = [abs(a[name] - b[name]) for a, b in zip(whole, resumed)]
    found[f"most {name}"] = max(off)
    found["equal"] &= not any(off)
    if first := next((i + 1 for i, x in enumerate(off) if x), None):
      found[f"first {name}"] = first
  return found
