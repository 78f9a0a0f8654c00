"""Text as it comes: what is read of a source, and what a changed one does."""

import bz2
import codecs
import gzip
import json
import lzma
import os
import pathlib
import pickle
import random
import shutil
import struct
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from helpers import steps_of

from miniplm_jax import config as config_lib
from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import contents, files, manifest
from miniplm_jax.core import execute as execute_lib
from miniplm_jax.core.decide import decide
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import (
  chunks,
  folders,
  formats,
  shard,
  sources,
  store,
  summary,
  tokenize_step,
  tokenizer,
)
from miniplm_jax.corpus import datasets as datasets_lib

LINES = [f"Sentence {i} of a text. " * 8 for i in range(12)]


def write(path, texts, **more):
  """JSON lines with these texts."""
  path.parent.mkdir(parents=True, exist_ok=True)
  records = ({"text": text, **more} for text in texts)
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  found = tokenizer.train(LINES, 300, "<|endoftext|>")
  for name, content in found.to_files().items():
    (folder / name).write_bytes(content)
  return folder


class Run:
  """Stage tokenize of a source, in this process."""

  def __init__(self, folder, source, vocabulary):
    self.config = config_lib.default()
    c = self.config.corpus
    c.source, c.tokenizer = str(source), str(vocabulary)
    c.max_length, c.reference_share, c.heldout_share = 32, 0.0, 0.0
    self.config.run.tokenize_workers = 1
    self.folder = epath.Path(folder) / "run"

  def __call__(self, force=False):
    execute_lib.execute(self.steps(), force)
    return json.loads((self.folder / "corpus/manifest.json").read_text())

  def status(self):
    (step,) = self.steps()
    return str(decide(step))

  def steps(self):
    self.config.workdir = str(self.folder)
    return steps_of(tokenize_step.STAGE, self.config)

  def files(self):
    found = pathlib.Path(self.folder).rglob("*")
    notes = {"source_seen.json"}  # of times of files
    return {
      p.name: p.read_bytes()
      for p in found
      if p.is_file() and p.name not in notes
    }


@pytest.mark.parametrize("change", ["broken", "more", "fewer", "other"])
def test_a_finished_corpus_outlives_its_source(tmp_path, vocabulary, change):
  texts = tmp_path / "texts"
  for i in range(2):
    write(texts / f"f{i}.jsonl", LINES[i::2])
  run = Run(tmp_path, texts, vocabulary)
  run()
  before = run.files()
  kept = (texts / "f1.jsonl").read_bytes()
  if change == "broken":
    (texts / "a_new.jsonl").write_text("{broken\n")
  elif change == "more":
    write(texts / "a_new.jsonl", LINES)
  elif change == "fewer":
    (texts / "f1.jsonl").unlink()
  else:
    write(texts / "f1.jsonl", LINES[:3])
  named = {"fewer": "gone from the source: f1.jsonl", "other": "f1.jsonl"}
  named = named.get(change, "new in the source: a_new.jsonl")
  assert "would be refused" in run.status() and named in run.status()
  with pytest.raises(UserError, match=named) as e:
    run()
  assert "--force" in str(e.value) and "inputs.source" in str(e.value)
  assert run.files() == before
  # The source as it was is nothing to do; another one is taken by force.
  (texts / "f1.jsonl").write_bytes(kept)
  (texts / "a_new.jsonl").unlink(missing_ok=True)
  run()
  assert run.files() == before
  write(texts / "a_new.jsonl", LINES)
  assert run(force=True)["counts"]["parts"] == 3
  assert not any("of-00002" in name for name in run.files())


def test_a_finished_corpus_stands_without_its_text(
  tmp_path, vocabulary, capsys
):
  text = tmp_path / "text.jsonl"
  write(text, LINES)
  run = Run(tmp_path, text, vocabulary)
  made = run()
  text.rename(tmp_path / "elsewhere.jsonl")
  assert run.status() == "done" and run() == made
  assert "what was made of it stands" in capsys.readouterr().out
  run.config.corpus.max_length = 16
  assert "settings.max_length" in run.status()
  run.config.corpus.max_length = 32
  run.config.corpus.source = str(tmp_path / "mistyped.jsonl")
  assert "no file of documents is there" in run.status()
  manifest = run.folder / "corpus/manifest.json"
  manifest.rename(run.folder / "corpus/manifest.partial.json")
  run.config.corpus.source = str(text)
  before = run.files()
  with pytest.raises(UserError, match="no file of documents is there"):
    run()
  assert run.files().keys() == before.keys()


@pytest.mark.parametrize(
  ("source", "workdir"), [("", "run"), ("**/*.*", "run"), ("", "."), ("*", ".")]
)
def test_what_stages_write_is_no_part_of_their_source(
  tmp_path, vocabulary, monkeypatch, source, workdir
):
  write(tmp_path / "a.jsonl", LINES)
  monkeypatch.chdir(tmp_path)
  run = Run("", tmp_path / source, vocabulary)
  run.folder = epath.Path(workdir)  # by a path from here
  write(run.folder / "broken_records.jsonl", ["of the first try"])
  made = run()
  assert run.status() == "done" and run(force=True)["files"] == made["files"]
  assert made["counts"]["documents"] == len(LINES)


