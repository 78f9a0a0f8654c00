"""gs:// against a storage emulator, in real processes.

TensorFlow has Google's address built in and cannot take part; nothing here
reads gs:// through it.
"""

import json
import re
import signal
import subprocess
import sys

import gs_emulator
import numpy as np
import pytest
from etils import epath
from helpers import command, environment, run, write_corpus

from miniplm_jax.core import gs

_WORKDIR = f"gs://{gs_emulator.BUCKET}/run"
_SETTINGS = ("--config.run.eval_every=8",)
_STAGES = "tokenize,teacher,reference,score,select,train,evaluate,export"


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
  """The emulator's gate; this process and its children are pointed at it."""
  with (
    gs_emulator.running() as (port, found),
    pytest.MonkeyPatch.context() as patch,
  ):
    cache = tmp_path_factory.mktemp("cache")
    patch.setenv("MINIPLM_CACHE", str(cache))
    for name, value in gs_emulator.environment(port).items():
      patch.setenv(name, value)
    yield found


def start(*arguments: str, folder=epath.Path(_WORKDIR).parent):
  """Starts a run in the bucket, on the texts in it."""
  source = epath.Path(_WORKDIR).parent / "text"
  return subprocess.Popen(
    command(folder, *_SETTINGS, *arguments, source=source),
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def objects() -> dict[str, str]:
  """What lies in the bucket: the generation of each object."""
  found = gs.file_system().find(_WORKDIR, detail=True)
  return {name: facts["generation"] for name, facts in found.items()}


def content(name: str) -> bytes:
  """An object of the workdir."""
  return gs.file_system().cat_file(f"{_WORKDIR}/{name}")


@pytest.fixture(scope="module")
def killed(gate, tmp_path_factory):
  """A run that was killed amid checkpoint 8, and an equal one on a disk."""
  local = tmp_path_factory.mktemp("local")
  write_corpus(local / "text.jsonl", 16)
  # A folder's files are sought in those below it too.
  name = f"{epath.Path(_WORKDIR).parent}/text/a/text.jsonl"
  gs.file_system().put_file(str(local / "text.jsonl"), name)
  process = start()

  def kill(method, target):
    if re.search("students%2Fminiplm%2Fcheckpoints%2F8%2F.*process_0%2Fd", target):
      process.kill()

  gate.before = kill
  run(local, *_SETTINGS, f"--stages={_STAGES}")
  said = process.communicate(timeout=300)
  gate.before = lambda *unused: None
  assert process.returncode == -signal.SIGKILL, said
  return local


def test_a_killed_run_goes_on_and_ends_as_on_a_disk(killed, gate):
  half = [n for n in objects() if "miniplm/checkpoints/8/" in n]
  assert half and not any(n.endswith("8/commit_success.txt") for n in half)
  process = start()
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, out + err
  assert "[miniplm] restored checkpoint 4" in out
  for name in (
    "selection/miniplm/rows.npy",
    "students/miniplm/hf/model.safetensors",
    "students/miniplm/hf/tokenizer.json",
  ):
    assert content(name) == (killed / "run" / name).read_bytes(), name
  assert b"<html" in content("report.html")
  before = objects()
  assert not [n for n in before if "partial" in n]
  process = start()
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, out + err
  assert out.count("skipped") == out.count("[") and objects() == before
