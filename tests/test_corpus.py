import collections
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import embedded, sources, store, tokenizer
from miniplm_jax.corpus.store import StoredRow, hash_of, split_of

RECORDS = [
  {"text": "one\rtwo", "meta": {"set": "a", "of": "heldout"}},
  {"text": "ünï", "meta": {"set": "b"}},
]


def lines():
  return "".join(json.dumps(r) + "\n" for r in RECORDS).encode()


def read(path, domain="meta.set"):
  corpus = CorpusConfig(
    source=str(path), domain_field=domain, split_field="meta.of"
  )
  parts = sources.list_chunks(corpus)
  return [d for part in parts for d in part.read()]


def test_every_format_gives_the_same_documents(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(lines())
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines()))
  with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as f:
    f.write(lines())
  pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
  for path in tmp_path.iterdir():
    found = [(d.text, d.domain, d.split) for d in read(path)]
    assert found == [("one\rtwo", "a", "heldout"), ("ünï", "b", "")], path
  assert len(read(tmp_path)) == len(read(f"{tmp_path}/a.*")) == 8
  assert {d.domain for d in read(tmp_path, "")} == {"a"}
  assert {d.domain for d in read(tmp_path, "missing")} == {"a"}


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (b"{broken\n", "line 3"),
    (b'{"meta": {"set": "a"}}\n', "no text in field 'text'"),
    (b'{"text": "x", "meta": {"set": 3}}\n', "no text but 3"),
    (b'{"text": "x", "meta": {"of": "test"}}\n', "no split but 'test'"),
    (b'{"text": "x", "meta": {"of": ["train"]}}\n', "no split but"),
    (b'{"text": "\\ud800"}\n', "not valid Unicode"),
    (b'{"text": "x", "meta": {"set": "\\ud800"}}\n', "not valid Unicode"),
    (b'{"text": 1' + b"0" * 5000 + b"}\n", "cannot be read as JSON"),
    (b'{"text": "\xff"}\n', "line 3"),
  ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
  path = tmp_path / "a.jsonl"
  path.write_bytes(lines() + line)
  good, broken = read(path)[:2], read(path)[2]
  assert [d.domain for d in good] == ["a", "b"]
  assert "line 3" in broken.where
  assert message in f"{broken.what}, {broken.where}"


def test_nothing_there_and_unknown_formats_are_refused(tmp_path):
  with pytest.raises(UserError, match="no file of documents"):
    read(tmp_path)
  (tmp_path / "a.csv").write_text("x")
  with pytest.raises(UserError, match="not a known format"):
    read(tmp_path / "a.csv")


def test_an_instance_survives_its_record():
  ids = np.array([1, 2, 300_000], np.int32)
  one = StoredRow(ids, "d", "train", 3, (4, 5), 6, 7, 2**64 - 1)
  two = StoredRow.from_bytes(one.to_bytes())
  np.testing.assert_array_equal(two.ids, ids)
  assert (two.domain, two.split, two.part) == ("d", "train", 3)
  assert (two.documents, two.offset) == ((4, 5), 6)
  assert (two.n_bytes, two.hash) == (7, 2**64 - 1)


def test_splits_follow_the_shares_the_seed_and_the_content():
  shares = [("reference", 0.2), ("heldout", 0.1)]
  rows = [np.array([i, i + 1], np.int32) for i in range(5000)]

  def split(row, seed):
    return split_of(hash_of(row, seed), shares)

  splits = [split(r, 1) for r in rows]
  assert abs(splits.count("reference") / 5000 - 0.2) < 0.02
  assert abs(splits.count("heldout") / 5000 - 0.1) < 0.02
  assert splits == [split(r.copy(), 1) for r in rows]
  assert splits != [split(r, 2) for r in rows]


def test_the_embedded_corpus_is_a_third_clean_and_holds_back_documents():
  corpus = CorpusConfig(fields=("clean",), split_field="split")
  parts = embedded.list_chunks(corpus)
  documents = [d for part in parts for d in part.read()]
  assert {d.domain: d.numbers[0] for d in documents} == dict.fromkeys(
    ("source", "docstring", "topic", "readme"), 1.0
  ) | dict.fromkeys(("easy", "noise"), 0.0)
  texts = [d.text for d in documents]
  assert len(set(texts)) == len(texts)
  size, words = collections.Counter(), set()
  passages = {split: set() for split in store.SPLITS}
  for d in documents:
    kind = "clean" if d.numbers[0] else d.domain
    size[d.split, kind] += len(d.text)
    if kind == "clean":
      passages[d.split] |= {s for s in d.text.split("\n\n") if len(s) > 200}
    if kind == "noise" and d.split == "train":
      words |= set(d.text.split())
  # Digits and markup are more tokens than as many letters of text.
  for split in "train", "reference":
    assert 0.55 < size[split, "easy"] / size[split, "clean"] < 0.7
    assert 0.8 < size[split, "noise"] / size[split, "clean"] < 1
  # Nothing long of what is held out is elsewhere, nor its words, shuffled.
  heldout = passages.pop("heldout")
  assert not heldout & set().union(*passages.values())
  clean = (d for d in documents if d.numbers[0] and d.split == "train")
  assert words <= {w for d in clean for w in d.text.split()}
  fingerprint = parts[0].probe.fingerprint
  plain = embedded.list_chunks(CorpusConfig())
  assert fingerprint == plain[0].probe.fingerprint
  assert {d.split for part in plain for d in part.read()} == {""}


def test_the_bytes_of_tokens_join_to_the_text():
  texts = ["Zażółć\tgęślą 🙂\n", "def f(): pass"]
  found = tokenizer.train(texts * 3, 300, "<|endoftext|>")
  each = found.token_bytes()
  for text, ids in zip(texts, found.encode(texts)):
    assert b"".join(each[i] for i in ids) == text.encode()
    assert found.byte_lengths[ids].sum() == len(text.encode())
  assert each[found.eos_id] == b""