def test_a_trained_tokenizer_outlives_a_broken_record(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text("oops\n")
  write(tmp_path / "b.jsonl", LINES)
  run = Run(tmp_path, tmp_path, "train")
  run.config.corpus.vocab_size = 300
  with pytest.raises(UserError, match="cannot be read as JSON"):
    run()
  trained = run.folder / "corpus/tokenizer/tokenizer.json"
  before = trained.stat()
  run.config.run.max_broken = 1
  assert run()["counts"]["broken"] == 1
  assert trained.stat().mtime == before.mtime


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_shard_without_its_rows_is_made_again(tmp_path, vocabulary, damage):
  write(tmp_path / "a.jsonl", LINES)
  run = Run(tmp_path, tmp_path, vocabulary)
  before = run()["files"]
  (rows,) = run.folder.glob("corpus/*.array_record")
  content = rows.read_bytes()
  rows.unlink()
  if damage == "cut":
    rows.write_bytes(content[:-1])
  with pytest.raises(UserError, match=r"rename manifest\.json to") as e:
    run()
  corpus = run.folder / "corpus"
  (corpus / "manifest.json").rename(corpus / "manifest.partial.json")
  assert run()["files"] == before and rows.read_bytes() == content, e


def test_a_source_may_lie_in_its_workdir(tmp_path):
  write(tmp_path / "data/a.jsonl", LINES)
  for source in ("data", "data/*.jsonl", "*/*.jsonl"):
    corpus = CorpusConfig(source=str(tmp_path / source))
    (part,) = sources.list_chunks(corpus, workdir=tmp_path)
    assert part.name.endswith("a.jsonl")


def test_no_workdir_s_rows_are_read_with_what_they_were_made_from(
  tmp_path, vocabulary, capsys
):
  folders._note.cache_clear()
  write(tmp_path / "texts/a.jsonl", LINES)
  run = Run(tmp_path / "texts/old", tmp_path / "texts", vocabulary)
  run()
  written = write(run.folder / "selection/x/materialized/0.jsonl", LINES)
  beside = write(run.folder / "beside.jsonl", LINES)
  folder = write(tmp_path / "texts/my/corpus/manifest.json", ["a"]).parent
  write(folder / "b.jsonl", LINES)
  for manifest_name in ("manifest.json", "manifest.partial.json"):
    corpus = run.folder / "corpus"
    os.rename(corpus / "manifest.json", corpus / manifest_name)
    parts = sources.list_chunks(CorpusConfig(source=f"{tmp_path}/texts"))
    names = ["a.jsonl", "my/corpus/b.jsonl", "old/run/beside.jsonl"]
    assert [part.name for part in parts] == names
  assert f"stages wrote into {run.folder}" in capsys.readouterr().out
  # Who names them means them.
  for named in (written, written.parent, f"{run.folder}/*/*/*/*.jsonl"):
    (part,) = sources.list_chunks(CorpusConfig(source=str(named)))
    assert part.name.endswith("0.jsonl") and beside.exists()


def test_a_name_that_is_no_text_is_refused(tmp_path):
  folder = os.fsencode(tmp_path) + b"/caf\xe9"
  os.mkdir(folder)
  write(pathlib.Path(os.fsdecode(folder), "a.jsonl"), LINES)
  with pytest.raises(UserError, match=r"not UTF-8, '.*caf\\udce9/a.jsonl'"):
    sources.list_chunks(CorpusConfig(source=str(tmp_path)))


def test_an_unfinished_corpus_keeps_its_shards_until_others_stand(
  tmp_path, vocabulary
):
  texts = tmp_path / "texts"
  for i in range(2):
    write(texts / f"f{i}.jsonl", LINES[i::2])
  bad = texts / "g.jsonl"
  bad.write_text("{broken\n")
  run = Run(tmp_path, texts, vocabulary)
  with pytest.raises(UserError, match=r"g\.jsonl line 1"):
    run()
  first = run.folder / "corpus/index-00000-of-00003.parquet"
  there = first.read_bytes()
  # A glob that misses a file for a moment, and then another error.
  (texts / "f1.jsonl").rename(tmp_path / "f1.jsonl")
  with pytest.raises(UserError, match=r"g\.jsonl line 1"):
    run()
  assert first.read_bytes() == there
  (tmp_path / "f1.jsonl").rename(texts / "f1.jsonl")
  write(bad, LINES[:1])
  assert run()["counts"]["parts"] == 3
  assert first.read_bytes() == there
  assert not any("of-00002" in name for name in run.files())


def read(source, split="train", domain="domain", workdir="", **more):
  """(documents and broken records, parts) of a source."""
  more |= {"split": split, "domain_field": domain}
  corpus = CorpusConfig(source=str(source), **more)
  parts = sources.list_chunks(corpus, workdir)
  return [record for part in parts for record in part.read()], parts


def texts_of(source, **more):
  return [d.text for d in read(source, **more)[0]]


def domains_of(source, **more):
  return [d.domain for d in read(source, **more)[0]]


def parquet(path, column, **columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.table({"text": column} | columns), path)
  return path


def test_a_split_matters_where_there_are_splits(tmp_path):
  """It decides which files are read, and these are known by themselves."""
  write(tmp_path / "plain/x.jsonl", ["1"])
  for name in ("train", "test"):
    write(tmp_path / f"split/{name}.jsonl", [name])

  def facts(source, split):
    config = config_lib.default()
    config.corpus.update(source=str(source), split=split)
    config.corpus.update(tokenizer="train", vocab_size=512)
    config.workdir = str(tmp_path / "run")
    (step,) = steps_of(tokenize_step.STAGE, config)
    kept = {k: v for k, v in step.settings.items() if k not in step.idle}
    return kept, step.inputs["source"]()

  def differs(source):
    return facts(source, "train") != facts(source, "test")

  assert not differs(tmp_path / "plain")
  assert differs(tmp_path / "split")


def test_a_folder_of_splits_is_read_as_datasets_does(tmp_path, capsys):
  folders._note.cache_clear()
  for name in ("train", "test", "validation"):
    parquet(tmp_path / f"a/{name}-00000-of-00001.parquet", [f"{name} 1"])
    write(tmp_path / f"b/{name}/x.jsonl", [f"{name} 2"])
  write(tmp_path / "a/more.jsonl", ["more"])
  assert texts_of(tmp_path / "a") == ["more", "train 1"]
  said = capsys.readouterr().out
  assert "other splits are left out: test, validation" in said
  assert texts_of(tmp_path / "b") == ["train 2"]
  for asked, name in (("test", "test"), ("dev", "validation")):
    assert texts_of(tmp_path / "a", split=asked) == [f"{name} 1"]
    assert texts_of(tmp_path / "b", split=asked) == [f"{name} 2"]
  with pytest.raises(UserError, match="one of test, train, validation"):
    read(tmp_path / "a", split="sft")
  # What is named is read; words in the names of texts say nothing.
  assert texts_of(f"{tmp_path}/a/t*.parquet") == ["test 1", "train 1"]
  (tmp_path / "c").mkdir()
  for name in ("the_test", "a_train"):
    (tmp_path / f"c/{name}.txt").write_text(name)
  assert sorted(texts_of(tmp_path / "c")) == ["a_train", "the_test"]


def frames(pack):
  """Texts, and two frames of them: the second begins within a line."""
  texts = [f"{i} " * 50 for i in range(3)]
  lines = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
  body = b"".join(lines)
  return texts, pack(body[:200]) + pack(body[200:])


def zstd(body):
  sink = pa.BufferOutputStream()
  with pa.CompressedOutputStream(sink, "zstd") as f:
    f.write(body)
  return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
  ("ending", "pack"),
  [
    ("gz", gzip.compress),
    ("zst", zstd),
    ("bz2", bz2.compress),
    ("xz", lzma.compress),
  ],
)
def test_packed_files_are_read_to_their_end_or_refused(tmp_path, ending, pack):
  wanted, body = frames(pack)
  path = tmp_path / f"a.jsonl.{ending}"
  path.write_bytes(body)
  assert texts_of(path) == wanted
  path.write_bytes(body[:-5])
  with pytest.raises(UserError, match=r"a\.jsonl.* after line \d, fetch it"):
    read(path)
  for bad in (b"no packed file, whatever its name says", b""):
    path.write_bytes(bad)
    with pytest.raises(UserError, match="after line 0"):
      read(path)
  # After the first frame: damage, what is no frame, half of a frame's start.
  for bad in (
    body[:-30] + bytes(9) + body[-21:],
    body + b"more",
    body + body[:3],
  ):
    path.write_bytes(bad)
    with pytest.raises(UserError, match=r"a\.jsonl.* after line \d, fetch it"):
      read(path)


