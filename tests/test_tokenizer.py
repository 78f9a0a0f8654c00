"""Tokenizers of every make: their bytes, their ends, and who reads them."""

import json
from pydoc_data import topics

import pytest
import tokenizers

from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import tokenizer
from miniplm_jax.corpus.pack import Packer, SentenceEnds

EOS = "<|endoftext|>"
TEXTS = [topics.topics[name] for name in sorted(topics.topics)[:20]]
ODD = " Zażółć\tgęślą 🙂\n 你好， e\u0301 don't 1234 <s> ▁ \r\n\n  end. "


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
  packer = Packer(SentenceEnds(found), found.eos_id, 64)
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
