"""Rows of one tokenizer as rows of another, to the byte."""

import collections
import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
import tokenizers
from etils import epath
from helpers import refused, run, steps_of, typed
from test_damage import execute

from miniplm_jax import config as config_lib
from miniplm_jax.core import execute as execute_lib
from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus import convert_step, tokenizer
from miniplm_jax.corpus.convert_text import PartRows, TextRuns
from miniplm_jax.corpus.store import Corpus, StoredRow

# Two to four bytes a character, so that rows' ends cut some.
TEXTS = (
  "Zażółć gęślą jaźń! Pchnąć w tę łódź jeża lub ośm skrzyń fig. Ćma. ",
  "天地玄黄宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽 ",
  "👩‍👩‍👧 says 🙂🙃; a naïve café, 3 € — and x² + y² = z².\nNext line\n\n",
  "The quick brown fox jumps over the lazy dog (twice). No end here ",
)
EOS, BOS = "</s>", "<s>"


def write_text(folder):
  """Files of two domains, documents of one row to many; one is empty."""
  folder.mkdir()
  (folder / "3.jsonl").write_text("")
  for number in range(3):
    with (folder / f"{number}.jsonl").open("w") as f:
      for i in range(24):
        text = "".join(
          TEXTS[(i * k + number) % 4][k % 5 :] for k in range(1, 2 + i % 7)
        )
        domain = "ab"[i % 2]
        f.write(json.dumps({"text": text, "domain": domain}) + "\n")


def write_tokenizer(folder, vocab_size=400, eos=EOS, bos=BOS):
  """A byte-level BPE with BOS, on other text than the corpus's."""
  found = tokenizer.train(TEXTS[1:], vocab_size, eos)
  engine = tokenizers.Tokenizer.from_str(
    found.to_files()["tokenizer.json"].decode()
  )
  engine.add_special_tokens([bos])
  folder.mkdir()
  engine.save(str(folder / "tokenizer.json"))
  return folder


