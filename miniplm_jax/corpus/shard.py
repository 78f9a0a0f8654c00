"""One chunk of a source → one shard of the corpus: a pure function of it.

So it does not matter which process makes a shard, when, or how often.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import contents, files, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import columns, documents, store, tokenizer
from miniplm_jax.corpus.chunks import (
  BrokenRecord,
  Chunk,
  Document,
  Reading,
  TokenizedRecord,
)
from miniplm_jax.corpus.documents import Carried
from miniplm_jax.corpus.pack import PackedRow, Packer, SentenceEnds

_BATCH = 256  # documents that are encoded at a time
_BATCH_BYTES = 1 << 24  # fewer, if they are long
_SAMPLE = 20  # broken records of a shard that are kept to be looked at
# Fields of the corpus that its shards are made by. The last two are of no
# effect here, but a shard says of which fields its text is.
_DECIDE = (
  *("eos_token", "bos_token", "max_length", "seed"),
  *("text_field", "domain_field"),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a shard depends on beside its chunk; can be pickled."""

  corpus: CorpusConfig  # its bos_token is that of rows, no more "auto"
  shares: tuple[tuple[str, float], ...]  # (split, share) of all but "train"
  directory: str  # of the corpus, which has the tokenizer
  max_broken: int  # broken records that are put up with

  def made_by(self, encoder: tokenizer.Tokenizer) -> dict[str, Any]:
    """Returns what a shard says of what its rows depend on beside its chunk."""
    settings = {name: getattr(self.corpus, name) for name in _DECIDE}
    settings["shares"] = dict(self.shares)
    settings |= self.corpus.carried
    return manifest.made_by(settings, {}, tokenizer=encoder.fingerprint)


