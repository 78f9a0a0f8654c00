"""Rows with items of evaluation sets are left out: against plain strings."""

import itertools
import json
import random
import re
from pydoc_data import topics

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import refused, run

import miniplm_jax as mp
from miniplm_jax.core import noise
from miniplm_jax.core.errors import UserError
from miniplm_jax.selection import items, overlap

LENGTH = "--config.corpus.max_length=120"
TOKENIZE = ("--stages=tokenize", "--config.corpus.part_bytes=20000", LENGTH)
SELECT = ("--stages=select", *TOKENIZE[1:], "--config.select.definition=tokens")


def plain(text):
  """Words as the rule says, by characters."""
  kept = [c for c in text.lower() if c == " " or c.isspace() or c.isalnum()]
  return "".join(kept).split()


def documents_of(corpus, row):
  """The words of each document in a row."""
  text, ids = corpus.tokenizer(), [[]]
  for token in row.ids.tolist():
    ids[-1].append(token)
    ids += [[]] * (token == text.eos_id)
  return [
    plain(text.decode([i for i in part if i != text.eos_id])) for part in ids
  ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A corpus, and by row of D its text: words with " | " between documents."""
  folder = tmp_path_factory.mktemp("exclude")
  rng = random.Random(1)
  words = " ".join(topics.topics.values()).split()[:9000]
  odd = ("Größe", "naïve", "\x1cx\x1dy", "snake_case", "数据", "don’t", "İ")
  with (folder / "text.jsonl").open("w") as f:
    while words:
      n = rng.choice([3, 12, 40, 150])
      now, words = words[:n], words[n:]
      for _ in range(n // 12):
        now.insert(rng.randrange(len(now)), rng.choice(odd))
      f.write(json.dumps({"text": " ".join(now), "meta": {"set": "a"}}) + "\n")
  run(folder, *TOKENIZE, "--config.run.tokenize_workers=1")
  corpus = mp.open_artifact(folder / "run/corpus")
  assert corpus.manifest.counts["parts"] > 2
  ids = corpus.split("train").ids
  texts = {
    row_id: " | ".join(map(" ".join, documents_of(corpus.reader, row)))
    for row_id, row in zip(ids.tolist(), corpus.reader.read(ids))
  }
  return folder, corpus, texts


def found_in(texts, records):
  """Ids of rows with 13 words of a record, or all of a text of 8 to 12."""
  found = set()
  for record in records:
    own = record["texts"]
    for text in (*own, " ".join(own)):
      parts = plain(text)
      n = min(len(parts), 13)
      for i in range(len(parts) - n + 1) if n >= 8 else ():
        gram = f" {' '.join(parts[i : i + n])} "
        found |= {k for k, v in texts.items() if gram in f" {v} "}
  return found


def write_sets(folder, texts):
  """Two sets with words of rows, in other letters; returns their records."""
  rng = random.Random(2)
  rows = [v.split(" | ") for v in texts.values()]
  long = [d.split() for row in rows for d in row if len(d.split()) > 16]

  def cut(n):
    words = rng.choice(long)
    start = rng.randrange(max(len(words) - n, 1))
    return ", ".join(words[start : start + n]).upper() + "!?"

  quiz = [{"texts": [f"Q: What? {cut(13)} or else", "no"]} for _ in range(12)]
  quiz += [{"texts": [cut(9)]}, {"texts": [cut(5), "and no more than that"]}]
  pairs = [two for row in rows for two in itertools.pairwise(row)]
  pairs += [(a[-1], b[0]) for a, b in itertools.pairwise(rows)]
  ends = [(a.split(), b.split()) for a, b in pairs]
  ends = [(a, b) for a, b in ends if len(a) > 12 and len(b) > 5]
  for a, b in [*ends[:4], *ends[-4:]]:
    quiz += [{"texts": [" ".join(a[-7:] + b[:6])]}]  # in no document
  quiz += [{"texts": [" ".join(ends[0][0][-13:])]}]
  exam = [quiz[0], {"texts": [cut(12)]}, {"texts": ["too short"]}]
  words = cut(6).split(), cut(6).split()
  exam += [{"texts": [" ".join(words[0]), " ".join(words[1])]}]
  exam += [{"texts": ["nobody wrote these words, eight or more, in any text"]}]
  for name, records in (("quiz.jsonl", quiz), ("exam.json", exam)):
    (folder / name).write_text("\n".join(map(json.dumps, records)))
  return quiz, exam


def test_rows_with_items_are_left_out_and_no_others(made, tmp_path):
  folder, corpus, texts = made
  sets = write_sets(tmp_path, texts)
  out = [found_in(texts, records) for records in sets]
  every = out[0] | out[1]
  assert 8 < len(every) < len(texts) / 2 and out[0] & out[1]
  run(
    folder,
    *SELECT,
    "--config.select.ratio=1",
    f"--config.select.exclude_sets={tmp_path}/quiz.jsonl,{tmp_path}/ex*.json",
    "--config.select.name=clean",
  )
  made_there = folder / "run/selection/clean"
  selection = mp.open_artifact(made_there)
  assert set(texts) - set(selection.rows.ids.tolist()) == every
  counts = selection.manifest.counts
  assert counts["dropped"]["contaminated"] == len(every)
  by_set = {"quiz.jsonl": len(out[0]), "exam.json": len(out[1])}
  assert counts["contaminated"] == by_set
  pieces = sorted(made_there.glob("contaminated-*.parquet"))
  table = pq.read_table(pieces)
  pairs = set(zip(table["row_id"].to_pylist(), table["set"].to_pylist()))
  assert pairs == {(row, name) for o, name in zip(out, by_set) for row in o}
  assert {p.name for p in pieces} < selection.manifest.files.keys()
  words = f"exam.json {len(out[1])}, quiz.jsonl {len(out[0])}"
  for page in "report.html", "card.md":
    assert words in (made_there / page).read_text()
  # The report's measure of a set, over all of D, is the same.
  paths = items.paths([str(tmp_path / "quiz.jsonl")])
  ids = np.array(sorted(texts))
  (measured,) = overlap.measure(corpus.reader, ids, paths, ids)
  assert measured.rows == measured.kept_rows == len(out[0])


def select(corpus, to, sets, **more):
  scores = mp.Scores(corpus, {})
  sets = [str(path) for path in sets]
  return scores.select("tokens", name="s", to=to, exclude_sets=sets, **more)


def test_of_rows_that_are_drawn_some_have_items(made, tmp_path):
  _, corpus, texts = made
  out = found_in(texts, write_sets(tmp_path, texts)[0])
  sets = [tmp_path / "quiz.jsonl"]
  half = select(corpus, tmp_path / "half", sets, ratio=1.0, share=0.5)
  drawn = noise.uniform(np.array(sorted(texts)), 10, 2) < 0.5
  drawn = set(np.array(sorted(texts))[drawn].tolist())
  assert set(half.rows.ids.tolist()) == drawn - out
  counts = half.manifest.counts
  assert counts["dropped"]["not_drawn"] == len(texts) - len(drawn) > 0
  assert counts["dropped"]["contaminated"] == len(out & drawn) > 0
  assert counts["contaminated"] == {"quiz.jsonl": len(out)}


def test_a_run_that_was_stopped_goes_on(made, tmp_path, monkeypatch):
  _, corpus, texts = made
  write_sets(tmp_path, texts)
  sets = [str(tmp_path / "quiz.jsonl")]
  whole = select(corpus, tmp_path / "x/whole", sets, ratio=0.3)
  search, calls = overlap._Grams.search, []

  def stop(self, ids):
    calls.append(len(ids))
    if len(calls) == 3:
      raise KeyboardInterrupt
    return search(self, ids)

  monkeypatch.setattr(overlap._Grams, "search", stop)
  with pytest.raises(KeyboardInterrupt):
    select(corpus, tmp_path / "s", sets, ratio=0.3)
  again = select(corpus, tmp_path / "s", sets, ratio=0.3)
  assert again.fingerprint == whole.fingerprint
  parts = corpus.manifest.counts["parts"]
  assert len(calls) == parts + 1 and sum(calls[:2]) > 0
  # Another criterion beside it reads no row again, another set does.
  scores, options = mp.Scores(corpus, {}), {"exclude_sets": sets, "rows": 9}
  other = scores.select("-tokens", name="o", to=tmp_path / "o", **options)
  assert other.manifest.counts["contaminated"] == {
    "quiz.jsonl": again.manifest.counts["dropped"]["contaminated"]
  }
  assert len(calls) == parts + 1
  select(corpus, tmp_path / "p", [tmp_path / "exam.json"])
  assert len(calls) == 2 * parts + 1


def test_copies_are_looked_for_among_the_others(made, tmp_path):
  """The best copy is not one that is left out for its words."""
  _, corpus, texts = made
  row = next(k for k, v in texts.items() if len(v.split()) > 20)
  item = texts[row].split(" | ")[0]
  (tmp_path / "a.json").write_text(json.dumps([{"q": item}]))
  found = select(
    corpus, tmp_path / "s", [tmp_path / "a.json"], ratio=1.0, max_copies=1
  )
  dropped = found.manifest.counts["dropped"]
  assert dropped["contaminated"] == len(found_in(texts, [{"texts": [item]}]))
  assert row not in found.rows.ids
  assert len(found) + sum(dropped.values()) == len(texts)


def test_another_set_makes_a_selection_outdated(made, tmp_path):
  folder, corpus, _ = made
  path = tmp_path / "a.jsonl"
  path.write_text(json.dumps({"q": "no row has all of these words in it"}))
  first = select(corpus, tmp_path / "s", [path])
  assert first.manifest.counts["contaminated"] == {"a.jsonl": 0}
  assert first.manifest.counts["dropped"]["contaminated"] == 0
  path.write_text(json.dumps({"q": "and no row has these words, all of them"}))
  with pytest.raises(UserError, match=r"inputs\.exclude_sets is"):
    select(corpus, tmp_path / "s", [path])
  with pytest.raises(UserError, match=r"inputs\.exclude_sets is"):
    select(corpus, tmp_path / "s", [])
  path.write_text(json.dumps({"q": "no row has all of these words in it"}))
  assert select(corpus, tmp_path / "s", [path]).fingerprint == first.fingerprint
  path.unlink()  # what was made of it stands
  assert select(corpus, tmp_path / "s", [path]).fingerprint == first.fingerprint
  with pytest.raises(UserError, match="no file of evaluation items"):
    select(corpus, tmp_path / "s", [tmp_path / "mistyped.jsonl"])
  (tmp_path / "empty.jsonl").write_text("\n")
  with pytest.raises(UserError, match=r"is empty.*select\.exclude_sets"):
    select(corpus, tmp_path / "other", [tmp_path / "empty.jsonl"])
  assert not list((tmp_path / "other").glob("*.npy"))
  nobody = f"--config.select.exclude_sets={tmp_path}/none*.jsonl"
  said = refused(folder, *SELECT, nobody, "--dry_run")
  assert re.search("no file of evaluation items .*exclude_sets=", said)


def test_sets_that_cannot_be_found_are_named(made, tmp_path):
  """Too short, or no words at all: a line says so, and 0 rows are listed."""
  folder, *_ = made
  short, mixed = tmp_path / "short.jsonl", tmp_path / "mixed.json"
  short.write_text('{"q": "too short", "a": "no"}\n{"label": 3}\n')
  long = "nobody wrote these words, eight or more, in any text"
  mixed.write_text(json.dumps([{"q": "short"}, {"q": long}]))
  done = run(
    folder,
    *SELECT,
    f"--config.select.exclude_sets={short},{mixed}",
    "--config.select.name=short",
  )
  words = "items have no text of 8 words or more: they are not looked for"
  assert f"warning: short.jsonl: 2 of 2 {words}" in done.stdout
  assert f"[select] mixed.json: 1 of 2 {words}" in done.stdout
  made_there = folder / "run/selection/short"
  counts = mp.open_artifact(made_there).manifest.counts
  assert counts["contaminated"] == {"short.jsonl": 0, "mixed.json": 0}
  for page in "report.html", "card.md":
    text = (made_there / page).read_text()
    assert "mixed.json 0, short.jsonl 0" in text
