"""The records of one file as Python objects: JSON by lines, arrays, Parquet."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.core import contents, errors, gs
from miniplm_jax.core.errors import UserError

with epy.lazy_imports():
  import pyarrow as pa
  import pyarrow.parquet as pq

_READ_BYTES = 1 << 20  # of an array that are read at a time
_ROWS = 64  # of Parquet that are Python objects at a time
_REWRITE = "write it again"
_SKIPPED = re.compile(r"[\s,]*")  # between the elements of an array


@dataclasses.dataclass(frozen=True)
class Fields:
  """Where a record has its text and its domain: dotted paths.

  A document without a domain, or every one if `domain` is "", has that of its
  folder or file.
  """

  text: str = "text"
  domain: str = "domain"

  @property
  def columns(self) -> set[str]:
    """Names of columns that a text or a domain may stand in."""
    dotted = self.text, self.domain
    return {name for d in dotted if d for name in (d, *prefixes(d))}


def prefixes(dotted: str) -> list[str]:
  """Returns a and a.b of a.b.c."""
  return list(itertools.accumulate(dotted.split(".")[:-1], "{}.{}".format))


@dataclasses.dataclass(frozen=True)
class BrokenRecord:
  """A record that cannot be used; the fields are those of a `UserError`."""

  what: str
  where: str
  hint: str

  def to_json(self) -> dict[str, str]:
    """Returns it as shards and samples on disk have it."""
    return {"what": self.what, "where": self.where, "todo": self.hint}

  @classmethod
  def from_json(cls, body: Mapping[str, str]) -> "BrokenRecord":
    """Reads what `to_json` returned."""
    return cls(body["what"], body["where"], body["todo"])


# A record, and where it stands.
Placed = tuple[str, Any | BrokenRecord]


def cuts(sizes: Sequence[int], least: int) -> list[tuple[int, int, int]]:
  """Returns (first, end, size) of runs of at least that size, but the last."""
  runs, start, total = [], 0, 0
  for i, size in enumerate(sizes):
    total += size
    if total >= least or i == len(sizes) - 1:
      runs.append((start, i + 1, total))
      start, total = i + 1, 0
  return runs


@contextlib.contextmanager
def parsing(where: Callable[[], str], hint: str) -> Iterator[None]:
  """Makes whatever a parser raises on somebody's bytes a UserError.

  Args:
    where: says how far it came.
    hint: what to do about it.
  """
  try:
    yield
  except Exception as e:  # parsers do not say what they raise
    # Arrow's and zlib's of bad bytes are OSErrors that have no number.
    if not isinstance(e, OSError) or e.errno:
      known = errors.from_outside(e)
      if known is e:
        raise
      if known:
        raise known from e
    said = errors.shortened(e) or type(e).__name__
    if "too much memory for decoding" in said:  # zstd of more than 128 MiB
      hint = "its window is long: repack it by zstd -d --long=31 and zstd"
    raise UserError(f"this cannot be read ({said})", where(), hint) from e


def _zstd(raw):
  stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
  return io.BufferedReader(stream)


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
  ".zst": _zstd,
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


def json_cuts(path: epath.Path, part_bytes: int) -> list[tuple[int, int, int]]:
  """Returns (start, end, size) of runs of bytes.

  What is no file of lines is one run.
  """
  size = path.stat().length
  is_cut = path.suffix.lower() not in PACKED and size > part_bytes
  if is_cut and not _is_array(path):
    bounds = itertools.pairwise([*range(0, size, part_bytes), size])
    return [(start, end, end - start) for start, end in bounds]
  return [(0, size, size)]


def read_json(path: epath.Path, start: int, end: int) -> Iterator[Placed]:
  """Yields the lines that begin in [start, end), or an array's elements.

  Args:
    path: the file.
    start: byte; 0 for a packed file.
    end: byte after the last one; a packed file is read to its end.

  Raises:
    UserError: the file cannot be read, or an array is no JSON.
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
      record = line if start else line.removeprefix(codecs.BOM_UTF8)
      start += len(line)
      number += 1
      if record.strip():
        where = f"{path} line {number}{after}"
        yield where, _parse(record, where)


def json_content(path: epath.Path, start: int, end: int) -> str:
  """Returns a digest of the bytes that `read_json` reads."""
  if path.suffix.lower() in PACKED or not gs.is_local(path):
    return contents.of([path])
  with path.open("rb") as f:
    f.seek(max(end - 1, 0))
    f.readline()  # the rest of the last line
    return contents.of([path], ((max(start - 1, 0), f.tell()),))


def _parse(line: bytes, where: str) -> Any | BrokenRecord:
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


def parquet_cuts(
  path: epath.Path, part_bytes: int
) -> list[tuple[int, int, int]]:
  """Returns (first row group, end, size) of runs of a Parquet file."""
  with parsing(lambda: str(path), _REWRITE), path.open("rb") as f:
    facts = pq.ParquetFile(f).metadata
    groups = map(facts.row_group, range(facts.num_row_groups))
    sizes = [group.total_byte_size for group in groups]
  return cuts(sizes, part_bytes) or [(0, 0, 0)]


def read_parquet(
  path: epath.Path, start: int, end: int, fields: Fields
) -> Iterator[Placed]:
  """Yields the rows of the row groups start … end − 1.

  Args:
    path: the file.
    start: row group.
    end: row group after the last one.
    fields: which columns are read.

  Raises:
    UserError: the file cannot be read.
  """
  row = 0
  with (
    parsing(lambda: f"{path} at row {row} or after it", _REWRITE),
    path.open("rb") as f,
  ):
    # With a buffer, a group of rows is not read whole.
    file = pq.ParquetFile(
      f, buffer_size=_READ_BYTES, page_checksum_verification=True
    )
    row = sum(file.metadata.row_group(i).num_rows for i in range(start))
    leaves = map(file.schema.column, range(len(file.schema)))
    columns = _leaves([leaf.path for leaf in leaves], fields)
    groups = range(start, end)
    for batch in file.iter_batches(_ROWS, row_groups=groups, columns=columns):
      for record in _rows(batch):
        where = f"{path} row {row}"
        if isinstance(record, Exception):
          what = f"a cell of this row cannot be decoded ({record})"
          record = BrokenRecord(what, where, "mend the record")
        yield where, record
        row += 1


def parquet_content(
  path: epath.Path, start: int, end: int, fields: Fields
) -> str:
  """Returns a digest of the bytes that `read_parquet` reads."""
  if not gs.is_local(path):
    return contents.of([path])
  with parsing(lambda: str(path), _REWRITE), path.open("rb") as f:
    facts = pq.ParquetFile(f).metadata
  size, heads = path.stat().length, tuple(f"{n}." for n in fields.columns)
  ranges = [(max(size - facts.serialized_size - 8, 0), size)]  # what says where
  for group in map(facts.row_group, range(start, end)):
    for column in map(group.column, range(group.num_columns)):
      if f"{column.path_in_schema}.".startswith(heads):
        offsets = column.dictionary_page_offset, column.data_page_offset
        first = min(filter(None, offsets))
        ranges.append((first, first + column.total_compressed_size))
  return contents.of([path], tuple(ranges))


def _leaves(paths: Sequence[str], fields: Fields) -> list[str]:
  """The columns, also in columns, that a text or a domain may stand in.

  Those whose names begin as the field's does for longest: what a map or a
  string of JSON holds has no column of its own.
  """
  leaves = []
  for dotted in filter(None, (fields.text, fields.domain)):
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
