"""Stage tokenize from the command line: any source, any number of workers."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pydoc_data import topics

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from helpers import (
  command,
  environment,
  refused,
  run,
  run_as_process,
  write_corpus,
)

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import manifest
from miniplm_jax.corpus import fast_bpe, megatron, sources, store, tokenizer
from miniplm_jax.corpus.chunks import Document

STAGE = "--stages=tokenize"
# Cuts the text of `parts` into about a dozen parts.
SMALL = "--config.corpus.part_bytes=9000"


def made(folder):
  """Everything that a corpus is, by file."""
  return {
    path.name: path.read_bytes()
    for path in (folder / "run/corpus").iterdir()
    if path.suffix in (".array_record", ".parquet")
  }


def facts(folder):
  found = json.loads((folder / "run/corpus/manifest.json").read_text())
  for name in ("seconds", "source", "named"):
    found["details"].pop(name)
  found.pop("checksum")  # over the seconds, too
  return found


def opened(folder):
  return store.Corpus(manifest.read(folder / "run/corpus/manifest.json"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  """A corpus of many parts, made by one process."""
  folder = tmp_path_factory.mktemp("parts")
  write_corpus(folder / "text.jsonl")
  run(folder, STAGE, SMALL, "--config.run.tokenize_workers=1")
  assert facts(folder)["counts"]["parts"] >= 10
  return folder


@pytest.mark.parametrize(
  "how",
  [
    "--config.run.tokenize_workers=2",
    "--config.run.tokenize_workers=5",
    "--config.run.beam=--runner=DirectRunner",
  ],
)
def test_any_number_of_workers_and_beam_give_the_same(parts, tmp_path, how):
  if "beam" in how:
    pytest.importorskip("apache_beam", reason="needs the beam extra")
  shutil.copy(parts / "text.jsonl", tmp_path)
  run(tmp_path, STAGE, SMALL, how)
  assert made(tmp_path) == made(parts)
  assert facts(tmp_path) == facts(parts)


def test_parts_of_a_file_have_all_its_documents_in_order(parts):
  corpus = CorpusConfig(
    source=str(parts / "text.jsonl"), domain_field="meta.set"
  )
  whole = sources.list_chunks(corpus)
  cut = sources.list_chunks(corpus.replace(part_bytes=1000))
  assert len(whole) == 1 and len(cut) > 50
  assert [d for p in cut for d in p.read()] == list(whole[0].read())


def test_what_a_kill_leaves_is_gone_on_from(parts, tmp_path):
  shutil.copy(parts / "text.jsonl", tmp_path)
  arguments = STAGE, SMALL, "--config.run.tokenize_workers=2"
  started = subprocess.Popen(command(tmp_path, *arguments), env=environment())
  corpus = tmp_path / "run/corpus"
  while started.poll() is None and len(list(corpus.glob("source-*"))) < 3:
    time.sleep(0.005)
  started.kill()
  started.wait()
  numbers = [p.stem[6:] for p in corpus.glob("source-*.txt")]  # written last
  names = [f"index{number}.parquet" for number in numbers]
  there = {name: (corpus / name).stat().st_mtime_ns for name in names}
  done = run(tmp_path, *arguments)
  assert 0 < len(there) < len(list(corpus.glob("index*"))), "killed too late"
  if not facts(tmp_path) == facts(parts):
    raise AssertionError(done.stdout)
  assert made(tmp_path) == made(parts)
  for name, changed in there.items():
    assert (corpus / name).stat().st_mtime_ns == changed, "made again"


def test_mended_text_costs_the_parts_that_changed(parts, tmp_path):
  folder = tmp_path / "texts"
  folder.mkdir()
  write_corpus(folder / "a.jsonl", 10)
  write_corpus(folder / "b.jsonl", 20)
  good = (folder / "b.jsonl").read_text()
  (folder / "b.jsonl").write_text(good + "{broken\n[]\n")
  given = f"--config.corpus.tokenizer={tokenizer_folder(tmp_path)}"
  one = ("--config.run.tokenize_workers=1", given)
  error = refused(tmp_path, STAGE, *one, source=folder)
  assert "b.jsonl line 21" in error and "max_broken" in error
  corpus = tmp_path / "run/corpus"
  first = corpus / "index-00000-of-00002.parquet"
  before = first.stat().st_mtime_ns
  # Some may be let pass …
  error = refused(
    tmp_path, STAGE, *one, "--config.run.max_broken=1", source=folder
  )
  assert "broken record 2, 1 are let pass" in error
  # … or be mended: only that part is made again, also after a mistake.
  bad = (folder / "b.jsonl").read_text()
  (folder / "b.jsonl").write_text(good + "{\n")
  assert "line 21" in refused(tmp_path, STAGE, *one, source=folder)
  (folder / "b.jsonl").write_text(good)
  done = run(tmp_path, STAGE, *one, source=folder)
  assert "1 of 2 shards are there" in done.stdout
  assert first.stat().st_mtime_ns == before
  assert "broken" not in facts(tmp_path)["counts"]
  (folder / "b.jsonl").write_text(bad)
  two = "--config.run.max_broken=2", "--force"
  run(tmp_path, STAGE, *one, *two, source=folder)
  sample = (tmp_path / "run/broken_records.jsonl").read_text().splitlines()
  sample = [json.loads(line) for line in sample]
  assert [s["where"][-7:] for s in sample] == ["line 21", "line 22"]
  assert sample[0].keys() == {"what", "where", "todo"}  # as on disk before
  assert facts(tmp_path)["counts"]["broken"] == 2


def test_documents_are_counted_with_the_broken_ones(parts, tmp_path):
  lines = (parts / "text.jsonl").read_text().splitlines(True)[:6]
  (tmp_path / "text.jsonl").write_text("".join(["{\n", *lines]))
  run(tmp_path, STAGE, "--config.run.max_broken=1")
  corpus = opened(tmp_path)
  found = {d for r in corpus.read(range(len(corpus))) for d in r.documents}
  assert found == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_workers_stop_at_a_signal(parts, tmp_path, signum):
  shutil.copy(parts / "text.jsonl", tmp_path)
  arguments = STAGE, SMALL, "--config.run.tokenize_workers=2"
  started = subprocess.Popen(
    command(tmp_path, *arguments),
    env=environment(),
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  corpus = tmp_path / "run/corpus"
  while started.poll() is None and not list(corpus.glob("index*")):
    time.sleep(0.005)
  os.killpg(started.pid, signum)  # as a terminal does, to the workers too
  _, stderr = started.communicate(timeout=60)
  assert started.returncode == 128 + signum, stderr
  assert "Traceback" not in stderr
  run(tmp_path, *arguments)
  assert made(tmp_path) == made(parts)


def test_errors_of_beam_are_the_users(tmp_path):
  pytest.importorskip("apache_beam", reason="needs the beam extra")
  write_corpus(tmp_path / "text.jsonl", 3)
  beam = "--config.run.beam="
  given = f"--config.corpus.tokenizer={tokenizer_folder(tmp_path)}"
  for options in ("--direct_num_workers=abc", "--runner='"):
    assert "run.beam" in refused(tmp_path, STAGE, given, beam + options)
  with (tmp_path / "text.jsonl").open("a") as f:
    f.write("{broken\n")
  done = run_as_process(
    tmp_path, STAGE, given, beam + "--runner=DirectRunner", code=1
  )
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: ") and "text.jsonl line 4" in last


def tokenizer_folder(folder):
  found = tokenizer.train([topics.topics["if"]], 400, "<|endoftext|>")
  target = folder / "tokenizer"
  target.mkdir()
  for name, content in found.to_files().items():
    (target / name).write_bytes(content)
  return target


def test_the_golden_of_two_hundred_documents(tmp_path):
  """Rows worked out here, document by document, from the method's words."""
  words = [" ".join(topics.topics[n].split("\n\n")) for n in topics.topics]
  pieces = [w[i : i + 700] for w in words for i in range(0, len(w), 700)]
  pieces = random.Random(0).sample(pieces, 200)
  with gzip.open(tmp_path / "text.jsonl.gz", "wt") as f:
    for i, text in enumerate(pieces):
      f.write(json.dumps({"text": text, "meta": {"set": f"d{i % 3}"}}) + "\n")
  # A list is not a text, an empty text is no document.
  run(tmp_path, STAGE, source=tmp_path / "text.jsonl.gz")
  corpus = opened(tmp_path)
  encoder = corpus.tokenizer()
  decode = [encoder.decode([i]) for i in range(encoder.vocab_size)]
  buffers, wanted = {}, []
  for i, text in enumerate(pieces):
    buffer = buffers.setdefault(f"d{i % 3}", [])
    buffer += [*encoder._encode_all([text])[0].tolist(), encoder.eos_id]
    while len(buffer) >= 33:
      end = 33
      for last in range(32, 0, -1):
        this = decode[buffer[last]]
        pairs = ("()", "[]", "<>")
        opens = any(o in this and c not in this for o, c in pairs)
        ends = any(m in this for m in ".!?;\n") and not opens
        nearby = this + (decode[buffer[last + 1]] if last < 32 else "")
        spaced = last < 32 and " " in nearby
        is_eos = buffer[last] == encoder.eos_id
        good = is_eos or (ends and ("\n" in this or spaced))
        if good and any(t != encoder.eos_id for t in buffer[:last]):
          end = last + 1
          break
      wanted.append((f"d{i % 3}", buffer[:end]))
      del buffer[:end]
  # What is left is a row if it has something to score.
  wanted += [
    (domain, buffers[domain])
    for domain in sorted(buffers)
    if set(buffers[domain][:-1]) - {encoder.eos_id}
  ]
  found = corpus.read(range(len(corpus)))
  assert len(found) > 500
  assert [(r.domain, r.ids.tolist()) for r in found] == wanted
  # Lineage and bytes.
  for row in found:
    texts = [encoder._encode_all([pieces[d]])[0] for d in row.documents]
    source = np.concatenate([np.append(t, encoder.eos_id) for t in texts])
    here = source[row.offset : row.offset + len(row.ids)]
    np.testing.assert_array_equal(here, row.ids)
    scored = [t for x, t in zip(row.ids, row.ids[1:]) if x != encoder.eos_id]
    # One character of a byte-level token is one byte.
    token = encoder._engine.id_to_token
    size = sum(len(token(t)) for t in scored if t != encoder.eos_id)
    assert row.n_bytes == size