class Maker:
  """Makes shards; a process needs one."""

  def __init__(self, recipe: Recipe, on_text: Callable[[int], Any]):
    """Loads the tokenizer.

    `on_text` is called with bytes of text as they are packed; it may raise.
    """
    self._recipe, self._on_text, corpus = recipe, on_text, recipe.corpus
    self._directory = epath.Path(recipe.directory)
    self._encoder = tokenizer.load(
      self._directory / "tokenizer", corpus.eos_token, corpus.bos_token
    )
    self._ends = SentenceEnds(self._encoder)
    self._carried = corpus.field_names, bool(corpus.id_field)

  def make(self, number: int, shards: int, chunk: Chunk) -> Mapping[str, int]:
    """Writes shard `number` of `shards`; returns its counts."""
    # Rows are pulled through: write_shard ← _stored ← _packed ← _encoded ←
    # _batches ← _usable ← the chunk. The counts are whole when it ends.
    counts, reading = collections.Counter(), Reading(chunk)
    details = {
      "name": chunk.name,
      "fingerprint": chunk.probe.fingerprint,
      "broken": [],
      "highest_id": 0,
      columns.MADE_BY: self._recipe.made_by(self._encoder),
    }
    records = self._usable(reading, counts, details["broken"])
    names = store.shard_names(number, shards)

    def rows():
      yield from self._stored(number, records, counts, details)
      if reading.content:
        details["is_noted"] = True

    more = documents.schema(*self._carried)
    store.write_shard(
      self._directory, names, rows(), counts, details, more=more
    )
    # Beside it, as a disk and gs:// say it in different ways: shards are equal.
    # It names its rows: after a kill in between, another shard's may be there.
    if reading.content:
      note = content_note(self._directory, number, shards)
      written = columns.facts(self._directory / names[1])[store.FILE]["sha256"]
      lines = reading.content, reading.identity, written
      files.write_bytes(note, "\n".join(lines).encode())
    return counts

  def documents(self, chunk: Chunk) -> Iterator[list[np.ndarray]]:
    """Yields the ids of a chunk's documents, some at a time; packs nothing."""
    counts, broken = collections.Counter(), []
    for batch in _batches(self._usable(Reading(chunk), counts, broken)):
      if ids := [ids for _, _, ids in self._encoded(batch, counts)]:
        yield ids

  def _usable(self, records, counts, sample):
    """(ordinal, record) of those that can be used; counts the others."""
    for i, record in enumerate(records):
      if isinstance(record, TokenizedRecord):
        record = self._checked(record, i)
      counts["documents"] += 1
      if not isinstance(record, BrokenRecord):
        if isinstance(record, Document) and record.lacks_domain:
          counts["lacking a domain"] += 1
        carried = Carried.of(i, record)
        if self._recipe.corpus.split_field and not carried.split:
          counts["lacking a split"] += 1
        for name in carried.lacks(*self._carried):
          counts[f"lacking {name}"] += 1
        yield i, record
        continue
      counts["broken"] += 1
      if len(sample) < _SAMPLE:
        sample.append(record.to_json())
      if counts["broken"] > self._recipe.max_broken:
        write_sample(self._directory, sample)
      refuse_broken(counts["broken"], self._recipe.max_broken, record.to_json())

  def _checked(
    self, row: TokenizedRecord, number: int
  ) -> TokenizedRecord | BrokenRecord:
    """Ids from elsewhere, if they can be a row of this corpus, or of one."""
    n, most = len(row.ids), self._recipe.corpus.max_length + 1
    where = f"{row.domain} row {number}"
    if not n and not row.is_row:
      return row
    if row.is_row and not 2 <= n <= most:
      what = f"a row of {n} ids where 2 to {most} fit"
      hint = "set --config.corpus.max_length to its longest row less 1"
      return BrokenRecord(what, where, hint)
    low, high = int(row.ids.min()), int(row.ids.max())
    if low < 0 or high >= self._encoder.vocab_size:
      what = f"ids {low} to {high} of {self._encoder.vocab_size}"
      hint = "name the tokenizer that it was made with"
      return BrokenRecord(what, where, hint)
    if row.is_row and np.all(row.ids[:-1] == self._encoder.eos_id):
      return BrokenRecord("a row with nothing to score", where, "leave it out")
    bos_id = self._encoder.bos_id
    if row.is_row and bos_id is not None and row.ids[0] != bos_id:
      what = f"a row that does not begin with {self._encoder.bos_token}"
      hint = "set --config.corpus.bos_token= if its rows have none"
      return BrokenRecord(what, where, hint)
    return row

  def _stored(self, number: int, records, counts, details):
    """The shard's rows; counts them, and notes their highest id."""
    corpus, n_bytes = self._recipe.corpus, self._encoder.byte_lengths
    for domain, own, row in self._packed(records, counts):
      hashed = store.hash_of(row.ids, corpus.seed)
      split = own or store.split_of(hashed, self._recipe.shares)
      counts["rows"] += 1
      counts["tokens"] += len(row.ids)
      details["highest_id"] = max(details["highest_id"], int(row.ids.max()))
      counts[f"split {split}"] += 1
      yield store.StoredRow(
        ids=row.ids,
        domain=domain,
        split=split,
        part=number,
        documents=tuple(document.ordinal for document in row.documents),
        offset=row.offset,
        n_bytes=store.scored_bytes(row.ids, self._encoder.eos_id, n_bytes),
        hash=hashed,
        has_own_split=bool(own),
        more=documents.columns(row, *self._carried),
      )

  def _packed(self, records, counts) -> Iterator[tuple[str, str, PackedRow]]:
    """(domain, split or "", row); one packing buffer for each of both."""
    packers: dict[tuple[str, str], Packer] = {}
    for batch in _batches(records):
      for i, record, ids in self._encoded(batch, counts):
        carried = Carried.of(i, record)
        key = record.domain, carried.split
        if isinstance(record, TokenizedRecord) and record.is_row:
          yield *key, PackedRow(ids, (carried,), 0, (len(ids),))
          continue
        if key not in packers:
          length = self._recipe.corpus.max_length
          packers[key] = Packer(self._ends, length)
        for row in packers[key].add(ids, carried):
          yield *key, row
    # The tails, in an order that does not depend on the text's.
    for key in sorted(packers):
      for row in packers[key].flush():
        yield *key, row

  def _encoded(self, batch, counts):
    """(ordinal, record, ids) of those that have text; counts what it loses."""
    documents = [(i, d) for i, d in batch if isinstance(d, Document) and d.text]
    texts = [d.text for _, d in documents]
    encoded = self._encoder.encode(texts)
    counts.update(self._encoder.lost(texts, encoded))
    kept = [(i, d, ids) for (i, d), ids in zip(documents, encoded) if len(ids)]
    for i, packed in batch:
      if isinstance(packed, TokenizedRecord):
        ids = packed.ids
        if not packed.is_row:  # the packer adds them
          before = np.concatenate([[self._encoder.eos_id], ids[:-1]])
          is_text = before != self._encoder.eos_id
          ids = ids[is_text | (ids != self._encoder.bos_id)]
          if ids[-1:].tolist() == [self._encoder.eos_id]:
            ids = ids[:-1]
        if len(ids):
          kept.append((i, packed, ids))
    self._on_text(sum(_size(d) for _, d, _ in kept))
    return kept


