"""Numbers of rows that are no losses: what formulas read as field("NAME").

They are fields of the corpus's documents (`corpus.fields`), or stand in
Parquet files: by row id, or by the ids of documents (`corpus.id_field`).
"""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from miniplm_jax.core import contents
from miniplm_jax.core import files as files_lib
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.core.log import Progress
from miniplm_jax.corpus import documents
from miniplm_jax.corpus.chunks import parsing
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.criteria.nodes import FIELD
from miniplm_jax.selection import duplicates, items

_ROW, _DOCUMENT = "row_id", "doc_id"
_RECORD = np.dtype([("hash", "<u8"), ("value", "<f4")])
_HINT = "give numbers in a column of that name, and row_id or doc_id"


@dataclasses.dataclass(frozen=True)
class Files:
  """What an item of `select.columns` names, as an input of a step."""

  path: str  # a Parquet file, a folder of them, or a glob

  def __call__(self) -> str:
    """Returns the sha256 of a file, or the fingerprint of several."""
    paths = self.paths()
    if paths == [epath.Path(self.path)]:
      return files_lib.sha256(self.path)
    return contents.Whole(lambda: paths)()

  def paths(self) -> list[epath.Path]:
    """The files.

    Raises:
      GoneError: there is none.
    """
    found = []
    for path in items.matching(self.path):
      found += sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not found:
      where = f"config.select.columns, {self.path}"
      hint = "give a Parquet file, a folder of them or a glob"
      raise GoneError("there is no such file", where, hint)
    return found


class RowFields:
  """The fields that a formula reads, by row, in the order of the corpus."""

  def __init__(
    self, names: Sequence[str], files: Mapping[str, str], corpus: Corpus
  ):
    """Looks which is where.

    Args:
      files: paths, see `Files`, by the name of the field in each.

    Raises:
      UserError: there is no such field, or two, or a file has no such column.
    """
    settings = corpus.manifest.settings
    known, where = documents.names(settings), "config.select.definition"
    for name in names:
      if name in known and name in files:
        what = f"both the corpus and a file have a field {name!r}"
        raise UserError(what, files[name], "give the file's another name")
      if name not in (*known, *files):
        hint = f"there are {', '.join([*known, *files]) or 'none'}: name it in "
        hint += "--config.corpus.fields or --config.select.columns"
        raise UserError(f"there is no field {name!r}", where, hint)
    self._of_corpus = [name for name in names if name in known]
    self._files = {
      name: File(files[name], name, len(corpus))
      for name in names
      if name in files
    }
    joined = [f for f in self._files.values() if f.key == _DOCUMENT]
    if joined and not settings.get("id_field"):
      what = "doc_id cannot be joined: the corpus has no ids of documents"
      hint = "tokenize with --config.corpus.id_field, or join by row_id"
      raise UserError(what, str(joined[0].path), hint)
    ids = (documents.IDS, documents.TOKENS) if joined else ()
    # of the corpus's index, that `read` needs
    self.columns: tuple[str, ...] = (*self._of_corpus, *ids)

  def read(self, table, first: int) -> dict[str, np.ndarray]:
    """Returns float32 [n] of each field, as "field NAME".

    What is in files is sorted on a disk when it is first asked for.

    Args:
      table: n rows of the index, with `columns`.
      first: id of the first one.
    """
    n = table.num_rows
    found = {name: table[name].to_numpy() for name in self._of_corpus}
    for name, file in self._files.items():
      if file.key == _ROW:
        found[name] = file.values(np.arange(first, first + n))
        continue
      ids, tokens = (table[c].combine_chunks() for c in self.columns[-2:])
      row = np.repeat(np.arange(n), ids.value_lengths())
      ids, tokens = (c.flatten().to_numpy() for c in (ids, tokens))
      value = file.values(ids)
      found[name] = documents.mean_by_row(value, tokens, row, n)
    return {FIELD + name: value for name, value in found.items()}

  def refuse_unmet(self):
    """Raises UserError if a file had a number of none of the rows so far."""
    for name, file in self._files.items():
      if not file.is_met:
        raise UserError(
          f"no {file.key} with a number is in D, this corpus's split train",
          f"config.select.columns={name}={file.path}",
          "give ids of this corpus"
          + (", as corpus.id_field has them" if file.key == _DOCUMENT else ""),
        )


