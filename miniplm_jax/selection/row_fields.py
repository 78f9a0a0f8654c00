"""Numbers of rows that are no losses: what formulas read as field("NAME").

They are fields of the corpus's documents (`corpus.fields`), or stand in a
Parquet file: by row id, or by the ids of documents (`corpus.id_field`).
"""

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from miniplm_jax.core import distributed
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import documents
from miniplm_jax.corpus.chunks import parsing
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.criteria.nodes import FIELD
from miniplm_jax.selection import duplicates

_ROW, _DOCUMENT = "row_id", "doc_id"
_RECORD = np.dtype([("hash", "<u8"), ("value", "<f4")])
_HINT = "write it with numbers in a column of that name, and row_id or doc_id"


class RowFields:
  """The fields that a formula reads, by row, in the order of the corpus."""

  def __init__(
    self, names: Sequence[str], files: Mapping[str, str], corpus: Corpus
  ):
    """Looks which is where.

    Args:
      names: of the fields.
      files: paths of Parquet files by the name of the field in each.
      corpus: whose rows they are of.

    Raises:
      UserError: there is no such field, or two, or a file has no such column.
    """
    known = documents.names(corpus.manifest.settings)
    has_ids = bool(corpus.manifest.settings.get("id_field"))
    self._of_corpus, self._by_row, self._by_document = [], {}, {}
    for name in names:
      if name in known and name in files:
        what = f"both the corpus and a file have a field {name!r}"
        raise UserError(what, files[name], "give the file's another name")
      if name in known:
        self._of_corpus.append(name)
      elif name not in files:
        raise UserError(
          f"there is no field {name!r}",
          "config.select.definition",
          f"there are {', '.join([*known, *files]) or 'none'}: name it in "
          "--config.corpus.fields or --config.select.columns",
        )
      elif (file := _File(files[name], name)).key == _ROW:
        self._by_row[name] = file
      elif has_ids:
        self._by_document[name] = file
      else:
        raise UserError(
          f"{_DOCUMENT} cannot be joined: the corpus has no ids of documents",
          files[name],
          "tokenize with --config.corpus.id_field, or join by row_id",
        )
    self._values: dict[str, _Values] = {}
    self._rows = len(corpus)
    ids = (documents.IDS, documents.TOKENS) if self._by_document else ()
    # of the corpus's index, which `reader` needs
    self.columns: tuple[str, ...] = (*self._of_corpus, *ids)

  def reader(self) -> Callable[[Any], dict[str, np.ndarray]]:
    """Returns what takes the index's tables of one pass, in their order.

    It returns float32 [n] of n rows for each field, as "field NAME".
    """
    for name in self._by_document.keys() - self._values.keys():
      self._values[name] = _Values(self._by_document[name])
    streams = {k: _ByRow(v, self._rows) for k, v in self._by_row.items()}

    def read(table) -> dict[str, np.ndarray]:
      found = {name: table[name].to_numpy() for name in self._of_corpus}
      found |= {k: v.take(table.num_rows) for k, v in streams.items()}
      if self._values:
        ids, tokens = (table[c].combine_chunks() for c in self.columns[-2:])
        row = np.repeat(np.arange(len(ids)), ids.value_lengths())
        ids, tokens = (c.flatten().to_numpy() for c in (ids, tokens))
        for name, values in self._values.items():
          value = values.of(ids)
          found[name] = documents.mean_by_row(
            value, tokens, row, table.num_rows
          )
      return {FIELD + name: value for name, value in found.items()}

    return read


