import numpy as np
import pytest

from miniplm_jax.corpus import tokenizer
from miniplm_jax.corpus.pack import Packer, SentenceEnds

TEXT = [
  "The first sentence. The second one! And (a bracket. inside) it; done\n",
  "No end here at all",
  "A question? Yes. " * 30,
  "\n\n",
]


@pytest.fixture(scope="module")
def encoder():
  return tokenizer.train(TEXT * 5, 300, "<|endoftext|>")


def pack(encoder, texts, max_length):
  packer = Packer(SentenceEnds(encoder), encoder.eos_id, max_length)
  rows = []
  for i, ids in enumerate(encoder.encode(texts)):
    rows += packer.add(ids, i)
  return rows + list(packer.flush())


def test_nothing_is_lost_and_lineage_finds_every_token(encoder):
  texts = TEXT * 7
  rows = pack(encoder, texts, 16)
  whole = [np.append(ids, encoder.eos_id) for ids in encoder.encode(texts)]
  np.testing.assert_array_equal(
    np.concatenate([r.ids for r in rows]), np.concatenate(whole)
  )
  for row in rows:
    assert 2 <= len(row.ids) <= 17
    source = np.concatenate([whole[d] for d in row.documents])
    found = source[row.offset : row.offset + len(row.ids)]
    np.testing.assert_array_equal(found, row.ids)


def test_rows_end_where_the_method_says(encoder):
  """The rule of method.md 2.1, worked out on text, token by token."""
  for row in pack(encoder, TEXT * 7, 16)[:-1]:
    window_was_full = len(row.ids) == 17
    last = encoder.decode(row.ids[-1:])
    is_end = any(m in last for m in ".!?;\n") and "(" not in last
    assert window_was_full or is_end or row.ids[-1] == encoder.eos_id


def test_cut_takes_the_last_place_that_qualifies(encoder):
  ends = SentenceEnds(encoder)
  (ids,) = encoder.encode(["One. Two; three"])
  text = encoder.decode(ids[: ends.cut(ids)])
  assert text in ("One. Two;", "One. Two; ")


def test_no_place_to_cut_keeps_the_window(encoder):
  ends = SentenceEnds(encoder)
  (ids,) = encoder.encode(["words without an end"])
  assert ends.cut(ids) == len(ids)


def test_a_cut_always_leaves_something_to_score(encoder):
  ends = SentenceEnds(encoder)
  eos = encoder.eos_id
  (tail,) = encoder.encode(["\nwords without an end"])
  ids = np.concatenate([[eos], tail]).astype(np.int32)
  # Cutting after [eos, newline] would leave a row without a scored position.
  assert ends.cut(ids) == len(ids)


def test_an_unclosed_bracket_is_no_sentence_end():
  from miniplm_jax.corpus.pack import _ends_sentence

  assert _ends_sentence(".)") and _ends_sentence("();")
  assert not _ends_sentence(".(") and not _ends_sentence("word")


def test_a_literal_end_of_text_stays_text(encoder):
  (ids,) = encoder.encode(["before <|endoftext|> after"])
  assert encoder.eos_id not in ids
  assert encoder.decode(ids) == "before <|endoftext|> after"


def test_training_a_tokenizer_twice_gives_the_same():
  one, two = (tokenizer.train(TEXT, 300, "<|endoftext|>") for _ in range(2))
  assert one.fingerprint == two.fingerprint
