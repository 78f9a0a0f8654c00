"""The columns of a corpus's index, each read when it is first asked for."""

import collections
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath, epy

from miniplm_jax.core import errors, files, gs
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest, other_maker

with epy.lazy_imports():
  import pyarrow as pa
  import pyarrow.compute as pc
  import pyarrow.parquet as pq

_NAMES = ("domain", "split")
_ID = "row_id"
_OWN = "own_split"  # what the documents say, where `keep_apart` was
NONE = "none"  # the split of rows that are left out of theirs
# A row that two splits have stays in the first: what is measured on goes before
# what is trained on, and D, which others score, is last.
_ORDER = ("heldout", "reference", "teacher", "train")
_AT_A_TIME = 65_536  # values that are hashed at once, as they always were
DIGEST = "content"  # in an index: the digest of its columns and its facts
MADE_BY = "made_by"  # in the details of an index, from `manifest.made_by`
_DAMAGED = "restore it; or remove it: the shard is made again if none is listed"
AT_ONCE = 16  # files that are read; from gs:// each is some requests


def facts(index: epath.Path, is_checked=False, made_by=None) -> dict[str, Any]:
  """Returns what an index says of its shard, beside its columns.

  Raises:
    UserError: it is damaged, by the digest of its columns if `is_checked`, or
      made by something else than `made_by`.
  """
  with errors.parsing(index, _DAMAGED), index.open("rb") as f:
    file = pq.ParquetFile(f)
    metadata = file.schema_arrow.metadata
    facts_of = {k.decode(): json.loads(v) for k, v in metadata.items()}
    # Indices of earlier versions do not say it.
    written = facts_of.pop(DIGEST, "")
    if is_checked and written and written != digest(file.read(), facts_of):
      raise ValueError("its content is not that which was written")
  then = facts_of["details"].get(MADE_BY, {})
  if made_by and (difference := other_maker(then, made_by)):
    raise UserError(
      f"this shard is of another run: {difference}",
      f"{index}",
      "restore this run's tokenizer and shard, or remove the file: it is made "
      "again",
    )
  return facts_of


def digest(table, facts: Mapping[str, Any]) -> str:
  """Returns the sha256 of the values of an index's columns, and of its facts.

  As the shard was made: neither the ids that `number` gives nor the splits
  that `keep_apart` takes are among them.
  """
  total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
  for name in table.column_names:
    if name in (_ID, _OWN):
      continue
    column = _own_split(table) if name == "split" else table[name]
    for start in range(0, table.num_rows, _AT_A_TIME):
      for characters in _listed(column.slice(start, _AT_A_TIME)):
        total.update(characters)
  return total.hexdigest()


def _listed(column) -> tuple[Any, ...]:
  """The `repr` of a list of a column's values, without 10⁸ Python objects."""
  if pa.types.is_list(column.type):
    column = column.combine_chunks()
    both = column.value_lengths(), column.flatten()
    return tuple(c for each in both for c in _listed(pa.chunked_array([each])))
  if pa.types.is_floating(column.type):
    column = pa.chunked_array([column.combine_chunks().view(pa.int32())])
  if pa.types.is_integer(column.type):
    words = column.cast(pa.string()).combine_chunks()
  else:  # few names, over and over
    names = column.combine_chunks().dictionary_encode()
    each = pa.array(map(repr, names.dictionary.to_pylist()), pa.string())
    words = each.take(names.indices)
  listed = pc.binary_join(
    pa.ListArray.from_arrays([0, len(words)], words), ", "
  )
  return b"[", listed[0].as_buffer(), b"]"


def numbered(table, row_ids: Sequence[int]):
  """Returns an Arrow table with the column `row_id`."""
  ids = pa.array(row_ids, pa.int64())
  if _ID in table.column_names:
    return table.set_column(table.column_names.index(_ID), _ID, ids)
  return table.append_column(_ID, ids)


def write(index: epath.Path, table):
  """Writes the index of a shard."""
  with files.replacing(index) as scratch:
    pq.write_table(
      table,
      scratch,
      compression="zstd",
      use_dictionary=[name for name in table.column_names if name != _ID],
      column_encoding={_ID: "DELTA_BINARY_PACKED"},  # 8 bytes a row otherwise
    )


def number(index: epath.Path, first: int):
  """Numbers the rows of a shard's index from `first` on, if they are not."""
  table = _read(index, [_ID])  # or all of it
  if _ID in table.column_names:
    if not len(table) or table[_ID][0].as_py() == first:
      return
    table = _read(index)
  _change(index, numbered(table, first + np.arange(len(table))))