def test_other_tools_pack_otherwise(tmp_path):
  wanted, body = frames(gzip.compress)
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(body + bytes(512))  # padded to a block of a tape
  assert texts_of(path) == wanted
  # As xz allows, also between streams.
  path = tmp_path / "a.jsonl.xz"
  lines = [json.dumps({"text": t}).encode() + b"\n" for t in wanted]
  path.write_bytes(b"".join(lzma.compress(li) + bytes(4) for li in lines))
  assert texts_of(path) == wanted
  # One frame with a window of 2 GiB that holds one raw block.
  line = b'{"text": "hello"}\n'
  frame = b"\x28\xb5\x2f\xfd\x00\xa8"
  frame += (1 | len(line) << 3).to_bytes(3, "little")
  path = tmp_path / "b.jsonl.zst"
  path.write_bytes(frame + line)
  with pytest.raises(UserError, match="repack it by zstd -d --long=31"):
    read(path)
  # Frames that hold no data, as pzstd writes them.
  skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
  wanted, body = frames(zstd)
  path.write_bytes(skipped + body + skipped)
  assert texts_of(path) == wanted


def test_columns_of_every_kind(tmp_path):
  words = ["one", "two", "ünï"]
  for i, kind in enumerate(
    (
      pa.string(),
      pa.large_string(),
      pa.binary(),
      pa.large_binary(),
      pa.string_view(),
      pa.dictionary(pa.int32(), pa.string()),
    )
  ):
    path = parquet(tmp_path / f"{i}.parquet", pa.array(words).cast(kind))
    assert texts_of(path) == words, kind
  for i, column in enumerate(
    (pa.nulls(2), pa.array([1, 2]), pa.array([["a"], ["b"]]))
  ):
    path = parquet(tmp_path / f"bad{i}.parquet", column)
    found = read(path)[0]
    assert [str(b.where)[-5:] for b in found] == ["row 0", "row 1"]
    assert "no text in field 'text'" in found[0].what


def test_a_page_that_is_not_what_its_checksum_says_is_refused(tmp_path):
  path = tmp_path / "a.parquet"
  pq.write_table(
    pa.table({"text": ["what was written"]}),
    path,
    compression="none",
    write_page_checksum=True,
    use_dictionary=False,
    write_statistics=False,
  )
  assert texts_of(path) == ["what was written"]
  path.write_bytes(path.read_bytes().replace(b"written", b"damaged"))
  with pytest.raises(UserError, match=r"a\.parquet"):
    read(path)


def test_a_cell_that_cannot_be_decoded_is_one_broken_record(tmp_path):
  raw = pa.array([b"good", b"b\xffd", b"fine"], pa.binary())
  cells = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
  good, broken, fine = read(parquet(tmp_path / "a.parquet", cells))[0]
  assert (good.text, fine.text) == ("good", "fine")
  assert "row 1" in broken.where and "cannot be decoded" in broken.what
  # In the metadata, too: a year beyond Python's.
  year = pa.array([0, 1 << 60, 0], pa.timestamp("ms"))
  meta = pa.StructArray.from_arrays([pa.array(["x"] * 3), year], ["set", "at"])
  path = parquet(tmp_path / "b.parquet", ["a", "b", "c"], meta=meta)
  _, broken, _ = read(path, domain="meta.at")[0]
  assert "cannot be decoded" in broken.what and "row 1" in broken.where
  assert domains_of(path, domain="meta.set") == ["x"] * 3  # not asked for


def test_metadata_in_metadata(tmp_path):
  pairs = pa.array([[("set", "wiki")]], pa.map_(pa.string(), pa.string()))
  for i, columns in enumerate(
    (
      {"meta": pairs},
      {"meta": [{"set": "wiki", "other": 1}]},
      {"meta": ['{"set": "wiki"}']},
      {"meta": [b' {"set": "wiki"}']},
      {"meta.set": ["wiki"]},
    )
  ):
    path = parquet(tmp_path / f"{i}.parquet", ["text"], **columns)
    assert domains_of(path, domain="meta.set") == ["wiki"], columns
  deep = write(tmp_path / "a.jsonl", ["text"], a='{"b": {"c.d": "wiki"}}')
  assert domains_of(deep, domain="a.b.c.d") == ["wiki"]
  deep = write(tmp_path / "a.jsonl", ["text"], **{"a.b": {"c": "wiki"}, "a": 1})
  assert domains_of(deep, domain="a.b.c") == ["wiki"]
  deep = parquet(tmp_path / "b.parquet", ["text"], **{"a.b": [{"c": "wiki"}]})
  assert domains_of(deep, domain="a.b.c") == ["wiki"]
  for meta in ('{"set": wiki}', b" {", "{" * 99_999):
    path = parquet(tmp_path / "b.parquet", ["text"], meta=[meta])
    (broken,) = read(path, domain="meta.set")[0]
    assert "string cannot be read as JSON" in broken.what
  # What is no record has none.
  for value in ("set", "[1]", 3, [], [["set", "wiki"]], None):
    path = write(tmp_path / "a.jsonl", ["text"], meta=value)
    assert domains_of(path, domain="meta.set") == ["a"]


def test_domains_by_folder_and_by_partition(tmp_path):
  for name in ("arxiv/a", "arxiv/b", "c4/c4-train.0", "top-00000-of-00002"):
    write(tmp_path / f"lines/{name}.jsonl", [name])
  assert domains_of(tmp_path / "lines") == ["arxiv", "arxiv", "c4", "top"]
  assert domains_of(f"{tmp_path}/lines/*/*.jsonl") == ["arxiv", "arxiv", "c4"]
  for name in ("year=2020/source=arxiv", "year=2021/source=a%20b"):
    parquet(tmp_path / f"hive/{name}/part-0.parquet", ["text"])
  assert domains_of(tmp_path / "hive", domain="source") == ["arxiv", "a b"]
  assert domains_of(tmp_path / "hive") == ["2020", "2021"]
  # A value that is empty is none.
  write(tmp_path / "empty/set=/x.jsonl", ["text"])
  for field in ("set", "domain"):
    assert domains_of(tmp_path / "empty", domain=field) == ["x"]
  # Records that have one keep it.
  write(tmp_path / "lines/c4/c4-train.0.jsonl", ["x"], domain="own")
  assert domains_of(tmp_path / "lines")[2] == "own"


