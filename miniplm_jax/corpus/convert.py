"""Rows of one tokenizer as rows of another: re-packed, or one to one."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np

from miniplm_jax.corpus import store
from miniplm_jax.corpus.convert_text import (
  PartRows,
  TextRun,
  TextRuns,
  split_ids,
)
from miniplm_jax.corpus.pack import Packer, SentenceEnds
from miniplm_jax.corpus.store import StoredRow
from miniplm_jax.corpus.tokenizer import Tokenizer

_BATCH = 256  # runs of text or rows that are encoded at a time


@dataclasses.dataclass(frozen=True)
class Target:
  """What rows are converted to."""

  encoder: Tokenizer  # the student's
  max_length: int  # inputs of a row; it holds one id more
  seed: int  # of the rows' hashes

  @functools.cached_property
  def ends(self) -> SentenceEnds:
    """Where rows may end."""
    return SentenceEnds(self.encoder)

  def instance(
    self, ids: np.ndarray, counts: collections.Counter, **facts
  ) -> StoredRow:
    """Returns a finished row; counts it."""
    eos_id, n_bytes = self.encoder.eos_id, self.encoder.byte_lengths
    counts["rows"] += 1
    counts["tokens"] += len(ids)
    counts[f"split {facts['split']}"] += 1
    counts["bytes_out"] += int(n_bytes[ids].sum())
    return StoredRow(
      ids=ids,
      n_bytes=store.scored_bytes(ids, eos_id, n_bytes),
      hash=store.hash_of(ids, self.seed),
      **facts,
    )


def repacked(
  rows: PartRows, to: Target, counts: collections.Counter
) -> Iterator[StoredRow]:
  """Yields the text of some rows, packed anew by split and domain.

  Raises:
    UserError: the bytes of a row are no text.
  """
  buffers: dict[tuple[str, str], _Buffer] = {}
  runs = TextRuns(rows)
  numbered = enumerate(runs)
  while batch := list(itertools.islice(numbered, _BATCH)):
    texts = [run.text for _, run in batch]
    encoded = to.encoder.encode(texts)
    counts.update(to.encoder.lost(texts, encoded))
    for (ordinal, run), ids in zip(batch, encoded):
      key = run.split, run.domain
      if key not in buffers:
        facts = {"split": run.split, "domain": run.domain, "part": rows.part}
        buffers[key] = _Buffer(to, counts, facts)
      yield from buffers[key].add(ids, ordinal, run)
  for key in sorted(buffers):
    yield from buffers[key].flush()
  counts.update(runs.counts)
  counts["source_rows"] += len(rows.row_ids)


class _Buffer:
  """Packs the runs of one split and domain, and keeps the lineage."""

  def __init__(self, to: Target, counts, facts):
    self._to, self._counts, self._facts = to, counts, facts
    self._packer = Packer(to.ends, to.max_length)
    # Runs that have tokens in the packer, and the bytes of those that left.
    self._runs: dict[int, TextRun] = {}
    self._done: dict[int, int] = {}

  def add(self, ids, ordinal: int, run: TextRun) -> Iterator[StoredRow]:
    self._runs[ordinal], self._done[ordinal] = run, 0
    yield from map(self._instance, self._packer.add(ids, ordinal))

  def flush(self) -> Iterator[StoredRow]:
    yield from map(self._instance, self._packer.flush())

  def _instance(self, row) -> StoredRow:
    sources = set()
    *whole, last = split_ids(row.ids, self._to.encoder.eos_id)
    # Those before an eos end here.
    for i, (ordinal, ids) in enumerate(zip(row.documents, [*whole, last])):
      sources.update(self._sources(ordinal, ids, i < len(whole)))
    return self._to.instance(
      row.ids,
      self._counts,
      documents=row.documents,
      offset=row.offset,
      source_rows=tuple(sorted(sources)),
      **self._facts,
    )

  def _sources(
    self, ordinal: int, ids: np.ndarray, at_end: bool
  ) -> tuple[int, ...]:
    """The rows that these ids, the next ones of a run, have text of."""
    run, start = self._runs.pop(ordinal), self._done.pop(ordinal)
    total = int(run.ends[-1])
    end = start + int(self._to.encoder.byte_lengths[ids].sum())
    # Of a tokenizer that normalizes, tokens have more or fewer bytes.
    end = total if at_end else min(end, total)
    if not at_end:
      self._runs[ordinal], self._done[ordinal] = run, end
    if end == start:
      return ()
    first = np.searchsorted(run.ends, start, "right")
    last = np.searchsorted(run.ends, end, "left")
    return run.rows[first : last + 1]


def one_to_one(
  rows: PartRows, to: Target, counts: collections.Counter
) -> Iterator[StoredRow]:
  """Yields each row for itself, as the released code does; its tail is lost.

  A row is split at eos, each text decoded and encoded again, joined by the
  new eos, and truncated. BOS stands at its beginning alone. A character that
  was cut becomes U+FFFD. Of the tails `tokens_lost` and `rows_truncated` are
  counted, `rows_lost` that had nothing to score, `bytes_lost` with both.
  """
  eos_id, size = to.encoder.eos_id, to.max_length + 1
  old_bytes = rows.decoder.encoder.byte_lengths
  new_bytes = to.encoder.byte_lengths
  encoded = _encoded(rows, to, counts)
  for ordinal, (row_id, row, ids) in enumerate(encoded):
    is_useless = not np.any(ids[:size][:-1] != eos_id)
    lost = ids if is_useless else ids[size:]
    counts["source_rows"] += 1
    counts["bytes_in"] += int(old_bytes[row.ids].sum())
    counts["tokens_lost"] += len(ids[size:])
    counts["bytes_lost"] += int(new_bytes[lost].sum())
    counts["rows_truncated"] += len(ids) > size
    counts["rows_lost"] += is_useless
    if is_useless:
      continue
    yield to.instance(
      ids[:size],
      counts,
      domain=row.domain,
      split=row.split,
      part=rows.part,
      documents=(ordinal,),
      offset=0,
      source_rows=(row_id,),
    )


def _encoded(
  rows: PartRows, to: Target, counts: collections.Counter
) -> Iterator[tuple[int, StoredRow, np.ndarray]]:
  """(row id, row, its text in new ids), untruncated."""
  old, eos = rows.decoder.encoder, np.array([to.encoder.eos_id], np.int32)
  bos = np.array([i for i in [to.encoder.bos_id] if i is not None], np.int32)
  row_ids, corpus = rows.row_ids.tolist(), rows.decoder.corpus
  numbered = zip(row_ids, store.read_each(corpus, rows.row_ids))
  while batch := list(itertools.islice(numbered, _BATCH)):
    ids_between_eos = [split_ids(row.ids, old.eos_id) for _, row in batch]
    # Without BOS and unknown tokens, which are no text.
    texts = [
      old.decode(ids[old.byte_lengths[ids] > 0])
      for of_row in ids_between_eos
      for ids in of_row
    ]
    encoded = to.encoder.encode(texts)
    counts.update(to.encoder.lost(texts, encoded))
    remaining = iter(encoded)
    for (row_id, row), of_row in zip(batch, ids_between_eos):
      joined = [bos]
      for i, ids in enumerate(itertools.islice(remaining, len(of_row))):
        joined += [eos, ids] if i else [ids]
      yield row_id, row, np.concatenate(joined)
