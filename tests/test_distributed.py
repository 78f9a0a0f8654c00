"""The pipeline as one program of several processes, against one process.

The devices of a process stand as those of a host on a real slice.
"""

import json
import shutil
import signal
import time

import helpers
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from helpers import rows, run_as_process, write_corpus
from test_lm_eval import data  # noqa: F401  (a fixture)

from miniplm_jax.core import distributed
from miniplm_jax.training import metrics, watch

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
  """The pipeline up to the student in one process of eight devices."""
  folder = tmp_path_factory.mktemp("alone")
  write_corpus(folder / "text.jsonl", 20)
  stages = "--stages=tokenize,teacher,reference,score,select,train"
  run_as_process(folder, stages, *ARGUMENTS, devices=8)
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


# (slice, processes, its mesh if it is another): one host in two shards each,
# two hosts in turn; four hosts of a larger slice.
SLICES = (
  pytest.param("v4:2x2x2", 2, (), marks=pytest.mark.long),
  pytest.param(
    *("v5e:4x4", 4, ("--config.run.data=4", "--config.run.tensor=2")),
    marks=pytest.mark.long,
  ),
)


@pytest.mark.parametrize(("name", "processes", "mesh"), SLICES)
def test_several_processes_make_what_one_makes(
  alone, tmp_path, name, processes, mesh
):
  write_corpus(tmp_path / "text.jsonl", 20)
  arguments = STAGES, *ARGUMENTS, *mesh
  said = helpers.ended(
    helpers.together(
      tmp_path, *arguments, processes=processes, slice_name=name
    ),
    code=0,
  )
  same(tmp_path, alone)
  for stage in STAGES.split("=")[1].split(","):
    assert f"[{stage}] done" in said[0], stage
  assert "done in" not in said[1]
  assert (tmp_path / "run/report.html").exists()


# 0 is the process that the others are connected to.
@pytest.mark.long
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
  assert other.poll() is None
  killed.kill()
  since = time.monotonic()
  said, _ = other.communicate(timeout=helpers.LIMIT)
  assert time.monotonic() - since < LOST_AFTER + 30
  assert other.returncode not in (0, None)
  # Whichever is first: the lost connection, the missing signs of life, or gloo,
  # which aborts a process when one of its devices is a collective behind
  # another (1 of some 40 runs): nothing of Python can catch that.
  assert any(
    words in said
    for words in ("lost another process", "another task died", "gloo::Enforce")
  ), said
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


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.long)])
def test_out_of_memory_is_told_as_that_by_all(
  alone, tmp_path, monkeypatch, which
):
  shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "run" / "scores")
  monkeypatch.setenv("FAILS", str(which))
  said = helpers.ended(
    helpers.together(tmp_path, "--stages=score", *ARGUMENTS), code=1
  )
  own, other = said[which], said[1 - which]
  assert "error: out of memory on a device (RESOURCE_EXHAUSTED" in own
  assert f"process {which} of 2" in own and "config.score.batch_tokens" in own
  assert f"error: process {which} failed: error: out of memory" in other
  assert "lost another process" not in own + other


def test_processes_that_were_started_otherwise_are_refused(tmp_path):
  write_corpus(tmp_path / "text.jsonl", 5)
  said = helpers.ended(
    helpers.together(
      tmp_path,
      "--stages=tokenize",
      *ARGUMENTS,
      own=([], ["--config.train.learning_rate=0.5"]),
    ),
    code=1,
  )
  words = "not started like the first: config.train.learning_rate is 0.01 there"
  assert all(words in text for text in said), said
  assert not (tmp_path / "run").exists()
  line = helpers.refused(tmp_path, "--config.run.coordinator=127.0.0.1")
  assert "give HOST:PORT of the first process" in line


@pytest.mark.parametrize(
  ("count", "said", "told"),
  [
    (1, "RESOURCE_EXHAUSTED: 3 GiB", "error: out of memory on a device"),
    (4, "INTERNAL: Out of memory while trying", "process 2 of 4"),
    (4, "UNAVAILABLE: connection to peer", "error: lost another process"),
    (1, "UNAVAILABLE: connection to peer", None),
    (4, "INVALID_ARGUMENT: shapes differ", None),
  ],
)
def test_what_an_error_of_jax_means(monkeypatch, count, said, told):
  monkeypatch.setattr(distributed, "_count", count)
  monkeypatch.setattr(distributed, "_index", 2)
  found = distributed.explained(jax.errors.JaxRuntimeError(said))
  assert (found and told in f"error: {found}") if told else found is None


