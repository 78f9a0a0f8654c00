"""The library makes what the command line makes, and each finds the other's."""

import collections
import dataclasses
import functools
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny_config
from helpers import LIMIT, ROOT, documented, execute, typed, write_corpus

import miniplm_jax as mp
from miniplm_jax import api, cli
from miniplm_jax.config import KDConfig
from miniplm_jax.core import files, log
from miniplm_jax.core.errors import UserError
from miniplm_jax.evaluation import texts
from miniplm_jax.training import flops, watch


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
    rows = evaluation.rows
    means = (rows["nll_sum"] / rows["n_tokens"]).astype(float)
    assert means.mean() == pytest.approx(evaluation.loss, rel=1e-6)
    ids = student.corpus.rows(rows["row_id"])
    again = mp.evaluate(student, ids, run=c.run, score=c.score).rows
    np.testing.assert_array_equal(again["nll_sum"], rows["nll_sum"])
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


def test_a_criterion_is_audited_without_a_selection(finished):
  ran = api.Run(finished / "run")
  found = ran.scores.audit("-teacher", "mean_diff", "random()", ratio=0.3)
  assert found.correlations["teacher"] == pytest.approx(-1)
  assert found.correlations["reference"] < -0.5
  assert set(found.correlations) >= {"tokens", "teacher", "reference"}
  assert [g.kept_rows for g in found.domains] != [g.rows for g in found.domains]
  kept = sum(g.kept_rows for g in found.domains)
  assert kept == int(0.3 * len(ran.corpus.split("train")))
  one, drawn = found.overlaps
  assert one.name == "mean_diff" and drawn.chance == pytest.approx(0.176, 0.01)
  assert drawn.total.jaccard == pytest.approx(drawn.chance, abs=0.05)
  text = str(found)
  assert "rows shared with random(), Jaccard" in text and "η²" in text
  with pytest.raises(UserError, match="no score table nobody"):
    ran.scores.audit("nobody - teacher")


def test_a_criterion_weighs_domains(finished):
  """As docs/selection.md does by DoReMi's excess loss."""
  ran = api.Run(finished / "run")
  excess = ran.scores.values("max(reference - teacher, 0)")
  table = ran.scores.to_arrow()
  assert excess["domain"].to_pylist() == table["domain"].to_pylist()
  expected = collections.defaultdict(list)
  for row in table.to_pylist():
    tokens = row["teacher_tokens"]
    gain = (row["reference_nll"] - row["teacher_nll"]) / tokens
    expected[row["domain"]].append(max(gain, 0))
  mean = excess.group_by("domain").aggregate([("value", "mean")]).to_pylist()
  assert len(mean) == len(expected) > 1
  for row in mean:
    total = expected[row["domain"]]
    assert row["value_mean"] == pytest.approx(sum(total) / len(total), rel=1e-5)


def test_what_is_wrong_is_said_in_one_line(finished):
  ran = api.Run(finished / "run")
  with pytest.raises(UserError, match="no split 'x'"):
    ran.corpus.split("x")
  with pytest.raises(UserError, match="but by tokenize"):
    api.Student(finished / "run/corpus")
  with pytest.raises(UserError, match="steps is -1, TrainConfig, give"):
    mp.train("qwen-45m", ran.corpus.split("reference"), to="x", steps=-1)
  with pytest.raises(UserError, match="no score table reference"):
    only = api.Scores(ran.corpus, {"teacher": ran.scores["teacher"]})
    only.select("difficulty")
  with pytest.raises(UserError, match="soft_labels needs a teacher"):
    rows = ran.selections["miniplm"]
    mp.train("qwen-45m", rows, to="x", objective=KDConfig())


