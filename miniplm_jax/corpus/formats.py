"""Files of records: JSON by lines, JSON arrays, Parquet."""

import bz2
import codecs
import contextlib
import dataclasses
import functools
import gzip
import io
import itertools
import json
import lzma
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import contents, gs
from miniplm_jax.corpus.chunks import (
  BrokenRecord,
  Chunk,
  Document,
  cuts,
  parsing,
)
from miniplm_jax.corpus.documents import columns_read, document, prefixes

with epy.lazy_imports():
  import pyarrow as pa
  import pyarrow.parquet as pq

_READ_BYTES = 1 << 20  # of an array that are read at a time
_ROWS = 64  # of Parquet that are Python objects at a time
_REWRITE = "write it again"
_SKIPPED = re.compile(r"[\s,]*")  # between the elements of an array


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordChunk(Chunk):
  """A range of a file of records, in what its format counts."""

  path: epath.Path
  start: int
  end: int  # the first that is not in it
  corpus: CorpusConfig
  domain: str  # of a record that has none


class _Streams(io.RawIOBase):
  """What packed streams hold, one after another; zeros pad them.

  `bz2.open` and `lzma.open` take whatever follows the first one for the end.
  """

  def __init__(self, new: Callable[[], Any], raw):
    self._new, self._raw, self._stream = new, raw, new()

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    data = b""
    while not data:
      packed = b""
      if self._stream.eof:
        packed = self._stream.unused_data.lstrip(b"\0")
        while not packed:
          if not (more := self._raw.read(_READ_BYTES)):
            return 0
          packed = more.lstrip(b"\0")
        self._stream = self._new()
      elif self._stream.needs_input and not (
        packed := self._raw.read(_READ_BYTES)
      ):
        raise EOFError("it is cut off")
      data = self._stream.decompress(packed, len(buffer))
    buffer[: len(data)] = data
    return len(data)


# What opens a packed file, by its ending. All read what several frames hold,
# and see where a file is cut off.
PACKED = {
  ".gz": gzip.open,
  ".zst": lambda raw: pa.CompressedInputStream(pa.PythonFile(raw), "zstd"),
  ".bz2": functools.partial(_Streams, bz2.BZ2Decompressor),
  ".xz": functools.partial(_Streams, lzma.LZMADecompressor),
}


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[io.BufferedReader]:
  """The bytes that a file holds, unpacked."""
  with path.open("rb") as raw:
    unpack = PACKED.get(path.suffix.lower())
    if unpack and not path.stat().length:
      raise EOFError("it is empty, which no packed file is")
    stream = unpack(raw) if unpack else raw
    yield stream if hasattr(stream, "peek") else io.BufferedReader(stream)


def _is_array(path: epath.Path) -> bool:
  """Whether the first character that is no blank is a [, however far on."""
  # Opened for this alone: a peek ends where the first of several frames does.
  with _opened(path) as stream:
    start = stream.read(64).removeprefix(codecs.BOM_UTF8)
    while start.isspace():
      start = stream.read(64)
  return start.lstrip().startswith(b"[")


class JsonChunk(RecordChunk):
  """The lines that begin in a range of a file's bytes, or its whole array.

  A packed file is one range, and read to its end.
  """

  @staticmethod
  def cuts(path: epath.Path, part_bytes: int) -> list[tuple[int, int, int]]:
    """Returns (start, end, size) of runs of bytes; one if it has no lines."""
    size = path.stat().length
    is_cut = path.suffix.lower() not in PACKED and size > part_bytes
    if is_cut and not _is_array(path):
      bounds = itertools.pairwise([*range(0, size, part_bytes), size])
      return [(start, end, end - start) for start, end in bounds]
    return [(0, size, size)]

  def read(self) -> Iterator[Document | BrokenRecord]:
    """Yields the documents of its lines, or of an array's elements."""
    for where, record in json_records(self.path, self.start, self.end):
      if isinstance(record, BrokenRecord):
        yield record
      else:
        yield document(record, self.corpus, self.domain, where)

  def content(self) -> str:
    """See `Chunk`."""
    if self.path.suffix.lower() in PACKED or not gs.is_local(self.path):
      return contents.of([self.path])
    with self.path.open("rb") as f:
      f.seek(max(self.end - 1, 0))
      f.readline()  # the rest of the last line
      bounds = max(self.start - 1, 0), f.tell()
      return contents.of([self.path], (bounds,))


def json_records(
  path: epath.Path, start: int, end: float
) -> Iterator[tuple[str, Any]]:
  """Yields where a record stands, and what it is or a `BrokenRecord`.

  They are the lines that begin in these bytes, or the elements of an array.
  """
  number, after = 0, f" after byte {start}" if start else ""
  unit = "line"
  with (
    parsing(lambda: f"{path} after {unit} {number}{after}", "fetch it again"),
    _opened(path) as stream,
  ):
    if not start and _is_array(path):
      unit = "element"
      for number, record in enumerate(_elements(stream), 1):
        yield f"{path} element {number}", record
      return
    if path.suffix.lower() in PACKED:
      end = float("inf")
    elif start:
      stream.seek(start - 1)
      start += len(stream.readline()) - 1  # the rest of a line before
    # Bytes: text mode would end lines at more than \n, and decode ahead.
    while start < end and (line := stream.readline()):
      text = line if start else line.removeprefix(codecs.BOM_UTF8)
      start += len(line)
      number += 1
      if text.strip():
        where = f"{path} line {number}{after}"
        yield where, _of_line(text, where)


