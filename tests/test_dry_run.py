"""What a dry run says: what would run or be refused, why, what it takes."""

import itertools
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_config
from etils import epath
from helpers import LONG, STEPS, refused, run, typed, write_corpus

from miniplm_jax import dry_run, pipeline
from miniplm_jax.config import CorpusConfig, lookup
from miniplm_jax.core import log
from miniplm_jax.core.decide import Action, decide
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus.sources import CorpusSource
from miniplm_jax.stages import Stages
from miniplm_jax.trainings import Trainings


@pytest.fixture
def planned(capsys):
  """(config) → the lines of its dry run, and the error that it ends with."""

  def call(config):
    error = ""
    capsys.readouterr()
    try:
      pipeline.run(config, "here", (), force=False, dry_run=True)
    except UserError as e:
      error = str(e)
    return capsys.readouterr().out.splitlines(), error

  return call


def tiny(folder, **fields):
  config = tiny_config.get_config().unlock()
  config.workdir = str(folder / "run")
  config.corpus.source = str(folder / "text.jsonl")
  config.update_from_flattened_dict(fields)
  return config


def line(record):
  return json.dumps(record) + "\n"


def write(folder, kind):
  """A source of which something is wrong at its beginning."""
  path = folder / "text.jsonl"
  if kind == "another field":
    path.write_text(line({"body": "a text"}))
  elif kind == "no JSON":
    path.write_text("{a text\n")
  elif kind == "of the last file":
    path = folder / "texts"
    path.mkdir()
    (path / "a.jsonl").write_text(line({"text": "a text"}))
    (path / "b.jsonl").write_text(line({"body": "a text"}))
  elif kind == "no such column":
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"body": ["a text"]}), path)
  elif kind == "no Parquet":
    path = folder / "rows.parquet"
    path.write_text("a text")
  elif kind == "unknown":
    path = folder / "rows.csv"
    path.write_text("a text")
  elif kind == "no match":
    path = folder / "*.jsonl"
  return str(path)


@pytest.mark.parametrize(
  "kind, words",
  [
    (
      "another field",
      "no text in field 'text'; the fields are .*line 1, name the field",
    ),
    ("no JSON", "this line cannot be read as JSON"),
    ("of the last file", "no text in field 'text'; .*b.jsonl line 1"),
    ("no such column", "no text in field 'text', .*rows.parquet row 0"),
    ("no Parquet", "this cannot be read"),
    ("unknown", "not a known format"),
    ("no match", "no file of documents is there"),
    ("none", "no file of documents is there"),
  ],
)
def test_a_source_that_cannot_be_read_is_refused(
  tmp_path, planned, kind, words
):
  """As stage tokenize refuses it, before anything is made."""
  config = tiny(tmp_path, **{"corpus.source": write(tmp_path, kind)})
  lines, error = planned(config)
  assert re.search(words, error)
  assert f"  tokenize    would be refused: {error}" in lines
  assert any(one.startswith("  reference   would wait: ") for one in lines)
  assert not (tmp_path / "run").exists()
  with pytest.raises(UserError) as e:
    pipeline.run(config, "here", ["tokenize"], force=False, dry_run=False)
  assert str(e.value) == error


def test_of_a_source_the_first_documents_are_read_alone(tmp_path, planned):
  many = [line({"text": "a text", "meta": {"set": "x"}})] + ["{broken\n"] * 9
  (tmp_path / "text.jsonl").write_text("".join(many))
  lines, error = planned(tiny(tmp_path))
  assert not error and lines[1].startswith("  tokenize    would run: ")
  assert not any("warning" in one for one in lines)
  config = tiny(tmp_path, **{"corpus.domain_field": "from"})
  lines, error = planned(config)
  (doubt,) = [one for one in lines if "warning" in one]
  assert "no domain in field 'from' of the first document of 1 files" in doubt
  (tmp_path / "text.jsonl").write_text("{broken\n")
  assert planned(tiny(tmp_path))[1]
  assert not planned(tiny(tmp_path, **{"run.max_broken": 1}))[1]


