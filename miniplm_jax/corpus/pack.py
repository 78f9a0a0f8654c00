"""Packing: documents of one domain into rows that end at sentence ends.

method: paper Appendix, released `process_data`; every rule is a line here.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from miniplm_jax.corpus.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class PackedRow:
  """One packed row."""

  ids: np.ndarray  # int32 [2 … max_length + 1]
  documents: tuple[Any, ...]  # those that it has tokens of, as `Packer.add` has
  # Tokens of `documents[0]` that stand before this row, without BOS.
  offset: int
  # How many of its ids are each document's, without eos and BOS.
  tokens: tuple[int, ...] = ()


class SentenceEnds:
  """Where a row may end, as tables over the vocabulary of a tokenizer.

  A row may end at an eos; at an end-of-sentence token that contains a
  newline; or at an end-of-sentence token whose decoding together with the
  next token contains a space. End-of-sentence tokens contain one of
  `. ! ? ;` or a newline, and no bracket that is not closed.
  """

  def __init__(self, tokenizer: Tokenizer):
    # Of single tokens: bytes that are no whole character are no mark either.
    texts = [b.decode(errors="replace") for b in tokenizer.token_bytes()]
    ends = np.array([_ends_sentence(t) for t in texts])
    newline = np.array(["\n" in t for t in texts])
    # Pieces have texts of their own, so two hold a space if one does.
    self._space = np.array([" " in t for t in texts])
    self.eos_id, self.bos_id = tokenizer.eos_id, tokenizer.bos_id
    self._always = ends & newline
    self._always[self.eos_id] = True
    self._maybe = ends

  def flags(self, ids: np.ndarray) -> np.ndarray:
    """Returns bool [n]: where a row may end, if it has a token after that."""
    space = self._space[ids]
    space[:-1] |= space[1:]
    return self._always[ids] | (self._maybe[ids] & space)

  def cut(self, ids: np.ndarray, flags: np.ndarray) -> int:
    """Returns the length of the row that a full window is cut to.

    It is all of it if there is no place to cut, or only one that would leave no
    position to score. Flags are those of a text that the window is a part of.
    """
    for last in np.flatnonzero(flags)[::-1]:
      # The last token of a window has no next one to look at.
      if last == len(ids) - 1 and not self._always[ids[last]]:
        continue
      # The second says the same of all before; rarely needed, and slow.
      if last >= 1 and (
        ids[last - 1] != self.eos_id or np.any(ids[:last] != self.eos_id)
      ):
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
  """The packing buffer of one domain.

  A row begins with BOS, if there is one, and each further document in it does
  too: no text is without it, also where a row begins inside a document.
  """

  def __init__(self, ends: SentenceEnds, max_length: int):
    """Rows will hold up to `max_length` + 1 ids: inputs and targets."""
    self._ends, self._size = ends, max_length + 1
    self._eos_id, self._bos_id = ends.eos_id, ends.bos_id
    # The text and eos; BOS is put into rows.
    self._ids = np.zeros(0, np.int32)
    self._eos = np.array([self._eos_id], np.int32)
    # [document, tokens in the buffer, tokens before them] of each.
    self._documents: collections.deque[list[Any]] = collections.deque()

  def add(self, ids: np.ndarray, document: Any) -> Iterator[PackedRow]:
    """Adds a document without its eos; yields the rows that are full.

    `document` is what rows call it, such as its ordinal.
    """
    self._documents.append([document, len(ids) + 1, 0])
    self._ids = np.concatenate([self._ids, ids, self._eos])
    if not self._fits(self._ids[: self._size]):
      return
    flags, start = self._ends.flags(self._ids), 0
    while fits := self._fits(self._ids[start : start + self._size]):
      window = slice(start, start + fits)
      ids = self._ids[window]
      if self._bos_id is not None or self._has_text(ids):
        length = self._ends.cut(ids, flags[window])
        yield self._row(start, length)
      else:  # ends of documents without text; what follows them stays
        length = len(ids) - int(ids[-1] != self._eos_id)
        self._row(start, length)
      start += length
    self._ids = self._ids[start:]

  def _fits(self, ids: np.ndarray) -> int:
    """How many of the next ids make a full row; 0 if it would not be full."""
    if self._bos_id is None:
      return len(ids) if len(ids) == self._size else 0
    # A row of n ids has a BOS more, and one after each eos but a last one.
    sizes = 1 + np.arange(1, len(ids) + 1)
    sizes[1:] += np.cumsum(ids[:-1] == self._eos_id)
    if not len(ids) or sizes[-1] < self._size:
      return 0
    return int(np.searchsorted(sizes, self._size, "right"))

  def flush(self) -> Iterator[PackedRow]:
    """Yields what is left, if it has a position to score."""
    if self._has_text(self._ids):
      yield self._row(0, len(self._ids))
    self._ids = self._ids[:0]
    self._documents.clear()

  def _has_text(self, ids: np.ndarray) -> bool:
    """Whether a row of them has a position to score, also without BOS."""
    return bool(np.any(ids[:-1] != self._eos_id))

  def _row(self, start: int, length: int) -> PackedRow:
    """Takes the row from the front of the documents."""
    documents, tokens, left = [], [], length
    offset = self._documents[0][2]
    while left:
      document = self._documents[0]
      documents.append(document[0])
      taken = min(left, document[1])
      left -= taken
      document[1] -= taken
      document[2] += taken
      tokens.append(taken - (not document[1]))  # its last one is eos
      if not document[1]:
        self._documents.popleft()
    ids = self._ids[start : start + length].copy()
    if self._bos_id is not None:
      begins = [0, *np.flatnonzero(ids[:-1] == self._eos_id) + 1]
      ids = np.insert(ids, begins, self._bos_id)
    return PackedRow(ids, tuple(documents), offset, tuple(tokens))
