"""Numbers of documents and rows in criteria, against NumPy over the texts."""

import json
import random
import re
from pydoc_data import topics

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refused, run

import miniplm_jax as mp
from miniplm_jax.config import corpus as corpus_config
from miniplm_jax.core import manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import store
from miniplm_jax.selection import scored

FIELDS = "--config.corpus.fields=meta.int_score,prob=meta.quality.prob"
IDS = "--config.corpus.id_field=id"
TOKENIZE = ("--stages=tokenize", FIELDS, IDS)
SMALL = "--config.corpus.part_bytes=9000"
SELECT = ("--stages=select", FIELDS, IDS, SMALL)


def write_documents(path):
  """Sentences of several domains, some shorter than a row, some longer."""
  rng = random.Random(3)
  text = " ".join(topics.topics[k] for k in sorted(topics.topics))
  words = text.split()[:6000]
  documents = []
  while words:
    n = rng.choice([1, 2, 2, 3, 4, 5, 9, 50, 120])
    now, words = words[:n], words[n:]
    meta = {"set": rng.choice(["code", "mail", "web"])}
    if rng.random() < 0.8:  # else none
      meta["int_score"] = rng.choice([0, 1, 2, 3, 4, 5, 2.5, True, None])
    meta["quality"] = {"prob": rng.random()} if rng.random() < 0.6 else None
    number = len(documents)
    documents.append(
      {
        "text": " ".join(now),
        "id": number if number % 2 else f"doc-{number}",
        "meta": meta,
      }
    )
  path.write_text("\n".join(map(json.dumps, documents)))
  return documents


def spans(corpus, documents):
  """(row, document, tokens) of all rows, by texts and ends of documents.

  The rows of a domain have its documents one after another.
  """
  encoder, found = corpus.tokenizer(), []
  rows = corpus.read(range(len(corpus)))
  for domain in {row.domain for row in rows}:
    own = [i for i, d in enumerate(documents) if d["meta"]["set"] == domain]
    ids = [[] for _ in own]  # of each of these documents
    place, part = 0, 0
    for row_id, row in enumerate(rows):
      if row.domain != domain:
        continue
      if row.part != part and ids[place]:
        place += 1  # its end alone would have been a row
      part = row.part
      for token in row.ids.tolist():
        if token == encoder.eos_id:
          place += 1
        else:
          ids[place].append(token)
          found.append((row_id, own[place]))
    for i, its in zip(own, ids, strict=True):
      assert encoder.decode(its) == documents[i]["text"]
  pairs, tokens = np.unique(found, axis=0, return_counts=True)
  return pairs[:, 0], pairs[:, 1], tokens


def means(spans, values, rows):
  """Of each row, by tokens; one by one."""
  total, weight = np.zeros(rows), np.zeros(rows)
  for row, document, tokens in zip(*spans):
    if not np.isnan(values[document]):
      total[row] += tokens * values[document]
      weight[row] += tokens
  with np.errstate(invalid="ignore"):
    return (total / weight).astype(np.float32)


