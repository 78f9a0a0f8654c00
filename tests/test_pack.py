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
  packer = Packer(SentenceEnds(encoder), max_length)
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


def places(texts, eos_at=()):
  """Where a row may end by the released code, over pieces of text."""
  found = []
  for i, text in enumerate(texts):
    opens = any(o in text and c not in text for o, c in ("()", "[]", "<>"))
    ends = any(mark in text for mark in ".!?;\n") and not opens
    following = texts[i + 1 : i + 2]
    spaced = bool(following) and " " in text + following[0]
    if i in eos_at or (ends and ("\n" in text or spaced)):
      found.append(i)
  return found


def test_rows_end_where_the_method_says(encoder):
  """Every full window against the rule applied to the tokens' texts."""
  checked = 0
  rows = pack(encoder, TEXT * 7, 16)
  ids = np.concatenate([r.ids for r in rows])
  start = 0
  while start + 17 <= len(ids):
    window = ids[start : start + 17]
    texts = [encoder.decode([i]) for i in window]
    eos = np.flatnonzero(window == encoder.eos_id)
    good = [
      i
      for i in places(texts, eos)
      if i > 0 and np.any(window[:i] != encoder.eos_id)
    ]
    length = good[-1] + 1 if good else 17
    assert len(rows[checked].ids) == length, texts
    start += length
    checked += 1
  assert checked > 20


@pytest.mark.parametrize(
  ("text", "kept"),
  [
    ("One. Two; three", "One. Two;"),  # the last end before a space
    ("pi is 3.14159", "pi is 3.14159"),  # no space after the end: not one
    ("a.b\nccc", "a.b\n"),  # a newline needs no space after it
    ("words without an end", "words without an end"),
  ],
)
def test_a_window_is_cut_at(encoder, text, kept):
  ends = SentenceEnds(encoder)
  (ids,) = encoder.encode([text])
  assert (
    encoder.decode(ids[: ends.cut(ids, ends.flags(ids))]).rstrip(" ") == kept
  )


def test_an_end_of_document_is_a_place_to_cut(encoder):
  ends = SentenceEnds(encoder)
  one, two = encoder.encode(["no end", "words"])
  ids = np.concatenate([one, [encoder.eos_id], two]).astype(np.int32)
  assert ends.cut(ids, ends.flags(ids)) == len(one) + 1


def test_a_cut_always_leaves_something_to_score(encoder):
  ends = SentenceEnds(encoder)
  eos = encoder.eos_id
  (tail,) = encoder.encode(["\nwords without an end"])
  ids = np.concatenate([[eos], tail]).astype(np.int32)
  # Cutting after [eos, newline] would leave a row without a scored position.
  assert ends.cut(ids, ends.flags(ids)) == len(ids)


def test_documents_without_tokens_make_no_rows_of_their_own(encoder):
  eos = encoder.eos_id
  packer = Packer(SentenceEnds(encoder), 3)
  documents = [[], [], [], [], [], [], [7, 8, 9], [], [], [], [], [], [], []]
  rows = []
  for i, ids in enumerate(documents):
    rows += packer.add(np.array(ids, np.int32), i)
  rows += packer.flush()
  assert all(set(r.ids[:-1].tolist()) - {eos} for r in rows)
  ids = [i for r in rows for i in r.ids.tolist() if i != eos]
  assert ids == [7, 8, 9] and all(6 in r.documents for r in rows)


def test_an_unclosed_bracket_is_no_sentence_end():
  from miniplm_jax.corpus.pack import _ends_sentence

  assert _ends_sentence(".)") and _ends_sentence("();")
  assert not _ends_sentence(".(") and not _ends_sentence("word")
  assert not _ends_sentence("<;") and _ends_sentence("<.>")
  assert _ends_sentence("{\n")  # as released


def test_a_literal_end_of_text_stays_text(encoder):
  (ids,) = encoder.encode(["before <|endoftext|> after"])
  assert encoder.eos_id not in ids
  assert encoder.decode(ids) == "before <|endoftext|> after"


def test_training_a_tokenizer_twice_gives_the_same():
  one, two = (tokenizer.train(TEXT, 300, "<|endoftext|>") for _ in range(2))
  assert one.fingerprint == two.fingerprint