class Setup:
  """A tokenized corpus, a selection, and conversions of it."""

  def __init__(self, folder, max_length, seed=0):
    self.folder = folder
    config = self.config = config_lib.default()
    config.workdir = str(folder / "run")
    c = config.corpus
    c.source, c.tokenizer, c.vocab_size = str(folder / "text"), "train", 300
    c.max_length, c.reference_share, c.heldout_share = max_length, 0.1, 0.2
    s = config.student
    s.tokenizer, s.eos_token = str(folder / "student"), EOS
    self.workdir = Workdir(epath.Path(config.workdir))
    execute_lib.execute(steps_of("tokenize", config))
    self.corpus = self.open(self.workdir.corpus)
    rows = self.corpus.rows_of("train")
    rng = np.random.default_rng(seed)
    self.kept = np.sort(rng.choice(rows, len(rows) // 2, replace=False))
    directory = self.workdir.selection("miniplm")
    directory.mkdir(parents=True)
    np.save(directory / "rows.npy", self.kept)
    Manifest(
      directory / "manifest.json",
      "select",
      {},
      {"corpus": self.corpus.manifest.fingerprint},
      files={"rows.npy": files.describe(directory / "rows.npy")},
    ).write()

  def open(self, directory):
    return Corpus(manifest_lib.require(directory / "manifest.json"))

  def convert(self, name="repack", conversion="repack", bos=""):
    s = self.config.student
    s.name, s.conversion, s.bos_token = name, conversion, bos
    execute_lib.execute(steps_of("convert", self.config))
    return self.open(self.directory(name))

  def directory(self, name):
    return self.workdir.student(name) / "corpus"


@pytest.fixture(scope="module", params=[5, 16])
def setup(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("convert")
  write_text(folder / "text")
  write_tokenizer(folder / "student")
  return Setup(folder, request.param)


def owned(corpus, rows):
  """By part and domain: pieces that rows own, and each byte's owner.

  All rows of a domain and part are one stream of bytes. Each of its
  characters belongs to the row that holds its first byte; a piece ends where
  a document ends or the next character's row is not chosen.
  """
  encoder, chosen = corpus.tokenizer(), set(rows.tolist())
  each, streams = encoder.token_bytes(), {}
  for row_id, row in enumerate(corpus.read(range(len(corpus)))):
    stream = streams.setdefault((row.part, row.domain), [[]])
    for i in row.ids.tolist():
      if i == encoder.eos_id:
        stream.append([])
      stream[-1] += [(b, row_id) for b in each[i]]
  pieces, owners = {}, {}
  for key, documents in streams.items():
    pieces[key], owners[key] = found, owner = [], []
    for document in documents:
      at, before = 0, False
      for character in bytes(b for b, _ in document).decode():
        row_id = document[at][1]
        at += len(character.encode())
        if row_id in chosen:
          if not before:
            found.append("")
          found[-1] += character
          owner += [row_id] * len(character.encode())
        before = row_id in chosen
  return pieces, owners


def texts(corpus, split):
  """The text of a converted split, by part and domain, cut at eos."""
  encoder = corpus.tokenizer()
  each, found = encoder.token_bytes(), {}
  for row in corpus.read(corpus.rows_of(split)):
    for i in row.ids.tolist():
      pieces = found.setdefault((row.part, row.domain), [b""])
      pieces[-1] += each[i]
      if i == encoder.eos_id:
        pieces.append(b"")
  return {k: [p.decode() for p in v if p] for k, v in found.items()}


@pytest.mark.parametrize("bos", ["", BOS])
def test_every_byte_is_there_once(setup, bos):
  found = setup.convert(f"repack{len(bos)}", bos=bos)
  heldout = setup.corpus.rows_of("heldout")
  assert len(setup.kept) > 100 and len(heldout) > 30
  for split, rows in (("train", setup.kept), ("heldout", heldout)):
    wanted, _ = owned(setup.corpus, rows)
    assert texts(found, split) == {k: v for k, v in wanted.items() if v}
  counts = found.manifest.counts
  assert counts["bytes_left_before"] > 0 and counts["bytes_taken_after"] > 0
  assert counts["bytes_out"] == (
    counts["bytes_in"]
    + counts["bytes_taken_after"]
    - counts["bytes_left_before"]
  )
  assert counts["bytes_dropped"] == 0


def test_the_lineage_names_the_rows_whose_text_it_is(setup):
  found = setup.convert("lineage")
  each = found.tokenizer().byte_lengths
  heldout = setup.corpus.rows_of("heldout")
  for split, rows in (("train", setup.kept), ("heldout", heldout)):
    _, owners = owned(setup.corpus, rows)
    seen = set().union(*owners.values())
    for row in found.read(found.rows_of(split)):
      owner = owners[row.part, row.domain]
      here, owner[:] = (
        owner[: each[row.ids].sum()],
        owner[each[row.ids].sum() :],
      )
      assert row.source_rows == tuple(sorted(set(here)))
    assert not any(owners.values())
    # The others have nothing but the rest of a character.
    assert seen <= set(rows) and len(seen) > 0.98 * len(rows)


@pytest.mark.parametrize("bos", ["", BOS])
def test_rows_have_the_form_that_the_trainer_reads(setup, bos):
  found = setup.convert(f"form{len(bos)}", bos=bos)
  encoder = found.tokenizer()
  size = setup.config.corpus.max_length + 1
  assert found.lengths.max() == size
  for row in found.read(range(len(found))):
    assert 2 <= len(row.ids) <= size
    after = row.ids[1:][row.ids[:-1] == encoder.eos_id]
    starts = np.append(row.ids[0], after)
    assert not bos or set(starts) == {encoder.bos_id}
    assert np.sum(row.ids == encoder.bos_id) == len(starts) * bool(bos)
    scored = row.ids[1:][row.ids[:-1] != encoder.eos_id]
    assert len(scored)
    assert row.n_bytes == encoder.byte_lengths[scored].sum()
  assert found.manifest.tokenizer == encoder.fingerprint
  index = found.index
  assert set(index["split"].to_pylist()) == {"train", "heldout"}
  assert set(index["domain"].to_pylist()) == {"a", "b"}


def test_a_shard_that_is_made_again_has_the_same_bytes(setup):
  def content(directory):
    return {
      p.name: p.read_bytes()
      for p in directory.iterdir()
      if p.suffix in (".parquet", ".array_record")
    }

  setup.convert("killed")
  directory = setup.directory("killed")
  before = content(directory)
  assert len(before) == 8
  (directory / "manifest.json").rename(directory / "manifest.partial.json")
  (directory / "index-00001-of-00004.parquet").unlink()
  (directory / "instances-00001-of-00004.array_record").write_bytes(b"cut")
  kept = directory / "index-00002-of-00004.parquet"
  when = kept.stat().mtime
  setup.convert("killed")
  assert content(directory) == before
  assert kept.stat().mtime == when


@pytest.mark.parametrize("bos", ["", BOS])
def test_one_to_one_loses_the_tail_and_counts_it(setup, bos):
  found = setup.convert(f"one{len(bos)}", "one_to_one", bos)
  old, new = setup.corpus.tokenizer(), found.tokenizer()
  size, by_source = setup.config.corpus.max_length + 1, {}
  lost, lost_bytes = 0, 0
  for row in found.read(range(len(found))):
    (by_source[row.source_rows[0]],) = (row.ids,)
  chosen = np.union1d(setup.kept, setup.corpus.rows_of("heldout"))
  for row_id, row in zip(chosen, setup.corpus.read(chosen)):
    text = old.decode(row.ids).split(old.eos_token)
    ids = [] if not bos else [new.bos_id]
    for i, part in enumerate(new.encode(text)):
      ids += [new.eos_id] * (i > 0) + part.tolist()
    lost += max(len(ids) - size, 0)
    # Rows of one token are left out, and their text is lost as well.
    here = ids[size:] if row_id in by_source else ids
    lost_bytes += int(new.byte_lengths[here].sum())
    if row_id in by_source:
      assert by_source[row_id].tolist() == ids[:size]
  counts = found.manifest.counts
  assert counts["tokens_lost"] == lost > 0
  assert 0 < counts["rows_truncated"] < counts["source_rows"]
  assert counts["bytes_lost"] == lost_bytes > 0
  assert counts["rows"] + counts["rows_lost"] == len(chosen)


def read_runs(rows, chosen):
  """Runs of rows (bytes, offset, *documents); −1 is eos, 0 the document."""
  instances = []
  for content, offset, *documents in rows:
    ids, of = np.array(list(content), np.int32) + 1, tuple(documents or [0])
    instances.append(StoredRow(ids, "d", "train", 0, of, offset, 0, 0))
  decoder = types.SimpleNamespace(
    corpus=types.SimpleNamespace(
      directory="here",
      manifest=types.SimpleNamespace(settings={}),
      read=lambda ids: [instances[i] for i in ids],
      domains=lambda ids: np.array(["d"] * len(ids)),
    ),
    encoder=types.SimpleNamespace(eos_id=0, bos_id=None),
    token_bytes=[b"", *(bytes([b]) for b in range(256))],
  )
  part = PartRows(decoder, range(len(rows)), np.array(chosen))
  runs = TextRuns(part)
  return [(run.text, run.rows, run.ends.tolist()) for run in runs], runs.counts


@pytest.mark.parametrize("conversion", ["repack", "one_to_one"])
def test_text_that_the_student_has_no_tokens_for_is_refused(
  setup, tmp_path, conversion
):
  engine = tokenizers.Tokenizer(tokenizers.models.BPE())
  engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
  engine.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    special_tokens=[EOS], show_progress=False
  )
  engine.train_from_iterator([TEXTS[3], EOS], trainer)
  engine.save(str(tmp_path / "tokenizer.json"))
  before = setup.config.student.tokenizer
  setup.config.student.tokenizer = str(tmp_path)
  try:
    with pytest.raises(UserError, match=r"no tokens for \d\d\.\d\d% of the"):
      setup.convert(f"lossy-{conversion}", conversion)
  finally:
    setup.config.student.tokenizer = before


def test_a_character_that_three_rows_share_belongs_to_the_first():
  a, b, c, d = "🙂".encode()
  rows = [(bytes([65, a]), 0), (bytes([b, c]), 2), (bytes([d, 66]), 4)]
  assert read_runs(rows, [0])[0] == [("A🙂", (0,), [5])]
  assert read_runs(rows, [1]) == ([], {**_counts(2), "bytes_left_before": 2})
  assert read_runs(rows, [2])[0] == [("B", (2,), [1])]
  assert read_runs(rows, [0, 2])[0] == [("A🙂", (0,), [5]), ("B", (2,), [1])]
  assert read_runs(rows, [0, 1, 2])[0] == [("A🙂B", (0, 1, 2), [5, 5, 6])]


def _counts(bytes_in):
  names = ("bytes_left_before", "bytes_taken_after", "bytes_dropped")
  return {"bytes_in": bytes_in} | dict.fromkeys(names, 0)


def test_a_character_whose_rest_is_not_there_is_dropped_and_counted():
  a, b, *_ = "🙂".encode()
  # The second row does not go on where the first one ends.
  rows = [(bytes([65, a, b]), 0), (b"other", 9)]
  found, counts = read_runs(rows, [0])
  assert found == [("A", (0,), [1])]
  assert counts == _counts(3) | {"bytes_dropped": 2}


def test_text_that_is_left_out_with_cut_characters_is_said(capsys):
  counts = {"bytes_in": 1010, "bytes_left_before": 4, "bytes_dropped": 6}
  convert_step._say_bytes(collections.Counter(counts | {"bytes_out": 1000}))
  words = "1,000 bytes of text in (10 more, of characters that rows cut, are "
  assert words + "left out), 1,000 out\n" in capsys.readouterr().out


def test_texts_of_one_document_are_joined_over_rows_each():
  """As Megatron's may be: with more eos than that at their end."""
  rows = [
    ([*b"A", -1, *b"One", -1, *b"Tw"], 0, 0, 1),
    ([*b"o", -1, *b"Thr"], 6, 1),
    ([*b"ee", -1], 11, 1),
  ]
  found = [text for text, *_ in read_runs(rows, [0, 1, 2])[0]]
  assert found == ["A", "One", "Two", "Three"]
  # What a row that is not chosen parts stays apart, wherever an eos is.
  rows = [([*b"A", -1, *b"BB", -1, *b"T"], 0, 0, 1), (b"abc", 1, 1)]
  found = [text for text, *_ in read_runs([*rows, (b"d", 4, 1)], [0, 2])[0]]
  assert found == ["A", "BB", "T", "d"]


def test_bytes_that_are_no_text_are_refused_with_their_rows():
  with pytest.raises(UserError, match="rows 0 to 1 are no text"):
    read_runs([(b"A\xff", 0), (b"BC", 2)], [0, 1])


def test_without_a_tokenizer_of_the_students_there_is_nothing_to_do():
  config = config_lib.default()
  assert steps_of("convert", config) == []


def test_what_was_converted_outlives_its_tokenizer(setup, tmp_path, capsys):
  s = setup.config.student
  old, s.tokenizer = s.tokenizer, str(tmp_path / "mounted")
  shutil.copytree(old, s.tokenizer)
  made = setup.convert("outlives").manifest
  shutil.rmtree(s.tokenizer)
  capsys.readouterr()
  assert setup.convert("outlives").manifest.fingerprint == made.fingerprint
  said = capsys.readouterr().out
  assert "what was made of it stands" in said and s.tokenizer in said
  config = typed(setup.config)
  inputs = convert_step.corpus_inputs(
    config.student, config.corpus, setup.workdir, "outlives"
  )
  assert inputs["tokenizer"]() == made.inputs["tokenizer"]
  s.tokenizer = str(tmp_path / "mistyped")
  with pytest.raises(UserError, match="no model directory here"):
    setup.convert("outlives")
  s.tokenizer = old


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("eos_token", "<none>", "no token '<none>'.*student.eos_token"),
    ("bos_token", "<none>", "no token '<none>'.*student.bos_token"),
    ("tokenizer", "/nowhere/at/all", "no model directory"),
  ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(setup, field, value, message):
  s = setup.config.student
  old = s[field]
  s.name, s[field] = f"bad_{field}", value
  try:
    with pytest.raises(UserError, match=message):
      execute_lib.execute(steps_of("convert", setup.config))
  finally:
    s[field] = old


@pytest.fixture
def student(copy):
  """Arguments of a student with a tokenizer of its own, in a finished run."""
  folder = write_tokenizer(copy / "student", 560)
  return (
    "--config.student.name=other",
    f"--config.student.tokenizer={folder}",
    f"--config.student.eos_token={EOS}",
    f"--config.student.bos_token={BOS}",
    "--config.student.model.vocab_size=640",
  )


def test_a_student_of_another_tokenizer(copy, student):
  """From the selection to a directory for transformers."""
  from miniplm_jax.core import manifest

  run(copy, "--stages=convert,train,evaluate,export,report", *student)
  folder = copy / "run" / "students" / "other"
  converted = manifest.require(folder / "corpus" / "manifest.json")
  trained = manifest.require(folder / "manifest.json")
  assert trained.inputs["converted"] == converted.fingerprint
  assert trained.tokenizer == converted.tokenizer
  assert trained.counts["rows"] == converted.counts["split train"]
  encoder = tokenizer.load(epath.Path(folder / "hf"), EOS)
  theirs = Corpus(converted).tokenizer()
  assert encoder.model(640) == theirs.model(640)
  config = json.loads((folder / "hf" / "config.json").read_text())
  bos_id = encoder.model(640)[0][BOS]
  assert config["vocab_size"] == 640
  assert (config["bos_token_id"], config["eos_token_id"]) == (
    bos_id,
    encoder.eos_id,
  )
  tokens = json.loads((folder / "hf" / "tokenizer_config.json").read_text())
  assert (tokens["bos_token"], tokens["eos_token"]) == (BOS, EOS)
  assert tokens["model_max_length"] == 32  # that of its rows
  card = (folder / "hf" / "README.md").read_text()
  assert converted.fingerprint in card and converted.tokenizer in card
  assert "of up to 32 tokens, the tokenizer's model_max_length" in card
  loss = manifest.require(folder / "evaluation.json").details["loss"]["all"]
  corpus = Corpus(converted)
  rows = corpus.rows_of("heldout")
  n_bytes = corpus.index["n_bytes"].to_numpy()[rows].sum()
  bits = loss["token_mean"] * loss["tokens"] / np.log(2) / n_bytes
  assert loss["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
  before = (folder / "hf/manifest.json").read_bytes()
  named = {
    "student.name": "other",
    "student.model.vocab_size": 640,
    "train.steps": 8,
  }
  for stage in ("evaluate", "export", "train"):
    with pytest.raises(UserError, match=r"not of the student.s tokenizer"):
      execute(copy, stage, **named, baselines=())
  assert (folder / "hf/manifest.json").read_bytes() == before
  again = run(copy, "--stages=convert,train,evaluate,export", *student)
  assert again.stdout.count("skipped, nothing has changed") == 6


@pytest.mark.parametrize("bos", ["", BOS])
def test_texts_begin_as_rows_do(setup, bos):
  """In evaluation and export, whatever the tokenizer's file says."""
  corpus = setup.convert(f"begins{bool(bos)}", bos=bos)
  folder = corpus.directory / "tokenizer"
  engine = tokenizer.load_engine(folder)
  other = () if bos else ((BOS, engine.token_to_id(BOS)),)
  engine.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{BOS} $A" if other else "$A", special_tokens=other
  )
  engine.save(str(folder / "tokenizer.json"))
  corpus.manifest = dataclasses.replace(
    corpus.manifest, tokenizer=tokenizer.load(folder, EOS).fingerprint
  )
  exported = corpus.tokenizer().to_files()["tokenizer.json"].decode()
  first = {row.ids[0] for row in corpus.read(range(len(corpus)))}
  for found in (
    corpus.tokenizer().text_engine(),
    tokenizers.Tokenizer.from_str(exported),
  ):
    begins = {found.encode(text).ids[0] for text in TEXTS}
    assert (begins == first) if bos else engine.token_to_id(BOS) not in begins
  # Another one beside the weights would give them other texts.
  tokenizer.save(tokenizer.train(TEXTS, 300, EOS), folder)
  with pytest.raises(UserError, match="the corpus was made with"):
    corpus.tokenizer().to_files()


def test_tokens_that_no_row_has_need_not_be_known(setup, tmp_path):
  """Neither by the model nor by its tokenizer; others are compared."""
  corpus = setup.corpus
  ids = np.concatenate([r.ids for r in corpus.read(range(len(corpus)))])
  assert corpus.ids == ids.max() + 1 < corpus.tokenizer().vocab_size + 1
  corpus.check_vocabulary(corpus.ids, "here", "")
  with pytest.raises(UserError, match=f"has {corpus.ids} token ids"):
    corpus.check_vocabulary(corpus.ids - 1, "here", "")
  engine = tokenizer.load_engine(corpus.directory / "tokenizer")
  engine.add_special_tokens(["<tool>", "<fill>"])
  engine.save(str(tmp_path / "tokenizer.json"))
  corpus.check_model(epath.Path(tmp_path), corpus.ids)
  body = json.loads(engine.to_str())
  body["model"]["merges"] = body["model"]["merges"][:-1]
  (tmp_path / "tokenizer.json").write_text(json.dumps(body))
  with pytest.raises(UserError, match="another tokenizer"):
    corpus.check_model(epath.Path(tmp_path), corpus.ids)


def test_data_of_the_wrong_vocabulary_cannot_be_trained_on(copy, student):
  run(copy, "--stages=convert", *student)
  few = "--config.student.model.vocab_size=300"
  error = refused(copy, "--stages=train", *student, few)
  assert "token ids, the model 300" in error
  other = write_tokenizer(copy / "third", 280)
  wrong = f"--config.student.tokenizer={other}"
  error = refused(copy, "--stages=train", *student, wrong)
  assert "inputs.tokenizer is" in error
  assert "--stages=convert --force" in error
  error = refused(
    copy, "--stages=train", *student, "--config.student.bos_token="
  )
  assert "bos_token is" in error
  made = copy / "run" / "students" / "other" / "corpus" / "tokenizer"
  shutil.copy(other / "tokenizer.json", made)
  error = refused(copy, "--stages=train", *student)
  assert "the corpus was made with" in error