def numbers(documents, *path):
  found = []
  for value in documents:
    for name in path:
      value = (value or {}).get(name)
    found.append(np.nan if value is None else float(value))
  return np.array(found)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A corpus of several shards; its documents, and their spans in rows."""
  folder = tmp_path_factory.mktemp("columns")
  documents = write_documents(folder / "text.jsonl")
  run(folder, *TOKENIZE, SMALL, "--config.run.tokenize_workers=1")
  corpus = mp.open_artifact(folder / "run/corpus")
  assert corpus.manifest.counts["parts"] > 3
  return folder, corpus, documents, spans(corpus.reader, documents)


def test_rows_carry_the_mean_of_their_documents_by_tokens(made):
  _, corpus, documents, where = made
  rows, table = len(corpus), corpus.to_arrow()
  several = np.bincount(where[0]) > 2
  assert several.sum() > 20
  for name, path in (
    ("int_score", ("meta", "int_score")),
    ("prob", ("meta", "quality", "prob")),
  ):
    wanted = means(where, numbers(documents, *path), rows)
    assert np.isnan(wanted).any() and not np.isnan(wanted).all()
    np.testing.assert_allclose(table[name].to_numpy(), wanted, rtol=1e-6)
  # Missing ones do not count as zeros, nor tokens of eos.
  lacking = corpus.manifest.counts["lacking int_score"]
  assert lacking == np.isnan(numbers(documents, "meta", "int_score")).sum()
  assert list(corpus_config._COLUMNS[:6]) == ["row_id", *store._INDEX]


def test_what_is_carried_changes_no_row_and_no_other_corpus(made, tmp_path):
  """Shards are the same by any number of workers, rows with no fields too."""
  folder = made[0]

  def files(of, name):
    paths = sorted((of / "run/corpus").glob(name))
    return [path.read_bytes() for path in paths]

  (tmp_path / "text.jsonl").symlink_to(folder / "text.jsonl")
  run(tmp_path, *TOKENIZE, SMALL, "--config.run.tokenize_workers=2")
  assert files(tmp_path, "index-*") == files(folder, "index-*")
  said = refused(tmp_path, "--stages=tokenize", SMALL)
  assert "settings.fields is" in said or "settings.id_field is" in said
  run(tmp_path, "--stages=tokenize", SMALL, "--force")
  assert files(tmp_path, "inst*") == files(folder, "inst*") != []
  settings = manifest.read(tmp_path / "run/corpus/manifest.json").settings
  assert not {"fields", "id_field"} & settings.keys()


def by_row(corpus, path, seed=0, share=0.9):
  """A file with numbers for most rows; returns them, NaN of the others."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=len(corpus))
  values[rng.random(len(values)) > share] = np.nan
  there = np.flatnonzero(~np.isnan(values) | (rng.random(len(values)) > 0.5))
  there = rng.permutation(there)
  table = pa.table({"row_id": there, "grade": values[there]})
  pq.write_table(table, path, row_group_size=37)
  return values