@pytest.mark.parametrize("kind", ["jsonl", "txt", "bin"])
def test_however_a_source_is_written_its_domains_stay(
  tmp_path, monkeypatch, kind
):
  def put(name):
    if kind == "bin":
      return indexed(tmp_path / name, [[1, 2]], [0])
    return write(tmp_path / f"{name}.{kind}", ["text"])

  def domains(source):
    """As it is, and by a path from the folder that it lies in."""
    monkeypatch.chdir(tmp_path / source.parent)
    found = domains_of(source, domain="set")
    there = read(source.name, domain="set")
    assert [d.domain for d in there[0]] == found
    corpus = CorpusConfig(source=str(source), domain_field="set")
    parts = sources.list_chunks(corpus)
    assert sources.fingerprint(there[1]) == sources.fingerprint(parts)
    return found

  assert domains(put("web/one")) == ["one" if kind == "jsonl" else "web"]
  assert domains(put("set=a%20b/c/one")) == ["a b"]
  # Folders, whose names may look like a pattern, and patterns.
  for name in ("br[1]", "br?", "br*", "br"):
    for below in ("x/deep/a", "y/a"):
      put(f"{name}/{below}")
    assert sorted(domains(tmp_path / name)) == ["x", "y"], name
  assert sorted(domains_of(f"{tmp_path}/br/**/*.{kind}")) == ["x", "y"]


def test_a_domain_that_a_folder_gives_is_in_the_fingerprint(tmp_path):
  def fingerprint(folder):
    return sources.fingerprint(read(folder)[1])

  for kind in ("txt", "jsonl"):
    folder = tmp_path / kind
    for name in ("x", "y", "z"):
      write(folder / f"{name}/same.{kind}", ["text"])
    before = fingerprint(folder)
    shutil.copytree(folder, tmp_path / f"moved_{kind}")
    assert fingerprint(tmp_path / f"moved_{kind}") == before
    (folder / "y").rename(folder / "yy")  # neither the first nor the last
    assert fingerprint(folder) != before


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("start", [b"", codecs.BOM_UTF8, b" \n" * 99])
def test_an_array_of_records(tmp_path, monkeypatch, indent, start):
  monkeypatch.setattr(formats, "_READ_BYTES", 7)
  wanted = ["a", "ü,]}" * 100, "", "c [1, 2", "d"]
  body = json.dumps([{"text": t, "n": [[], {}]} for t in wanted], indent=indent)
  path = tmp_path / "a.json"
  path.write_bytes(start + body.encode())
  found, parts = read(path, part_bytes=20)
  assert [d.text for d in found] == wanted and len(parts) == 1
  packed = gzip.compress(start) + gzip.compress(body.encode())
  path.with_suffix(".json.gz").write_bytes(packed)
  assert texts_of(path.with_suffix(".json.gz")) == wanted
  path.write_text("[]")
  assert texts_of(path) == []
  for bad in (body[:-1], body[:-5], body + "x", body.replace(":", ";", 1)):
    path.write_text(bad)
    with pytest.raises(UserError, match="after element"):
      read(path)
  path.write_text('[1, {"text": "a"}, "b", [2]]')
  kinds = [type(r).__name__ for r in read(path)[0]]
  broken = "BrokenRecord"
  assert kinds == [broken, "Document", broken, broken]


def test_marks_of_byte_order_are_no_text(tmp_path):
  for name, body in (
    ("x.txt", b"Hello."),
    ("y.md", b"Hello."),
    ("z.jsonl", b'{"text": "Hello."}\n{"text": "Hello."}\n'),
  ):
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + body)
    assert set(texts_of(tmp_path / name, part_bytes=16)) == {"Hello."}
  assert len(texts_of(tmp_path / "z.jsonl", part_bytes=20)) == 2


def test_what_is_left_out_of_a_folder_is_said(tmp_path, capsys):
  folders._note.cache_clear()
  for name in ("a.jsonl", "B.JSONL", "c.ndjson", "d.csv", "E.csv", "README"):
    write(tmp_path / name, [name])
  for name in ("f.jsonl.lz4", "g.md", "LICENSE.txt", "h", ".hidden"):
    (tmp_path / name).write_bytes(b"x")
  packed = gzip.compress((tmp_path / "a.jsonl").read_bytes())
  (tmp_path / "i.json.GZ").write_bytes(packed)
  assert texts_of(tmp_path) == ["B.JSONL", "a.jsonl"]
  said = capsys.readouterr().out.strip()
  assert said.endswith(": 1 .GZ, 2 .csv, 1 .lz4, 1 .md, 1 .ndjson, 1 h")
  assert texts_of(tmp_path / "i.json.GZ") == ["a.jsonl"]


def test_a_glob_takes_a_file_once(tmp_path):
  write(tmp_path / "x/y/a.jsonl", ["a"])
  assert texts_of(f"{tmp_path}/**/**/*.jsonl") == ["a"]


def test_a_folder_that_a_glob_names_is_read(tmp_path):
  write(tmp_path / "src/b.jsonl/part-0.jsonl", ["b"])
  parquet(tmp_path / "src/a.parquet/part-0.parquet", ["a"])
  (tmp_path / "src/a.parquet/_SUCCESS").touch()
  write(tmp_path / "src/workdir/bad.jsonl", ["ours"])
  workdir = tmp_path / "src/workdir"
  for pattern in ("src/*", "src/**", "src/**/*", "*"):
    found = texts_of(f"{tmp_path}/{pattern}", workdir=workdir)
    assert sorted(found) == ["a", "b"]
  assert texts_of(f"{tmp_path}/src/*.parquet") == ["a"]


def test_what_is_packed_beside_itself_is_said(tmp_path, capsys):
  folders._note.cache_clear()
  for name in ("a.jsonl", "b.jsonl"):
    write(tmp_path / name, [name])
  packed = gzip.compress((tmp_path / "a.jsonl").read_bytes())
  (tmp_path / "a.jsonl.gz").write_bytes(packed)
  assert len(texts_of(tmp_path)) == 3
  said = capsys.readouterr().out
  assert "a.jsonl and a.jsonl.gz may be one text, read twice" in said