def _of_line(line: bytes, where: str) -> Any | BrokenRecord:
  try:
    return json.loads(line)
  except (ValueError, RecursionError) as e:
    what = f"this line cannot be read as JSON ({e})"
    return BrokenRecord(what, where, "mend or remove the line")


def _elements(stream: io.BufferedReader) -> Iterator[Any]:
  """The elements of a JSON array, of which one is held at a time."""
  scan = json.JSONDecoder().raw_decode
  decode = codecs.getincrementaldecoder("utf-8-sig")().decode
  text, at, is_inside, is_all = "", 0, False, False
  while True:
    at = _SKIPPED.match(text, at).end()
    if at < len(text) and not is_inside:
      at, is_inside = at + 1, True  # its [
      continue
    if at < len(text) and text[at] == "]":
      break
    try:
      record, end = scan(text, at)
      # What touches the end may go on, as a number does.
      if end < len(text):
        yield record
        at = end
        continue
    except json.JSONDecodeError as e:
      if is_all:
        raise ValueError(f"no JSON array: {e.msg}") from e
    if is_all:
      raise ValueError("this JSON array has no end")
    # As much again as there is: an element is scanned from its start.
    more = stream.read(max(_READ_BYTES, len(text) - at))
    text, at, is_all = text[at:] + decode(more, not more), 0, not more
  if (text[at + 1 :] + decode(stream.read(), True)).strip():
    raise ValueError("there is something after the end of the JSON array")


class ParquetChunk(RecordChunk):
  """A run of a Parquet file's row groups."""

  @staticmethod
  def cuts(path: epath.Path, part_bytes: int) -> list[tuple[int, int, int]]:
    """Returns (first row group, end, size) of runs of row groups."""
    with parsing(path, _REWRITE), path.open("rb") as f:
      facts = pq.ParquetFile(f).metadata
      groups = map(facts.row_group, range(facts.num_row_groups))
      sizes = [group.total_byte_size for group in groups]
    return cuts(sizes, part_bytes) or [(0, 0, 0)]

  def read(self) -> Iterator[Document | BrokenRecord]:
    """Yields the documents of its rows."""
    row, path = 0, self.path
    with (
      parsing(lambda: f"{path} at row {row} or after it", _REWRITE),
      path.open("rb") as f,
    ):
      # With a buffer, a group of rows is not read whole.
      file = pq.ParquetFile(
        f, buffer_size=_READ_BYTES, page_checksum_verification=True
      )
      groups = range(self.start, self.end)
      before = map(file.metadata.row_group, range(self.start))
      row = sum(group.num_rows for group in before)
      leaves = map(file.schema.column, range(len(file.schema)))
      columns = _leaves([leaf.path for leaf in leaves], self.corpus.read_paths)
      for batch in file.iter_batches(_ROWS, row_groups=groups, columns=columns):
        for record in _rows(batch):
          where = f"{path} row {row}"
          if isinstance(record, Exception):
            what = f"a cell of this row cannot be decoded ({record})"
            yield BrokenRecord(what, where, "mend the record")
          else:
            yield document(record, self.corpus, self.domain, where)
          row += 1

  def content(self) -> str:
    """See `Chunk`."""
    path, columns = self.path, columns_read(self.corpus)
    if not gs.is_local(path):
      return contents.of([path])
    with parsing(path, _REWRITE), path.open("rb") as f:
      facts = pq.ParquetFile(f).metadata
    size, heads = path.stat().length, tuple(f"{name}." for name in columns)
    # What says where they are.
    ranges = [(max(size - facts.serialized_size - 8, 0), size)]
    for group in map(facts.row_group, range(self.start, self.end)):
      for column in map(group.column, range(group.num_columns)):
        if f"{column.path_in_schema}.".startswith(heads):
          offsets = column.dictionary_page_offset, column.data_page_offset
          first = min(filter(None, offsets))
          ranges.append((first, first + column.total_compressed_size))
    return contents.of([path], tuple(ranges))


def _leaves(paths: Sequence[str], read: Sequence[str]) -> list[str]:
  """The columns, also in columns, that what is read may stand in.

  Those whose names begin as the field's does for longest: what a map or a
  string of JSON holds has no column of its own.
  """
  leaves = []
  for dotted in read:
    for name in (dotted, *reversed(prefixes(dotted))):
      if below := [p for p in paths if f"{p}.".startswith(f"{name}.")]:
        leaves += below
        break
  return leaves


def _rows(batch) -> list[Any]:
  """The rows of a batch as Python's, or what was raised in their places."""
  try:
    return batch.to_pylist()
  except Exception as e:  # text that is no UTF-8, times beyond Python's, …
    if len(batch) == 1:
      return [e]
    return [row for i in range(len(batch)) for row in _rows(batch.slice(i, 1))]
