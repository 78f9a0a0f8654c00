"""Copies: of equal or nearly equal rows only the best are kept.

Better is a higher score, then a lower row id; noise does not count, or a
text would gain by being repeated.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from miniplm_jax.core import distributed
from miniplm_jax.corpus.store import Corpus, StoredRow
from miniplm_jax.selection.cutoff import sort_key

Chunks = Callable[[], Iterable[Mapping[str, np.ndarray]]]

_RECORD = np.dtype([("hash", "<u8"), ("worse", "<u4"), ("row_id", "<i8")])
_BUCKET_ROWS = 1 << 21  # that are sorted at a time; 512 files at 10⁹ rows
_SHINGLE = 5  # token ids
_PERMUTATIONS = 128
_BATCH = 512  # rows that are read at a time
_HELD = 1024  # rows' sets of shingles in memory, of 100 KB at 1,024 ids


def exact(
  chunks: Chunks, rows: int, copies: int, folder: pathlib.Path
) -> Iterable[np.ndarray]:
  """Yields int64 row ids, in no order: one copy too many of their content.

  Rows are spread over files by their hash, then each file is sorted alone:
  20 bytes of disk a row, 200 MB of memory. Equal hashes are taken for equal
  rows; of 10⁹ different rows, one in 40 corpora has a pair that is not.

  Args:
    chunks: gives row_id, score and hash.
    rows: about how many there are.
    copies: that are kept of equal rows, at least 1.
    folder: an empty one, on a disk.
  """

  def records():
    for columns in chunks():
      some = np.empty(len(columns["row_id"]), _RECORD)
      some["hash"], some["row_id"] = columns["hash"], columns["row_id"]
      some["worse"] = ~sort_key(columns["score"])
      yield some

  for bucket in by_hash(records(), rows, folder):
    yield _too_many(bucket, copies)


def by_hash(
  chunks: Iterable[np.ndarray], rows: int, folder: pathlib.Path
) -> Iterable[np.ndarray]:
  """Yields records with a uint64 "hash" again, in buckets of ascending ones.

  The records of a bucket are in the order of the chunks. All lie in files of
  the folder meanwhile; `rows` is about how many there are.
  """
  bits = max((rows // _BUCKET_ROWS).bit_length(), 1)
  files = [(folder / f"{i:05d}").open("w+b") for i in range(1 << bits)]
  dtype = None
  for records in chunks:
    bucket, dtype = records["hash"] >> np.uint64(64 - bits), records.dtype
    records = records[np.argsort(bucket, kind="stable")]
    ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=1 << bits))
    for file, piece in zip(files, np.split(records, ends[:-1])):
      file.write(piece.tobytes())
  for file in files:
    with file:
      file.seek(0)
      content = file.read()
      pathlib.Path(file.name).unlink()
      if content:
        yield np.frombuffer(content, dtype)


def _too_many(records: np.ndarray, copies: int) -> np.ndarray:
  """Row ids of all but the best of each hash."""
  order = np.lexsort([records[k] for k in ("row_id", "worse", "hash")])
  content = records["hash"][order]
  starts = np.r_[True, content[1:] != content[:-1]]
  place = np.arange(len(order))
  rank = place - np.maximum.accumulate(np.where(starts, place, 0))
  return records["row_id"][order[rank >= copies]]


def near(
  chunks: Chunks, corpus: Corpus, threshold: float, copies: int
) -> Iterable[np.ndarray]:
  """Yields int64 row ids, in no order: one nearly equal row too many.

  From the best row to the worst: a row is left out if `copies` rows that
  were kept have a Jaccard similarity of at least the threshold with it, over
  sets of 5 token ids in a row. MinHash with locality-sensitive hashing finds
  rows to compare (it misses one in a hundred at the threshold, fewer above);
  the similarity itself is computed.

  Memory: 12 bytes for each row and 2 KB for each that is kept, 4 KB below a
  threshold of 0.6: 20 GB for 10⁷ rows, so this is for corpora of that size.
  Rows are read once in the order of their scores, and again when they are
  compared.

  Of rows the chunks give row_id and score. The threshold is in (0, 1]; at least
  one copy is kept.
  """
  import rensa

  pieces = [(c["row_id"], sort_key(c["score"])) for c in chunks()]
  row_id, key = map(np.concatenate, zip(*pieces))
  row_id = row_id[np.argsort(~key, kind="stable")]
  lsh = rensa.RMinHashLSH(threshold, _PERMUTATIONS, bands(threshold))

  @functools.lru_cache(_HELD)
  def known(row_id: int) -> set[bytes]:
    return _shingles(*corpus.read([row_id]))

  for first in range(0, len(row_id), _BATCH):
    distributed.raise_if_stopped()
    batch = row_id[first : first + _BATCH]
    sets = list(map(_shingles, corpus.read(batch)))
    hashed = rensa.RMinHash.from_token_sets(map(list, sets), _PERMUTATIONS, 0)
    out = []
    for i, own, minhash in zip(batch.tolist(), sets, hashed):
      similar = 0
      for other in sorted(lsh.query(minhash)):
        similar += _jaccard(own, known(other)) >= threshold
        if similar == copies:
          out.append(i)
          break
      else:
        lsh.insert(i, minhash)
    yield np.array(out, np.int64)


def bands(threshold: float) -> int:
  """How many bands find 99 % of the pairs at the threshold."""
  for rows in (32, 16, 8, 4, 2):  # of each band; more are more selective
    count = _PERMUTATIONS // rows
    if (1 - threshold**rows) ** count <= 0.01:
      return count
  return _PERMUTATIONS


def _jaccard(a: set, b: set) -> float:
  common = len(a & b)
  return common / (len(a) + len(b) - common)


def _shingles(row: StoredRow) -> set[bytes]:
  """Every run of 5 ids; a shorter row is one shingle."""
  content = np.ascontiguousarray(row.ids, "<i4").tobytes()
  step, width = 4, 4 * _SHINGLE
  ends = range(width, len(content) + 1, step)
  return {content[end - width : end] for end in ends} or {content}