def test_a_file_of_several_names_is_read_once(tmp_path, capsys):
  folders._note.cache_clear()
  write(tmp_path / "s/v2/a.jsonl", ["once"])
  (tmp_path / "s/latest").symlink_to("v2")
  (tmp_path / "s/b.jsonl").symlink_to("v2/a.jsonl")
  for source in ("s", "s/*", "s/**/*.jsonl"):
    assert texts_of(f"{tmp_path}/{source}") == ["once"], source
  assert "a.jsonl, another name of " in capsys.readouterr().out
  (tmp_path / "s/b.parquet").write_bytes(
    parquet(tmp_path / "b.parquet", ["once"]).read_bytes()
  )
  assert len(texts_of(tmp_path / "s")) == 2
  assert "b.jsonl and b.parquet may be one text" in capsys.readouterr().out
  write(tmp_path / "t/part.0001.jsonl", ["a"])
  write(tmp_path / "t/part.0002.jsonl", ["b"])
  texts_of(tmp_path / "t", split="validation")
  said = capsys.readouterr().out
  assert "no name says a split" in said and "may be one text" not in said


def test_a_folder_of_data_sets_is_no_data_set(tmp_path):
  pytest.importorskip("datasets")
  for name in "ab":
    saved(tmp_path / "sets" / name, [name])
  with pytest.raises(UserError, match=r"give one of them, as .*/sets/a"):
    read(tmp_path / "sets")
  write(tmp_path / "crawl/a.jsonl", ["a"])
  (tmp_path / "crawl/state.json").write_text("{}")
  assert texts_of(tmp_path / "crawl") == ["a"]


def test_links_are_followed_and_nothing_is_passed_over(tmp_path, monkeypatch):
  """A file of two names is read once."""
  texts = tmp_path / "texts"
  for name in ("texts/own/a", "texts/.hidden/a", "disk/deep/b"):
    write(tmp_path / f"{name}.jsonl", [name])
  (texts / "more").symlink_to(tmp_path / "disk")
  (tmp_path / "disk/back").symlink_to(texts)  # and in a circle
  (texts / "c.jsonl").symlink_to(tmp_path / "disk/deep/b.jsonl")
  (texts / ".#lock").symlink_to("nobody@nowhere")
  assert texts_of(texts) == ["disk/deep/b", "texts/own/a"]
  (texts / "own/gone").symlink_to(tmp_path / "nowhere")
  with pytest.raises(UserError, match=r"no file, no folder.*own/gone"):
    read(texts)
  (texts / "own/gone").unlink()
  scan = files.os.scandir

  def scandir(folder):  # tests may run as root, who may read anything
    if folder.endswith("deep"):
      raise PermissionError(13, "Permission denied", folder)
    return scan(folder)

  monkeypatch.setattr(files.os, "scandir", scandir)
  with pytest.raises(OSError, match="deep"):
    read(texts)


def test_a_bin_of_anything_is_no_packed_rows(tmp_path):
  write(tmp_path / "train.jsonl", ["text"])
  (tmp_path / "classifier.bin").write_bytes(bytes(64))
  assert texts_of(tmp_path) == ["text"]


def indexed(prefix, sequences, ends):
  """A pair of Megatron's with uint16 ids, by the format's description."""
  prefix.parent.mkdir(parents=True, exist_ok=True)
  sizes = np.array([len(s) for s in sequences], "<i4")
  offsets = np.cumsum(np.append(0, sizes[:-1]), dtype="<i8") * 2
  header = struct.pack("<9sQBQQ", b"MMIDIDX", 1, 8, len(sizes), len(ends))
  body = (header, sizes.tobytes(), offsets.tobytes())
  body += (np.array(ends, "<i8").tobytes(),)
  prefix.with_suffix(".idx").write_bytes(b"".join(body))
  ids = np.concatenate(sequences).astype("<u2").tobytes()
  prefix.with_suffix(".bin").write_bytes(ids)
  return prefix.with_suffix(".bin")


def test_documents_of_megatron_are_packed(tmp_path, vocabulary):
  """Rows are those of the same text; sequences of a document are joined."""
  encoder = tokenizer.load(epath.Path(vocabulary), "<|endoftext|>")
  eos = [encoder.eos_id]
  ids = [e.tolist() for e in encoder.encode(LINES)]
  sequences = [s for i in ids for s in (i[:3], i[3:] + eos)] + [eos]
  source = indexed(
    tmp_path / "wiki/wiki_text_document",
    sequences,
    [*range(0, len(sequences), 2), len(sequences)],
  )
  write(tmp_path / "lines/wiki.jsonl", LINES)
  rows = []
  for i, given in enumerate((source, source.parent, tmp_path / "lines")):
    run = Run(tmp_path / f"{i}", given, vocabulary)
    run()
    corpus = store.Corpus(manifest.read(run.folder / "corpus/manifest.json"))
    rows.append(
      [(r.domain, r.ids.tolist()) for r in corpus.read(range(len(corpus)))]
    )
  assert rows[0] == rows[1] == rows[2] and len(rows[0]) > 12
  run.config.corpus.update(tokenizer="train", vocab_size=512)
  run.config.corpus.source = str(source)
  with pytest.raises(UserError, match="no text to train a tokenizer on"):
    run(force=True)
  # Without documents, they are rows; what does not end is refused.
  indexed(source.with_suffix(""), sequences, [0])
  assert all(r.is_row for r in read(source)[0])
  indexed(source.with_suffix(""), sequences, [0, 2])
  with pytest.raises(UserError, match=r"document index is 0 … 2"):
    read(source)


def test_pairs_of_one_name_are_told_apart_by_their_folders(
  tmp_path, vocabulary, monkeypatch
):
  source = tmp_path / "source"
  for i in range(2):
    indexed(source / f"{i}/data_0", [[3 + i, 4]] * 9, [0])
  now, before = (Run(tmp_path / name, source, vocabulary) for name in "ab")
  with monkeypatch.context() as m:  # as earlier versions named them
    m.setattr(folders, "name_below", lambda unused_root, file: file.name)
    before()
  wanted = ["0/data_0.bin", "1/data_0.bin"]
  assert now()["details"]["parts"] == wanted
  assert before.status() == "done"  # compares content, and notes it
  monkeypatch.setattr(contents, "of", lambda *_: pytest.fail("read again"))
  assert now.status() == before.status() == "done"


def test_all_pairs_of_a_folder_are_read_or_refused(tmp_path, capsys):
  folders._note.cache_clear()
  for i, name in enumerate(("data_0", "data_1", "books_2019", "sub/data_0")):
    indexed(tmp_path / name, [[i, i]], [0])
  (tmp_path / "model.bin").write_bytes(bytes(64))
  ids = [int(row.ids[0]) for row in read(tmp_path)[0]]
  assert sorted(ids) == [0, 1, 2, 3]
  assert capsys.readouterr().out.strip().endswith("books_2019.bin: 1 .bin")
  for name in ("books_2021", "sub/data_3", "data_2"):
    added = indexed(tmp_path / name, [[4]], [0])
    if name == "data_2":
      added.unlink()  # of a pair the index alone
    named = {"books_2021": "books_2020", "sub/data_3": "data_1"}.get(name, name)
    with pytest.raises(UserError, match=rf"{named}\.bin is missing"):
      read(tmp_path)
    for half in (added, added.with_suffix(".idx")):
      half.unlink(missing_ok=True)
  # A glob takes what it names.
  assert len(read(f"{tmp_path}/sub/*.bin")[0]) == 1


