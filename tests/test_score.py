"""Scoring: batches, claims, parts, workers, imports, verification."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import time
import types

import helpers
import kill_workers
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from flax import nnx
from helpers import LONG, edited, refused, rows, run, run_as_process

from miniplm_jax import config as config_lib
from miniplm_jax.core import claims, files, owner
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.signals import Stopped
from miniplm_jax.corpus import batching
from miniplm_jax.models import decoder, huggingface
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.models.ref import Identity, ModelRef
from miniplm_jax.scoring import check, score_step, table, units, worker
from miniplm_jax.scoring.scorer import Effort

ARCH = Transformer(
  vocab_size=61,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=1,
  num_attention_heads=4,
  num_key_value_heads=2,
)
MADE_BY = {"weights": "w", "tokenizer": "t", "code": "c", "settings": "s"}


def test_a_plan_holds_every_row_once_and_wastes_little():
  rng = np.random.default_rng(0)
  for count in (1, 7, 300):
    inputs = rng.integers(1, 101, count)
    planned = batching.plan(inputs, (20, 50, 100), 400, 2)
    places = np.concatenate([p.places for p in planned])
    np.testing.assert_array_equal(np.sort(places), np.arange(count))
    assert all(inputs[p.places].max() <= p.length for p in planned)
    assert all(p.size % 2 == 0 and p.padded_tokens <= 400 for p in planned)
    for length in (20, 50, 100):  # one that is not full, at most
      of_it = [p for p in planned if p.length == length]
      assert sum(len(p.places) < p.size for p in of_it) <= 1
    assert [p.length for p in planned] == sorted(
      (p.length for p in planned), reverse=True
    )


def test_rows_move_on_to_a_longer_batch_if_that_wastes_less():
  def shapes(*inputs):
    planned = batching.plan(np.array(inputs), (10, 20, 30), 60, 1)
    return [(p.size, p.length, len(p.places)) for p in planned]

  # One of 15 in a batch of 3 wastes 40, among those of up to 30 it wastes 10.
  assert shapes(*[5] * 6, 15, 25) == [(2, 30, 2), (6, 10, 6)]
  # Two of 15 would waste 20 either way; five of 5 waste 10 in their own.
  assert shapes(*[5] * 5, 15, 15, 25) == [(2, 30, 1), (2, 30, 2), (6, 10, 5)]


def test_parts_and_batches_that_nobody_said(tmp_path):
  """By the corpus and the device; what was begun, and an explicit size, win."""
  auto, said = config_lib.ScoreConfig(), config_lib.ScoreConfig(rows_per_part=7)
  corpus, tables = epath.Path(tmp_path / "corpus.json"), [tmp_path / "a"]

  def sized(score=auto):
    return score_step.with_parts(score, corpus, tables).rows_per_part

  assert sized() == 65_536  # nothing is there yet
  for count, length, size in (
    *((3000, 128, 512), (3000, 1024, 64), (10**5, 1024, 1562)),
    (10**8, 1024, 65_536),
  ):
    settings, counts = {"max_length": length}, {"rows": count}
    Manifest(corpus, "tokenize", settings, {}, counts=counts).write()
    assert sized() == size and sized(said) == 7
  for name in "manifest.json", "manifest.partial.json":
    path = epath.Path(tmp_path / "a" / name)
    Manifest(path, "score", {"rows_per_part": len(name)}, {}).write()
    assert sized() == len(name) and sized(said) == 7
  # A table says of what is auto what it said before there was auto.
  assert auto.of_table == auto.replace(batch_tokens=65_536).of_table

  def on(platform):
    devices = np.full((2, 3, 2), types.SimpleNamespace(platform=platform))
    shape = {"data": 2, "fsdp": 3, "tensor": 2}
    return types.SimpleNamespace(devices=devices, shape=shape)

  kinds = "cpu", "tpu", "gpu"
  asked = [batching.tokens_of(n, on(kind)) for kind in kinds for n in (0, 5)]
  assert asked == [1024, 5, 6 * 4096, 5, 65_536, 5]


def test_a_worker_says_how_it_works_and_what_a_stop_loses(tmp_path, capsys):
  rows = [np.arange(i, i + 2) for i in (0, 2)]
  parts = [units.Unit(r[0].item(), r[-1].item() + 1, "s", r) for r in rows]
  calls = []

  def scorer(row_ids, models, progress):
    calls.append(row_ids.tolist())
    if len(calls) == 2:
      raise Stopped(15)
    progress(len(row_ids))
    nll = np.ones(len(row_ids), np.float32)
    return dict.fromkeys(models, nll), np.ones(len(row_ids), np.int32), effort

  effort = Effort(seconds=1.0, tokens=4, padded_tokens=4)
  folder = epath.Path(tmp_path)
  scorer.batch_tokens, scorer.shapes = 64, set()
  tables = [
    worker.TableSpec(m, folder / m, folder / "claims" / m, {}) for m in "ab"
  ]
  run = config_lib.RunConfig(log_every_seconds=0.0)
  with pytest.raises(Stopped):
    worker.Worker(scorer, parts, tables, run).fill()
  said = capsys.readouterr().out
  assert "[score] compiling; batches of 64 tokens, padding" in said
  assert "in 2 parts of up to 2 rows" in said
  assert "2/4 rows\n" in said  # and not 4 of 8: both models have scored them
  assert "kept 2 rows; the part of 2 that was begun is scored again" in said
  assert [len(list((tmp_path / m).glob("*.parquet"))) for m in "ab"] == [1, 1]


def board(folder, seconds, host):
  made = claims.Board(epath.Path(folder), seconds)
  made._me["host"] = host
  return made


def test_one_worker_at_a_time_has_a_claim(tmp_path):
  one, two = (board(tmp_path, 60, host) for host in "xy")
  assert one.claim("a") and not two.claim("a") and two.claim("b")
  two.release("a")  # not its own
  assert not two.claim("a")
  one.release("a")
  assert two.claim("a") and not one.claim("a")


def test_a_claim_that_nobody_renews_is_taken_over(tmp_path, monkeypatch):
  now = [0.0]  # of whoever watches
  clock = types.SimpleNamespace(time=time.time, monotonic=lambda: now[0])
  monkeypatch.setattr(claims, "time", clock)
  dead = board(tmp_path, 0.03, "x")  # no context: it does not renew
  assert dead.claim("a")
  with board(tmp_path, 0.03, "y") as alive:
    assert alive.claim("b")
    taker = board(tmp_path, 60, "z")
    assert not taker.claim("a") and not taker.claim("b")
    now[0], before = 59.0, (tmp_path / "b").read_text()
    assert not taker.claim("a") and not taker.claim("b")
    while (tmp_path / "b").read_text() == before:
      time.sleep(0.01)
    now[0] = 61.0
    assert taker.claim("a")
    assert not taker.claim("b")
  assert taker.claim("b")  # given back at the end
  dead.release("a")  # taken over: not its own any more
  assert not dead.claim("a")


def test_a_claim_of_a_dead_process_of_this_host_is_free_at_once(tmp_path):
  process = subprocess.Popen(["true"])
  process.wait()
  dead = {"host": owner.machine(), "pid": process.pid, "worker": "x"}
  (tmp_path / "a").write_text(json.dumps(dead))
  (tmp_path / "b").write_text(json.dumps(dead | {"host": "elsewhere"}))
  (tmp_path / "c").write_text("not JSON")
  board = claims.Board(epath.Path(tmp_path), 60)
  assert board.claim("a") and not board.claim("b") and not board.claim("c")


def test_the_first_result_stands(tmp_path):
  path = epath.Path(tmp_path) / "new" / "part"
  assert claims.publish(path, b"one") and not claims.publish(path, b"two")
  assert path.read_bytes() == b"one"


def unit(first=0, end=4, shard="shard"):
  return units.Unit(first, end, shard, np.arange(first, end - 1))


def write(folder, of, made_by=MADE_BY, name=None):
  nll = np.arange(len(of.rows), dtype=np.float32) + 0.1
  content = table.encode(of, nll, np.ones(len(of.rows), np.int32), made_by)
  (folder / (name or of.name)).write_bytes(content)


def merge(folder, wanted, any_code=False):
  return table.merge(epath.Path(folder), wanted, MADE_BY, any_code)


def test_parts_that_are_the_table(tmp_path):
  wanted = [unit(), unit(4, 9)]
  for one in wanted:
    write(tmp_path, one)
  described, counts = merge(tmp_path, wanted)
  assert list(described) == [one.name for one in wanted]
  assert counts["rows"] == counts["tokens"] == 7
  assert counts["nll_sum"] == pytest.approx(9.7)


@pytest.mark.parametrize(
  ("what", "words"),
  [
    ("delete", "part-000000000000-000000000004.parquet"),
    ("truncate", "is damaged"),
    ("duplicate", "has first 0 where"),
    ("swap", "has first 4 where"),
    ("overlap", "overlaps part-000000000000-000000000004"),
    ("beyond", "outside this corpus"),
    ("other", "is none of this table"),
    ("shard", "has shard old where"),
    ("weights", "scored with weights old"),
    ("tokenizer", "scored with tokenizer old"),
    ("settings", "scored with settings old"),
    ("code", "scored with code old"),
    ("sums", "does not add up"),
    ("rows", "does not hold the rows"),
  ],
)
def test_parts_that_are_not_the_table_are_named(tmp_path, what, words):
  wanted = [unit(), unit(4, 8)]
  for one in wanted:
    write(tmp_path, one)
  path, other = (tmp_path / one.name for one in wanted)
  if what == "delete":
    path.unlink()
  elif what == "truncate":
    path.write_bytes(path.read_bytes()[:-9])
  elif what == "duplicate":
    shutil.copy(path, other)
  elif what == "swap":
    path.rename(tmp_path / "x")
    other.rename(path)
    (tmp_path / "x").rename(other)
  elif what == "overlap":
    write(tmp_path, unit(2, 6))
  elif what == "beyond":
    write(tmp_path, unit(8, 9))
  elif what == "other":
    shutil.copy(path, tmp_path / "copy of a part.parquet")
  elif what == "shard":
    write(tmp_path, unit(shard="old"))
  elif what in MADE_BY:
    write(tmp_path, wanted[0], MADE_BY | {what: "old"})
  else:
    found = pq.read_table(path)
    column = 1 if what == "sums" else 0
    values = found.column(column).to_numpy().copy()
    values[0] += 1
    name = found.column_names[column]
    changed = found.set_column(column, name, [values])
    pq.write_table(changed.replace_schema_metadata(found.schema.metadata), path)
  with pytest.raises(UserError, match=words) as e:
    merge(tmp_path, wanted)
  assert "--force" not in str(e.value)  # it would drop other tables, too
  if what in MADE_BY:
    assert f"remove {tmp_path} and score again" in str(e.value)
  if what == "code":
    merge(tmp_path, wanted, any_code=True)


def test_parts_of_the_same_weights_put_to_use_otherwise_are_refused(
  tmp_path, mesh, monkeypatch
):
  score = config_lib.ScoreConfig()
  corpus = types.SimpleNamespace(manifest=types.SimpleNamespace(tokenizer="t"))

  def facts(**fields):
    arch = dataclasses.replace(ARCH, **fields)
    model = decoder.Decoder(arch, nnx.Rngs(0))
    return worker.made_by(score, corpus, model, False)

  then, now = facts(), facts(rms_norm_eps=1e-2)
  assert then["weights"] == now["weights"] and then != now
  assert then != facts(rope_theta=7.0)
  assert then == facts(max_position_embeddings=64)
  directory = epath.Path(tmp_path)
  write(tmp_path, unit(), then)
  table.merge(directory, [unit()], then, False)
  with pytest.raises(UserError, match="scored with architecture"):
    table.merge(directory, [unit()], now, True)
  # Of an earlier version, which did not say it.
  write(tmp_path, unit(), {k: v for k, v in then.items() if k in MADE_BY})
  with pytest.raises(UserError, match="architecture unknown"):
    table.merge(directory, [unit()], then, True)
  # So does what scores rows again.
  model = decoder.Decoder(ARCH, nnx.Rngs(0))
  ref, expected = (
    ModelRef("teacher", "here"),
    Identity(now["weights"], "float32", now["architecture"]),
  )
  monkeypatch.setattr(ModelRef, "folder", lambda self: None)
  monkeypatch.setattr(huggingface, "load", lambda *_: model)
  corpus.check_model = lambda *_: None
  with pytest.raises(UserError, match="was scored by architecture"):
    check.rescorer(score, ref, corpus, expected, False, mesh)


def test_a_part_with_nan_is_not_made():
  nll = np.array([1, np.nan, 2], np.float32)
  with pytest.raises(UserError, match="row 1 has nll_sum nan"):
    table.encode(unit(), nll, np.ones(3, np.int32), MADE_BY)
  # A row of a corpus of earlier versions, with nothing to score.
  counts = np.array([1, 0, 2], np.int32)
  with pytest.raises(UserError, match=r"over 0 tokens.*make the corpus again"):
    table.encode(unit(), np.nan_to_num(nll), counts, MADE_BY)


def scores(folder: pathlib.Path, model: str) -> dict[str, np.ndarray]:
  found = pq.read_table(
    sorted((folder / "run/scores" / model).glob("*.parquet"))
  )
  return {name: found[name].to_numpy() for name in found.column_names}


@pytest.mark.parametrize(
  "workers",
  [
    2,
    pytest.param(1, marks=pytest.mark.long),
    pytest.param(3, marks=pytest.mark.long),
  ],
)
def test_killed_workers_leave_the_same_table(copy, workers):
  wanted = kill_workers.undisturbed(copy)
  last = sorted(wanted)[-3:]
  kills = {1: 1, 2: 3, 3: 1}[workers]
  found, _ = kill_workers.disturbed(copy, kills, workers, last, seed=workers)
  assert found == wanted
  # Whoever ends clears them; who is killed after that leaves its own, which
  # stands in nobody's way.
  left = (copy / "run").rglob("*claims/scores/*/*")
  assert all(owner.is_dead(json.loads(path.read_text())) for path in left)


@pytest.mark.bits
def test_batches_may_be_others_of_a_table_that_is_made(copy, finished):
  """Of one that is begun 0 takes what began it, and another size is refused."""
  size = "--config.score.batch_tokens="
  for other in "0", "4096":
    done = run(copy, LONG, "--stages=score", size + other)
    assert done.stdout.count("skipped, nothing has changed") == 2
  for model in "teacher", "reference":
    folder = copy / "run/scores" / model
    (folder / "manifest.json").rename(folder / "manifest.partial.json")
    sorted(folder.glob("part-*"))[1].unlink()
  line = refused(copy, LONG, "--stages=score", size + "4096")
  assert "settings.batch_tokens is" in line
  run(copy, LONG, "--stages=score", size + "0")
  assert kill_workers.parts(copy) == kill_workers.parts(finished)


@pytest.mark.bits
def test_one_model_after_the_other_gives_the_same_bytes(copy, finished):
  shutil.rmtree(copy / "run/scores")
  run(copy, LONG, "--stages=score", "--config.run.score_together=False")
  assert kill_workers.parts(copy) == kill_workers.parts(finished)


@pytest.mark.long
@pytest.mark.bits
def test_two_processes_as_one_program(copy):
  """2 × 4 devices against 1 × 8: the same rows, bit for bit."""
  shutil.rmtree(copy / "run/scores")
  more = ("--stages=score,verify", "--config.score.batch_tokens=1024")
  run_as_process(copy, LONG, *more, devices=8)
  wanted = kill_workers.parts(copy)
  shutil.rmtree(copy / "run/scores")
  said = helpers.ended(helpers.together(copy, LONG, *more), code=0)
  assert kill_workers.parts(copy) == wanted
  assert "[score]" in said[0] and "[score]" not in said[1]


@pytest.mark.bits
def test_a_corpus_that_grows_is_scored_only_where_it_is_new(copy, finished):
  texts = copy / "texts"
  texts.mkdir()
  lines = (copy / "text.jsonl").read_text().splitlines(keepends=True)
  (texts / "a.jsonl").write_text("".join(lines[:20]))
  arguments = (
    f"--config.corpus.tokenizer={finished / 'run/corpus/tokenizer'}",
    f"--config.teacher.path={finished / 'run/teacher/hf'}",
    f"--config.reference.path={finished / 'run/reference/hf'}",
  )
  shutil.rmtree(copy / "run")
  run(copy, "--stages=tokenize,score", *arguments, source=texts)
  before = kill_workers.parts(copy)
  places = sorted((copy / "run/scores").rglob("*.parquet"))
  times = [path.stat().st_mtime_ns for path in places]
  (texts / "b.jsonl").write_text("".join(lines[20:]))
  run(copy, "--stages=tokenize", "--force", *arguments, source=texts)
  done = run(copy, "--stages=score", *arguments, source=texts)
  assert done.stdout.count("going on, inputs.corpus") == 2
  assert times == [path.stat().st_mtime_ns for path in places]
  after = kill_workers.parts(copy)
  assert len(after) > len(before) and before.items() <= after.items()
  shutil.rmtree(copy / "run/scores")
  run(copy, "--stages=score", *arguments, source=texts)
  assert kill_workers.parts(copy) == after
  # The same inputs again are nothing to do, a changed old shard is refused.
  again = run(copy, "--stages=score", *arguments, source=texts)
  assert again.stdout.count("skipped") == 2
  (texts / "a.jsonl").write_text("".join(lines[1:20]))
  run(copy, "--stages=tokenize", "--force", *arguments, source=texts)
  error = refused(copy, "--stages=score", *arguments, source=texts)
  assert "part-0000" in error and "corpus has changed" in error


@pytest.mark.parametrize("kind", ["sum.parquet", "sum.npy", "mean.npy"])
def test_scores_from_elsewhere(copy, finished, kind):
  made = scores(copy, "teacher")
  path = copy / kind
  if path.suffix == ".npy":
    nll = made["nll_sum"]
    if kind == "mean.npy":
      nll = nll.astype(np.float64) / made["n_tokens"]
    np.save(path, nll)
  else:
    shuffled = pq.read_table(
      sorted((copy / "run/scores/teacher").glob("*.parquet"))
    ).take(np.random.default_rng(0).permutation(len(made["row_id"])))
    pq.write_table(shuffled.replace_schema_metadata({}), path)
  corpus = json.loads((copy / "run/corpus/manifest.json").read_text())
  described = {
    "corpus": corpus["fingerprint"],
    "model": "mine",
    "nll": kind.partition(".")[0],
  }
  beside = copy / f"{kind}.json"
  beside.write_text(json.dumps(described))
  given = ("--config.teacher.name=mine", f"--config.teacher.scores={path}")
  stages = "--stages=score,select,verify"
  name = "--config.select.name=imported"
  done = run(copy, stages, name, *given)
  assert "mine: " in done.stdout and "made elsewhere" in done.stdout
  assert "reference: " in done.stdout and "scored again" in done.stdout
  found = scores(copy, "mine")
  for column, values in made.items():
    np.testing.assert_allclose(found[column], values, rtol=1e-6)
  if kind == "sum.parquet":  # the rest goes on without the teacher
    run(copy, LONG, name, *given, "--config.student.name=imported")
    assert (copy / "run/students/imported/evaluation.json").exists()
  if kind != "mean.npy":
    assert rows(copy, "imported") == rows(finished)
  if kind != "sum.npy":
    return
  stages = "--stages=score"
  # What the file is said to be is part of what it is.
  beside.write_text(json.dumps(described | {"nll": "mean"}))
  assert "inputs.scores" in refused(copy, stages, *given)
  beside.write_text(json.dumps(described))
  for wrong, words in (
    ({"corpus": "0" * 64}, "are of corpus 000"),
    ({"nll": "bits"}, '"nll" is'),
  ):
    beside.write_text(json.dumps(described | wrong))
    assert words in refused(copy, stages, "--force", *given)
  beside.write_text(json.dumps(described))
  np.save(path, -made["nll_sum"])
  assert "is no −log p" in refused(copy, stages, "--force", *given)
  np.save(path, made["nll_sum"][:-1])
  assert "where D has" in refused(copy, stages, "--force", *given)
  np.save(path, np.where(made["row_id"] == made["row_id"][3], np.nan, 1.0))
  row = f"row {made['row_id'][3]} has nan"
  assert row in refused(copy, stages, "--force", *given)
  beside.unlink()
  assert beside.name in refused(copy, stages, "--force", *given)


def test_verify_scores_again_and_notices_another_model(copy):
  done = run(copy, "--stages=verify", "--config.verify.rows=20")
  off = re.findall(
    r"20 rows scored again, off by at most (\S+) nats", done.stdout
  )
  assert len(off) == 2 and max(map(float, off)) < 1e-5
  other = f"--config.teacher.path={copy / 'run/reference/hf'}"
  error = refused(copy, "--stages=verify", other)
  assert "teacher was scored by weights" in error
  part = sorted((copy / "run/scores/teacher").glob("part-*"))[1]
  found = pq.read_table(part)
  values = found["nll_sum"].to_numpy().copy()
  values[0] += 0.5
  changed = found.set_column(1, "nll_sum", [values])
  pq.write_table(changed.replace_schema_metadata(found.schema.metadata), part)
  error = refused(copy, "--stages=verify")
  assert part.name in error
  path = part.parent / "manifest.json"
  with edited(path) as body:
    body["files"][part.name] = files.describe(part)  # as if it had been so
  error = refused(copy, "--stages=verify", "--config.verify.rows=99999")
  assert "error: 1 of " in error
  stored = f"row {found['row_id'][0]} is stored as {values[0]:.6g} nats"
  assert stored in error


def test_further_references_are_scored_in_the_same_pass(copy):
  more = f"--config.score.more=('other={copy / 'run/teacher/hf'}',)"
  run(copy, "--stages=score", more)
  one, two = scores(copy, "teacher"), scores(copy, "other")
  np.testing.assert_array_equal(one["nll_sum"], two["nll_sum"])
  for bad in (f"'teacher={copy}'", "'../x=y'", "'a=b', 'a=c'"):
    error = refused(copy, "--stages=score", f"--config.score.more=({bad},)")
    assert "score.more" in error


def test_the_manifest_says_how_fast_it_was(finished):
  found = json.loads(
    (finished / "run/scores/teacher/manifest.json").read_text()
  )
  details = found["details"]
  assert details["score/tokens_per_second"] > 0
  assert 0 <= details["score/padding_share"] < 0.6
  assert 0 <= details["score/host_wait_share"] < 1
  assert details["workers"] == 1 and details["flops"] > 0
  assert found["counts"]["tokens"] == int(
    scores(finished, "teacher")["n_tokens"].sum()
  )
  assert os.path.exists(finished / "run/scores/teacher/workers")


def test_an_int8_teacher_is_refused_if_it_ranks_otherwise(copy):
  shutil.rmtree(copy / "run/scores")
  given = ("--stages=score,verify", "--config.score.int8_teacher=True")
  error = refused(copy, *given, "--config.score.int8_least_spearman=1.0")
  assert "int8_fidelity.json" in error and "rank correlation" in error
  assert not list((copy / "run/scores").rglob("*.parquet"))
  done = run(copy, *given, "--config.score.int8_least_agreement=0.9")
  assert "teacher: " in done.stdout and "scored again" in done.stdout
  path = copy / "run/scores/teacher/int8_fidelity.json"
  report = json.loads(path.read_text())
  assert 0.99 < report["spearman"] < 1 and report["agreement"]["0.5"] > 0.9
  # Scores of whole weights are not mistaken for these.
  assert "int8" in refused(copy, "--stages=score")