def _change(index: epath.Path, table):
  """Writes an index anew, as old as it was: the shard was made then."""
  before = os.stat(index) if gs.is_local(index) else None
  write(index, table)
  if before:
    os.utime(index, ns=(before.st_atime_ns, before.st_mtime_ns))


def _own_split(table):
  return table[_OWN if _OWN in table.column_names else "split"]


def keep_apart(indices: Sequence[epath.Path]) -> dict[str, int]:
  """Leaves rows out of their split that are equal to a row of one before it.

  By their texts' hashes rows are of one split each; by what documents say, two
  may be equal, and a model would be measured on what it was trained on. The
  order is `_ORDER`. Holds the hashes of all but the last, 8 bytes a row.

  Returns:
    How many rows of each split have become those of `NONE`, if any.
  """
  seen = {split: [np.zeros(0, np.uint64)] for split in _ORDER[:-1]}
  for index in indices:
    table = _read(index, (_OWN, "split", "hash"))
    own, hashes = _own_split(table).to_numpy(), table["hash"].to_numpy()
    for split in seen:
      seen[split].append(hashes[own == split])
  before, taken = {}, np.zeros(0, np.uint64)
  for split, later in itertools.pairwise(_ORDER):
    taken = np.union1d(taken, np.concatenate(seen[split]))
    before[later] = taken
  moved = collections.Counter()
  for index in indices:
    table = _read(index)
    own, hashes = _own_split(table).to_numpy(), table["hash"].to_numpy()
    split = own.copy()
    for name, taken in before.items():
      is_taken = (own == name) & np.isin(hashes, taken)
      split[is_taken] = NONE
      moved[name] += int(is_taken.sum())
    if np.array_equal(split, table["split"].to_numpy()):
      continue
    if _OWN not in table.column_names:
      table = table.append_column(_OWN, table["split"])
    place, kind = table.column_names.index("split"), table.schema.field("split")
    _change(index, table.set_column(place, kind, pa.array(split, kind.type)))
  return +moved


def _read(index: epath.Path, names: Sequence[str] = ()):
  """The columns of an index that there are of some, or all."""
  with errors.parsing(index, _DAMAGED), index.open("rb") as f:
    file = pq.ParquetFile(f)
    known = [name for name in names if name in file.schema_arrow.names]
    return file.read(known or None)


class Columns(dict):
  """Pyarrow columns [rows] by name, each read when it is first asked for.

  Names are dictionary-encoded: as strings those of 10⁸ rows are more than one
  Arrow array holds.
  """

  def __init__(self, manifest: Manifest, names: Sequence[str]):
    """Reads nothing yet; `names` are the corpus's index files, in order."""
    self._manifest, self._files = manifest, names

  def __missing__(self, name: str):
    """Reads a column, of files and of a length as the manifest says."""
    shards = list(self.by_shard(name))
    column = pa.chunked_array([c for shard in shards for c in shard.chunks])
    rows = self._manifest.counts["rows"]
    if len(column) != rows:
      raise UserError(
        f"the index has {len(column)} rows, the manifest {rows}",
        str(self._manifest.directory),
        self._manifest.remedy,
      )
    self[name] = column
    return column

  def by_shard(self, name: str) -> Iterator[Any]:
    """Yields a column of each shard, in order; nothing is kept."""

    def read(file: str):
      with self._manifest.reading(file) as path:
        table = pq.read_table(path, columns=[name], read_dictionary=_NAMES)
      return table[name]

    with futures.ThreadPoolExecutor(AT_ONCE) as pool:
      yield from pool.map(read, self._files)

  def rows_where(self, name: str, value: str) -> np.ndarray:
    """Returns int64 ids of the rows that have a name, ascending.

    Nothing else is kept.
    """
    row_ids, first = [], 0
    for column in self.by_shard(name):
      codes, names = coded(column)
      row_ids.append(first + np.flatnonzero((names == value)[codes]))
      first += len(column)
    return np.concatenate(row_ids)


def coded(column) -> tuple[np.ndarray, np.ndarray]:
  """Returns codes, int32 [n], of a column of names; its names, object [m]."""
  known: dict[str, int] = {}
  codes = codes_of(column.dictionary_encode(), known)
  return codes, np.array(list(known), object)


def codes_of(column, known: dict[str, int]) -> np.ndarray:
  """Returns int32 [n]: a dictionary-encoded column by the codes of its names.

  `known`, name → code, grows by those that are met.
  """
  pieces = [np.zeros(0, np.int32)]
  for chunk in column.chunks:
    names = chunk.dictionary.to_pylist()
    codes = [known.setdefault(n, len(known)) for n in names]
    pieces.append(np.array(codes, np.int32)[chunk.indices.to_numpy()])
  return np.concatenate(pieces)