@pytest.fixture
def hub(monkeypatch):
  """A hub with one data set: what was asked of it, and its commit."""
  import datasets
  import huggingface_hub

  hub = types.SimpleNamespace(asked=[], commit="c0ffee1234" * 4, offline=False)

  def load_dataset(path, *config, split, revision, streaming):
    hub.asked.append((path, *config, split, revision, streaming))
    rows = [{"text": f"{split} {i} of {revision}. " * 9} for i in range(8)]
    found = datasets.Dataset.from_list(rows)
    return found.to_iterable_dataset(num_shards=3) if streaming else found

  def dataset_info(unused, path, revision, timeout):
    if hub.offline:
      raise OSError("no network")
    return types.SimpleNamespace(sha=hub.commit)

  monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(datasets, "load_dataset", load_dataset)
  monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)

  def forget():
    datasets_lib.commit.cache_clear()
    opened = datasets_lib._kept_open(datasets_lib._dataset.__wrapped__)
    monkeypatch.setattr(datasets_lib, "_dataset", opened)

  hub.forget = forget
  forget()
  yield hub
  forget()


def test_a_saved_format_hides_no_column(tmp_path):
  datasets = pytest.importorskip("datasets")
  rows = datasets.Dataset.from_list([{"text": "a", "domain": "wiki"}])
  rows.with_format(columns=["text"]).save_to_disk(tmp_path / "saved")
  assert domains_of(tmp_path / "saved") == ["wiki"]


def test_of_a_saved_table_no_other_column_is_decoded(tmp_path):
  datasets = pytest.importorskip("datasets")
  pictures = [{"bytes": b"no picture", "path": None}] * 2
  rows = {"text": ["a", "b"], "domain": ["x", "y"], "picture": pictures}
  rows = datasets.Dataset.from_dict(rows)
  rows = rows.cast_column("picture", datasets.Image())
  rows.save_to_disk(tmp_path / "saved")
  assert texts_of(tmp_path / "saved") == ["a", "b"]
  assert domains_of(tmp_path / "saved") == ["x", "y"]
  # Of what is on this disk nothing goes on by itself.
  with pytest.raises(UserError, match="write it again"):
    read(tmp_path / "saved", domain="picture")


def test_of_the_hub_the_split_is_streamed_and_pinned(
  tmp_path, vocabulary, hub, monkeypatch
):
  datasets = pytest.importorskip("datasets")
  run = Run(tmp_path, "hf:a/b/c@main", vocabulary)
  run.config.corpus.split = "validation"
  assert "would run" in run.status() and not hub.asked
  found = run()
  commit = hub.commit
  assert set(hub.asked) == {("a/b", "c", "validation", commit, True)}
  assert found["counts"]["parts"] == 3 and found["counts"]["documents"] == 8
  assert found["details"]["source_commit"] == commit
  # A process that begins later reads what was listed.
  corpus = CorpusConfig(source="hf:a/b/c@main", split="validation")
  parts = sources.list_chunks(corpus)
  hub.commit = "beef"
  hub.forget()
  assert [d.text for part in parts for d in part.read()] == [
    f"validation {i} of {commit}. " * 9 for i in range(8)
  ]
  hub.commit = commit
  hub.forget()
  assert set(domains_of("hf:a/b/c@main")) == {"c"}
  hub.asked.clear()
  # Nothing is fetched to see that nothing has changed, also offline.
  for hub.offline in (False, True):
    hub.forget()
    run()
    assert run.status() == "done" and not hub.asked
  # What was made offline knows no commit, and is not refused for that.
  other = Run(tmp_path / "offline", "hf:a/b/c", vocabulary)
  hub.offline = True
  hub.forget()
  monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
  other()
  monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
  hub.offline = False
  hub.forget()
  assert other.status() == "done" and run.status() == "done"
  # What main becomes later is another corpus, which only --force makes.
  hub.asked.clear()
  hub.commit = "beef" * 10
  hub.forget()
  assert run() == found and run.status() == "done" and not hub.asked
  run.config.corpus.source = "hf:a/b/c@beef"
  with pytest.raises(UserError, match=r"it was made from hf:a/b/c@main") as e:
    run()
  assert r"inputs.source" in str(e.value) and not hub.asked
  assert run(force=True)["details"]["source_commit"] == hub.commit


def stopped(run):
  """As a kill leaves it: all shards but the last, and what they are."""
  corpus = pathlib.Path(run.folder / "corpus")
  (corpus / "manifest.json").rename(corpus / "manifest.partial.json")
  shards = sorted(corpus.glob("index-*"))
  shards.pop().unlink()
  return {path: path.stat().st_mtime_ns for path in shards}


@pytest.mark.parametrize("trained", [False, True])
def test_of_the_hub_what_was_begun_is_gone_on_with(
  tmp_path, vocabulary, hub, capsys, trained
):
  run = Run(tmp_path, "hf:a/b", "train" if trained else vocabulary)
  run.config.corpus.vocab_size = 300
  whole, commit = run(), hub.commit
  # Main is another one now; then the hub does not answer.
  hub.commit = "beef" * 10
  for hub.offline in (False, True):
    before = stopped(run)
    hub.forget()
    hub.asked.clear()
    assert run.status() == "would resume" and not hub.asked
    again = run()
    assert {key[-2] for key in hub.asked} == {commit}
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for name in ("inputs", "files", "counts"):
      assert again[name] == whole[name]
    assert again["details"]["source_commit"] == commit
  assert "made again" not in capsys.readouterr().out
  before, run.config.corpus.source = stopped(run), "hf:a/b@v2"
  with pytest.raises(UserError, match=r"it was made from hf:a/b\b"):
    run()
  assert before == {path: path.stat().st_mtime_ns for path in before}
  # Begun anew it is another commit's, and stays so.
  hub.offline = False
  hub.forget()
  assert run(force=True)["details"]["source_commit"] == hub.commit
  stopped(run)
  hub.commit = commit
  hub.forget()
  assert run()["details"]["source_commit"] == "beef" * 10


def test_a_hub_that_does_not_answer_begins_nothing(tmp_path, vocabulary, hub):
  run = Run(tmp_path, "hf:a/b", vocabulary)
  hub.offline = True
  assert "would be refused" in run.status()
  for _ in range(2):
    with pytest.raises(UserError, match=r"no network.*hf:a/b, run it again"):
      run()
  assert not hub.asked and not run.files()
  # Nor does it take what is there.
  hub.offline = False
  hub.forget()
  run()
  before, hub.offline = run.files(), True
  run.config.corpus.source = "hf:a/c"
  with pytest.raises(UserError, match="no network"):
    run(force=True)
  assert run.files() == before


