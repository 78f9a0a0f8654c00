"""Rows of one tokenizer as rows of another: re-packed, or one to one."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from miniplm_jax.convert.pieces import (
  Piece,
  PieceReader,
  Source,
  read_rows,
  split_ids,
)
from miniplm_jax.corpus import store
from miniplm_jax.corpus.pack import Packer, SentenceEnds
from miniplm_jax.corpus.store import Instance
from miniplm_jax.corpus.tokenizer import Tokenizer

_BATCH = 256  # pieces or rows that are encoded at a time


@dataclasses.dataclass(frozen=True)
class Target:
  """What rows are converted to.

  Attributes:
    encoder: the student's tokenizer.
    ends: where rows may end, by that tokenizer.
    max_length: inputs of a row; it holds one id more.
    seed: of the rows' hashes.
  """

  encoder: Tokenizer
  ends: SentenceEnds
  max_length: int
  seed: int

  def instance(self, ids: np.ndarray, seen: collections.Counter, **facts):
    """A finished row; counts it."""
    eos_id, n_bytes = self.encoder.eos_id, self.encoder.byte_lengths
    seen["rows"] += 1
    seen["tokens"] += len(ids)
    seen[f"split {facts['split']}"] += 1
    seen["bytes_out"] += int(n_bytes[ids].sum())
    return Instance(
      ids=ids,
      n_bytes=store.scored_bytes(ids, eos_id, n_bytes),
      hash=store.hash_of(ids, self.seed),
      **facts,
    )


def repacked(
  source: Source,
  part: int,
  part_rows: range,
  row_ids: np.ndarray,
  to: Target,
  seen: collections.Counter,
) -> Iterator[Instance]:
  """The text of some rows of one part, packed anew by split and domain.

  Args:
    source: the rows.
    part: their part.
    part_rows: all row ids of the part.
    row_ids: int64, those to convert, ascending.
    to: the new tokenizer and length.
    seen: counts what is met.

  Raises:
    UserError: the bytes of a row are no text.
  """
  buffers: dict[tuple[str, str], _Buffer] = {}
  reader = PieceReader(source, part_rows, row_ids)
  pieces = enumerate(reader)
  while batch := list(itertools.islice(pieces, _BATCH)):
    texts = [piece.text for _, piece in batch]
    encoded = to.encoder.encode(texts)
    seen.update(to.encoder.lost(texts, encoded))
    for (ordinal, piece), ids in zip(batch, encoded):
      key = piece.split, piece.domain
      if key not in buffers:
        buffers[key] = _Buffer(*key, part, to, seen)
      yield from buffers[key].add(ids, ordinal, piece)
  for key in sorted(buffers):
    yield from buffers[key].flush()
  seen.update(reader.counts)
  seen["source_rows"] += len(row_ids)


class _Buffer:
  """Packs the pieces of one split and domain, and keeps the lineage."""

  def __init__(self, split, domain, part, to: Target, seen):
    self._facts = {"split": split, "domain": domain, "part": part}
    self._to, self._seen = to, seen
    encoder = to.encoder
    self._packer = Packer(
      to.ends, encoder.eos_id, to.max_length, encoder.bos_id
    )
    # Pieces that have tokens in the packer, and the bytes of those that left.
    self._pieces: dict[int, Piece] = {}
    self._done: dict[int, int] = {}

  def add(self, ids, ordinal: int, piece: Piece) -> Iterator[Instance]:
    self._pieces[ordinal], self._done[ordinal] = piece, 0
    yield from map(self._instance, self._packer.add(ids, ordinal))

  def flush(self) -> Iterator[Instance]:
    yield from map(self._instance, self._packer.flush())

  def _instance(self, row) -> Instance:
    sources = set()
    *whole, last = split_ids(row.ids, self._to.encoder.eos_id)
    # Those before an eos end here.
    for i, (ordinal, ids) in enumerate(zip(row.documents, [*whole, last])):
      sources.update(self._sources(ordinal, ids, i < len(whole)))
    return self._to.instance(
      row.ids,
      self._seen,
      documents=row.documents,
      offset=row.offset,
      source_rows=tuple(sorted(sources)),
      **self._facts,
    )

  def _sources(
    self, ordinal: int, ids: np.ndarray, at_end: bool
  ) -> tuple[int, ...]:
    """The rows that these ids, the next ones of a piece, have text of."""
    piece, start = self._pieces.pop(ordinal), self._done.pop(ordinal)
    total = int(piece.ends[-1])
    end = start + int(self._to.encoder.byte_lengths[ids].sum())
    # Of a tokenizer that normalizes, tokens have more or fewer bytes.
    end = total if at_end else min(end, total)
    if not at_end:
      self._pieces[ordinal], self._done[ordinal] = piece, end
    if end == start:
      return ()
    first = np.searchsorted(piece.ends, start, "right")
    last = np.searchsorted(piece.ends, end, "left")
    return piece.rows[first : last + 1]


def one_to_one(
  source: Source,
  part: int,
  row_ids: np.ndarray,
  to: Target,
  seen: collections.Counter,
) -> Iterator[Instance]:
  """Each row for itself, as the released code does it; its tail is lost.

  A row is split at eos, each piece decoded and encoded again, joined by the
  new eos, and truncated. BOS stands at its beginning alone. A character that
  was cut becomes U+FFFD.

  Args:
    source: the rows.
    part: their part.
    row_ids: int64, those to convert, ascending.
    to: the new tokenizer and length.
    seen: counts what is met; `tokens_lost` and `rows_truncated` of the tails,
      `rows_lost` that had nothing to score, `bytes_lost` with both.
  """
  old = source.encoder
  eos_id, size = to.encoder.eos_id, to.max_length + 1
  for ordinal, (row_id, row, ids) in enumerate(
    _encoded(source, row_ids, to, seen)
  ):
    useless = not np.any(ids[:size][:-1] != eos_id)
    lost = ids if useless else ids[size:]
    seen["source_rows"] += 1
    seen["bytes_in"] += int(old.byte_lengths[row.ids].sum())
    seen["tokens_lost"] += len(ids[size:])
    seen["bytes_lost"] += int(to.encoder.byte_lengths[lost].sum())
    seen["rows_truncated"] += len(ids) > size
    seen["rows_lost"] += useless
    if useless:
      continue
    yield to.instance(
      ids[:size],
      seen,
      domain=row.domain,
      split=row.split,
      part=part,
      documents=(ordinal,),
      offset=0,
      source_rows=(row_id,),
    )


def _encoded(
  source: Source, row_ids: np.ndarray, to: Target, seen: collections.Counter
) -> Iterator[tuple[int, Instance, np.ndarray]]:
  """Rows with their ids, and their text in new ids, untruncated."""
  old, eos = source.encoder, np.array([to.encoder.eos_id], np.int32)
  bos = np.array([i for i in [to.encoder.bos_id] if i is not None], np.int32)
  rows = read_rows(source.corpus, row_ids)
  while batch := list(itertools.islice(rows, _BATCH)):
    pieces = [split_ids(row.ids, old.eos_id) for _, row in batch]
    # Without BOS and unknown tokens, which are no text.
    texts = [
      old.decode(ids[old.byte_lengths[ids] > 0])
      for of_row in pieces
      for ids in of_row
    ]
    found = to.encoder.encode(texts)
    seen.update(to.encoder.lost(texts, found))
    encoded = iter(found)
    for (row_id, row), of_row in zip(batch, pieces):
      joined = [bos]
      for i, ids in enumerate(itertools.islice(encoded, len(of_row))):
        joined += [eos, ids] if i else [ids]
      yield row_id, row, np.concatenate(joined)