def wrong_calls(corpus, scores, student, hf):
  """Calls that cannot be meant, and what is said of each."""
  rows, table = corpus.split("train"), {"teacher": student}
  train = functools.partial(mp.train, "qwen-45m", to="x")
  shape, tokenizer = student.shape, corpus.path / "tokenizer"
  given = functools.partial(mp.tokenize, "a.txt", hf, to="x")
  return {
    "no row 99999, .*, there are ": lambda: corpus.rows([7, 99999]),
    "no row -3": lambda: corpus.rows([-3]),
    "row ids are float64": lambda: corpus.rows([1.5]),
    "row ids are bool": lambda: corpus.rows([True, False]),
    "row ids are not ascending, .*, give": lambda: corpus.rows([2, 1]),
    "not ascending, .*, give numpy.unique": lambda: corpus.rows([1, 1]),
    "no field 'max_len', .* mean max_length": lambda: given(max_len=3),
    "no field 'lr', .* choose from .*learning": lambda: train(rows, lr=1e-3),
    "no field 'ration', .* ratio": lambda: scores.select(ration=0.5),
    "no field 'hiden_size', Transf": lambda: shape.replace(hiden_size=3),
    "no shape 'qwen-60m', .*qwen-45m": lambda: mp.train("qwen-60m", 0, to="x"),
    "no rows: Corpus": lambda: train(corpus),
    "no rows: .1, 2": lambda: train([1, 2]),
    "next_token has no teacher": lambda: train(rows, teacher=hf),
    "no rows to evaluate": lambda: mp.evaluate("/nope"),
    "models are .*name each": lambda: mp.score(corpus, [student]),
    "a model is called 'a/../b'": lambda: mp.score(corpus, {"a/../b": student}),
    "no Hugging Face .*save_pretrained": lambda: mp.score(corpus, table),
    "no Hugging .*save_pretrained.student.hf": lambda: mp.nll(student, "a"),
    "these are no students": lambda: mp.compare(student),
    "no students": lambda: mp.compare([student.evaluation]),
    "no config file nope.py, .*demo": lambda: mp.run("nope.py"),
    "vocab_size is 512, and the tok": lambda: given(vocab_size=512),
    "source is .'a'., list, give one": lambda: mp.tokenize(["a"], hf, to="x"),
    "no metric 'foo', .* eval/loss": lambda: student.curve("foo"),
    "what stage tokenize has": lambda: student.save_pretrained(corpus.path),
    "stage tokenize": lambda: student.save_pretrained(tokenizer),
    "there lies what stage": lambda: train(rows, to=corpus.path, force=True),
    "the name 'a/b'": lambda: scores.select(name="a/b"),
    "with select.…, force=True.$": lambda: scores.select(ratio=0.3),
    "nothing finished lies": lambda: mp.open_artifact(tokenizer),
    "corpus is .*what tokenize returns": lambda: mp.score(rows, table),
    "scores is .*what score returns": lambda: mp.select(corpus, "mean_diff"),
    "rows is .*split": lambda: mp.evaluate(hf, corpus),
    "no texts: .None": lambda: mp.nll(hf, [None]),
    "no texts: 5": lambda: mp.generate(hf, 5),
    "to is ''": lambda: train(rows, to=""),
  }


def test_every_wrong_call_is_a_user_error(copy):
  ran = mp.open_artifact(copy / "run")
  student = ran.students["miniplm"]
  hf = str(copy / "run/teacher/hf")
  shutil.rmtree(student.hf, ignore_errors=True)
  before = content(copy)
  calls = wrong_calls(ran.corpus, ran.scores, student, hf)
  for words, call in calls.items():
    with pytest.raises(UserError, match=words) as e:
      call()
    assert "--" not in str(e.value) and "\n" not in str(e.value), words
  assert content(copy) == before


def test_options_of_a_selection(copy):
  ran = mp.open_artifact(copy / "run")
  scores = ran.scores
  hard = scores.select("difficulty", ratio=0.3)  # beside the paper's
  assert hard.name == "difficulty" and scores.select().name == "miniplm"
  same = scores.select("reference-teacher", name="formula")
  assert same.settings["definition"] == "reference - teacher"
  assert same.rows.ids.tolist() == scores.select().rows.ids.tolist()
  with pytest.raises(UserError, match="give name="):
    scores.select("reference - 2 * teacher")
  few = scores.select(rows=3, name="few")
  assert len(few) == 3 and few.settings["ratio"] == 0
  assert len(scores.select(rows=2, name="few", force=True)) == 2