class File:
  """Parquet with a number for each of some rows or documents, in any order."""

  is_met = False  # whether some value was found

  def __init__(self, path: str, name: str, rows: int):
    """Looks at its columns: NAME, and ids of a corpus of so many rows.

    Raises:
      UserError: it is not there, or has other columns.
    """
    self.path, self._name, self._sorted, self.key = path, name, None, ""
    self._paths = Files(path).paths()
    for each in self._paths:
      with _opened(each) as file:
        self._check(dict(zip(file.schema_arrow.names, file.schema_arrow.types)))
    # Row ids lie in the buckets of `by_hash` in their order.
    self._rows, self._shift = rows, np.uint64(64 - max(rows.bit_length(), 1))

  def _check(self, kinds: Mapping[str, pa.DataType]):
    """Raises UserError unless there are a column of numbers and one of ids."""
    name, where = self._name, f"config.select.columns={self._name}={self.path}"
    self.key = self.key or (_ROW if _ROW in kinds else _DOCUMENT)
    is_text = pa.types.is_string, pa.types.is_large_string
    is_whole, is_real = pa.types.is_integer, pa.types.is_floating
    for column, what, tests in (
      (name, "numbers", (is_whole, is_real, pa.types.is_boolean)),
      (_ROW, "whole numbers", (is_whole,)),
      (_DOCUMENT, "texts or whole numbers", (is_whole, *is_text)),
    ):
      if column not in kinds:
        if column in (name, self.key):
          there = ", ".join(map(repr, kinds))
          what = f"there is no column {column!r}, but {there}"
          raise UserError(what, where, _HINT)
      elif not any(test(kinds[column]) for test in tests):
        what = f"column {column!r} is of {kinds[column]}, not of {what}"
        raise UserError(what, where, _HINT)

  def values(self, ids: np.ndarray) -> np.ndarray:
    """float32 [n] of row ids, or of hashes of documents' ids; NaN if none."""
    self._sorted = self._sorted or self._sort()
    keys, values = self._sorted
    wanted = ids.astype(np.uint64)
    wanted = wanted << self._shift if self.key == _ROW else wanted
    order = np.argsort(wanted)  # neighbors are looked up near each other
    place = np.searchsorted(keys, wanted[order])
    place = np.minimum(place, len(keys) - 1)
    is_there = keys[place] == wanted[order]
    found = np.empty(len(ids), np.float32)
    found[order] = np.where(is_there, values[place], np.nan)
    self.is_met |= not np.isnan(found).all()
    return found

  def _sort(self) -> tuple[np.ndarray, np.ndarray]:
    """The keys of all that has a number, ascending, and their numbers.

    Of 12 bytes each on a disk, twice as many while they are sorted.
    """
    with tempfile.TemporaryDirectory(prefix="miniplm_jax_") as name:
      folder, end = pathlib.Path(name), 0
      rows = 0
      for path in self._paths:
        with _opened(path) as file:
          rows += file.metadata.num_rows
      # What is mapped stays until it is not used any more, without a name.
      keys, values = (
        np.memmap(folder / kind, dtype, "w+", shape=rows + 1)
        for kind, dtype in (("keys", np.uint64), ("values", np.float32))
      )
      with Progress("select", rows, f"values of {self._name}") as progress:
        records = self._records(progress)
        for bucket in duplicates.by_hash(records, rows, folder):
          bucket = bucket[np.argsort(bucket["hash"], kind="stable")]
          self._refuse_two(bucket)
          piece = slice(end, end := end + len(bucket))
          keys[piece], values[piece] = bucket["hash"], bucket["value"]
    keys[end], values[end] = np.iinfo(np.uint64).max, np.nan  # of nothing
    return keys[: end + 1], values[: end + 1]

  def _batches(self) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yields ids, as Arrow has them, their keys, and float32 values."""
    for path in self._paths:
      for batch in _batches_of(path, [self.key, self._name]):
        ids, values = batch[self.key], batch[self._name]
        if ids.null_count:
          raise UserError(f"a {self.key} is null", str(path), _HINT)
        if self.key == _DOCUMENT:
          hashes = [documents.id_hash(str(one)) for one in ids.to_pylist()]
          keys = np.array(hashes, np.uint64)
        else:
          keys = ids.to_numpy().astype(np.uint64)  # above all others if below 0
          for i in np.flatnonzero(keys >= self._rows)[:1]:
            what = f"row_id {ids[i]} in a corpus of {self._rows:,} rows"
            raise UserError(what, str(path), "give those of this corpus")
          keys <<= self._shift
        values = values.cast(pa.float32(), safe=False)
        yield ids, keys, values.to_numpy(zero_copy_only=False)

  def _records(self, progress: Progress) -> Iterator[np.ndarray]:
    for _, keys, values in self._batches():
      records = np.empty(len(keys), _RECORD)
      records["hash"], records["value"] = keys, values
      is_one = ~np.isnan(values)
      if self.key == _DOCUMENT:
        is_one &= keys != documents.NO_ID
      progress.update(len(keys))
      yield records[is_one]

  def _refuse_two(self, bucket: np.ndarray):
    """Refuses two values of one id, in sorted records."""
    keys, values = bucket["hash"], bucket["value"]
    is_other = (keys[1:] == keys[:-1]) & (values[1:] != values[:-1])
    for i in np.flatnonzero(is_other)[:1]:
      for ids, own, _ in self._batches():
        for place in np.flatnonzero(own == keys[i])[:1]:
          what = f"{self.key} {ids[place].as_py()!r} has two values, "
          what += f"{values[i]:g} and {values[i + 1]:g}"
          raise UserError(what, str(self.path), "give it one")


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[pq.ParquetFile]:
  with parsing(path, "write it again"), path.open("rb") as f:
    yield pq.ParquetFile(f)


def _batches_of(path: epath.Path, columns: Sequence[str]):
  with _opened(path) as file:
    yield from file.iter_batches(columns=columns)
