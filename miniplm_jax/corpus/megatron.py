r"""The released data files, Megatron-style: `data_{k}.bin` and `data_{k}.idx`.

The .bin holds the ids of all instances one after another, the .idx where each
begins. Source: the released code and the published data sets.

  index = 9 bytes "MMIDIDX\0\0", u64 version 1, u8 dtype code, u64 n,
    u64 doc_count, i32 sizes[n], i64 byte offsets[n], i64 doc_idx[doc_count],
    all little-endian
"""

import array
import contextlib
import dataclasses
import itertools
import os
import struct
import weakref
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath

from miniplm_jax.core import files, gs
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus.chunks import Chunk, TokenizedRecord, parsing

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
# The format's types by code, and those among them that token ids come in.
_TYPES = (
  *("uint8", "int8", "int16", "int32", "int64"),
  *("float32", "float64", "uint16"),
)
_READ = {3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
# Vocabularies below this size are stored as uint16, as in the released code.
_UINT16_BELOW = 65_500
# The released builder never ends a document, so its doc_idx is [0].
_DOC_IDX = np.zeros(1, "<i8")


class IndexedFile:
  """One shard, memory-mapped: `len` is its instances, `[i]` an instance."""

  sizes: np.ndarray  # int32 [n], ids of each instance
  # int64 [k + 1], the instances that each of k documents begins with, and n;
  # None if the file says nothing of documents.
  documents: np.ndarray | None

  def __init__(self, prefix: epath.PathLike):
    """Opens PREFIX.idx and PREFIX.bin; nothing of the .bin is read yet.

    Raises:
      UserError: a file is not what the format demands.
    """
    pair = [f"{os.fspath(prefix)}.{end}" for end in ("bin", "idx")]
    copies = contextlib.ExitStack()
    weakref.finalize(self, copies.close)  # and then what is mapped, too
    self._bin, self._idx = (
      str(copies.enter_context(gs.local(path))) for path in pair
    )
    code, n, documents = self._header()
    dtype = np.dtype(_READ[code])
    length = _HEADER.size + 12 * n + 8 * documents
    self._expect(self._idx, "bytes", os.path.getsize(self._idx), length)
    self.sizes, self._offsets = self._index(n, dtype.itemsize)
    self.documents = self._documents(n, documents)
    end = int(self._offsets[-1] + self.sizes[-1] * dtype.itemsize) if n else 0
    self._expect(self._bin, "bytes", os.path.getsize(self._bin), end)
    self._dtype = dtype
    # An empty file cannot be mapped.
    self._ids = np.memmap(self._bin, np.uint8, "r") if end else b""

  def __len__(self) -> int:
    return len(self.sizes)

  def __getitem__(self, i: int) -> np.ndarray:
    """Returns the int32 ids of instance i, a copy; refuses what is no int32."""
    if not 0 <= i < len(self):
      raise IndexError(i)
    stored = np.frombuffer(
      self._ids, self._dtype, self.sizes[i], self._offsets[i]
    )
    ids = stored.astype(np.int32)
    if np.any(ids < 0) or np.any(ids != stored):
      raise UserError(
        f"instance {i} has ids from {stored.min()} to {stored.max()}, which "
        "cannot be tokens",
        self._bin,
        "fetch it again",
      )
    return ids

  def _header(self) -> tuple[int, int, int]:
    """The dtype code and the lengths of the index, checked."""
    with open(self._idx, "rb") as f:
      header = f.read(_HEADER.size)
    magic = header[: len(_MAGIC)]
    self._expect(self._idx, "magic", magic, _MAGIC)
    if len(header) < _HEADER.size:
      self._expect(self._idx, "header bytes", len(header), _HEADER.size)
    _, version, code, n, documents = _HEADER.unpack(header)
    self._expect(self._idx, "version", version, _VERSION)
    if code not in _READ:
      known = 1 <= code <= len(_TYPES)
      named = f"{code} ({_TYPES[code - 1] if known else 'unknown'})"
      codes = ", ".join(f"{c} ({_TYPES[c - 1]})" for c in _READ)
      self._expect(self._idx, "dtype code", named, f"one of {codes}")
    return code, n, documents

  def _index(self, n: int, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and byte offsets, checked against each other."""
    start = _HEADER.size
    # Offsets stand at odd addresses: copied, so that they are aligned.
    sizes = np.fromfile(self._idx, "<i4", n, offset=start)
    offsets = np.fromfile(self._idx, "<i8", n, offset=start + 4 * n)
    if bad := np.flatnonzero(sizes < 0).tolist():
      actual = f"{sizes[bad[0]]} of instance {bad[0]}"
      self._expect(self._idx, "size", actual, "0 or more")
    expected = np.cumsum(sizes, dtype=np.int64) * itemsize
    expected = np.concatenate([[0], expected])[:-1]
    if bad := np.flatnonzero(offsets != expected).tolist():
      actual = f"{offsets[bad[0]]} of instance {bad[0]}"
      self._expect(self._idx, "byte offset", actual, expected[bad[0]])
    return sizes.astype(np.int32), offsets.astype(np.int64)

  def _documents(self, n: int, count: int) -> np.ndarray | None:
    """Where documents begin, as far as the builder knew them, checked."""
    if count <= len(_DOC_IDX):
      return None
    start = _HEADER.size + 12 * n
    ends = np.fromfile(self._idx, "<i8", count, offset=start).astype(np.int64)
    if ends[0] or ends[-1] != n or np.any(np.diff(ends) < 0):
      actual = f"{ends[0]} … {ends[-1]}"
      self._expect(self._idx, "document index", actual, f"0 … {n}, ascending")
    return ends

  def _expect(self, path: str, what: str, actual, expected):
    if actual != expected:
      raise UserError(
        f"{what} is {actual} where {expected} is expected",
        path,
        "fetch it again: it is cut off, damaged, or of another format",
      )


def write(
  directory: epath.PathLike,
  number: int,
  rows: Iterable[np.ndarray],
  vocab_size: int,
) -> epath.Path:
  """Writes data_{number}.bin and .idx, both whole or not at all.

  Rows are streamed; what is kept of each one is its size. The .idx appears
  last and says that the shard is whole. Released shards have 1,000,000 rows.
  The size of the vocabulary decides the type that ids are stored in.

  Returns:
    The shard's prefix, without .bin and .idx.

  Raises:
    UserError: an id is outside of the vocabulary.
  """
  code = 8 if vocab_size < _UINT16_BELOW else 4
  dtype = np.dtype(_READ[code])
  prefix = epath.Path(directory) / f"data_{number}"
  data, idx = (prefix.with_name(f"{prefix.name}.{e}") for e in ("bin", "idx"))
  sizes = array.array("i")
  # Both are complete beside their places before the first one takes it.
  with files.replacing(idx) as index, files.replacing(data) as scratch:
    with scratch.open("wb") as f:
      for row in rows:
        if len(row) and not 0 <= row.min() <= row.max() < vocab_size:
          raise UserError(
            f"row {len(sizes)} has ids from {row.min()} to {row.max()}, the "
            f"vocabulary {vocab_size}",
            str(prefix),
            "write it with the vocabulary that the rows were made with",
          )
        f.write(np.ascontiguousarray(row, dtype))
        sizes.append(len(row))
    written = np.asarray(sizes, "<i4")
    ends = np.cumsum(written, dtype="<i8") * dtype.itemsize
    offsets = ends - written.astype("<i8") * dtype.itemsize
    header = _HEADER.pack(_MAGIC, _VERSION, code, len(written), len(_DOC_IDX))
    with index.open("wb") as f:
      for field in (header, written, offsets, _DOC_IDX):
        f.write(field)
    # An older shard's index says nothing of the new rows.
    idx.unlink(missing_ok=True)
  return prefix


@dataclasses.dataclass(frozen=True, kw_only=True)
class MegatronChunk(Chunk):
  """A pair of .bin and .idx: rows, or documents if its index has them."""

  prefix: str  # of both files, without .bin and .idx
  domain: str

  @property
  def short_name(self) -> str:
    """See `Chunk`."""
    return f"{epath.Path(self.prefix).name}.bin"

  def read(self) -> Iterator[TokenizedRecord]:
    """See `Chunk`."""
    with parsing(self.prefix, "fetch it again"):
      rows = IndexedFile(self.prefix)
      if rows.documents is None:
        for i in range(len(rows)):
          yield TokenizedRecord(rows[i], self.domain)
        return
      for first, end in itertools.pairwise(rows.documents.tolist()):
        ids = [np.zeros(0, np.int32), *(rows[i] for i in range(first, end))]
        yield TokenizedRecord(np.concatenate(ids), self.domain, is_row=False)
