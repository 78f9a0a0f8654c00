"""BOS: the same in rows, evaluation, generation and export."""

import collections
import dataclasses
import json
import types

import numpy as np
import pytest
import tokenizers
from etils import epath
from helpers import steps_of, typed
from tiny_config import get_config

from miniplm_jax import pipeline
from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import execute as execute_lib
from miniplm_jax.core import manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus import (
  convert_text,
  shard,
  store,
  tokenize_step,
  tokenizer,
)
from miniplm_jax.corpus.chunks import TokenizedRecord
from miniplm_jax.corpus.pack import Packer, SentenceEnds
from miniplm_jax.evaluation import generate
from miniplm_jax.selection import items, overlap

EOS, BOS = "</s>", "<s>"
TEXTS = [
  "The first sentence. The second one! And (a bracket. inside) it; done\n",
  f"No end here, but {BOS} and {EOS} as text",
  "A question? Yes, 你 🙂. " * 30,
  "x",
]


def write_tokenizer(folder, before=BOS, eos=EOS):
  """A byte-level BPE that puts a token, or nothing, before a text."""
  engine = tokenizers.Tokenizer.from_str(
    tokenizer.train(TEXTS, 400, eos).to_files()["tokenizer.json"].decode()
  )
  engine.add_special_tokens([BOS])
  if before:
    engine.post_processor = tokenizers.processors.TemplateProcessing(
      single=f"{before} $A", special_tokens=[(before, engine.token_to_id(BOS))]
    )
  folder.mkdir(exist_ok=True)
  engine.save(str(folder / "tokenizer.json"))
  return folder


def configured(folder, bos_token="auto", before=BOS, eos=EOS):
  config = get_config()
  config.workdir, c = str(folder / "run"), config.corpus
  c.source, c.domain_field = str(folder / "text.jsonl"), "domain"
  c.tokenizer = str(write_tokenizer(folder / "tokenizer", before, eos))
  c.eos_token, c.bos_token, c.max_length = eos, bos_token, 32
  lines = (json.dumps({"text": t, "domain": "d"}) + "\n" for t in TEXTS * 9)
  (folder / "text.jsonl").write_text("".join(lines))
  return config


def tokenize(config):
  workdir = Workdir(epath.Path(config.workdir))
  execute_lib.execute(steps_of(tokenize_step.STAGE, config))
  return store.Corpus(manifest.require(workdir.corpus / "manifest.json"))


def ids_of(corpus):
  return [row.ids for row in corpus.read(range(len(corpus)))]


@pytest.mark.parametrize("size", [2, 7, 16, 64])
def test_every_text_of_a_row_follows_bos(tmp_path, size):
  encoder = tokenizer.load(
    epath.Path(write_tokenizer(tmp_path)), EOS, tokenizer.AUTO
  )
  eos_id, bos_id = encoder.eos_id, encoder.bos_id
  packer = Packer(SentenceEnds(encoder), size)
  encoded = encoder.encode(TEXTS * 9)
  rows = [row for i, ids in enumerate(encoded) for row in packer.add(ids, i)]
  rows += packer.flush()
  whole = [np.append(ids, eos_id) for ids in encoded]
  kept = [row.ids[row.ids != bos_id] for row in rows]
  np.testing.assert_array_equal(np.concatenate(kept), np.concatenate(whole))
  for row, ids in zip(rows, kept):
    assert 2 <= len(row.ids) <= size + 1
    after = np.append(True, row.ids[:-1] == eos_id)
    np.testing.assert_array_equal(row.ids == bos_id, after)
    source = np.concatenate([whole[d] for d in row.documents])
    np.testing.assert_array_equal(source[row.offset :][: len(ids)], ids)
  # Where there is no place to cut they are full.
  assert size > 16 or max(len(row.ids) for row in rows) == size + 1


