"""Scores by what a target text is like: n-grams, and a conditional model."""

import collections
import glob
import json
import math
import os
import pathlib
import shutil
from pydoc_data import topics

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_config
from helpers import refused, run, steps_of

import miniplm_jax as mp
from miniplm_jax import api

DSIR = "generic.sum - target.sum"
BUCKETS = 500  # few, so that n-grams share some


def sources():
  """Text of the standard library's modules, which is nothing like its docs."""
  folder = os.path.dirname(json.__file__)
  paths = sorted(glob.glob(f"{folder}/../[a-z]*.py"))
  texts = [pathlib.Path(path).read_text(errors="ignore") for path in paths]
  return [text[2000:5000] for text in texts if len(text) > 5000]


def write(path, texts, name=""):
  with path.open("a") as f:
    for text in texts:
      f.write(json.dumps({"text": text, "meta": {"set": name}}) + "\n")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
  """A run on prose and code, with code for a target."""
  folder = tmp_path_factory.mktemp("scored")
  code = sources()
  prose = [topics.topics[name][:3000] for name in sorted(topics.topics)]
  write(folder / "text.jsonl", prose[:24], "prose")
  write(folder / "text.jsonl", code[:24], "code")
  write(folder / "target.jsonl", code[24:80])
  run(folder, "--stages=tokenize,score,select", *given(folder))
  return folder


@pytest.fixture
def copy(scored, tmp_path):
  shutil.copytree(scored, tmp_path, dirs_exist_ok=True)
  return tmp_path


def given(folder, target="target.jsonl", more=""):
  models = f"'generic=ngram:reference', 'target=ngram:{folder / target}'"
  return (
    f"--config.score.more=({models}{more})",
    f"--config.score.ngram_buckets={BUCKETS}",
    f"--config.select.definition={DSIR}",
    "--config.select.ratio=0.3",
    "--config.corpus.teacher_share=0",
    "--config.corpus.reference_share=0.4",
    "--config.corpus.max_length=128",
  )


STEPS = 60
TUNED = (
  "--config.reference.train.steps=200",
  f"--config.conditional.train.steps={STEPS}",
  "--config.conditional.train.batch_size=8",
  "--config.conditional.train.warmup_steps=5",
  "--config.conditional.train.learning_rate=3e-3",
  "--config.conditional.train.dtype=float32",
)
STAGES = "--stages=reference,conditional,score,select"


def tuned(folder, target="target.jsonl"):
  return (
    f"--config.conditional.source={folder / target}",
    *TUNED,
    "--config.select.definition=color_filter",
    "--config.select.name=color",
    *(a for a in given(folder) if "select.definition" not in a),
  )


@pytest.fixture(scope="module")
def conditional(scored, tmp_path_factory):
  """The same, and the reference that goes on with the target."""
  folder = tmp_path_factory.mktemp("conditional")
  shutil.copytree(scored, folder, dirs_exist_ok=True)
  run(folder, STAGES, *tuned(scored), source=scored / "text.jsonl")
  return folder


def table(folder, name):
  files = sorted((folder / "run/scores" / name).glob("part-*"))
  found = pq.read_table(files)
  return {name: found[name].to_numpy() for name in found.column_names}


def mixed(bits):
  """SplitMix64 of Python's integers."""
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    bits = (bits ^ (bits >> shift)) * factor % 2**64
  return bits ^ (bits >> 31)


def buckets(ids, special):
  """Of each n-gram of a row, one by one."""
  for i, one in enumerate(ids):
    if one in special:
      continue
    found = [mixed(one)]
    if i and ids[i - 1] not in special:
      pair = mixed(2**32 + ids[i - 1]) + mixed(2**33 + one)
      found.append(pair % 2**64)
    for value in found:
      yield (value >> 32) * BUCKETS >> 32


