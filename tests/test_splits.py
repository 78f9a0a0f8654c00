"""Documents that say their own split go into it whole."""

import hashlib
import itertools
import json
import pathlib
from pydoc_data import topics

import numpy as np
import pytest
from helpers import refused, run

from miniplm_jax.core import manifest
from miniplm_jax.corpus import store, tokenizer
from miniplm_jax.corpus.convert_text import PartRows, RowDecoder, TextRuns

SPLIT = "--config.corpus.split_field=meta.of"
# Two documents in five say none: null, or nothing.
OWN = "train", None, "heldout", "reference", ""
SHARES = {"reference": 0.2, "heldout": 0.1, "teacher": 0.3}  # of tiny_config


def documents():
  names = sorted(topics.topics)[:60]
  for i, name in enumerate(names):
    meta = {"set": "ab"[i % 2], "of": OWN[i % 5]}
    if not meta["of"]:
      del meta["of"]
    yield {"text": topics.topics[name][:1500] + " ünï €", "meta": meta}


def written(path: pathlib.Path, records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """A tokenizer, as arguments."""
  folder = tmp_path_factory.mktemp("tokenizer")
  found = tokenizer.train([topics.topics["if"]], 300, "<|endoftext|>")
  for name, content in found.to_files().items():
    (folder / name).write_bytes(content)
  return "--stages=tokenize", f"--config.corpus.tokenizer={folder}"


def opened(folder):
  return store.Corpus(manifest.read(folder / "run/corpus/manifest.json"))


def content(folder):
  return {
    path.name: path.read_bytes()
    for path in (folder / "run/corpus").glob("in*-*")  # instances and index
  }


@pytest.fixture(scope="module", params=[False, True])
def made(request, given, tmp_path_factory):
  """A corpus of two shards, of documents in either order, and their records."""
  folder, both = tmp_path_factory.mktemp("splits"), list(documents())
  if request.param:
    both.reverse()
  shards = both[:37], both[37:]
  (folder / "text").mkdir()
  for name, records in zip("ab", shards):
    written(folder / f"text/{name}.jsonl", records)
  # So that each file is a part.
  size = (folder / "text/a.jsonl").stat().st_size
  size = f"--config.corpus.part_bytes={size}"
  how = *given, SPLIT, size, "--config.run.tokenize_workers=1"
  done = run(folder, *how, source=folder / "text")
  return folder, shards, how, done


def by_hash(ids, seed=10):
  """The split of a row that says none, from the words of docs/data.md."""
  key = seed.to_bytes(8, "little", signed=True)
  digest = hashlib.blake2b(
    np.asarray(ids, "<i4").tobytes(), digest_size=8, key=key
  ).digest()
  point, ends = int.from_bytes(digest, "big") / 2**64, 0.0
  for split, share in SHARES.items():
    ends += share
    if point < ends:
      return split
  return "train"


def test_a_document_goes_whole_into_its_split(made):
  folder, shards, _, done = made
  corpus = opened(folder)
  encoder = corpus.tokenizer()
  rows = list(corpus.read(range(len(corpus))))
  assert {row.part for row in rows} == {0, 1}
  order = "heldout", "reference", "teacher", "train"
  first = {}  # the split that keeps a row, by its ids
  for row in rows:
    first.setdefault(row.ids.tobytes(), set()).add(order.index(row.split))
  text = {}  # by shard, domain and own split: the rows' ids together
  kept = []
  for i, row in enumerate(rows):
    metas = [shards[row.part][d]["meta"] for d in row.documents]
    (own,) = {meta.get("of", "") for meta in metas}
    assert {meta["set"] for meta in metas} == {row.domain}
    assert row.split == (own or by_hash(row.ids))
    is_first = order.index(row.split) == min(first[row.ids.tobytes()])
    kept.append(row.split if is_first else "none")
    assert corpus.index["split"][i].as_py() == kept[-1]
    text.setdefault((row.part, row.domain, own), []).extend(row.ids.tolist())
  for key, ids in text.items():
    wanted = [
      [*encoder.encode([r["text"]])[0].tolist(), encoder.eos_id]
      for r in shards[key[0]]
      if (r["meta"]["set"], r["meta"].get("of", "")) == key[1:]
    ]
    wanted = list(itertools.chain(*wanted))
    # Of a last row that would be an eos alone there is nothing to score.
    assert ids in (wanted, wanted[:-1]), key
  assert len(text) == 2 * 2 * 4
  # The summary counts them, and what they lack.
  counts = corpus.manifest.counts
  assert "none" in kept
  for split in (*store.SPLITS, "none"):
    n = kept.count(split)
    assert counts[f"split {split}"] == n == len(corpus.rows_of(split)) > 0
  assert counts["lacking a split"] == 24
  assert "24 of 60 documents have no split in field 'meta.of'" in done.stdout


def test_text_is_found_again_though_rows_of_splits_alternate(made):
  """What a student of another tokenizer is trained on: nothing is cut."""
  folder, shards, _, _ = made
  corpus = opened(folder)
  first = len([r for r in corpus.read(range(len(corpus))) if not r.part])
  of_part = range(first)
  rows = corpus.rows_of("heldout")
  rows = rows[rows < first]
  runs = TextRuns(PartRows(RowDecoder(corpus), of_part, rows))
  found = [run.text for run in runs]
  own = [r["text"] for r in shards[0] if r["meta"].get("of") == "heldout"]
  assert set(own) <= set(found)
  assert runs.counts["bytes_dropped"] == 0


def test_what_a_kill_leaves_is_gone_on_from(made):
  folder, _, how, _ = made
  whole, corpus = content(folder), folder / "run/corpus"
  assert len(whole) == 4
  for path in corpus.glob("*-00001-of-*"):
    path.unlink()
  (corpus / "manifest.json").rename(corpus / "manifest.partial.json")
  run(folder, *how, source=folder / "text")
  assert content(folder) == whole
  # Another field is another corpus.
  error = refused(folder, *how[:2], *how[3:], source=folder / "text")
  assert "split_field" in error


def test_without_the_field_rows_are_what_they_were(given, tmp_path):
  written(tmp_path / "text.jsonl", documents())
  run(tmp_path, *given)
  settings = opened(tmp_path).manifest.settings
  assert "split_field" not in settings
  ids = [row.to_bytes() for row in opened(tmp_path).read(range(40))]
  other = tmp_path / "other"
  other.mkdir()
  written(other / "text.jsonl", documents())
  done = run(other, *given, "--config.corpus.split_field=meta.off")
  assert "60 of 60 documents have no split" in done.stdout
  assert [row.to_bytes() for row in opened(other).read(range(40))] == ids


def test_what_is_no_split_is_refused(given, tmp_path):
  records = list(documents())
  records[3]["meta"]["of"] = "test"
  written(tmp_path / "text.jsonl", records)
  error = refused(tmp_path, *given, SPLIT)
  assert "'meta.of' is no split but 'test'" in error and "line 4" in error
  assert "train, reference, heldout, teacher" in error
  # None is left for D.
  for record in records:
    record["meta"]["of"] = "heldout"
  written(tmp_path / "text.jsonl", records)
  error = refused(tmp_path, *given, SPLIT)
  assert "none is left for D" in error and "meta.of=train" in error


def test_equal_rows_are_of_one_split(given, tmp_path):
  """Of two shards, which grow: also what was in a split before."""
  both = list(documents())[:20]
  splits = "train", "reference", "heldout"

  def record(i, split):
    return {"text": both[i]["text"], "meta": {"set": f"d{i}", "of": split}}

  shards = {
    "a": [record(i, "train") for i in range(12)] + [record(12, "reference")],
    "b": [record(i, splits[i % 3]) for i in range(6)] + [record(12, "heldout")],
  }
  (tmp_path / "text").mkdir()
  how = *given, SPLIT, "--config.corpus.part_bytes=20000"
  for names in ("a", "ab"):
    name = names[-1]
    written(tmp_path / f"text/{name}.jsonl", shards[name])
    done = run(tmp_path, *how, "--force", source=tmp_path / "text")
  rows = opened(tmp_path).index
  split, hashes = rows["split"].to_pylist(), rows["hash"].to_pylist()
  domain = rows["domain"].to_pylist()
  of = {}
  for own, hashed in zip(split, hashes):
    if own != "none":
      assert of.setdefault(hashed, own) == own
  found = {
    f"d{i}": {s for d, s in zip(domain, split) if d == f"d{i}"}
    for i in range(13)
  }
  expected = {
    "d0": {"train"},
    "d1": {"none", "reference"},
    "d2": {"none", "heldout"},
  }
  expected |= {"d12": {"none", "heldout"}, "d11": {"train"}}
  assert {name: found[name] for name in expected} == expected
  counts = opened(tmp_path).manifest.counts
  for name in ("train", "reference", "heldout", "none"):
    assert counts.get(f"split {name}", 0) == split.count(name)
  assert f"{split.count('none'):,} rows are equal to a row of" in done.stdout
