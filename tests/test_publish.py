"""Score tables for others: published, taken elsewhere, and as a matrix."""

import json
import re
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from helpers import refused, rows, run, write_corpus
from test_huggingface import TRANSFORMER, new

import miniplm_jax as mp
from miniplm_jax.api import Run
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import tokenizer
from miniplm_jax.models import huggingface
from miniplm_jax.selection.scored import ScoredRows

WORKERS = "--config.run.tokenize_workers=1"  # it takes milliseconds
NAMES = "teacher", "reference", "c", "d"
CRITERION = "--config.select.definition=c + teacher - 2 * reference"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A workdir with four tables of random models, published."""
  folder = tmp_path_factory.mktemp("made")
  write(folder, ("a", "b"))
  texts = (folder / "text" / "a.jsonl").read_text()
  encoder = tokenizer.train([texts], 290, "<|endoftext|>")
  tokenizer.save(encoder, epath.Path(folder / "tokenizer"))
  for name, scale in zip(NAMES, (0.5, 0.8, 1.0, 1.2)):
    model = jax.tree.map(lambda x, by=scale: x * by, new(TRANSFORMER))
    huggingface.save(epath.Path(folder / name), model, 7, {})
  done = run(
    folder,
    "--stages=tokenize,score,select,publish",
    CRITERION,
    f"--config.teacher.path={folder / 'teacher'}",
    f"--config.reference.path={folder / 'reference'}",
    f"--config.score.more=('c={folder / 'c'}','d={folder / 'd'}')",
    *corpus(folder),
    source=folder / "text",
  )
  assert "tables teacher, reference, c, d for others" in done.stdout
  return folder


def write(folder, names, documents=24):
  """Two files of documents under such names, in this order of content."""
  write_corpus(folder / "all.jsonl", documents)
  lines = (folder / "all.jsonl").read_text().splitlines(keepends=True)
  (folder / "text").mkdir()
  for name, own in zip(names, (lines[:10], lines[10:])):
    (folder / "text" / f"{name}.jsonl").write_text("".join(own))


def corpus(made):
  tokens = made / "tokenizer"
  return f"--config.corpus.tokenizer={tokens}", WORKERS


def take(folder, made, *more, stages="tokenize,score,select"):
  """The arguments of a run that has the tables, and no model."""
  published = made / "run" / "published"
  return (
    folder,
    f"--stages={stages}",
    CRITERION,
    f"--config.teacher.scores={published / 'teacher'}",
    f"--config.reference.scores={published / 'reference'}",
    f"--config.score.more=c=table:{published}/c,d=table:{published}/d",
    *corpus(made),
    *more,
  )


def test_what_is_published_has_no_text_and_says_what_it_is(made):
  folder = made / "run" / "published"
  own = Run(made / "run").scores
  for name in NAMES:
    table = pq.read_table(folder / name / "scores.parquet")
    columns = ["row_id", "nll_sum", "n_tokens", "hash"]
    assert table.column_names == columns
    assert table.drop(["hash"]) == own[name].to_arrow()
    index = own.corpus.rows(table["row_id"].to_numpy()).to_arrow()
    np.testing.assert_array_equal(table["hash"], index["hash"])
  card = (folder / "README.md").read_text()
  import huggingface_hub

  data = huggingface_hub.DatasetCard(card).data
  assert [one["config_name"] for one in data.configs] == [*NAMES]
  body = json.loads((folder / "manifest.json").read_text())
  model = body["details"]["models"]["teacher"]
  assert model["weights"] == own["teacher"].manifest.weights in card
  assert model["dtype"] == "float32" and model["model"] == "a folder"
  said = card + json.dumps(body)
  assert str(made) not in said and own.corpus.manifest.tokenizer in said
  assert re.search(r"max_length \| `32`", card)


def test_rows_are_selected_from_published_tables_without_a_model(
  made, tmp_path
):
  """The same rows.npy, from the command line and in Python."""
  write(tmp_path, ("a", "b"))
  done = run(*take(tmp_path, made), source=tmp_path / "text")
  assert rows(tmp_path) == rows(made)
  assert "taken by rows' hashes" not in done.stdout
  published = made / "run" / "published"
  ours = Run(tmp_path / "run").corpus
  scores = mp.take(ours, published, to=tmp_path / "taken" / "scores")
  for name in NAMES:
    assert scores[name].to_arrow() == Run(made / "run").scores[name].to_arrow()
  formula = CRITERION.partition("definition=")[2]
  kept = scores.select(formula, name="again", to=tmp_path / "again")
  assert (kept.path / "rows.npy").read_bytes() == rows(made)
  one = mp.score(
    ours, {"mine": published / "d"}, to=tmp_path / "one" / "scores"
  )
  assert one["mine"].to_arrow() == scores["d"].to_arrow()
  # What was published is a source again, and none of a model's figures is lost.
  again = mp.publish(scores, tmp_path / "published")
  same = pq.read_table(again / "teacher" / "scores.parquet")
  assert same == pq.read_table(published / "teacher" / "scores.parquet")
  first, second = map(models_of, (published, again))
  for name in NAMES:
    first[name].pop("table")
    assert len(second[name].pop("table")) == 64
  assert first == second


def models_of(folder):
  """What a publication says of its models."""
  body = json.loads((folder / "manifest.json").read_text())
  return body["details"]["models"]


def test_a_card_says_what_n_grams_were_counted_and_no_path(made, tmp_path):
  corpus, text = Run(made / "run").corpus, made / "text" / "a.jsonl"
  models = {"target": mp.ngram(text), "all": mp.ngram("train")}
  scores = mp.score(corpus, models, to=tmp_path / "scores", ngram_buckets=1000)
  card = mp.publish(scores, tmp_path / "published") / "README.md"
  told = models_of(card.parent)
  for name, counted in (("target", "a.jsonl"), ("all", "split train")):
    words = f"n-grams of {counted} in 1,000 buckets"
    assert told[name]["model"] == words and words in card.read_text()
    assert told[name]["ngram_buckets"] == 1000
  said = card.read_text() + (card.parent / "manifest.json").read_text()
  assert str(made) not in said and str(tmp_path) not in said
  taken = mp.take(corpus, card.parent, to=tmp_path / "taken" / "scores")
  again = models_of(mp.publish(taken, tmp_path / "again"))
  assert again["target"]["weights"] == told["target"]["weights"]
  assert again["target"]["ngram_buckets"] == 1000


def test_a_publication_stands_and_its_card_is_the_users(made, tmp_path):
  whole, folder = Run(made / "run").scores, tmp_path / "published"
  few = mp.Scores(whole.corpus, {"c": whole["c"]})
  card = mp.publish(few, folder) / "README.md"
  edited = card.read_text().replace("license: unknown", "license: mit")
  assert "license: mit" in edited
  card.write_text(edited)
  mp.publish(few, folder)
  others = mp.Scores(whole.corpus, {"c": whole["d"], "d": whole["d"]})
  with pytest.raises(UserError, match=r"run otherwise: inputs\.scores"):
    mp.publish(others, folder)
  assert card.read_text() == edited
  assert sorted(p.name for p in folder.iterdir()) == [
    *("README.md", "c", "manifest.json")
  ]
  mp.take(whole.corpus, folder, to=tmp_path / "taken" / "scores")
  mp.publish(others, folder, force=True)
  assert "license: unknown" in card.read_text() and (folder / "d").exists()


def test_what_is_no_publication_is_refused_in_a_line(made, tmp_path):
  ours, published = Run(made / "run").corpus, made / "run" / "published"
  copy = tmp_path / "copy"
  shutil.copytree(published, copy)
  (copy / "c").rename(copy / "other")
  with pytest.raises(UserError, match=r"no published table.*names none"):
    mp.take(ours, copy, to=tmp_path / "x" / "scores")
  (copy / "manifest.json").unlink()
  with pytest.raises(UserError, match=r"no published table.*is not there"):
    mp.take(ours, copy, to=tmp_path / "x" / "scores")
  with pytest.raises(UserError, match="there lies a file"):
    mp.publish(Run(made / "run").scores, made / "all.jsonl")
  with pytest.raises(UserError, match=r"models are \{\}"):
    mp.score(ours, {}, to=tmp_path / "x" / "scores")
  more = "--config.score.more=s2=table:"
  said = refused(made, "--stages=score", more, *corpus(made))
  assert "config.score.more is 's2=table:'" in said


def test_rows_in_another_order_or_fewer_are_joined_by_their_hashes(
  made, tmp_path
):
  whole = Run(made / "run").scores
  hashes = whole.corpus.reader.hashes
  wanted = {}
  for name in NAMES:
    table = whole[name].to_arrow()
    nll = table["nll_sum"].to_numpy()
    wanted[name] = dict(zip(hashes[table["row_id"].to_numpy()], nll))
  for case, names in (("order", ("b", "a")), ("fewer", ("a", "b"))):
    folder = tmp_path / case
    folder.mkdir()
    write(folder, names)
    if case == "fewer":
      (folder / "text" / "b.jsonl").unlink()
    stages = "tokenize,score"
    done = run(*take(folder, made, stages=stages), source=folder / "text")
    assert done.stdout.count("taken by rows' hashes") == 4
    found = Run(folder / "run").scores
    ours = found.corpus.reader.hashes
    for name in NAMES:
      table = found[name].to_arrow()
      own = [wanted[name][h] for h in ours[table["row_id"].to_numpy()]]
      np.testing.assert_array_equal(table["nll_sum"].to_numpy(), own)


def test_other_rows_are_refused_in_a_line_that_counts_them(made, tmp_path):
  write(tmp_path, ("a", "b"))
  text = tmp_path / "text" / "a.jsonl"
  text.write_text(text.read_text().replace("operator", "operation"))
  source = {"source": tmp_path / "text"}
  said = refused(*take(tmp_path, made), **source)
  (missing, of, those) = re.search(
    r"(\S+) of the (\S+) rows of D are not among the (\S+) that", said
  ).groups()
  assert 0 < int(missing) < int(of) and abs(int(of) - int(those)) < 9
  assert "its text is another" in said
  names = "--config.corpus.max_length=48", "--config.corpus.id_field=meta.set"
  other = *names, f"--config.workdir={tmp_path / 'x'}"
  said = refused(*take(tmp_path, made, *other), **source)
  assert "it was: max_length is 32 there and 48 here" in said
  assert "id_field" not in said
  published = made / "run" / "published"
  (tmp_path / "copy").mkdir()
  for path in published.rglob("*"):
    if path.is_file():
      to = tmp_path / "copy" / path.relative_to(published)
      to.parent.mkdir(exist_ok=True)
      to.write_bytes(path.read_bytes())
  (tmp_path / "copy" / "c" / "scores.parquet").write_bytes(b"")
  ours = Run(made / "run").corpus
  with pytest.raises(UserError, match="not the file that was written"):
    mp.score(ours, {"c": tmp_path / "copy/c"}, to=tmp_path / "y" / "scores")
  whole = f"--config.teacher.scores={published}"
  said = refused(*take(tmp_path, made, whole), **source)
  assert "no such file of scores" in said and "FOLDER/NAME" in said
  renamed = (tmp_path / "copy" / "d").rename(tmp_path / "copy" / "e")
  with pytest.raises(UserError, match="copy/e"):
    mp.score(ours, {"d": renamed}, to=tmp_path / "z" / "scores")
  with pytest.raises(UserError, match="no published tables"):
    mp.take(ours, tmp_path)


def test_the_matrix_is_what_perplexity_correlations_reads(made):
  """Its Spearman estimate is our criterion's score of each row."""
  scores = Run(made / "run").scores
  scores = mp.Scores(scores.corpus, {name: scores[name] for name in NAMES})
  x = scores.matrix()
  columns = scores.to_arrow().to_pydict()
  bits = np.array([columns[f"{name}_nll"] for name in NAMES]) / np.log(2)
  np.testing.assert_allclose(x, bits / columns["n_bytes"], rtol=1e-6)
  nats = np.array(columns["c_nll"]) / columns["c_tokens"]
  np.testing.assert_allclose(scores.matrix("nats_per_token")[2], nats)
  with pytest.raises(UserError, match="no unit 'bits'"):
    scores.matrix("bits")
  estimation = pytest.importorskip(
    "perplexity_correlations.estimation", reason="needs the package"
  )
  errors = dict(zip(NAMES, (0.61, 0.48, 0.55, 0.7)))
  given = ", ".join(f"{name}={error}" for name, error in errors.items())
  ranked = ScoredRows(
    {name: table.manifest for name, table in scores.items()},
    f"rank_correlation({given})",
    0,
    scores.corpus.reader,
  )
  ours = np.concatenate([part["score"] for part in ranked.columns()])
  theirs = estimation.spearmanr(x, np.array([*errors.values()]))
  assert len(set(ours)) > 3
  np.testing.assert_allclose(ours, theirs, atol=1e-6)