class _File:
  """A Parquet file with a number for each of some ids."""

  def __init__(self, path: str, name: str):
    self.path, self.name = epath.Path(path), name
    where = f"config.select.columns={name}={path}"
    if not self.path.exists():
      raise UserError("there is no such file", where, "give a Parquet file")
    with parsing(lambda: path, "write it again"), self.path.open("rb") as f:
      schema = pq.ParquetFile(f).schema_arrow
      self.rows = pq.ParquetFile(f).metadata.num_rows
    kinds = dict(zip(schema.names, schema.types))
    self.key = _ROW if _ROW in kinds else _DOCUMENT
    for column in (name, self.key):
      if column not in kinds:
        what = f"no column {column!r}, but {', '.join(map(repr, kinds))}"
        raise UserError(what, where, _HINT)
    is_number = pa.types.is_integer(kinds[name]) or pa.types.is_floating(
      kinds[name]
    )
    if not (is_number or pa.types.is_boolean(kinds[name])):
      what = f"column {name!r} is of {kinds[name]} and of no numbers"
      raise UserError(what, where, _HINT)
    if self.key == _ROW and not pa.types.is_integer(kinds[_ROW]):
      what = f"row_id is of {kinds[_ROW]} and of no whole numbers"
      raise UserError(what, where, _HINT)
    if self.key == _DOCUMENT and pa.types.is_floating(kinds[_DOCUMENT]):
      what = f"doc_id is of {kinds[_DOCUMENT]}: no texts or whole numbers"
      raise UserError(what, where, _HINT)

  def batches(self) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields ids, as Arrow has them, and their float32 values; null is NaN."""
    columns = [self.key, self.name]
    with (
      parsing(lambda: str(self.path), "write it again"),
      self.path.open("rb") as f,
    ):
      for batch in pq.ParquetFile(f).iter_batches(columns=columns):
        distributed.raise_if_stopped()
        ids, values = batch[self.key], batch[self.name]
        if ids.null_count:
          raise UserError(f"a {self.key} is null", str(self.path), _HINT)
        values = values.cast(pa.float32(), safe=False)
        if self.key == _ROW:
          ids = ids.cast(pa.int64()).to_numpy()
        yield ids, values.to_numpy(zero_copy_only=False)


class _ByRow:
  """One pass over a file of ascending row ids, of which a batch is held."""

  def __init__(self, file: _File, rows: int):
    self._file, self._batches = file, file.batches()
    self._ids, self._values = np.zeros(0, np.int64), np.zeros(0, np.float32)
    self._rows, self._first, self._last = rows, 0, -1

  def take(self, n: int) -> np.ndarray:
    """Values of the next n rows of the corpus; NaN if the file has none."""
    values, end = np.full(n, np.nan, np.float32), self._first + n
    while True:
      count = int(np.searchsorted(self._ids, end))
      values[self._ids[:count] - self._first] = self._values[:count]
      self._ids, self._values = self._ids[count:], self._values[count:]
      if len(self._ids) or not self._fill():
        break
    self._first = end
    if end == self._rows and len(self._ids):
      what = f"row {self._ids[0]} of a corpus of {end:,} rows"
      hint = "give a file of this corpus's rows"
      raise UserError(what, str(self._file.path), hint)
    return values

  def _fill(self) -> bool:
    """Reads a batch with rows; whether there was one."""
    for ids, values in self._batches:
      before = np.concatenate([[self._last], ids[:-1]])
      for i in np.flatnonzero(ids <= before)[:1]:
        twice = ids[i] == before[i]
        raise UserError(
          f"row_id {ids[i]} stands there "
          + ("twice" if twice else f"after {before[i]}"),
          str(self._file.path),
          "give each row once, from 0, sorted by row_id",
        )
      if len(ids):
        self._ids, self._values, self._last = ids, values, ids[-1]
        return True
    return False


class _Values:
  """Values by the hash of a document's id: 12 bytes a document, on a disk."""

  def __init__(self, file: _File):
    self._file, end = file, 0
    with tempfile.TemporaryDirectory(prefix="miniplm_jax_") as name:
      folder = pathlib.Path(name)
      # What is mapped stays until it is not used any more, without a name.
      self._hashes, self._numbers = (
        np.memmap(folder / kind, dtype, "w+", shape=max(file.rows, 1))
        for kind, dtype in (("hashes", np.uint64), ("values", np.float32))
      )
      for bucket in duplicates.by_hash(self._records(), file.rows, folder):
        bucket = bucket[np.argsort(bucket["hash"], kind="stable")]
        self._refuse_two(bucket)
        piece = slice(end, end := end + len(bucket))
        self._hashes[piece] = bucket["hash"]
        self._numbers[piece] = bucket["value"]

  def _records(self) -> Iterator[np.ndarray]:
    for ids, values in self._file.batches():
      records = np.empty(len(ids), _RECORD)
      records["hash"], records["value"] = _hashes(ids), values
      yield records

  def _refuse_two(self, bucket: np.ndarray):
    """Refuses two values of one id."""
    value, content = bucket["value"], bucket["hash"]
    other = (value[1:] != value[:-1]) & ~(
      np.isnan(value[1:]) & np.isnan(value[:-1])
    )
    for i in np.flatnonzero(other & (content[1:] == content[:-1]))[:1]:
      for ids, _ in self._file.batches():
        for place in np.flatnonzero(_hashes(ids) == content[i])[:1]:
          what = f"doc_id {ids[place].as_py()!r} has two values"
          what += f", {value[i]:g} and {value[i + 1]:g}"
          raise UserError(what, str(self._file.path), "give it one")

  def of(self, hashes: np.ndarray) -> np.ndarray:
    """float32 [n] for uint64 [n]; NaN of what the file does not have."""
    order = np.argsort(hashes)  # neighbors are looked up near each other
    ordered = hashes[order]
    place = np.searchsorted(self._hashes, ordered)
    place = np.minimum(place, len(self._hashes) - 1)
    is_there = (self._hashes[place] == ordered) & (ordered != documents.NO_ID)
    values = np.empty(len(hashes), np.float32)
    values[order] = np.where(is_there, self._numbers[place], np.nan)
    return values


def _hashes(ids) -> list[int]:
  """The hash of each id, as the corpus has it."""
  return [documents.id_hash(str(value)) for value in ids.to_pylist()]