@pytest.mark.parametrize(
  ("bos_token", "before", "is_there"),
  [
    ("auto", BOS, True),
    ("auto", "", False),
    (BOS, "", True),
    ("", BOS, False),
  ],
)
def test_what_rows_begin_with_is_put_before_texts(
  tmp_path, bos_token, before, is_there
):
  corpus = tokenize(configured(tmp_path, bos_token, before))
  bos_id = tokenizer.load_engine(corpus.directory / "tokenizer").token_to_id(
    BOS
  )
  assert {ids[0] == bos_id for ids in ids_of(corpus)} == {is_there}
  assert corpus.bos_id == (bos_id if is_there else None)
  exported = corpus.tokenizer().to_files()
  found = json.loads(exported["tokenizer_config.json"]).get("bos_token")
  assert found == (BOS if is_there else None)
  saved = tokenizers.Tokenizer.from_str(exported["tokenizer.json"].decode())
  for engine in (saved, corpus.tokenizer().text_engine()):
    assert engine.encode("x").tokens == [BOS] * is_there + ["x"]
  # Of a document that quotes them the tokens are text.
  text = corpus.tokenizer().decode(np.concatenate(ids_of(corpus)))
  assert "but <s> and </s> as" in text


def test_a_corpus_of_an_earlier_version_stays_without(tmp_path):
  config = configured(tmp_path, "")
  made = tokenize(config).manifest
  settings = {k: v for k, v in made.settings.items() if k != "bos_token"}
  details = {k: v for k, v in made.details.items() if k[:3] != "bos"}
  dataclasses.replace(made, settings=settings, details=details).write()
  before = made.path.read_bytes()
  for config.corpus.bos_token in ("auto", ""):
    corpus = tokenize(config)
    tokenize_step.check(typed(config).corpus, made.directory, typed(config).run)
    assert made.path.read_bytes() == before and corpus.bos_id is None
    assert corpus.tokenizer().text_engine().encode("x").tokens == ["x"]
  config.corpus.bos_token = BOS
  with pytest.raises(UserError, match=r"bos_token is null there and .<s>."):
    tokenize(config)


def test_no_byte_is_lost_on_the_way_to_another_tokenizer(tmp_path):
  config = configured(tmp_path)
  c = config.corpus
  c.max_length, c.teacher_share, c.reference_share, c.heldout_share = 5, 0, 0, 0
  corpus = tokenize(config)
  rows = np.arange(len(corpus))
  decoder = convert_text.RowDecoder(corpus)
  part = convert_text.PartRows(decoder, range(len(corpus)), rows)
  runs = convert_text.TextRuns(part)
  assert sorted({run.text for run in runs}) == sorted(TEXTS)


def test_what_is_from_elsewhere_begins_with_it(tmp_path):
  write_tokenizer(tmp_path / "tokenizer")
  corpus = CorpusConfig(eos_token=EOS, bos_token=BOS, max_length=8)
  maker = shard.Maker(
    shard.Recipe(corpus, (), str(tmp_path), 0), lambda unused: None
  )
  encoder = tokenizer.load(epath.Path(tmp_path / "tokenizer"), EOS, BOS)
  bos_id, eos_id, (x,) = encoder.bos_id, encoder.eos_id, encoder.encode(["xx"])
  for ids in ([bos_id, *x, eos_id], x):  # documents
    record = TokenizedRecord(np.array(ids, np.int32), "d", is_row=False)
    ((*_, row),) = maker._packed([(0, record)], collections.Counter())
    assert row.ids.tolist() == [bos_id, *x, eos_id]
  # Also of several texts, each with its own or without.
  ids = [bos_id, *x, eos_id, bos_id, *x, eos_id, *x, eos_id]
  record = TokenizedRecord(np.array(ids, np.int32), "d", is_row=False)
  packed = maker._packed([(0, record)], collections.Counter())
  rows = [row.ids for *_, row in packed]
  assert np.concatenate(rows).tolist() == [bos_id, *x, eos_id] * 3
  good = TokenizedRecord(np.array([bos_id, *x], np.int32), "d")
  assert maker._checked(good, 0) is good
  bad = maker._checked(TokenizedRecord(np.array([*x, *x], np.int32), "d"), 0)
  assert "does not begin with <s>" in bad.what and "bos_token= " in bad.hint


def test_a_teacher_that_expects_another_beginning_is_warned_of(
  tmp_path, capsys
):
  corpus = tokenize(configured(tmp_path, ""))
  folder = epath.Path(tmp_path / "tokenizer")
  corpus.check_model(folder, corpus.ids)
  said = capsys.readouterr().out
  assert "puts <s> before a text, in rows it follows nothing" in said
  corpus.check_model(corpus.directory / "tokenizer", corpus.ids)
  assert "warning" not in capsys.readouterr().out


