"""Tokenizers of every make: their bytes, their ends, and who reads them."""

import json
from pydoc_data import topics

import pytest
import tokenizers
from etils import epath
from helpers import steps_of

from miniplm_jax import config as config_lib
from miniplm_jax.core import execute, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import losses, tokenize_step, tokenizer
from miniplm_jax.corpus.pack import Packer, SentenceEnds
from miniplm_jax.models import architecture, config_json

EOS = "<|endoftext|>"
TEXTS = [topics.topics[name] for name in sorted(topics.topics)[:20]]
ODD = " Zażółć\tgęślą 🙂\n 你好， e\u0301 don't 1234 ▁ \r\n\n  end. "


def sentencepiece_like(prepend=True, metaspace=False):
  """One with ▁ for spaces and byte fallback, as Llama 2's and Gemma's are."""
  engine = tokenizers.Tokenizer(
    tokenizers.models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
  )
  engine.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
    prepend_scheme="never"
  )
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=700,
    special_tokens=["<unk>", "<s>", "</s>"]
    + [f"<0x{byte:02X}>" for byte in range(256)],
    show_progress=False,
  )
  engine.train_from_iterator(TEXTS, trainer)
  replace = tokenizers.normalizers.Replace(" ", "▁")
  engine.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.Prepend("▁"), replace] if prepend else [replace]
  )
  body = json.loads(engine.to_str())
  body["added_tokens"] = body["added_tokens"][:3]
  body["pre_tokenizer"] = None
  space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
  strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prepend
  if metaspace:
    space = {"type": "Metaspace", "replacement": "▁", "split": False}
    space["prepend_scheme"], strip = "always", []
  steps = [space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
  body["decoder"] = {"type": "Sequence", "decoders": steps}
  return tokenizers.Tokenizer.from_str(json.dumps(body))


@pytest.mark.parametrize(
  ("prepend", "metaspace"), [(True, False), (True, True), (False, False)]
)
def test_the_bytes_of_sentencepiece_are_those_of_the_text(prepend, metaspace):
  engine = sentencepiece_like(prepend, metaspace)
  found = tokenizer.Tokenizer(engine, "</s>", "here")
  each = found.token_bytes()
  for text in [ODD.replace("▁", "_"), "a b", "你", *TEXTS[:5]]:
    (ids,) = found.encode([text])
    joined = b"".join(each[i] for i in ids)
    assert joined.decode() == " " * prepend + text
    assert found.byte_lengths[ids].sum() == len(text.encode()) + prepend
  assert each[engine.token_to_id("<0xE4>")] == b"\xe4"
  assert each[engine.token_to_id("</s>")] == b""


def test_rows_of_sentencepiece_end_at_sentence_ends():
  found = tokenizer.Tokenizer(sentencepiece_like(), "</s>", "here")
  packer = Packer(SentenceEnds(found), 64)
  text = "We look for the object. It is the value of a name. " * 40
  (ids,) = found.encode([text])
  rows = list(packer.add(ids, 0))
  assert len(rows) > 3
  for row in rows:
    assert found.decode(row.ids).endswith(".") and 33 < len(row.ids) < 65


def test_pieces_that_do_not_join_to_the_text_are_refused():
  engine = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({"</s>": 0, "[UNK]": 1, "A": 2}, "[UNK]")
  )
  engine.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  found = tokenizer.Tokenizer(engine, "</s>", "here")
  with pytest.raises(UserError, match=r"join to .* decode to .* here, give"):
    found.token_bytes()


@pytest.mark.parametrize("special", [True, False])
def test_a_quoted_end_does_not_end_a_document(special):
  found = tokenizer.train(TEXTS[:3], 300, EOS)
  body = json.loads(found.to_files()["tokenizer.json"])
  body["added_tokens"][0]["special"] = special
  engine = tokenizers.Tokenizer.from_str(json.dumps(body))
  found = tokenizer.Tokenizer(engine, EOS, "here")
  text = f"a{EOS}b"
  for ids in (found.encode([text])[0], found._encode_all([text])[0]):
    assert found.eos_id not in ids and found.decode(ids) == text


def test_a_token_that_texts_have_ends_no_document():
  engine = tokenizer.train(TEXTS[:3], 300, EOS)._engine
  with pytest.raises(UserError, match="would end it"):
    tokenizer.Tokenizer(engine, "a", "here")


def gpt2_like():
  """Words as GPT-2 splits them, no NFC, and added tokens of several kinds."""
  body = json.loads(tokenizer.train(TEXTS, 500, EOS).to_files()[FILE])
  body["normalizer"] = None
  body["pre_tokenizer"] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
  }
  return body


def with_added(body):
  """The same with a BOS before each text, and added tokens."""
  engine = tokenizers.Tokenizer.from_str(json.dumps(body))
  engine.add_special_tokens(["<s>", "<tool>"])
  engine.add_tokens(["<fill>"])
  engine.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", engine.token_to_id("<s>"))]
  )
  return json.loads(engine.to_str())