def _batches(records):
  """Lists of (ordinal, record) that are encoded, and held, at a time."""
  batch, size = [], 0
  for i, record in records:
    batch.append((i, record))
    size += _size(record)
    if len(batch) == _BATCH or size > _BATCH_BYTES:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _size(record: Document | TokenizedRecord) -> int:
  """Bytes of input, about; exact for ASCII."""
  if isinstance(record, TokenizedRecord):
    return record.ids.nbytes
  return len(record.text)


def write_sample(
  directory: epath.Path, broken: Sequence[dict[str, str]]
) -> epath.Path:
  """Writes some broken records beside the corpus, to be looked at."""
  path = directory.parent / "broken_records.jsonl"
  lines = "".join(json.dumps(record) + "\n" for record in broken)
  files.write_bytes(path, lines.encode())
  return path


def refuse_broken(count: int, most: int, record: Mapping[str, str]):
  """Raises UserError if there are more than `most` broken records."""
  if count > most:
    more = f"; broken record {count}, {most} are let pass" if most else ""
    raise UserError(
      record["what"] + more,
      record["where"],
      f"{record['todo']}, or let some pass with --config.run.max_broken=N",
    )


def content_note(directory: epath.Path, number: int, shards: int) -> epath.Path:
  """Returns the file that says which content a shard was made from."""
  index = store.shard_names(number, shards)[1]
  return (directory / index.replace("index", "source")).with_suffix(".txt")


def is_made(
  directory: epath.Path,
  number: int,
  chunks: Sequence[Chunk],
  identities: Mapping[str, str],
  made_by: Mapping[str, Any] | None,
) -> bool:
  """Returns whether a shard is there and was made from its chunk.

  The identities, by the chunks' names, are those of when the shards were known
  to be of their content: what has another one is read, to compare it.
  """
  # Here, also if nothing is there: chunks of one file share it, and it goes
  # with them to the processes that make their shards.
  chunk, now = chunks[number], chunks[number].probe.fingerprint
  names = store.shard_names(number, len(chunks))
  if not store.has(directory, names, made_by):
    return False
  facts = columns.facts(directory / names[1])
  details = facts["details"]
  if details["name"] not in (chunk.name, chunk.short_name):
    return False
  if details["fingerprint"] != now:
    return False
  note, is_noted = content_note(directory, number, len(chunks)), "is_noted"
  if not note.exists():  # earlier versions noted no content
    return is_noted not in details
  content, identity, *rows = note.read_text().split("\n")
  if is_noted in details and rows != [facts[store.FILE]["sha256"]]:
    return False
  if chunk.probe.identity in (identity, identities.get(chunk.name)):
    return True
  return contents.may_be(content, chunk.content())