@pytest.mark.parametrize("source", ["tfds:x", "hf:a/b", "gs://b/x.jsonl"])
def test_what_is_elsewhere_is_not_fetched(tmp_path, monkeypatch, source):
  monkeypatch.setattr(CorpusSource, "chunks", lambda self: 1 / 0)
  assert CorpusSource(CorpusConfig(source=source), tmp_path).check() == []


def test_a_source_is_not_looked_at_once_there_is_a_corpus(copy, monkeypatch):
  monkeypatch.setattr(CorpusSource, "check", lambda self: 1 / 0)
  assert "tokenize    done: " in run(copy, LONG, "--dry_run").stdout


@pytest.mark.parametrize(
  "field", ["corpus.tokenizer", "teacher.path", "student.tokenizer"]
)
def test_a_directory_that_is_not_there_is_refused(tmp_path, field):
  write_corpus(tmp_path / "text.jsonl")
  (tmp_path / "empty").mkdir()
  for path, words in (("none", "no model directory"), ("empty", "no ")):
    given = f"--config.{field}={tmp_path / path}"
    given = given, "--config.student.eos_token=<eos>"
    given = given[: 1 + field.startswith("student")]
    assert words in refused(tmp_path, *given, "--dry_run")


@pytest.mark.parametrize("name, models", [("laptop", 7), ("demo", 14)])
def test_a_dry_run_is_read_in_ten_seconds(tmp_path, planned, name, models):
  """One line a stage and kind; no step or seed is lost."""
  write_corpus(tmp_path / "text.jsonl")
  config = lookup.load(name).unlock()
  config.workdir = str(tmp_path / "run")
  config.corpus.source = config.corpus.source or str(tmp_path / "text.jsonl")
  lines, error = planned(config)
  assert not error and len(lines) <= 25
  assert not any(" when it has " in one for one in lines)
  said, seen = "\n".join(lines), set()
  stages = Stages(typed(config), Workdir(tmp_path))
  assert f"to train    {models} of {models} models, " in said
  for stage in config.stages:
    of = [one for one in lines if one.startswith(f"  {stage:11} would run: ")]
    counts = (re.match(r"(\d+) × ", one[25:]) for one in of)
    new = {step.manifest for step in stages.steps(stage)} - seen
    seen |= new  # what two stages make is said where it is made
    assert sum(int(n[1]) if n else 1 for n in counts) == len(new), stage
  assert "random, miniplm" in said and " × seeds 11, 12" in said


@pytest.mark.parametrize(
  "stage, field, steps",
  [("select", "select.ratio", 2), ("train", "train.learning_rate", 2)],
)
def test_every_refusal_is_shown(copy, planned, stage, field, steps):
  fields = {field: 0.25, "train.steps": STEPS}
  config = tiny(copy, baselines=("pretrain",), **fields)
  lines, error = planned(config)
  stages = Stages(typed(config), Workdir(epath.Path(config.workdir)))
  refusals = [(decide(s), s) for s in stages.steps(stage)]
  refusals = [pair for pair in refusals if pair[0].action is Action.REFUSE]
  assert len(refusals) == steps
  for decision, step in refusals:
    head = f"  {stage:11} {decision}"
    below = [b for a, b in itertools.pairwise(lines) if a == head]
    again = f"  {stage:11} would be refused likewise: "
    below += [one for one in lines if one.startswith(again)]
    assert any(step.subject in one for one in below)
    assert lines.count(head) == 1  # the reason is long
    assert field.split(".")[1] in str(decision)
  assert error == str(refusals[0][0].error)
  assert any(one.startswith("  score       done: 2 × ") for one in lines)


def test_what_shows_what_is_made_again_is_made_again(copy):
  run(copy, LONG, "--stages=evaluate,report")
  given = LONG, "--stages=evaluate,report", "--dry_run"
  said = run(copy, *given).stdout
  assert "report      done" in said and "again" not in said
  said = run(copy, *given, "--config.evaluate.ignore_domains=odd").stdout
  assert "evaluate    would run again" in said
  assert "report      would run again" in said


def test_what_no_stage_makes_is_named(tmp_path):
  write_corpus(tmp_path / "text.jsonl")
  said = run(tmp_path, "--stages=score", "--dry_run").stdout
  assert "score       would run when it has corpus and weights: 2 × Σ" in said