def test_artifacts_may_lie_anywhere(copy, tmp_path, monkeypatch):
  """Outside of the corpus's workdir, deeper in it, or by a relative path."""
  ran = mp.open_artifact(copy / "run")
  monkeypatch.chdir(tmp_path)
  scorers = {"teacher": mp.open_artifact(copy / "run/teacher")}
  recipe = {"steps": 1, "warmup_steps": 0, "batch_size": 8, "dtype": "float32"}
  (shape,) = {student.shape for student in ran.students.values()}
  own = ran.corpus.rows([1, 2, 3, 4, 5, 6, 7, 8])
  train = functools.partial(mp.train, shape, **recipe)
  for to in (copy / "run/students/a/b", "else/t"):
    assert train(own, to=to).rows is own
  with pytest.raises(UserError, match=r"give it: Student\(path, corpus"):
    _ = mp.open_artifact("else/t").corpus
  opened = mp.open_artifact(copy / "run/students/a/b")
  assert opened.corpus.path == ran.corpus.path
  for to in ("else/scores", copy / "run/scores2"):
    scores = mp.score(ran.corpus, scorers, to=to, dtype="float32")
    assert len(scores["teacher"]) == len(ran.corpus.split("train"))


def test_what_things_look_like(finished):
  ran = mp.open_artifact(finished / "run")
  student = ran.students["miniplm"]
  for thing, words in {
    ran.corpus: r"Corpus\('.*/run/corpus', [\d,]+ rows\)",
    ran.corpus.split("train"): r"Rows\('split train', [\d,]+ of Corpus.*",
    ran.scores["teacher"]: r"ScoreTable\('.*', [\d,]+ rows\)",
    ran.selections["miniplm"]: r"Selection\('.*', [\d,]+ kept, [\d,]+ rows\)",
    student: r"Student\('.*', [\d,]+ parameters, [\d,]+ steps\)",
  }.items():
    assert re.fullmatch(words, repr(thing))
  words = r"Evaluation\('miniplm', loss [\d.]+ of [\d,]+ rows\)"
  assert re.fullmatch(words, repr(student.evaluation))
  assert repr(KDConfig(weight=0.3)) == "KDConfig(weight=0.3)"
  assert "run: miniplm_jax.config.run.RunConfig = RunConfig()" in str(
    inspect.signature(mp.train)
  )
  assert {"train", "UserError", "RunConfig", "Corpus"} <= set(dir(mp))
  assert all(getattr(mp, name) for name in mp.__all__)


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
  (one,) = mp.nll(hf, text)
  assert mp.nll(hf, [text]) == [one]
  modes = {path.stat().st_mode for path in (tmp_path / hf).iterdir()}
  assert len(modes) == 1
  assert one.n_bytes == len(text) and 0 < one.nll_sum < one.n_tokens * 10


