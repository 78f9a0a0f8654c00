"""The command line, in real processes, on real text."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_config
from etils import epath
from helpers import (
  LONG,
  OF_THE_CLOCK,
  STEPS,
  command,
  edited,
  environment,
  refused,
  rows,
  run,
  typed,
  weights,
  write_corpus,
)

from miniplm_jax import pipeline
from miniplm_jax.core import files


def kill(folder, appears: str, number: int, *arguments) -> int:
  """Starts a run, signals it once a file appears; returns the exit code."""
  process = subprocess.Popen(
    command(folder, *arguments),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    env=environment(),
  )
  deadline = time.monotonic() + 120
  while not list((folder / "run").glob(appears)):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.002)
  process.send_signal(number)
  return process.wait(60)


def test_the_workdir_is_that_of_the_contract(finished):
  for pattern in (
    "corpus/instances-*-of-*.array_record",
    "corpus/manifest.json",
    "reference/checkpoints/*",
    "reference/hf/model.safetensors",
    "reference/metrics/*",
    "scores/teacher/part-*.parquet",
    "scores/reference/manifest.json",
    "selection/miniplm/rows.npy",
    "selection/miniplm/report.html",
    "selection/miniplm/card.md",
    "students/pretrain/checkpoints/*",
    "students/miniplm/hf/tokenizer.json",
    "students/miniplm/metrics/events*",
    "students/miniplm/evaluation.json",
    "report.html",
  ):
    assert list((finished / "run").glob(pattern)), pattern
  assert not list((finished / "run").rglob("*.partial.json"))
  # The folder of claims stays, empty: others may be about to write there.
  hidden = [p for p in (finished / "run").rglob(".*") if p.name != ".claims"]
  claims = (finished / "run" / ".claims").rglob("*")
  assert not [*hidden, *(p for p in claims if p.is_file())]
  for path in (finished / "run").rglob("manifest.json"):
    manifest = json.loads(path.read_text())
    for field in (
      "schema_version",
      "settings",
      "inputs",
      "tokenizer",
      "weights",
      "counts",
      "code_version",
    ):
      assert field in manifest, (path, field)


def test_the_log_line_that_people_scrape(finished):
  line = next(
    line
    for line in (finished / "stdout").read_text().splitlines()
    if f"[miniplm] completed step: {STEPS}," in line
  )
  for field in (
    "seconds: ",
    "TFLOP/s/device: ",
    "Tokens/s/device: ",
    "total_weights: ",
    "loss: ",
  ):
    assert field in line


def test_selection_is_the_top_half_in_corpus_order(finished):
  scores = {}
  for model in ("teacher", "reference"):
    parts = sorted((finished / "run/scores" / model).glob("*.parquet"))
    table = pq.read_table(parts)
    scores[model] = {k: table[k].to_numpy() for k in table.column_names}
  ids = scores["teacher"]["row_id"]
  score = (
    scores["reference"]["nll_sum"] / scores["reference"]["n_tokens"]
    - scores["teacher"]["nll_sum"] / scores["teacher"]["n_tokens"]
  )
  order = np.lexsort((ids, -score))
  wanted = np.sort(ids[order[: len(ids) // 2]])
  found = np.load(finished / "run/selection/miniplm/rows.npy")
  np.testing.assert_array_equal(found, wanted)


def test_every_row_of_d_is_scored_once_and_no_other(finished):
  index = pq.read_table(sorted((finished / "run/corpus").glob("*.parquet")))
  split = index["split"].to_pylist()
  scored = pq.read_table(
    sorted((finished / "run/scores/teacher").glob("*.parquet"))
  )["row_id"].to_numpy()
  wanted = [i for i, name in enumerate(split) if name == "train"]
  np.testing.assert_array_equal(scored, wanted)
  assert set(split) == {"train", "reference", "heldout", "teacher"}


NOTE = "source_seen.json"


def test_a_second_run_does_nothing_and_force_redoes(copy):
  def times():
    files = [p for p in (copy / "run").rglob("*") if p.is_file()]
    # The text is a copy: it is read once, and that is noted.
    return {p: p.stat().st_mtime_ns for p in files if p.name != NOTE}

  before = times()
  done = run(copy, "--config.baselines=('pretrain',)", LONG)
  assert done.stdout.count("skipped") == done.stdout.count("[")
  assert before == times()
  done = run(copy, LONG, "--stages=select", "--force")
  assert "done in" in done.stdout
  # The same bytes again: what stands on it need not be made again.
  assert "skipped" in run(copy, LONG, "--stages=train").stdout


def test_kill_9_in_score_changes_nothing(copy, finished):
  shutil.rmtree(copy / "run" / "scores")
  shutil.rmtree(copy / "run" / "selection")
  code = kill(
    copy,
    "scores/teacher/part-00000*",
    signal.SIGKILL,
    LONG,
    "--stages=score,select",
  )
  assert code == -signal.SIGKILL
  assert not (copy / "run/scores/teacher/manifest.json").exists()
  done = run(copy, LONG, "--stages=score,select")
  assert "resuming" in done.stdout
  assert rows(copy) == rows(finished)


def test_kill_9_and_sigterm_in_train_change_nothing(copy, finished):
  shutil.rmtree(copy / "run" / "students")
  stages = "--stages=train,export"
  first = "students/miniplm/checkpoints/4"
  assert kill(copy, first, signal.SIGTERM, LONG, stages) == 143
  saved = sorted((copy / "run/students/miniplm/checkpoints").glob("[0-9]*"))
  assert saved and not (copy / "run/students/miniplm/manifest.json").exists()
  later = max(int(p.name) for p in saved) // 4 * 4 + 4
  second = f"students/miniplm/checkpoints/{later}"
  assert kill(copy, second, signal.SIGKILL, LONG, stages) == -signal.SIGKILL
  assert not (copy / "run/students/miniplm/manifest.json").exists()
  assert "restored checkpoint" in run(copy, LONG, stages).stdout
  assert weights(copy) == weights(finished)
  path = "run/students/miniplm/metrics/metrics.jsonl"
  lines = [
    [json.loads(line) for line in (folder / path).read_text().splitlines()]
    for folder in (copy, finished)
  ]
  for line in (*lines[0], *lines[1]):
    for name in OF_THE_CLOCK:
      line.pop(name, None)
  # The step of the SIGTERM has no evaluation of its own; the rest is equal.
  assert lines[0] == lines[1]


@pytest.mark.parametrize(
  ("method", "model"),
  [("difficulty", "reference"), ("teacher_preference", "teacher")],
)
def test_other_methods_use_the_same_scores(copy, method, model):
  done = run(
    copy,
    f"--config.method={method}",
    "--stages=select,train,evaluate",
    "--config.train.steps=4",
    "--config.train.warmup_steps=1",
  )
  assert re.search(rf"skipped.*/scores/{model}\n", done.stdout)
  assert rows(copy, method) != rows(copy)
  assert (copy / "run/students" / method / "evaluation.json").exists()


@pytest.mark.long
def test_fewer_rows_at_a_time_accumulate_to_the_same_loss(copy, finished):
  shutil.rmtree(copy / "run" / "students")
  run(copy, LONG, "--stages=train", "--config.run.per_device_batch_size=2")
  losses = []
  for folder in (copy, finished):
    path = folder / "run/students/miniplm/metrics/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    losses.append([m["train/loss"] for m in lines if "train/loss" in m])
  # Later steps amplify what rounding makes differ: 5e-4 at step 100.
  np.testing.assert_allclose(losses[0][:40], losses[1][:40], rtol=2e-5)


def test_an_empty_file_among_others_is_an_empty_shard(tmp_path):
  (tmp_path / "texts").mkdir()
  write_corpus(tmp_path / "texts" / "b.jsonl", 8)
  for name in ("a.jsonl", "c.jsonl"):
    (tmp_path / "texts" / name).write_text("")
  run(tmp_path, "--stages=tokenize,reference", source=tmp_path / "texts")
  manifest = json.loads((tmp_path / "run/corpus/manifest.json").read_text())
  first, _, last = manifest["counts"]["rows_by_part"]
  assert first == last == 0


def test_bad_corpora_are_refused_in_one_line(tmp_path):
  (tmp_path / "text.jsonl").write_text('{"text": "a", "meta": {"set": "b"}}\n{')
  error = refused(tmp_path, "--stages=tokenize")
  assert "text.jsonl line 2" in error
  (tmp_path / "text.jsonl").write_text("")
  # A tokenizer that was trained is not thrown away unasked.
  assert "inputs.source" in refused(tmp_path, "--stages=tokenize")
  assert "no document" in refused(tmp_path, "--stages=tokenize", "--force")
  (tmp_path / "text.jsonl").unlink()
  assert "text.jsonl" in refused(tmp_path, "--stages=tokenize")
  left = [p.name for p in (tmp_path / "run").rglob("*") if p.is_file()]
  assert left == ["broken_records.jsonl"]


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("--config.select.ratio=0.0", "select.ratio"),
    ("--config.select.ratio=1.5", "select.ratio"),
    ("--config.nothing=1", "nothing"),
    ("--stages=tokenise", "tokenise"),
    ("--stages=analyse", "it is called analyze now"),
    ("--config.method=magic", "magic"),
    ("--config.workdir=", "workdir"),
    ("--config.train.warmup_steps=99", "warmup_steps"),
    ("--config.select.definition=x", "select.definition"),
    ("--config.select.name=one", "select.name"),
    ("--config.student.name=one", "student.name"),
    ("--config.select.name={x}", "select.name"),
    ("--config.run.remat=some", "run.remat"),
    ("--config.run.checkpoint_every=-1", "run.checkpoint_every"),
    ("--config.train.dtype=int8", "train.dtype"),
    ("--config.run.fsdp=3", "devices"),
  ],
)
def test_bad_settings_are_refused_in_one_line(copy, argument, words):
  shutil.rmtree(copy / "run" / "students")
  both = "--config.baselines=('pretrain',)"
  assert words in refused(copy, both, argument)


def test_a_config_file_with_a_missing_or_unknown_field(tmp_path):
  start = "from miniplm_jax import config as c\ndef get_config():\n"
  for body, words in (
    ("  x = c.default()\n  x.unlock()\n  del x.train.steps\n", "train.steps"),
    ("  x = c.default()\n  x.trian = 1\n", "trian"),
    ("  x = c.default().unlock()\n  del x.run\n  x.run = 1\n", "run is 1"),
    ("  x = c.default().unlock()\n  x.corpus.txt = 1\n", "corpus.txt"),
  ):
    path = tmp_path / "config.py"
    path.write_text(start + body + "  return x\n")
    error = refused(tmp_path, config=path)
    assert words in error, error


def test_files_that_nobody_vouches_for_are_not_touched(tmp_path):
  write_corpus(tmp_path / "text.jsonl", 4)
  mine = tmp_path / "run" / "corpus" / "mine.txt"
  mine.parent.mkdir(parents=True)
  mine.write_text("precious")
  error = refused(tmp_path, "--stages=tokenize")
  assert "mine.txt" in error and mine.read_text() == "precious"


def test_a_mended_setting_is_not_refused(copy):
  """What failed before it made anything does not bind the next try."""
  shutil.rmtree(copy / "run" / "students")
  refused(copy, LONG, "--config.student.model.vocab_size=300", "--stages=train")
  refused(copy, LONG, "--config.teacher.path=./nowhere", "--stages=score")
  run(copy, "--stages=train", "--config.train.steps=4")


def test_scores_of_another_corpus_are_refused(copy):
  run(copy, "--stages=tokenize", "--force", "--config.corpus.seed=11")
  name = "--config.select.name=other"
  error = refused(copy, name, "--config.corpus.seed=11", "--stages=select")
  assert "inputs.corpus" in error and "scores/" in error


def test_parts_of_another_model_are_refused(copy):
  scores = copy / "run" / "scores" / "teacher"
  os.rename(scores / "manifest.json", scores / "manifest.partial.json")
  part = sorted(scores.glob("part-*"))[0]
  table = pq.read_table(part)
  facts = dict(table.schema.metadata)
  made_by = json.loads(facts[b"made_by"]) | {"weights": "another"}
  facts[b"made_by"] = json.dumps(made_by)
  pq.write_table(table.replace_schema_metadata(facts), part)
  assert "weights another" in refused(copy, "--stages=score")


def test_a_lost_checkpoint_is_named_and_made_again(copy, finished):
  """By what the error says, from the one before."""
  student = copy / "run" / "students" / "miniplm"
  shutil.rmtree(student / "checkpoints" / str(STEPS))
  (student / "evaluation.json").unlink()
  error = refused(copy, LONG, "--stages=evaluate")
  assert f"checkpoint {STEPS}" in error and "to manifest.partial.json" in error
  (student / "manifest.json").rename(student / "manifest.partial.json")
  assert "restored checkpoint" in run(copy, LONG, "--stages=train").stdout
  path = "run/students/miniplm/manifest.json"
  made = [json.loads((f / path).read_text()) for f in (copy, finished)]
  assert made[0]["weights"] == made[1]["weights"]


def test_without_held_out_rows_training_still_ends(tmp_path):
  write_corpus(tmp_path / "text.jsonl")
  share = "--config.corpus.heldout_share=0.0"
  error = refused(tmp_path, share)  # train, but nothing to evaluate on
  assert "no held-out rows" in error
  assert (tmp_path / "run/students/miniplm/manifest.json").exists()


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(copy):
  shutil.rmtree(copy / "run" / "students")
  error = refused(
    copy,
    LONG,
    # Every step makes the weights nine times as large.
    "--config.train.learning_rate=1.0",
    "--config.train.weight_decay=10.0",
    "--stages=train",
  )
  assert "not_finite.json" in error and "step" in error
  student = copy / "run" / "students" / "miniplm"
  bad = json.loads((student / "metrics" / "not_finite.json").read_text())
  assert len(bad["row_ids"]) == 8
  saved = [int(p.name) for p in (student / "checkpoints").glob("[0-9]*")]
  assert all(step < bad["step"] for step in saved)


def test_ctrl_c_ends_with_130(copy):
  shutil.rmtree(copy / "run" / "students")
  first = "students/miniplm/checkpoints/4"
  assert kill(copy, first, signal.SIGINT, LONG, "--stages=train") == 130


def test_a_workdir_made_with_another_tokenizer_is_refused(copy):
  error = refused(copy, "--config.corpus.vocab_size=400")
  assert "corpus/manifest.json" in error and "vocab_size is 512" in error


def test_a_half_deleted_score_part_is_named(copy):
  part = sorted((copy / "run/scores/teacher").glob("part-*"))[1]
  part.write_bytes(part.read_bytes()[:100])
  shutil.rmtree(copy / "run/selection")
  assert part.name in refused(copy, "--stages=select")
  assert part.name in refused(copy, "--stages=score")
  # The way out that the message names: only that part is scored again.
  manifest = part.parent / "manifest.json"
  os.rename(manifest, part.parent / "manifest.partial.json")
  part.unlink()
  kept = {p: p.stat().st_mtime_ns for p in part.parent.glob("part-*")}
  run(copy, "--stages=score,select")
  assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_a_nan_score_is_refused_by_row(copy):
  part = sorted((copy / "run/scores/reference").glob("part-*"))[0]
  table = pq.read_table(part)
  nll = table["nll_sum"].to_numpy().copy()
  nll[3] = np.nan
  row_id = table["row_id"][3].as_py()
  pq.write_table(table.set_column(1, "nll_sum", [nll]), part)
  shutil.rmtree(copy / "run/selection")
  assert "not the file that was written" in refused(copy, "--stages=select")
  with edited(part.parent / "manifest.json") as body:
    body["files"][part.name] = files.describe(part)
  error = refused(copy, "--stages=select")
  assert f"row {row_id} has nll_sum nan" in error and part.name in error


def test_a_config_that_cannot_be_kept_stops_nothing(tmp_path, caplog):
  config = typed(tiny_config.get_config())
  path = epath.Path(tmp_path / "run/config.json")
  pipeline._keep(config, path)
  before = path.stat()
  assert json.loads(path.read_text())["select"]["ratio"] == 0.5
  pipeline._keep(config, path)
  assert path.stat() == before and not caplog.text
  pipeline._keep(config, epath.Path(path / "below a file"))
  assert "warning: the config is not kept: File exists, " in caplog.text