def test_packed_rows_are_taken_as_they_are(parts, tmp_path):
  corpus = opened(parts)
  rows = [r.ids for r in corpus.read(range(len(corpus)))]
  source = tmp_path / "packed"
  source.mkdir()
  size = corpus.tokenizer().vocab_size
  for number in range(2):
    megatron.write(source, number, rows[number::2], size)
  given = f"--config.corpus.tokenizer={parts / 'run/corpus/tokenizer'}"
  run(tmp_path, STAGE, given, source=source)
  found = opened(tmp_path)
  globbed = sources.list_chunks(CorpusConfig(source=f"{source}/data_*.bin"))
  assert [p.name for p in globbed] == ["data_0.bin", "data_1.bin"]
  (source / "README.md").write_text("The card of the data set.")
  assert len(sources.list_chunks(CorpusConfig(source=str(source)))) == 2
  same = [r.ids.tolist() for r in found.read(range(len(found)))]
  assert same == [r.tolist() for n in range(2) for r in rows[n::2]]
  assert set(found.domains()) == {"packed"}
  hashes = np.sort(corpus.index["hash"].to_numpy())
  np.testing.assert_array_equal(np.sort(found.index["hash"].to_numpy()), hashes)
  # A student takes all of them, and nothing was scored.
  everything = "--config.method=pretrain", "--config.select.ratio=1.0"
  short_run = "--config.train.steps=4"
  run(
    tmp_path,
    "--stages=select,train",
    given,
    *everything,
    short_run,
    source=source,
  )
  kept = np.load(tmp_path / "run/selection/pretrain/rows.npy")
  np.testing.assert_array_equal(kept, found.rows_of("train"))
  # What cannot be read is named, one line, exit 1.
  index = source / "data_1.idx"
  good = index.read_bytes()
  for broken in (
    good[:-3],
    b"NNIDIDX" + good[7:],
    good[:17] + b"\6" + good[18:],
  ):
    index.write_bytes(broken)
    fresh = tmp_path / "fresh"
    assert "data_1.idx" in refused(fresh, STAGE, given, source=source)
  index.write_bytes(good)
  for name in ("data_1.bin", "data_1.idx"):
    (source / name).rename(source / name.replace("1", "2"))
  assert "data_1" in refused(fresh, STAGE, given, source=source)
  short = tmp_path / "short"
  short.mkdir()
  shutil.copytree(source, short / "packed")
  for name in ("data_2.bin", "data_2.idx"):
    (short / "packed" / name).unlink()
  longest = "--config.corpus.max_length=16"
  error = refused(short, STAGE, given, longest, source=short / "packed")
  assert "ids where 2 to 17 fit" in error and "max_length" in error