FILE = "tokenizer.json"
MADE = {
  "trained": lambda: json.loads(
    tokenizer.train(TEXTS, 500, EOS).to_files()[FILE]
  ),
  "gpt2": gpt2_like,
  "sentencepiece": lambda: json.loads(sentencepiece_like().to_str()),
}
SMALL = {"vocab_size": 800, "hidden_size": 16, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
ARCHS = {
  "qwen2": {"qkv_bias": True},
  "qwen3": {"qkv_bias": False, "qk_norm": True},
  "llama": {"qkv_bias": False},
}


@pytest.mark.parity
@pytest.mark.parametrize("bos_token", ["", "<s>"])
@pytest.mark.parametrize("kind", [*ARCHS, "mamba"])
@pytest.mark.parametrize("name", MADE)
def test_exported_ids_are_those_of_autotokenizer(
  tmp_path, name, kind, bos_token
):
  """Beside every family, with what rows begin with, whatever the file said."""
  transformers = pytest.importorskip(
    "transformers", reason="needs the parity extra"
  )
  body = with_added(MADE[name]())
  engine = tokenizers.Tokenizer.from_str(json.dumps(body))
  eos = "</s>" if name == "sentencepiece" else EOS
  ours = tokenizer.Tokenizer(engine, eos, "here", bos_token)
  assert ours.adds == ("<s>", "")
  assert ours.is_qwens == (name == "trained")
  arch = (
    architecture.Mamba(**SMALL, tie_word_embeddings=True, intermediate_size=32)
    if kind == "mamba"
    else architecture.Transformer(
      **SMALL,
      **HEADS,
      **ARCHS[kind],
      tie_word_embeddings=True,
      intermediate_size=32,
    )
  )
  config = config_json.write(
    arch, ours.eos_id, "float32", as_llama=not ours.is_qwens
  )
  (tmp_path / "config.json").write_text(json.dumps(config))
  for file, content in ours.to_files().items():
    (tmp_path / file).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  first = [ours._engine.token_to_id(bos_token)] if bos_token else []
  exported = tokenizer.load_engine(epath.Path(tmp_path))
  for text in [ODD, "", "a<fill> b<tool>", EOS, *TEXTS[:5]]:
    wanted = theirs(text)["input_ids"]
    assert exported.encode(text).ids == wanted
    if "<" not in text:  # of a document the rest is text
      assert first + ours.encode([text])[0].tolist() == wanted
  assert theirs.eos_token_id == ours.eos_id
  assert theirs.bos_token == (bos_token or None)


def of_bpe(
  texts=TEXTS, special=("</s>",), alphabet=(), byte_level=True, **options
):
  """A BPE that knows the characters of some texts and of an alphabet."""
  engine = tokenizers.Tokenizer(tokenizers.models.BPE(**options))
  if byte_level:
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False
    )
    engine.decoder = tokenizers.decoders.ByteLevel()
  else:
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    engine.decoder = tokenizers.decoders.Metaspace()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=list(special),
    initial_alphabet=list(alphabet),
    show_progress=False,
  )
  engine.train_from_iterator(texts, trainer)
  return engine


LOSSY = {
  "bytes": lambda: of_bpe(["a cat", "</s>"]),
  "dropped": lambda: of_bpe(["a cat", "</s>"], byte_level=False),
  "unknown": lambda: of_bpe(
    ["a cat", "</s>"], ("</s>", "<unk>"), byte_level=False, unk_token="<unk>"
  ),
}


@pytest.mark.parametrize("name", LOSSY)
def test_what_a_text_loses_is_counted(name):
  found = tokenizer.Tokenizer(LOSSY[name](), "</s>", "here")
  assert not found.is_lossless
  put = name != "bytes"  # a space before a text
  for text, lost in [
    ("a cat", 0),
    (" tact", 0),
    ("a dog", 3),
    ("é 你 cat", 5),
    ("🙂", 4),
  ]:
    (ids,) = found.encode([text])
    kept = len(text.encode()) - lost + (put and text[0] != " ")
    assert found.byte_lengths[ids].sum() == kept, text
    assert found.lost([text], [ids]) == {
      "bytes_of_text": kept + lost,
      "bytes_unencoded": lost,
    }, text


@pytest.mark.parametrize(
  "make",
  [
    lambda: tokenizer.train(TEXTS[:3], 400, "</s>")._engine,
    sentencepiece_like,
    lambda: of_bpe(
      alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), unk_token="</s>"
    ),
  ],
)
def test_a_tokenizer_of_all_bytes_loses_none(make):
  found = tokenizer.Tokenizer(make(), "</s>", "here")
  assert found.is_lossless
  texts = [ODD, tokenizer.PROBE, "".join(map(chr, range(1, 0x700)))]
  each = found.token_bytes()
  for text, ids in zip(texts, found.encode(texts)):
    if found._engine.normalizer:
      text = found._engine.normalizer.normalize_str(text)
    joined = b"".join(each[i] for i in ids).decode()
    assert joined.replace("▁", " ") == text.replace("▁", " ")
  assert found.lost(texts, found.encode(texts))["bytes_unencoded"] == 0