def test_ngrams_are_counted_and_summed_as_dsir_does(scored):
  corpus = api.Run(scored / "run").corpus
  reader, tokenizer = corpus.reader, corpus.tokenizer
  special = {reader.eos_id, reader.bos_id}
  rows = reader.read(np.arange(len(reader)))
  target = (scored / "target.jsonl").read_text().splitlines()
  texts = tokenizer.encode([json.loads(line)["text"] for line in target])
  counted = {
    "generic": [row.ids.tolist() for row in rows if row.split == "reference"],
    "target": [ids.tolist() for ids in texts],
  }
  seen_eos = False
  for name, several in counted.items():
    counts = collections.Counter(
      bucket for ids in several for bucket in buckets(ids, special)
    )
    found = table(scored, name)
    assert found["row_id"].tolist() == corpus.split("train").ids.tolist()
    for i, row_id in enumerate(found["row_id"]):
      ids = rows[row_id].ids.tolist()
      seen_eos |= reader.eos_id in ids[1:-1]
      nll = -sum(
        math.log(counts[bucket] / counts.total() + 1e-8)
        for bucket in buckets(ids, special)
      )
      assert found["nll_sum"][i] == pytest.approx(nll, rel=1e-6)
      n_tokens = sum(one != reader.eos_id for one in ids[:-1])
      assert found["n_tokens"][i] == n_tokens
  assert seen_eos  # some rows hold the end of a document


def test_dsir_keeps_what_is_like_the_target(scored):
  corpus = api.Run(scored / "run").corpus
  kept = np.load(scored / "run/selection/miniplm/rows.npy")
  share = np.mean(corpus.reader.domains(kept) == "code")
  assert share > 0.9
  assert np.mean(corpus.reader.domains() == "code") < 0.7


def parts(folder):
  paths = sorted((folder / "run/scores").rglob("part-*"))
  return {p.relative_to(folder): p.read_bytes() for p in paths}


def test_ngrams_go_on_and_are_not_counted_again(copy):
  before = parts(copy)
  for name in ("generic", "target"):
    folder = copy / "run/scores" / name
    (folder / "manifest.json").rename(folder / "manifest.partial.json")
    for path in sorted(folder.glob("part-*"))[::2]:
      path.unlink()
  counts = sorted((copy / "run/scores").rglob("ngram-*"))
  times = [path.stat().st_mtime_ns for path in counts]
  done = run(copy, "--stages=score,verify", *given(copy))
  assert parts(copy) == before
  assert [path.stat().st_mtime_ns for path in counts] == times
  # Once by score itself, once by verify.
  assert done.stdout.count("scored again, off by at most 0 nats") == 4
  # From Python they are found, and not made again.
  paths = sorted((copy / "run/scores").rglob("*"))
  times = [path.stat().st_mtime_ns for path in paths]
  text = copy / "target.jsonl"
  scores = mp.score(
    api.Run(copy / "run").corpus,
    {"generic": mp.ngram("reference"), "target": mp.ngram(text)},
    rows_per_part=64,
    ngram_buckets=BUCKETS,
  )
  assert sorted(scores) == ["generic", "target"]
  assert sorted((copy / "run/scores").rglob("*")) == paths
  assert times == [path.stat().st_mtime_ns for path in paths]


def test_ngrams_of_another_text_are_refused(copy):
  run(copy, "--stages=score", *given(copy), "--force")  # by the copy's path
  path = copy / "target.jsonl"
  text = path.read_text()
  path.write_text(text.replace("return", "RETURN"))
  before = {p: p.stat().st_mtime_ns for p in (copy / "run/scores").rglob("*")}
  error = refused(copy, "--stages=score", *given(copy))
  assert "stage score was run otherwise: inputs.weights is" in error
  assert "target.jsonl" in error
  assert "counts of another text" in refused(
    copy, "--stages=verify", *given(copy)
  )
  path.unlink()  # what was made of it stands
  done = run(copy, "--stages=score", *given(copy))
  assert done.stdout.count("[score] skipped") == 2
  after = {p: p.stat().st_mtime_ns for p in (copy / "run/scores").rglob("*")}
  assert after == before
  path.write_text(text)
  part = sorted((copy / "run/scores/target").glob("part-*"))[0]
  part.write_bytes(part.read_bytes()[:-9])
  assert part.name in refused(copy, "--stages=verify", *given(copy))