def test_how_a_forced_run_was_begun_is_gone_on_with(
  tmp_path, vocabulary, hub, monkeypatch
):
  run = Run(tmp_path, "hf:a/b", "train")
  run.config.corpus.vocab_size = 300
  run()
  hub.commit = newer = "beef" * 10
  hub.forget()

  def killed(*unused):
    raise KeyboardInterrupt

  with monkeypatch.context() as here:
    here.setattr(tokenize_step, "_merge", killed)
    with pytest.raises(KeyboardInterrupt):
      run(force=True)
  hub.commit = "f00d" * 10
  hub.forget()
  assert run.status() == "would resume"
  assert run()["details"]["source_commit"] == newer


def test_what_is_made_again_of_finished_shards_is_said(
  tmp_path, vocabulary, hub, capsys
):
  texts = tmp_path / "texts"
  for i in range(4):
    write(texts / f"f{i}.jsonl", LINES[i::4])
  run = Run(tmp_path, texts, vocabulary)
  run()
  for change, lost in (
    (lambda: None, ""),
    (lambda: write(texts / "f1.jsonl", LINES[:3]), "1 finished"),
    (lambda: write(texts / "f4.jsonl", LINES), "3 finished"),
  ):
    stopped(run)
    capsys.readouterr()
    change()
    run()
    said = capsys.readouterr().out
    assert ("made again" in said) == bool(lost) and lost in said
  assert "index-00000-of-00004" in said
  # Of the hub, by an earlier version that noted no commit.
  other = Run(tmp_path / "hub", "hf:a/b", vocabulary)
  other()
  (other.folder / "corpus/source_begun.json").unlink()
  stopped(other)
  hub.commit = "beef" * 10
  hub.forget()
  other()
  assert "2 finished shards are made again" in capsys.readouterr().out


def test_a_dry_run_prepares_nothing(tmp_path, vocabulary, monkeypatch):
  import tensorflow_datasets as tfds

  class Builder:
    info = types.SimpleNamespace(full_name="mine/1.0.0")

    def download_and_prepare(self):
      raise OSError("asked for")

  monkeypatch.setattr(tfds, "builder", lambda unused: Builder())
  run = Run(tmp_path, "tfds:mine", vocabulary)
  assert "would run" in run.status()
  with pytest.raises(UserError, match=r"asked for.*tfds:mine"):
    run()


def test_many_domains_are_warned_of(tmp_path, vocabulary, monkeypatch, capsys):
  monkeypatch.setattr(summary, "_MANY_DOMAINS", 2)
  for name in "ab":
    write(tmp_path / f"texts/{name}.jsonl", LINES)
  Run(tmp_path / "1", tmp_path / "texts", vocabulary)()
  said = capsys.readouterr().out
  assert "] b " in said and "warning" not in said
  write(tmp_path / "texts/c.jsonl", LINES)
  Run(tmp_path / "2", tmp_path / "texts", vocabulary)()
  said = capsys.readouterr().out
  assert "] c " in said and "with few values" in said


def test_documents_that_lack_a_domain_are_counted(tmp_path, vocabulary, capsys):
  texts = tmp_path / "texts"
  for i, more in enumerate(({"meta": '{"set": "x"}'}, {"meta": "x"}, {})):
    write(texts / f"{i}.jsonl", LINES, **more)
  run = Run(tmp_path, texts, vocabulary)
  run.config.corpus.domain_field = "meta.set"
  run()
  said = capsys.readouterr().out
  assert "24 of 36 documents have no domain in field 'meta.set'" in said
  run.config.corpus.domain_field = ""  # names of files are asked for
  run(force=True)
  assert "no domain" not in capsys.readouterr().out


def test_whatever_bytes_there_are_the_error_is_ours(tmp_path):
  path = parquet(tmp_path / "a.parquet", ["a"], meta=[{"set": "x"}])
  good, rng = path.read_bytes(), random.Random(0)
  path.write_bytes(good.replace(b"set", b"s\xfft"))  # a column's name
  with pytest.raises(UserError, match=r"cannot be read .*a\.parquet"):
    read(path)
  seen = 0
  for _ in range(200):
    bad = bytearray(good)
    for _ in range(rng.choice((1, 3, 20))):
      bad[rng.randrange(len(bad))] = rng.randrange(256)
    path.write_bytes(bad)
    try:
      read(path, domain="meta.set")
    except UserError:
      seen += 1
  assert seen > 100


def test_long_documents_are_encoded_a_few_at_a_time():
  document = chunks.TokenizedRecord(np.zeros(1 << 20, np.int32), "a")
  short = chunks.TokenizedRecord(np.zeros(2, np.int32), "a")
  records = [(i, document) for i in range(10)] + [
    (i, short) for i in range(600)
  ]
  sizes = [len(batch) for batch in shard._batches(records)]
  assert sizes == [5, 5, 256, 256, 88]


@pytest.fixture
def large(tmp_path):
  """Lines of 300 KB that are cut into three parts."""
  return write(tmp_path / "texts/large.jsonl", LINES * 150)


def edit(path, at=0.5):
  """Writes other text of the same size into a file."""
  body = path.read_bytes()
  found = body.index(b"text", int(at * len(body)))
  if body[found:].startswith(b'text":'):  # the field's name
    found = body.index(b"text", found + 4)
  path.write_bytes(body[:found] + b"word" + body[found + 4 :])


def test_an_edit_in_the_middle_is_seen_and_a_copy_is_the_same(
  tmp_path, vocabulary, large, capsys
):
  run = Run(tmp_path, large.parent, vocabulary)
  run.config.corpus.part_bytes = 100_000
  run()
  shutil.copytree(large.parent, tmp_path / "copy")  # with other times
  run.config.corpus.source = str(tmp_path / "copy")
  assert run.status() == "done"
  run()
  assert "skipped, nothing has changed" in capsys.readouterr().out
  before = run.files()
  edit(tmp_path / "copy/large.jsonl")
  assert "changed: large.jsonl [100000:200000]" in run.status()
  with pytest.raises(UserError, match=r"changed: large.jsonl \[100000:200000"):
    run()
  assert run.files() == before
  run(force=True)
  assert run.status() == "done" and run.files() != before


def test_a_copy_is_read_once(tmp_path, vocabulary, large, monkeypatch):
  run = Run(tmp_path, large, vocabulary)
  run()
  shutil.copy(large, tmp_path / "other")
  (tmp_path / "other").replace(large)
  read = []
  monkeypatch.setattr(
    contents, "of", lambda *a, f=contents.of: read.append(a) or f(*a)
  )
  run()
  assert read
  read.clear()
  run()
  assert run.status() == "done" and not read