def test_folders_of_text_saved_datasets_and_splits(tmp_path):
  """Every other source: the same documents, in order."""
  records = [
    {"text": f"{name} {topics.topics[name][:300]}", "domain": "ab"[i % 2]}
    for i, name in enumerate(sorted(topics.topics)[:12])
  ]
  wanted = [Document(r["text"], r["domain"]) for r in records]

  def read(source, **options):
    found = sources.list_chunks(CorpusConfig(source=str(source), **options))
    return [d for part in found for d in part.read()], len(found)

  # Plain text, domains by folder.
  for i, record in enumerate(records):
    folder = tmp_path / "plain" / record["domain"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{i:02}.txt").write_text(record["text"])
  found, n = read(tmp_path / "plain", part_bytes=1000)
  assert sorted(found, key=str) == sorted(wanted, key=str) and n > 1
  (tmp_path / "plain" / "b" / "99.txt").write_bytes(b"\xff")
  found, _ = read(tmp_path / "plain")
  assert "not UTF-8" in found[-1].what and "99.txt" in found[-1].where
  # Parquet by row groups, deeper folders; a card and a cache beside it.
  (tmp_path / "deep/.cache").mkdir(parents=True)
  (tmp_path / "deep/.cache/x.jsonl").write_text("{}")
  (tmp_path / "deep/README.md").write_text("# Card")
  (tmp_path / "deep/er").mkdir(parents=True)
  table = pa.Table.from_pylist([r | {"other": [1]} for r in records])
  pq.write_table(table, tmp_path / "deep/er/x.parquet", row_group_size=3)
  found, n = read(tmp_path / "deep", part_bytes=16)
  assert found == wanted and n == 4
  # Hugging Face datasets.
  datasets = pytest.importorskip("datasets", reason="needs datasets")
  rows = datasets.Dataset.from_list(records)
  rows.save_to_disk(tmp_path / "hf")
  found, n = read(tmp_path / "hf", part_bytes=1500)
  assert found == wanted and n > 1
  splits = datasets.DatasetDict({"train": rows, "test": rows.select([3])})
  splits.save_to_disk(tmp_path / "hf2")
  assert read(tmp_path / "hf2", split="test")[0] == wanted[3:4]
  with pytest.raises(sources.UserError, match="train, test"):
    read(tmp_path / "hf2", split="dev")


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_a_dataset_of_tfds(tmp_path, kind, monkeypatch):
  import tensorflow_datasets as tfds

  records = [
    {"text": f"{i} {name}", "domain": "ab"[i % 2], "of": ["", "teacher"][i % 2]}
    for i, name in enumerate(sorted(topics.topics)[:40])
  ]
  features = tfds.features.FeaturesDict(
    dict.fromkeys(("text", "domain", "of"), tfds.features.Text())
  )
  tfds.dataset_builders.store_as_tfds_dataset(
    name="mine",
    version="1.0.0",
    features=features,
    split_datasets={"train": list(enumerate(records))},
    data_dir=tmp_path,
    file_format=kind,
    disable_shuffling=True,
  )
  corpus = CorpusConfig(source=f"{tmp_path}/mine/1.0.0", split_field="of")
  found = sources.list_chunks(corpus)
  documents = [d for part in found for d in part.read()]
  assert [(d.text, d.domain, d.split) for d in documents] == [
    (r["text"], r["domain"], r["of"]) for r in records
  ]
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  if kind == "array_record":
    assert sources.list_chunks(corpus)
  else:
    with pytest.raises(sources.UserError, match="TensorFlow, which reads TFR"):
      sources.list_chunks(corpus)


def test_the_quick_engine_gives_the_ids_of_the_other():
  texts = [topics.topics[n] for n in sorted(topics.topics)][:60]
  odd = ["", " ", " " * 20_000 + "x", "x" + "\n \t" * 5000, "é e\u0301 你好🙂"]
  found = tokenizer.train(texts, 600, "<|endoftext|>")
  assert found._encode
  for quick, slow in zip(
    found.encode(texts + odd), found._encode_all(texts + odd)
  ):
    np.testing.assert_array_equal(quick, slow)


def split(pattern):
  """A pre-tokenizer that splits at a pattern, then into bytes."""
  byte_level = {"type": "ByteLevel", "use_regex": False}
  byte_level |= {"add_prefix_space": False, "trim_offsets": True}
  first = {"type": "Split", "pattern": {"Regex": pattern}, "invert": False}
  steps = [first | {"behavior": "Isolated"}, byte_level]
  return {"type": "Sequence", "pretokenizers": steps}


def test_added_tokens_are_found_before_and_after_normalizing():
  found = tokenizer.train([topics.topics["if"]], 400, "<|endoftext|>")
  body = json.loads(found.to_files()["tokenizer.json"])
  added = body["added_tokens"][0]
  body["normalizer"] = {"type": "NFC"}
  for i, (word, normalized) in enumerate((("<t>", False), ("<é>", True))):
    body["added_tokens"].append(
      added
      | {"id": 400 + i, "content": word, "special": False}
      | {"normalized": normalized}
    )
  engine = tokenizers.Tokenizer.from_str(json.dumps(body))
  found = tokenizer.Tokenizer(engine, "<|endoftext|>", "here")
  assert found._encode
  texts = ["a <t> b", "a <t>\u0338 b", "a <e\u0301> b", "a é b <e>"]
  for quick, slow in zip(found.encode(texts), found._encode_all(texts)):
    np.testing.assert_array_equal(quick, slow)


def test_other_tokenizers_are_left_to_the_other_engine():
  found = tokenizer.train([topics.topics["if"]], 400, "<|endoftext|>")
  body = json.loads(found.to_files()["tokenizer.json"])
  engine = found._engine
  assert fast_bpe.build(engine, body)
  merges = body["model"]["merges"]
  for change in (
    {"model": body["model"] | {"merges": merges[::-1]}},
    {"model": body["model"] | {"merges": merges[:-1]}},
    {"model": body["model"] | {"merges": [*merges, merges[0]]}},
    {"pre_tokenizer": split(r"\d")},
    {"model": body["model"] | {"dropout": 0.1}},
    {"normalizer": {"type": "Lowercase"}},
    {"pre_tokenizer": {"type": "Whitespace"}},
  ):
    assert fast_bpe.build(engine, body | change) is None, change