def test_spaces_that_are_left_out_are_lost():
  body = json.loads(tokenizer.train(TEXTS, 400, EOS).to_files()[FILE])
  body["pre_tokenizer"]["pretokenizers"][0] = {"type": "WhitespaceSplit"}
  engine = tokenizers.Tokenizer.from_str(json.dumps(body))
  found = tokenizer.Tokenizer(engine, EOS, "here")
  lost = found.lost(["a b\nc"], found.encode(["a b\nc"]))
  assert lost == {"bytes_of_text": 5, "bytes_unencoded": 2}


def test_unknown_text_that_ends_documents_or_has_no_token_is_refused():
  both = tokenizer.Tokenizer(of_bpe(unk_token="</s>"), "</s>", "here")
  with pytest.raises(UserError, match="would end a document, here, name "):
    both.token_bytes()
  without = tokenizer.Tokenizer(of_bpe(unk_token="<no>"), "</s>", "here")
  with pytest.raises(UserError, match="unknown token is not in its vocab"):
    without.token_bytes()


def test_dropout_is_off(tmp_path):
  engine = of_bpe(dropout=0.5)
  engine.save(str(tmp_path / FILE))
  found = tokenizer.load(epath.Path(tmp_path), "</s>")
  engine.model.dropout = None
  assert {tuple(found.encode([TEXTS[0]])[0]) for _ in range(9)} == {
    tuple(engine.encode(TEXTS[0]).ids)
  }
  engine.save(str(tmp_path / FILE))
  same = tokenizer.load(epath.Path(tmp_path), "</s>")
  assert found.fingerprint == same.fingerprint


def test_more_than_a_hundredth_lost_is_refused(capsys):
  counts = {"bytes_of_text": 10000, "bytes_unencoded": 100}
  assert losses.check(counts, "tokenize", "here") == 0.01
  told = "no tokens for 1.00% of the text, 100 of 10,000 bytes"
  assert told in capsys.readouterr().out
  with pytest.raises(UserError, match="101 of 10,000 bytes; 1% is the most"):
    losses.check(counts | {"bytes_unencoded": 101}, "tokenize", "here")
  assert losses.check({}, "tokenize", "here") == 0
  assert not capsys.readouterr().out


@pytest.mark.parametrize("name", LOSSY)
def test_a_corpus_says_what_its_tokenizer_lost(tmp_path, capsys, name):
  folder = tmp_path / "tokenizer"
  folder.mkdir()
  LOSSY[name]().save(str(folder / FILE))
  config = config_lib.default()
  config.workdir, c = str(tmp_path / "run"), config.corpus
  c.source, c.tokenizer = str(tmp_path / "text"), str(folder)
  c.eos_token, c.max_length, c.reference_share = "</s>", 16, 0.1
  (tmp_path / "text").mkdir()
  source = tmp_path / "text" / "a.txt"
  text = "a cat " * 1000
  source.write_text(f"{text}🙂{text}")
  (step,) = steps_of(tokenize_step.STAGE, config)
  execute.execute([step])
  made = manifest.require(step.manifest)
  total = 12004 + (name != "bytes")
  assert made.counts["bytes_of_text"] == total
  assert made.counts["bytes_unencoded"] == 4
  assert made.details["share_of_bytes_lost"] == 4 / total
  assert f"0.03% of the text, 4 of {total:,} bytes" in capsys.readouterr().out
  config.workdir = str(tmp_path / "other")
  source.write_text(text + "🙂" * 20)
  (step,) = steps_of(tokenize_step.STAGE, config)
  with pytest.raises(UserError, match=r"80 of 6,08\d bytes; 1% is the most"):
    execute.execute([step])


@pytest.mark.parametrize("lossy", [1, 8])
def test_a_tokenizer_that_loses_text_is_refused_early(tmp_path, lossy):
  """Not for one file of eight, whose loss is small beside all of the text."""
  folder = tmp_path / "tokenizer"
  folder.mkdir()
  LOSSY["dropped"]().save(str(folder / FILE))
  config = config_lib.default()
  config.workdir, c = str(tmp_path / "run"), config.corpus
  c.source, c.tokenizer = str(tmp_path / "text"), str(folder)
  c.eos_token, c.max_length, c.part_bytes = "</s>", 16, 1000
  config.run.tokenize_workers = 1
  (tmp_path / "text").mkdir()
  for i in range(8):
    text = "a cat " * 999 + "🙂" * (100 if i < lossy else 0)
    (tmp_path / f"text/{i}.txt").write_text(text)
  (step,) = steps_of(tokenize_step.STAGE, config)
  if lossy == 1:
    execute.execute([step])
    return
  with pytest.raises(UserError, match="1% is the most that may be lost"):
    execute.execute([step])
  # Three have lost 1.4 % of all the text that there may be.
  assert len(list((tmp_path / "run/corpus").glob("index-*"))) == 3