def test_a_dry_run_says_what_most_would_not_want(tmp_path):
  def doubts(ids=0, **fields):
    config = tiny_config.get_config().unlock()
    config.workdir = str(tmp_path / "run")
    if ids:
      vocabulary = {f"w{i}": i for i in range(ids - 1)}
      body = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": ids - 1}]}
      (tmp_path / "tokenizer.json").write_text(json.dumps(body))
      config.corpus.tokenizer = str(tmp_path)
    config.update_from_flattened_dict(fields)
    where = Workdir(epath.Path(config.workdir))
    return list(dry_run.doubts(Trainings(typed(config), where)))

  assert doubts() == doubts(ids=512) == []
  names = "teacher", "reference", "student"
  assert [d.partition(".")[0] for d in doubts(ids=513)] == [*names]
  words = "=512 is too small: the tokenizer has 513 ids"
  assert doubts(ids=513)[0].endswith(words)
  (one,) = doubts(**{"student.model.max_position_embeddings": 31})
  assert "embeddings=31, as its export says, and corpus.max_length=32" in one
  (one,) = doubts(**{"run.eval_every": 9})
  assert one == "run.eval_every=9 of 8 steps: a learning curve of one point"
  (one,) = doubts(**{"corpus.heldout_share": 0.0})
  assert one.startswith("0 held-out rows")
  details = {"highest_id": 512, "vocab_size": 600}
  path = epath.Path(tmp_path / "run/corpus/manifest.json")
  counts = {"split heldout": 3}
  Manifest(path, "x", {}, {}, counts=counts, details=details).write()
  *many, few = doubts()
  assert len(many) == 3 and few.startswith("3 held-out rows")


def test_a_dry_run_says_what_training_takes(copy):
  done = run(copy, "--config.baselines=('pretrain',)", LONG, "--dry_run").stdout
  (line,) = re.findall("to train +(.*)", done)
  made = [
    json.loads((copy / "run" / name / "manifest.json").read_text())
    for name in (
      *("teacher", "reference", "students/miniplm", "students/pretrain"),
    )
  ]
  assert line == "0 of 4 models"
  for name in ("miniplm", "pretrain"):
    shutil.rmtree(copy / "run/students" / name)
  done = run(copy, "--config.baselines=('pretrain',)", LONG, "--dry_run").stdout
  (line,) = re.findall("to train +(.*)", done)
  flops = sum(m["details"]["train_flops"] for m in made[2:])
  size = sum(m["counts"]["parameters"] for m in made[2:]) * 4 * 7 / 1e9
  parameters = log.short(sum(m["counts"]["parameters"] for m in made[2:]))
  words = f"2 of 4 models, {parameters} parameters, {flops:.3g} FLOPs"
  words += f", up to {size:.2g} GB of checkpoints and weights; about "
  assert line.startswith(words)
  # The two that stand: the slower one's pace, and the faster one's.
  paces = [
    m["details"]["seconds"] / m["details"]["train_flops"] for m in made[:2]
  ]
  (least,) = re.findall("weights; about (.*?)(?: to .*)? at this", done)
  assert least == log.duration(flops * min(paces))
  new = run(copy, f"--config.workdir={copy / 'new'}", "--dry_run").stdout
  assert "; time is told here after --stages=tokenize,teacher\n" in new
  assert "FLOPs are told when there is a corpus" in new


def test_a_dry_run_counts_what_scoring_takes(copy):
  """As a little more than scoring itself counts: its rows are not all full."""
  details = "run/scores/teacher/manifest.json", "run/scores/reference"
  table = json.loads((copy / details[0]).read_text())["details"]
  for name in "teacher", "reference":
    shutil.rmtree(copy / "run/scores" / name)
  said = run(copy, LONG, "--dry_run").stdout
  assert "2 × Σ nll of every row of D" in said
  (told,) = re.findall(r"to score +2 of 2 models, .* tokens, (.*) FLOPs", said)
  assert 1 <= float(told) / table["flops"] < 1.1