def by_document(documents, path, seed=1):
  """A file with numbers for some documents, and for others; likewise."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=len(documents))
  values[rng.random(len(values)) > 0.5] = np.nan
  order = rng.permutation(np.flatnonzero(~np.isnan(values)))
  ids = [str(documents[i]["id"]) for i in order]
  table = {"doc_id": [*ids, "x"], "quality": [*values[order], 9.0]}
  pq.write_table(pa.table(table), path, row_group_size=50)
  return values


def best(corpus, score, share):
  """Ids of the highest of D, as one sorts them; and how many have none."""
  d = corpus.split("train").ids
  has = d[~np.isnan(score[d])]
  order = np.lexsort([has, -score[has]])
  return np.sort(has[order[: int(share * len(d))]]), len(d) - len(has)


def test_both_joins_select_what_numpy_says(made, tmp_path):
  folder, corpus, documents, where = made
  grade = by_row(corpus, tmp_path / "rows.parquet").astype(np.float32)
  quality = by_document(documents, tmp_path / "documents.parquet")
  quality = means(where, quality, len(corpus))
  columns = (
    f"grade={tmp_path}/rows.parquet",
    f"quality={tmp_path}/documents.parquet",
  )
  score = corpus.to_arrow()["int_score"].to_numpy() + grade * quality
  kept, without = best(corpus, score, 0.2)
  assert 0 < without < len(corpus.split("train"))
  text = 'field("int_score") + field("grade") * field("quality")'
  done = run(
    folder,
    *SELECT,
    f"--config.select.definition={text}",
    f"--config.select.columns={','.join(columns)}",
    "--config.select.ratio=0.2",
    "--config.select.name=joined",
  )
  selection = mp.open_artifact(folder / "run/selection/joined")
  np.testing.assert_array_equal(selection.rows.ids, kept)
  counts = selection.manifest.counts
  assert counts["dropped"]["without_field"] == without
  assert sum(counts["dropped"].values()) == without
  page = (folder / "run/selection/joined/report.html").read_text()
  assert f"{without:,} without field" in page
  # In Python; and the values themselves.
  scores = mp.Scores(corpus, {})
  again = scores.select(
    text, name="python", columns=columns, ratio=0.2, to=tmp_path / "selected"
  )
  np.testing.assert_array_equal(again.rows.ids, kept)
  values = scores.values(text, columns=columns)
  ids = values["row_id"].to_numpy()
  np.testing.assert_array_equal(ids, corpus.split("train").ids)
  np.testing.assert_allclose(values["value"].to_numpy(), score[ids], rtol=2e-6)
  assert done.stdout


def select(corpus, to, column, text='field("x")', **more):
  scores = mp.Scores(corpus, {})
  columns = (f"x={column}",)
  return scores.select(text, name="s", to=to, columns=columns, **more)


def test_a_changed_file_makes_a_selection_outdated(made, tmp_path):
  corpus, path = made[1], tmp_path / "x.parquet"
  table = pa.table({"row_id": range(len(corpus)), "x": range(len(corpus))})
  pq.write_table(table, path)
  first = select(corpus, tmp_path / "s", path)
  read = {"corpus": corpus.manifest}
  for part in scored.of_selection(first.manifest, read).columns():
    assert part["score"].tolist() == part["row_id"].tolist()
  pq.write_table(table.slice(0, len(table) - 1), path)
  with pytest.raises(UserError, match=r"inputs\.field x is"):
    select(corpus, tmp_path / "s", path)
  with pytest.raises(UserError, match="not of the file that was read"):
    scored.of_selection(first.manifest, read)
  path.unlink()  # what was made of it stands
  assert select(corpus, tmp_path / "s", path).fingerprint == first.fingerprint
  with pytest.raises(UserError, match="no such file"):
    select(corpus, tmp_path / "other", path)


TWO = pa.table({"row_id": [0, 1], "x": [0.5, 1.5], "prob": [1, 2]})


@pytest.mark.parametrize(
  ("table", "words"),
  [
    ({"row_id": [4, 1, 4], "x": [1, 2, 3]}, "row_id 4 has two values, 1 and 3"),
    ({"row_id": [-1, 4], "x": [1, 2]}, "row_id -1 in a corpus of"),
    ({"row_id": [0, 10**6], "x": [1, 2]}, "row_id 1000000 in a corpus of"),
    ({"row_id": [0, None], "x": [1, 2]}, "a row_id is null"),
    ({"row_id": [0.5], "x": [1]}, "'row_id' is of double, not of whole"),
    ({"row_id": [0], "y": [1]}, "no column 'x', but 'row_id', 'y'"),
    ({"id": [0], "x": [1]}, "no column 'doc_id', but 'id', 'x'"),
    ({"row_id": [0], "x": ["3"]}, "column 'x' is of string, not of numbers"),
    ({"doc_id": ["a", "b", "a"], "x": [1, 2, 3]}, "doc_id 'a' has two values"),
    ({"doc_id": [0.5], "x": [1]}, "'doc_id' is of double"),
    ({"doc_id": ["nobody"], "x": [1]}, "no doc_id with a number is in D"),
    ({"row_id": [3], "x": [None]}, "of null, not of"),
    ({"row_id": [3], "x": [np.nan]}, "no row_id with a number is in D"),
    ({"row_id": [], "x": []}, "of null, not of"),
  ],
)
def test_a_file_that_cannot_be_joined_is_refused(made, tmp_path, table, words):
  path = tmp_path / "x.parquet"
  pq.write_table(pa.table(table), path)
  with pytest.raises(UserError, match=words) as e:
    select(made[1], tmp_path / "s", path)
  assert "\n" not in str(e.value)
  assert not (tmp_path / "s/rows.npy").exists()


def test_names_that_are_not_there_or_twice_are_refused(made, tmp_path):
  folder, corpus, *_ = made
  path = tmp_path / "x.parquet"
  pq.write_table(TWO, path)
  path.with_name("no.parquet").write_bytes(b"no Parquet")
  for text, column, words in (
    ('field("y")', "x", "no field 'y'.*int_score, prob, x"),
    ('field("y") + field("x")', "x", "no field 'y'.*int_score, prob, x"),
    ('field("prob")', "prob", "both the corpus and a file have"),
  ):
    with pytest.raises(UserError, match=words):
      mp.Scores(corpus, {}).select(
        text, name="s", to=tmp_path / "s", columns=(f"{column}={path}",)
      )
  with pytest.raises(UserError, match="cannot be read"):
    select(corpus, tmp_path / "s", path.with_name("no.parquet"))
  definition = '--config.select.definition=field("y")'
  said = refused(folder, *SELECT, definition)
  assert "there is no field 'y', but int_score, prob" in said
  definition = '--config.select.definition=field("prob")'
  said = refused(
    folder, *SELECT, definition, f"--config.select.columns=prob={path}"
  )
  assert "give names that no field of corpus.fields has" in said
  # What no formula reads is not looked at.
  column = "--config.select.columns=x=none.parquet"
  run(folder, *SELECT, definition, column, "--dry_run")
  said = refused(
    folder, *SELECT, definition, "--config.select.columns=x.parquet"
  )
  assert "give NAME=FILE.parquet" in said
  for fields in ("n_tokens", "a,b=x,a=c", "=x", "a b"):
    said = refused(folder, SELECT[0], f"--config.corpus.fields={fields}")
    assert "fields is" in said


def test_ids_must_have_been_carried(tmp_path):
  write_documents(tmp_path / "text.jsonl")
  run(tmp_path, "--stages=tokenize")
  path = tmp_path / "x.parquet"
  pq.write_table(pa.table({"doc_id": ["a"], "x": [1]}), path)
  corpus = mp.open_artifact(tmp_path / "run/corpus")
  with pytest.raises(UserError, match="the corpus has no ids of documents"):
    select(corpus, tmp_path / "s", path)


@pytest.mark.parametrize("key", ["row_id", "doc_id"])
def test_a_folder_of_files_is_as_one_file(made, tmp_path, key):
  _, corpus, documents, where = made
  one, folder = tmp_path / "one.parquet", tmp_path / "parts"
  folder.mkdir()
  (folder / "manifest.json").write_text("{}")
  wanted = by_row(corpus, one, seed=4)
  if key == "doc_id":
    wanted = means(where, by_document(documents, one, seed=4), len(corpus))
  table = pq.read_table(one)
  name = table.column_names[1]
  for i in range(3):  # in parts, as score_documents writes it
    start = i * 40
    part = table.slice(start, None if i == 2 else 40)
    pq.write_table(part, folder / f"part-{i:05d}.parquet")
  text = f'field("{name}")'
  for path in folder, f"{folder}/part-*.parquet":
    how = {"columns": [f"{name}={path}"]}
    values = mp.Scores(corpus, {}).values(text, **how)
    rows = values["row_id"].to_numpy()
    found = values["value"].to_numpy()
    np.testing.assert_allclose(found, wanted.astype(np.float32)[rows], 1e-6)
  how |= {"name": "parts", "to": tmp_path / "s", "ratio": 0.2}
  scores = mp.Scores(corpus, {})
  first = scores.select(text, **how)
  assert scores.select(text, **how).fingerprint == first.fingerprint
  (folder / "part-00001.parquet").unlink()
  with pytest.raises(UserError, match=rf"inputs\.field {name} is .*part-"):
    scores.select(text, **how)
  pq.write_table(pa.table({key: table[key]}), folder / "part-00001.parquet")
  with pytest.raises(UserError, match=f"there is no column '{name}'"):
    scores.values(text, columns=how["columns"])
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(UserError, match=r"no such file.* a folder of them or a"):
    scores.values(text, columns=[f"{name}={empty}"])


@pytest.mark.parametrize(
  ("record", "words"),
  [
    ({"meta": {"int_score": "3"}}, "field 'meta.int_score' is no .* but '3'"),
    ({"meta": {"int_score": [3]}}, r"no number of 32 bits but \[3\]"),
    ({"meta": {"int_score": 1e39}}, "no number of 32 bits but 1e"),
    ({"meta": {"int_score": 10**400}}, "no number of 32 bits but 10000"),
    ({"meta": {"int_score": float("inf")}}, "no number of 32 bits but inf"),
  ],
)
def test_a_field_that_is_no_number_is_a_broken_record(tmp_path, record, words):
  source = tmp_path / "text.jsonl"
  good = {"text": "One is here. Two is there. " * 40, "meta": {"set": "a"}}
  lines = [good, {"text": "One."} | record, good]
  source.write_text("\n".join(map(json.dumps, lines)))
  said = refused(tmp_path, *TOKENIZE)
  assert re.search(words, said) and "line 2" in said
  done = run(tmp_path, *TOKENIZE, "--config.run.max_broken=1")
  assert "1 broken records left out" in done.stdout
  assert "2 of 3 documents have no prob in field 'meta.quality.prob'" in (
    done.stdout
  )
