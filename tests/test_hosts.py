"""The pipeline as one program of two processes, against one process."""

import shutil
import signal
import time

import helpers
import numpy as np
import pytest
from helpers import rows, run, write_corpus

from miniplm_jax.trainer import metrics

LOST_AFTER = 10  # seconds
STEPS = 16
ARGUMENTS = (
  f"--config.train.steps={STEPS}",
  f"--config.run.lost_after={LOST_AFTER}",
  "--config.score.batch_tokens=4096",
  "--config.evaluate.max_rows=64",
  "--config.materialize.format=megatron",
  "--config.run.data=4",
  "--config.run.fsdp=2",
)
STAGES = (
  "--stages=tokenize,teacher,reference,score,select,materialize,train,evaluate,"
  "export,report"
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The pipeline in one process of eight devices."""
  folder = tmp_path_factory.mktemp("alone")
  write_corpus(folder / "text.jsonl", 20)
  run(folder, STAGES, *ARGUMENTS, devices=8)
  return folder


def same(folder, alone):
  assert rows(folder) == rows(alone)
  student = "run/students/miniplm"
  found, wanted = (
    metrics.read(f / student / "metrics") for f in (folder, alone)
  )
  assert len(found) == len(wanted) >= STEPS
  for key in ("train/loss", "train/grad_norm", "eval/loss"):
    curves = (metrics.curve(lines, key) for lines in (found, wanted))
    (steps, here), (wanted_steps, there) = curves
    assert steps == wanted_steps
    np.testing.assert_allclose(here, there, rtol=1e-6, atol=1e-6)


def test_two_processes_make_what_one_makes(alone, tmp_path):
  write_corpus(tmp_path / "text.jsonl", 20)
  said = helpers.ended(helpers.together(tmp_path, STAGES, *ARGUMENTS), code=0)
  same(tmp_path, alone)
  for stage in STAGES.split("=")[1].split(","):
    assert f"[{stage}] done" in said[0], stage
  assert "done in" not in said[1]
  assert (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize("lost", [0, 1])
def test_the_others_end_when_one_is_killed_and_go_on_later(
  alone, tmp_path, lost
):
  shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
  student = tmp_path / "run/students/miniplm"
  shutil.rmtree(student)
  processes = helpers.together(tmp_path, "--stages=train", *ARGUMENTS)
  deadline = time.monotonic() + 200
  while not (student / "checkpoints" / "4").exists():
    assert time.monotonic() < deadline, [p.poll() for p in processes]
    time.sleep(0.1)
  killed, other = processes[lost], processes[1 - lost]
  killed.kill()
  since = time.monotonic()
  said, _ = other.communicate(timeout=100)
  assert time.monotonic() - since < LOST_AFTER + 30
  assert other.returncode not in (0, None)
  # Whichever is first: the lost connection, or the missing signs of life.
  assert "lost another process" in said or "another task died" in said, said
  killed.communicate(timeout=10)
  said = helpers.ended(
    helpers.together(tmp_path, "--stages=train", *ARGUMENTS), code=0
  )
  assert "restored checkpoint" in said[0]
  same(tmp_path, alone)


def test_an_error_of_the_first_ends_all_with_its_line(tmp_path):
  said = helpers.ended(
    helpers.together(tmp_path, "--stages=tokenize", *ARGUMENTS), code=1
  )
  for text in said:
    assert "no file of documents is there" in text, said


def test_a_signal_to_one_stops_all_at_the_same_step(alone, tmp_path):
  shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
  student = tmp_path / "run/students/miniplm"
  shutil.rmtree(student)
  processes = helpers.together(
    tmp_path, "--stages=train", *ARGUMENTS, "--config.train.steps=500"
  )
  deadline = time.monotonic() + 200
  while not (student / "checkpoints" / "4").exists():
    assert time.monotonic() < deadline, [p.poll() for p in processes]
    time.sleep(0.1)
  processes[1].send_signal(signal.SIGTERM)
  said = helpers.ended(processes, code=143)
  assert "stopped by a signal, saved checkpoint" in said[0]


@pytest.mark.parametrize("stage", ["plan", "seqkd"])
def test_what_takes_one_process_is_refused(tmp_path, stage):
  line = helpers.refused(
    tmp_path,
    f"--stages={stage}",
    "--config.method=seqkd",
    "--config.run.coordinator=127.0.0.1:1",
  )
  assert f"stage {stage} runs in one process" in line
