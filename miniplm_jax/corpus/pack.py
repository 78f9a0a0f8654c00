"""Packing: documents of one domain into rows that end at sentence ends.

method: paper Appendix, released `process_data`; every rule is a line here.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from miniplm_jax.corpus.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Row:
  """One packed instance.

  Attributes:
    ids: int32 [2 … max_length + 1].
    documents: ordinals, in the part, of the documents it has tokens of.
    offset: tokens of `documents[0]` that stand before this row.
  """

  ids: np.ndarray
  documents: tuple[int, ...]
  offset: int


class SentenceEnds:
  """Where a row may end, as tables over the vocabulary.

  A row may end at an eos; at an end-of-sentence token that contains a
  newline; or at an end-of-sentence token whose decoding together with the
  next token contains a space. End-of-sentence tokens contain one of
  `. ! ? ;` or a newline, and no bracket that is not closed.
  """

  def __init__(self, tokenizer: Tokenizer):
    texts = tokenizer.decode_each()
    ends = np.array([_ends_sentence(t) for t in texts])
    newline = np.array(["\n" in t for t in texts])
    # Byte-level pieces decode one by one, so two hold a space if one does.
    self._space = np.array([" " in t for t in texts])
    self._eos_id = tokenizer.eos_id
    self._always = ends & newline
    self._always[self._eos_id] = True
    self._maybe = ends

  def cut(self, ids: np.ndarray) -> int:
    """Length of the row that `ids`, a full window, is cut to.

    All of it if there is no place to cut, or only one that would leave no
    position to score.
    """
    space = self._space[ids]
    space_next = space | np.append(space[1:], False)
    # The last token has no next one to look at.
    space_next[-1] = False
    ok = self._always[ids] | (self._maybe[ids] & space_next)
    for last in np.flatnonzero(ok)[::-1]:
      if last >= 1 and np.any(ids[:last] != self._eos_id):
        return int(last) + 1
    return len(ids)


# As released. The third pair was meant to be {}; written "\\{\\}", its first
# two characters are these. With it the Qwen vocabulary has the released code's
# 8,714 ids, eos among them; with {} it would have 8,655.
_BRACKETS = ("[]", "()", "\\{", "<>")


def _ends_sentence(text: str) -> bool:
  if any(o in text and c not in text for o, c in _BRACKETS):
    return False
  return any(mark in text for mark in ".!?;\n")


class Packer:
  """The packing buffer of one domain."""

  def __init__(self, ends: SentenceEnds, eos_id: int, max_length: int):
    """Rows will hold up to `max_length` + 1 ids: inputs and targets."""
    self._ends, self._eos_id, self._size = ends, eos_id, max_length + 1
    self._ids = np.zeros(0, np.int32)
    self._document = np.zeros(0, np.int64)  # ordinal, by token
    self._offset = np.zeros(0, np.int64)  # position in it, by token

  def add(self, ids: np.ndarray, document: int) -> Iterator[Row]:
    """Adds a document without its eos; yields the rows that are full."""
    ids = np.append(ids, np.int32(self._eos_id))
    self._ids = np.concatenate([self._ids, ids])
    self._document = np.concatenate(
      [self._document, np.full(len(ids), document)]
    )
    self._offset = np.concatenate([self._offset, np.arange(len(ids))])
    start = 0
    while len(self._ids) - start >= self._size:
      window = self._ids[start : start + self._size]
      end = start + self._ends.cut(window)
      yield self._row(start, end)
      start = end
    self._drop(start)

  def flush(self) -> Iterator[Row]:
    """Yields what is left, if it has a position to score."""
    if np.any(self._ids[:-1] != self._eos_id):
      yield self._row(0, len(self._ids))
    self._drop(len(self._ids))

  def _row(self, start: int, end: int) -> Row:
    documents = np.unique(self._document[start:end])
    return Row(
      self._ids[start:end].copy(),
      tuple(int(d) for d in documents),
      int(self._offset[start]),
    )

  def _drop(self, start: int):
    self._ids = self._ids[start:]
    self._document = self._document[start:]
    self._offset = self._offset[start:]