def test_arrays_are_selected_as_rows_are(finished, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  corpus = mp.open_artifact(finished / "run/corpus")
  table = mp.open_artifact(finished / "run").scores.to_arrow()
  row_ids = table["row_id"].to_numpy()
  arrays = {
    name: (table[f"{name}_nll"].to_numpy(), table[f"{name}_tokens"].to_numpy())
    for name in ("teacher", "reference")
  }
  (nll, tokens), (other, _) = arrays.values()
  np.savez("scores.npz", teacher=nll, reference=other, tokens=tokens)
  (example,) = documented("api.md", "Select of arrays")
  kept = execute(example)["kept"]
  made = mp.open_artifact(finished / "run/selection/miniplm")
  assert kept.dtype == np.int64 and len(corpus.rows(made.rows.ids)) == len(kept)
  np.testing.assert_array_equal(row_ids[kept], made.rows.ids)
  # By another way: sorted, of equal values the first; half are equal.
  value = np.float32(other / tokens) - np.float32(nll / tokens)
  value[::2] = np.median(value)
  wanted = np.sort(np.lexsort((np.arange(len(value)), -value))[:77])
  ones = np.ones(len(value), np.int32)
  given = {"a": (value, ones), "unread": ([], [])}
  np.testing.assert_array_equal(mp.select(given, "a", rows=77), wanted)
  drawn = mp.select(given, "random() + 0 * a", ratio=0.25)
  assert len(drawn) == len(value) // 4 and drawn[-1] > len(value) // 2
  bad = value.copy()
  bad[3] = np.nan
  for words, tables, criterion, how in (
    (
      "row 3 has nll_sum nan over 1 tokens, table a",
      {"a": (bad, ones)},
      "a",
      {},
    ),
    (
      "b is .array.*of each table .rows.",
      {"b": (value, ones), "a": (value[:9], ones[:9])},
      "a - b",
      {},
    ),
    ("row 0 has no finite value, log", {"a": (-value, ones)}, "log(a - a)", {}),
    ("it reads other than arrays", {"a": (value, ones)}, "a.sum / bytes", {}),
    ("it reads other than arrays", {"a": (value, ones)}, "z(a, by=domain)", {}),
    ("no score table reference", {"teacher": (value, ones)}, "mean_diff", {}),
    ("it reads other than arrays", given, "random", {}),
    ("quotas needs a corpus", given, "a", {"quotas": ("x=:0.1",)}),
    ("no field 'ration'", given, "a", {"ration": 0.1}),
    (r"a is \(\[\], \[\]\)", {"a": ([], [])}, "a", {}),
    ("a is .*whole numbers", {"a": (value, ones * 1.5)}, "a", {}),
    ("a is .*give .nll, tokens.", {"a": 5}, "a", {}),
    ("a is .*give .nll, tokens.", {"a": [[value], [1]]}, "a", {}),
  ):
    with pytest.raises(UserError, match=words):
      mp.select(tables, criterion, **how)


def test_nll_says_at_once_how_it_works(finished, tmp_path, monkeypatch, capsys):
  """On standard error: of the console script standard output is a table."""
  (tmp_path / "a.txt").write_text("Once, über")
  monkeypatch.setattr(log.LOGGER, "handlers", [])  # as in a process of its own
  score, before = texts.RowScorer.__call__, []

  def scored(*arguments):
    before.append(capsys.readouterr())
    return score(*arguments)

  monkeypatch.setattr(texts.RowScorer, "__call__", scored)
  hf = finished / "run/students/miniplm/hf"
  cli.nll([str(hf), str(tmp_path / "a.txt")])
  (said,) = before
  words = "batches of up to 1,024 tokens; compiling the first"
  assert said == ("", f"[nll] 11 bytes of text in {words}\n")
  assert capsys.readouterr().out.startswith("nll_sum\t")


def test_a_student_reads_what_it_was_trained_on_at_once(finished):
  student, text = (
    api.Run(finished / "run").students["miniplm"],
    "So it is. " * 99,
  )
  size, hf = student.corpus.max_length, str(student.hf)
  assert mp.nll(student, text) == mp.nll(hf, text, max_length=size)
  assert mp.nll(student, text) != mp.nll(hf, text)


def test_workers_do_not_run_the_callers_script(tmp_path):
  """Without `if __name__ == "__main__"`, as the docs' first program is."""
  for name in ("a.jsonl", "b.jsonl"):  # a shard each
    write_corpus(tmp_path / name, 4)
  script = tmp_path / "script.py"
  script.write_text(
    f"""import miniplm_jax as mp
print("once")
mp.tokenize(
  "{tmp_path}/*.jsonl",
  "train",
  to="{tmp_path}/corpus",
  vocab_size=300,
  run=mp.config.RunConfig(tokenize_workers=2),
)
"""
  )
  done = subprocess.run(
    [sys.executable, str(script)],
    capture_output=True,
    text=True,
    check=False,
    timeout=LIMIT,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "once\n"


TRAIN = {
  "steps": 2,
  "warmup_steps": 1,
  "batch_size": 2,
  "learning_rate": 1e-3,
  "dtype": "float32",
}


def test_a_student_says_what_was_spent_before_it(copy):
  """As the command line does, of the same selection."""
  ran, c = api.Run(copy / "run"), typed(tiny_config.get_config())
  theirs, shape = ran.students["miniplm"], c.student.model
  kept = ran.selections["miniplm"]
  spent = theirs.manifest.details[flops.OFFLINE]
  assert len(spent) == 3 and None not in spent.values()
  mine = mp.train(shape, kept, to=copy / "run/students/mine", **TRAIN)
  assert mine.manifest.details[flops.OFFLINE] == spent
  card = (mine.save_pretrained(copy / "hf") / "README.md").read_text()
  assert "rows of up to 32 tokens" in card
  assert f"before it {sum(spent.values()):.3g} (scoring by" in card
  # Not known of a reference that is gone.
  (copy / "run/reference/manifest.json").unlink()
  other = mp.train(shape, kept, to=copy / "run/students/other", **TRAIN)
  other = other.manifest.details[flops.OFFLINE]
  assert other == spent | {"training of reference": None}
  d = mp.train(
    shape, ran.corpus.split("train"), to=copy / "run/students/d", **TRAIN
  )
  assert d.manifest.details[flops.OFFLINE] == {}
  card = (d.save_pretrained(copy / "hf") / "README.md").read_text()
  assert "packed rows of a corpus (split train)." in card


def test_nothing_is_measured_on_rows_that_it_was_trained_on(copy):
  corpus = api.Run(copy / "run").corpus
  heldout = corpus.split("heldout")
  shape = typed(tiny_config.get_config()).student.model
  for name, rows in (
    ("whole", heldout),
    (
      "some",
      corpus.rows(np.union1d(heldout.ids[:1], corpus.split("train").ids)),
    ),
  ):
    to = copy / "run/students" / name
    student = mp.train(shape, rows, to=to, **TRAIN)
    for measured in (None, heldout, corpus.rows(heldout.ids)):
      with pytest.raises(UserError, match=f"{name} was trained on "):
        mp.evaluate(student, measured)
    with pytest.raises(UserError, match="not evaluated yet"):
      mp.compare([student])
    (to / "trained_rows.json").unlink()
    with pytest.raises(UserError, match="the list of its rows is gone"):
      mp.evaluate(student)
  teacher = mp.open_artifact(copy / "run/teacher")
  with pytest.raises(UserError, match="rows of split teacher"):
    mp.evaluate(str(teacher.hf), corpus.split("teacher"))
  with pytest.raises(UserError, match="rows of split teacher"):
    mp.evaluate(teacher, corpus.split("teacher"))


def test_ctrl_c_in_training_keeps_what_was_done(copy, monkeypatch, caplog):
  corpus, to = api.Run(copy / "run").corpus, copy / "run/students/mine"
  shape = typed(tiny_config.get_config()).student.model
  rows, handler = corpus.split("train"), signal.getsignal(signal.SIGINT)
  beat = watch.Watchdog.beat

  def interrupting(self, done):
    if done == 3:
      os.kill(os.getpid(), signal.SIGINT)
    beat(self, done)

  with monkeypatch.context() as m, caplog.at_level("INFO", "miniplm_jax"):
    m.setattr(watch.Watchdog, "beat", interrupting)
    with pytest.raises(KeyboardInterrupt):
      mp.train(shape, rows, to=to, **TRAIN | {"steps": 6})
  assert "saved checkpoint 3" in caplog.text
  assert signal.getsignal(signal.SIGINT) is handler
  with caplog.at_level("INFO", "miniplm_jax"):
    student = mp.train(shape, rows, to=to, **TRAIN | {"steps": 6})
  assert "restored checkpoint 3 of 6 steps" in caplog.text
  assert student.curve()[0][-1] == 6