def test_each_process_writes_its_own_stacks(monkeypatch, tmp_path):
  for index in (0, 3):
    monkeypatch.setattr(distributed, "_index", index)
    dog = watch.Watchdog("x", epath.Path(tmp_path), 1)
    dog.beat(7)
    dog._dump()
  found = sorted(path.name for path in tmp_path.iterdir())
  assert found == ["stacks-7.3.txt", "stacks-7.txt"]


# What the teacher and the proxy make for other methods, then what looks at a
# model: each in one process and in several.
ROWS = (
  "--stages=proxy,select,seqkd,logits",
  "--config.baselines=('proxy','seqkd','sparse_kd')",
)
LOOKS = (
  "--stages=evaluate,export,generate",
  "--config.evaluation.tasks=('arc_easy','lambada_openai')",
  "--config.evaluation.offline=True",
  "--prompt=The value",
  "--prompt=If",
  "--config.generate.max_new_tokens=8",
)


def made_for_methods(folder):
  """The files of stages proxy, seqkd and logits, by name."""
  run_ = folder / "run"
  return {
    str(path.relative_to(run_)): path.read_bytes()
    for pattern in (
      "selection/*/rows.npy",
      "students/seqkd/generated/instances-*",
      "students/seqkd/generated/index-*",
      "selection/*/logits/teacher-*/part-*",
    )
    for path in run_.glob(pattern)
  }


def predicted(folder):
  """The proxy's table, of weights that are sums over devices: not bits."""
  parts = sorted((folder / "run/scores/proxy").glob("part-*"))
  table = pa.concat_tables(map(pq.read_table, parts))
  return [table[name].to_numpy() for name in ("row_id", "diff_sum", "n_tokens")]


def tasks(folder):
  """What lm_eval says of every model and task."""
  found = {
    str(path.relative_to(folder)): json.loads(path.read_text())
    for path in (folder / "run").rglob("tasks/*.json")
  }
  assert len(found) == 2
  return {
    name: body["details"]["lm_eval"]["results"] for name, body in found.items()
  }


@pytest.fixture(scope="module")
def more(alone, data, tmp_path_factory):  # noqa: F811
  """`alone` with all of that, and what stage generate has said."""
  folder = tmp_path_factory.mktemp("more")
  shutil.copytree(alone, folder, dirs_exist_ok=True)
  run_as_process(folder, *ROWS, *ARGUMENTS, devices=8)
  where = f"--config.evaluation.task_data={data}"
  done = run_as_process(folder, *LOOKS, where, *ARGUMENTS, devices=8)
  return folder, where, done.stdout


@pytest.mark.long
def test_every_stage_runs_in_several_processes(alone, more, tmp_path):
  wanted, where, told = more
  shutil.copytree(alone, tmp_path, dirs_exist_ok=True)

  def together(*arguments):
    return helpers.together(
      tmp_path, *arguments, *ARGUMENTS, slice_name="v4:2x2x2"
    )

  # Killed once in stage seqkd, once in logits; the same command goes on.
  run_ = tmp_path / "run"
  for pattern in (
    "students/seqkd/generated/index-*",
    "selection/*/logits/teacher-*/part-*",
  ):
    processes = together(*ROWS)
    deadline = time.monotonic() + 200
    while not list(run_.glob(pattern)):
      assert time.monotonic() < deadline, [p.poll() for p in processes]
      time.sleep(0.01)
    processes[1].kill()
    helpers.ended(processes, code=None)
    assert len(made_for_methods(tmp_path)) < len(made_for_methods(wanted))
  helpers.ended(together(*ROWS), code=0)
  found, exact = made_for_methods(tmp_path), made_for_methods(wanted)
  assert found == exact and len({name.split("/")[0] for name in found}) == 2
  for values, close in zip(predicted(tmp_path), predicted(wanted)):
    np.testing.assert_allclose(values, close, rtol=1e-6, atol=1e-6)

  said = helpers.ended(together(*LOOKS, where), code=0)
  assert tasks(tmp_path) == tasks(wanted)
  written = told[told.index("--- prompt 1") :].partition("[generate]")[0]
  assert written in said[0] and "--- prompt" not in said[1]