def test_two_tokens_before_a_text_and_eos_are_no_bos(tmp_path):
  folder = epath.Path(write_tokenizer(tmp_path))
  engine = tokenizer.load_engine(folder)
  both = [(t, engine.token_to_id(t)) for t in (EOS, BOS)]
  for single, words in (
    (f"{EOS} {BOS} $A", "no token '</s><s>'.*corpus.bos_token"),
    (f"{EOS} $A {BOS}", ""),
  ):
    engine.post_processor = tokenizers.processors.TemplateProcessing(
      single=single, special_tokens=both
    )
    engine.save(str(folder / "tokenizer.json"))
    if words:
      with pytest.raises(UserError, match=words):
        tokenizer.load(folder, EOS, tokenizer.AUTO)
    else:
      assert tokenizer.load(folder, EOS, tokenizer.AUTO).bos_id is None


@pytest.mark.parity
def test_a_student_reads_everywhere_what_it_was_trained_on(tmp_path):
  """Also beside a Qwen2, whose tokenizer transformers takes for its own."""
  transformers = pytest.importorskip("transformers")
  pytest.importorskip("torch", reason="needs the parity extra")
  hf = pytest.importorskip("lm_eval.models.huggingface")
  lm = pytest.importorskip("miniplm_jax.evaluation.lm")
  from lm_eval.api.instance import Instance

  config = configured(tmp_path, eos="<|endoftext|>")
  config.method, config.select.ratio = "pretrain", 1.0
  config.train.steps, config.train.batch_size = 4, 2
  stages = ("tokenize", "select", "train", "export")
  pipeline.run(config, "test", stages, force=False, dry_run=False)
  workdir = Workdir(epath.Path(config.workdir))
  corpus = store.Corpus(manifest.require(workdir.corpus / "manifest.json"))
  folder = workdir.student("pretrain") / "hf"
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  ours = lm.DirectoryLM(str(folder), batch_tokens=256, max_length=32)
  (ids,) = corpus.tokenizer().encode(["A question? Yes"])
  wanted = [corpus.bos_id, *ids.tolist()]
  assert theirs("A question? Yes")["input_ids"] == wanted
  assert ours.tok_encode("A question? Yes") == wanted
  assert (
    corpus.tokenizer().text_engine().encode("A question? Yes").ids == wanted
  )
  assert (theirs.bos_token_id, ours.prefix_token_id) == (corpus.bos_id,) * 2
  assert {row.ids[0] for row in corpus.read([0, 1, 2])} == {corpus.bos_id}
  hf = hf.HFLM(
    str(folder),
    dtype="float32",
    device="cpu",
    max_length=32,
    softmax_dtype="float64",
  )

  def asked(kind, *arguments):
    return [Instance(kind, {}, a, 0, ("", 0, 1)) for a in arguments]

  texts = ("A question?", " Yes"), ("", "The first"), (f"{BOS}x", " done")
  found = asked("loglikelihood", *texts)
  np.testing.assert_allclose(
    [f for f, _ in ours.loglikelihood(found)],
    [f for f, _ in hf.loglikelihood(found)],
    atol=1e-4,
  )
  until = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
  found = asked("generate_until", ("A question?", until))
  assert ours.generate_until(found) == hf.generate_until(found)


def test_words_at_the_ends_of_documents_are_words(tmp_path):
  corpus = tokenize(configured(tmp_path))
  encoder = corpus.tokenizer()
  a, b = encoder.encode(["One two", "Three é"])
  ids = [encoder.bos_id, *a, encoder.eos_id, encoder.bos_id, *b, encoder.eos_id]
  text = overlap.row_bytes(encoder)(np.array(ids)).decode()
  assert items.words(text) == ["one", "two", "three", "é"]


def test_a_prompt_has_bos_once(tmp_path):
  encoder = tokenizer.load(epath.Path(write_tokenizer(tmp_path)), EOS, BOS)
  arch = types.SimpleNamespace(vocab_size=encoder.vocab_size)
  c = types.SimpleNamespace(max_new_tokens=1, model="")
  for text in ("x", f"{BOS}x"):
    ids = generate.encode(encoder.text_engine(), arch, c, text)
    assert ids == [encoder.bos_id, *encoder.encode(["x"])[0]]
