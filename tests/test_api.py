"""The library makes what the command line makes, and each finds the other's."""

import dataclasses
import re

import numpy as np
import pytest
import tiny_config
from helpers import ROOT, typed, write_corpus

import miniplm_jax as mp
from miniplm_jax import api
from miniplm_jax.config import KDConfig
from miniplm_jax.core import files
from miniplm_jax.core.errors import UserError


def options(section, *but):
  values = dataclasses.asdict(section)
  return {k: v for k, v in values.items() if k not in but}


def content(folder):
  """What lies below a folder, and when it was written."""
  return {
    path.relative_to(folder): path.stat().st_mtime_ns
    for path in folder.rglob("*")
    if path.is_file()
    and ".claims" not in path.parts
    and path.name != "source_seen.json"  # notes times of the text's files
  }


def test_what_the_command_line_made_is_opened(copy):
  """Every artifact of a whole run is as wanted: nothing is written anew."""
  c = typed(tiny_config.get_config())
  folder, before = copy / "run", content(copy / "run")
  corpus = mp.tokenize(
    copy / "text.jsonl",
    c.corpus.tokenizer,
    to=folder / "corpus",
    run=c.run,
    **options(c.corpus, "source", "tokenizer"),
  )
  # As `finished` is run: more steps than the tiny config has.
  ran = api.Run(folder)
  trains = {
    name: mp.open_artifact(folder / name).settings["train"]
    for name in ("teacher", "reference", "students/miniplm")
  }
  scorers = {
    role: mp.train(
      getattr(c, role).model,
      corpus.split(role),
      to=folder / role,
      run=c.run,
      **trains[role],
    )
    for role in ("teacher", "reference")
  }
  scores = mp.score(corpus, scorers, run=c.run, **options(c.score))
  chosen = [
    scores.select("mean_diff"),
    scores.select("random", name="pretrain"),
  ]
  students = [
    mp.train(
      c.student.model,
      rows,
      to=folder / "students" / rows.name,
      run=c.run,
      **trains["students/miniplm"],
    )
    for rows in chosen
  ]
  for student in students:
    evaluation = mp.evaluate(student, run=c.run, score=c.score)
    assert evaluation == student.evaluation
  assert content(folder) == before
  assert {s.name for s in students} == ran.students.keys()
  assert ran.scores.keys() == scores.keys()
  best, other = mp.compare(ran).lines
  assert best["loss"] <= other["loss"]
  assert {best["name"], other["name"]} == {"miniplm", "pretrain"}


def test_artifacts_are_tables(finished):
  ran = api.Run(finished / "run")
  corpus, scores = ran.corpus, ran.scores
  index, table = corpus.to_arrow(), scores.to_arrow()
  assert index["row_id"].to_pylist() == list(range(len(corpus)))
  d = corpus.split("train")
  assert table["row_id"].to_pylist() == d.ids.tolist()
  assert table["n_bytes"].to_pylist() == d.to_arrow()["n_bytes"].to_pylist()
  kept = ran.selections["miniplm"]
  score = table["reference_nll"].to_numpy() - table["teacher_nll"].to_numpy()
  tokens = table["teacher_tokens"].to_numpy()
  assert np.all(tokens < table["n_tokens"].to_numpy())
  is_kept = np.isin(d.ids, kept.rows.ids)
  assert (score / tokens)[is_kept].min() >= (score / tokens)[~is_kept].max()
  texts, (row,) = kept.rows.texts(3), corpus.reader.read(kept.rows.ids[:1])
  assert len(texts) == 3 and texts[0] == corpus.tokenizer.decode(row.ids)
  steps, losses = ran.students["miniplm"].curve("eval/loss")
  assert len(steps) == len(losses) > 1
  for artifact in (corpus, scores["teacher"], kept):
    artifact.check()


def test_what_is_wrong_is_said_in_one_line(finished):
  ran = api.Run(finished / "run")
  with pytest.raises(UserError, match="no split 'x'"):
    ran.corpus.split("x")
  with pytest.raises(UserError, match="but by tokenize"):
    api.Student(finished / "run/corpus")
  with pytest.raises(UserError, match="steps is -1, TrainConfig, give"):
    mp.train("qwen-45m", ran.corpus.split("reference"), to="x", steps=-1)
  with pytest.raises(UserError, match="reads the scores of reference"):
    only = api.Scores(ran.corpus, {"teacher": ran.scores["teacher"]})
    only.select("difficulty")
  with pytest.raises(UserError, match="soft_labels needs a teacher"):
    rows = ran.selections["miniplm"]
    mp.train("qwen-45m", rows, to="x", objective=KDConfig())


def test_the_program_of_the_docs(tmp_path, monkeypatch, capsys):
  """docs/api.md as it stands, but for its sizes and its text."""
  monkeypatch.chdir(tmp_path)
  write_corpus(tmp_path / "text.jsonl")
  text = (ROOT / "docs" / "api.md").read_text()
  program, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  for old, new in {
    '"embedded"': '"text.jsonl"',
    "STEPS = 200": "STEPS = 10",
    "4096": "512",
    "max_length=128": "max_length=32",
  }.items():
    assert old in program
    program = program.replace(old, new)
  space = {}
  exec(program, space)
  said = capsys.readouterr().out
  assert "10 steps" in said and "± " not in said
  assert (tmp_path / "runs/mine/hf/model.safetensors").exists()
  (before,) = {files.sha256(tmp_path / "runs/mine/hf/model.safetensors")}
  exec(program, {})  # again: all is there
  again = capsys.readouterr().out
  assert again.count("skipped, nothing has changed") >= 9
  assert "completed step" not in again
  assert files.sha256(tmp_path / "runs/mine/hf/model.safetensors") == before
  hf, text = str(tmp_path / "runs/mine/hf"), "The function returns it."
  (one,) = mp.nll(hf, [text])
  assert one.n_bytes == len(text) and 0 < one.nll_sum < one.n_tokens * 10