def test_text_that_cannot_be_counted_is_named(copy):
  (copy / "empty.jsonl").write_text("")
  (copy / "other.jsonl").write_text('{"content": "x y"}\n')
  for more, words in (
    ("x=ngram:teacher", "no n-gram to count, x=ngram:teacher"),
    (
      "x=ngram:refrence",
      "refrence, give train, reference, heldout, teacher; or",
    ),
    (f"x=ngram:{copy}/empty.jsonl", "there is no n-gram to count"),
    (f"x=ngram:{copy}/other.jsonl", "no text in field 'text'"),
    ("x=ngram:", "config.score.more is"),
    ("target=ngram:train", "no other table of scores"),
  ):
    error = refused(copy, "--stages=score", *given(copy, more=f", '{more}'"))
    assert words in error, error
    assert not (copy / "run/scores/x").exists() or not list(
      (copy / "run/scores/x").rglob("*.*")
    )


def test_what_is_no_model_in_python_is_named(scored):
  corpus = api.Run(scored / "run").corpus
  for call in (
    lambda: mp.score(corpus, {"q": None}),
    lambda: mp.nll(mp.ngram("train"), "A text."),
    lambda: mp.evaluate(mp.ngram("train"), corpus.split("heldout")),
  ):
    with pytest.raises(mp.UserError, match="a model; n-grams are for score"):
      call()
  with pytest.raises(mp.UserError, match=r"give mp\.ngram\('train'\)"):
    mp.score(corpus, {"q": "ngram:train"})


def kept(folder, name):
  return np.load(folder / "run/selection" / name / "rows.npy")


def test_color_filter_keeps_what_is_like_the_target(conditional):
  corpus = api.Run(conditional / "run").corpus
  share = np.mean(corpus.reader.domains(kept(conditional, "color")) == "code")
  assert share > 0.9
  prior, tuned_on = (
    table(conditional, n) for n in ("reference", "conditional")
  )
  score = prior["nll_sum"] / prior["n_tokens"]
  score -= tuned_on["nll_sum"] / tuned_on["n_tokens"]
  best = np.argsort(-score, kind="stable")[: int(0.3 * len(score))]
  wanted = np.sort(prior["row_id"][best])
  assert np.array_equal(wanted, kept(conditional, "color"))


def test_a_stopped_conditional_goes_on_to_the_same(
  conditional, scored, tmp_path
):
  shutil.copytree(conditional, tmp_path, dirs_exist_ok=True)
  places = {"source": scored / "text.jsonl"}
  given = STAGES, *tuned(scored)
  done = run(tmp_path, *given, **places)
  assert done.stdout.count("skipped") == done.stdout.count("[")
  # As a kill before the last checkpoint leaves it.
  folder = tmp_path / "run/conditional"
  (folder / "manifest.json").rename(folder / "manifest.partial.json")
  for path in (folder / "hf", folder / "checkpoints" / f"{STEPS}"):
    shutil.rmtree(path)
  shutil.rmtree(tmp_path / "run/scores/conditional")
  done = run(tmp_path, *given, **places)
  assert "resuming" in done.stdout
  assert parts(tmp_path) == parts(conditional)
  weights = "run/conditional/hf/model.safetensors"
  before = (conditional / weights).read_bytes()
  assert (tmp_path / weights).read_bytes() == before
  other = "--config.conditional.train.learning_rate=1e-3"
  error = refused(tmp_path, *given, other, **places)
  assert "stage conditional was run otherwise" in error
  assert "learning_rate is 0.003 there and 0.001 here" in error
  other = f"--config.conditional.source={scored / 'text.jsonl'}"
  error = refused(tmp_path, *given, other, **places)
  assert "stage conditional was run otherwise: inputs.source" in error


@pytest.fixture
def untuned(conditional, tmp_path):
  """A copy with a reference, of which nothing was made yet."""
  shutil.copytree(conditional, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "run/conditional")
  shutil.rmtree(tmp_path / "run/scores/conditional")
  return tmp_path