@pytest.mark.parametrize("trained", [False, True])
def test_what_was_read_before_an_edit_is_read_again(
  tmp_path, vocabulary, large, monkeypatch, trained
):
  """Or, if a tokenizer was trained on it, refused."""
  run = Run(tmp_path, large, vocabulary)
  run.config.corpus.part_bytes = 100_000
  if trained:
    run.config.corpus.tokenizer, run.config.corpus.vocab_size = "train", 300
  make = shard.Maker.make

  def stop(self, number, *args):
    if number == 2:
      raise KeyboardInterrupt
    make(self, number, *args)

  with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
    m.setattr(shard.Maker, "make", stop)
    run()
  edit(large)
  if trained:
    with pytest.raises(UserError, match="has other content"):
      run()
    return
  run()
  other = Run(tmp_path / "other", large, vocabulary)
  other.config.corpus.part_bytes = 100_000
  assert run()["files"] == other()["files"]


def test_an_edit_is_still_seen_when_its_part_was_not_reached(
  tmp_path, large, vocabulary
):
  """The run that sees it may stop before."""
  source = tmp_path / "source"
  source.mkdir()
  large.rename(source / "b.jsonl")
  broken = write(source / "c.jsonl", LINES)
  good = broken.read_bytes()
  broken.write_bytes(good + b"oops\n")
  run = Run(tmp_path, source, vocabulary)

  def stop(part):
    with pytest.MonkeyPatch.context() as m, pytest.raises(UserError):
      make = shard.Maker.make
      m.setattr(
        shard.Maker,
        "make",
        lambda self, *given: (
          make(self, *given) if given[0] == part else stopped()
        ),
      )
      run()

  def stopped():
    raise UserError("stopped", "here", "go on")

  stop(0)  # b.jsonl stands
  edit(source / "b.jsonl")
  stop(1)
  broken.write_bytes(good)
  other = Run(tmp_path / "other", source, vocabulary)
  assert run()["files"] == other()["files"]


@pytest.mark.parametrize("at", ["while its part is read", "after it"])
def test_a_source_that_changes_while_it_is_read_is_refused(
  tmp_path, vocabulary, large, monkeypatch, at
):
  run = Run(tmp_path, large, vocabulary)
  run.config.corpus.part_bytes = 100_000
  make, rows = shard.Maker.make, shard.Maker._packed

  def edit_after(self, number, *args):
    make(self, number, *args)
    if number == 1:
      edit(large)

  def edit_before(self, *args):
    for i, row in enumerate(rows(self, *args)):
      if i == 9:
        edit(large)
      yield row

  with monkeypatch.context() as m:
    if at == "after it":
      m.setattr(shard.Maker, "make", edit_after)
    else:
      m.setattr(shard.Maker, "_packed", edit_before)
    with pytest.raises(UserError, match="has changed while it was read"):
      run()
  run()
  other = Run(tmp_path / "other", large, vocabulary)
  other.config.corpus.part_bytes = 100_000
  assert run()["files"] == other()["files"]


def saved(folder, texts):
  import datasets

  datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder)


def test_a_folder_that_was_saved_anew_is_read_anew(tmp_path):
  pytest.importorskip("datasets", reason="needs datasets")
  for texts in (["one"], ["two", "three"]):
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    saved(tmp_path / "x", texts)
    (part,) = sources.list_chunks(CorpusConfig(source=f"{tmp_path}/x"))
    assert [record.text for record in part.read()] == texts


def arrays(path, texts):
  path.write_text(json.dumps([{"text": text} for text in texts]))


def tables(path, texts):
  options = {"compression": "none", "use_dictionary": False}
  pq.write_table(pa.table({"text": texts}), path, row_group_size=500, **options)


@pytest.mark.parametrize(
  ("name", "make"),
  [
    ("a.jsonl", write),
    ("a.json", arrays),
    ("a.txt", lambda path, texts: path.write_text("\n".join(texts))),
    ("a.parquet", tables),
    ("saved", saved),
  ],
)
def test_the_content_of_a_part_is_all_that_is_read_of_it(tmp_path, name, make):
  source = tmp_path / name
  make(source, LINES * 150)
  file = next(source.glob("*.arrow")) if source.is_dir() else source

  def look():
    corpus = CorpusConfig(source=str(source), part_bytes=100_000)
    parts = sources.list_chunks(corpus)
    parts = pickle.loads(pickle.dumps(parts))  # as workers get them
    return [
      ([record.text for record in part.read()], part.content())
      for part in parts
    ]

  # In a part; in the line that a part ends in, which is read to its end.
  before = look()
  for at in (0.2, 100_001 / file.stat().st_size, 0.6):
    body = file.read_bytes()
    edit(file, at)
    changed = [
      (text != old_text, content != old_content)
      for (text, content), (old_text, old_content) in zip(
        look(), before, strict=True
      )
    ]
    assert sum(text for text, _ in changed) == 1
    assert (True, False) not in changed and sum(c for _, c in changed) <= 2
    file.write_bytes(body)


@pytest.mark.parametrize("is_edited", [False, True])
def test_a_shard_of_which_no_content_was_noted_is_made_again(
  tmp_path, vocabulary, large, monkeypatch, is_edited
):
  """The note is the last thing that is written of a shard."""
  first = large.read_bytes()
  run = Run(tmp_path, large, vocabulary)
  write_bytes = files.write_bytes

  def stop(path, content):
    if epath.Path(path).name.startswith("source-"):
      raise UserError("killed", str(path), "go on")
    write_bytes(path, content)

  def killed():
    with monkeypatch.context() as m, pytest.raises(UserError, match="killed"):
      m.setattr(files, "write_bytes", stop)
      run()

  if is_edited:  # beside the new shard lies the note of the one before
    run()
    corpus = run.folder / "corpus"
    (corpus / "manifest.json").rename(corpus / "manifest.partial.json")
    edit(large)
    killed()
    large.write_bytes(first)
  else:
    killed()
    edit(large)
  other = Run(tmp_path / "other", large, vocabulary)
  assert run()["files"] == other()["files"]
  assert list(run.folder.glob("corpus/source-*.txt"))


def test_a_corpus_that_notes_no_content_is_known_as_before(
  tmp_path, vocabulary, large, monkeypatch
):
  run = Run(tmp_path, large, vocabulary)
  with monkeypatch.context() as m:
    m.setattr(chunks.Reading, "__iter__", lambda self: self._chunk.read())
    run()
  (run.folder / "corpus/source_seen.json").unlink()
  edit(large)
  assert run.status() == "done"
  large.write_bytes(large.read_bytes() * 2)
  assert "changed: large.jsonl" in run.status()