def test_rows_that_the_corpus_has_are_not_trained_on(untuned, scored):
  own, target = scored / "text.jsonl", scored / "target.jsonl"
  both, stage = untuned / "both.jsonl", "--stages=conditional"
  both.write_text(own.read_text() + target.read_text())
  done = run(untuned, stage, *tuned(untuned, "both.jsonl"), source=own)
  corpora = [
    mp.open_artifact(untuned / "run" / name).reader.hashes
    for name in ("corpus", "conditional/corpus")
  ]
  n = int(np.isin(corpora[1], corpora[0]).sum())
  left_out = f"the corpus has {n:,} of the {len(corpora[1]):,} rows of the"
  assert n > 100 and left_out in done.stdout
  made = mp.open_artifact(untuned / "run/conditional")
  assert made.manifest.counts["rows"] == len(corpora[1]) - n
  shutil.rmtree(untuned / "run/conditional")
  error = refused(untuned, stage, *tuned(scored, "text.jsonl"), source=own)
  n = f"{len(corpora[0]):,}"
  assert f"the corpus has {n} of the {n} rows of the target" in error


def test_a_target_that_cannot_be_is_named(untuned, scored):
  (untuned / "empty.jsonl").write_text("")
  (untuned / "other.jsonl").write_text('{"content": "x y"}\n')
  no_weights = "--config.reference.scores=scores.parquet"
  places = {"source": scored / "text.jsonl"}
  for target, more, words in (
    ("none.jsonl", "", "no file of documents is there, config.conditional.sou"),
    ("empty.jsonl", "", "no document with text in 1 files, config.conditional"),
    ("other.jsonl", "", "--config.conditional.text_field"),
    ("target.jsonl", no_weights, "config.conditional.source is"),
    ("target.jsonl", "--config.teacher.name=conditional", "no other table"),
  ):
    arguments = ["--stages=conditional,score", *tuned(untuned, target)]
    error = refused(untuned, *arguments, *filter(None, [more]), **places)
    assert words in error, error
    assert not list((untuned / "run").glob("conditional/*/*"))
  clash = given(untuned, more=f", 'conditional={untuned}'")
  source = f"--config.conditional.source={untuned / 'target.jsonl'}"
  assert "no other table" in refused(untuned, *clash, source, **places)
  off = "--stages=select", *given(untuned)
  formula = "--config.select.definition=color_filter"
  error = refused(untuned, *off, formula, **places)
  assert "no score table conditional" in error


def test_a_conditional_from_python(conditional, scored, tmp_path):
  corpus = api.Run(conditional / "run").corpus
  alike = ("max_length", "eos_token", "bos_token", "seed")
  target = mp.tokenize(
    scored / "target.jsonl",
    corpus.path / "tokenizer",
    to=tmp_path / "target" / "corpus",
    reference_share=0.0,
    heldout_share=0.0,
    **{name: corpus.manifest.settings[name] for name in alike},
  )
  is_new = ~np.isin(target.reader.hashes, corpus.reader.hashes)
  wanted = mp.open_artifact(conditional / "run/conditional")
  reference = mp.open_artifact(conditional / "run/reference")
  found = mp.train(
    reference.shape,
    target.rows(np.flatnonzero(is_new)),
    to=tmp_path / "conditional",
    init=reference,
    **wanted.settings["train"],
  )
  assert found.manifest.weights == wanted.manifest.weights
  models = {"reference": reference, "conditional": found}
  layout = {"dtype": "float32", "batch_tokens": 256, "lengths": (16,)}
  with pytest.raises(mp.UserError, match="save_pretrained"):
    mp.score(corpus, models, to=tmp_path / "scores", **layout)
  found.save_pretrained(found.hf)
  scores = mp.score(corpus, models, to=tmp_path / "scores", **layout)
  before = table(conditional, "conditional")["nll_sum"]
  after = scores.to_arrow()["conditional_nll"].to_numpy()
  np.testing.assert_allclose(after, before, rtol=1e-5)


def test_the_report_reads_what_the_formula_does():
  config = tiny_config.get_config()
  config.conditional.source = "target.jsonl"
  config.select.definition = "reference - conditional - generic"
  config.score.more = ("generic=ngram:train",)
  (step,) = steps_of("report", config)
  tables = {name for name in step.inputs if name.endswith(" scores")}
  wanted = {"reference", "conditional", "generic"}
  assert tables == {f"{name} scores" for name in wanted}
