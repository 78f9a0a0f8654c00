"""The packed corpus as a seqio data source.

Rows are read by random access, so any number of shards is exact, and the
order is the corpus's or a seeded permutation of it. Imports TensorFlow.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus.store import SPLITS, Corpus, StoredRow
from miniplm_jax.selection.with_seqio import seqio, tf

# Features of an example: its dtype and rank. `targets` are the row's ids, the
# rest is named as in `StoredRow`; `hash` is its 64 bits as a signed number,
# for TensorFlow's records know no other.
FEATURES = {
  "row_id": (tf.int64, 0),
  "targets": (tf.int32, 1),
  "domain": (tf.string, 0),
  "split": (tf.string, 0),
  "part": (tf.int64, 0),
  "documents": (tf.int64, 1),
  "offset": (tf.int64, 0),
  "n_bytes": (tf.int64, 0),
  "hash": (tf.int64, 0),
}
_RANK_1 = tuple(name for name, (_, rank) in FEATURES.items() if rank)
_BATCH = 256  # rows of one call into Python
_OPEN = 4  # corpora that stay open


# Once a process, however many tasks read it: 10⁹ rows are many.


@functools.lru_cache(_OPEN)
def _open(directory: str, fingerprint: str) -> Corpus:
  manifest = manifest_lib.require(epath.Path(directory) / MANIFEST)
  if manifest.fingerprint != fingerprint:
    raise UserError(
      "the corpus has changed since its tasks were registered",
      directory,
      "register them again",
    )
  return Corpus(manifest)


@functools.lru_cache(256)
def _rows(directory: str, fingerprint: str, domain: str | None, split: str):
  """int64 row ids of a split, ascending, or of one domain of it.

  They stay in memory: 8 bytes a row, and 4 of the corpus for its domains.
  """
  corpus = _open(directory, fingerprint)
  if domain is None:
    return corpus.rows_of(split)
  rows = _rows(directory, fingerprint, None, split)
  codes, names = corpus.domain_codes
  return rows[(names == domain)[codes[rows]]]


class PackedSource(seqio.DataSource):
  """Rows of a packed corpus, in corpus order.

  A shard is a run of neighboring rows: the shards, one after another, are
  the whole, filtered or not. A split may be sliced like one of TFDS:
  "train[1000:2000]".
  """

  def __init__(
    self,
    directory: epath.PathLike,
    domain: str | None = None,
    num_input_examples: Mapping[str, int] | None = None,
  ):
    """Reads the manifest; the rest is opened when it is needed.

    With a domain only its rows are there, and their number is to be given.
    """
    self.directory, self.domain = str(directory), domain
    manifest = manifest_lib.require(epath.Path(directory) / MANIFEST)
    self._fingerprint = manifest.fingerprint
    counts = num_input_examples
    if counts is None:
      rows = {split: manifest.counts.get(f"split {split}") for split in SPLITS}
      counts = {split: n for split, n in rows.items() if n}
    self._shards = manifest.counts["parts"]
    super().__init__(
      splits=counts,
      num_input_examples=counts,
      performs_internal_shuffling=True,
    )

  def __repr__(self):
    return f"PackedSource({self.directory!r}, {self.domain!r})"

  @property
  def _corpus(self) -> Corpus:
    return _open(self.directory, self._fingerprint)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Any number of shards."""
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """The pieces of work for Beam, as many as the corpus has parts."""
    return [f"{split}-{i}" for i in range(self._shards)]

  def num_input_examples(self, split: str) -> int:
    """Rows of a split or of a slice of one."""
    if "[" not in split:
      return super().num_input_examples(split)
    _, first, end = self._slice(split)
    return end - first

  def _slice(self, split: str) -> tuple[np.ndarray, int, int]:
    """Row ids of the whole split; first and end position in them."""
    match = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", split)
    if not match or match[1] not in self.splits:
      raise UserError(
        f"there is no split {split}",
        self.directory,
        f"choose from {', '.join(self.splits)}, or a slice such as "
        f"{self.splits[0]}[:1000]",
      )
    rows = _rows(self.directory, self._fingerprint, self.domain, match[1])
    first, end, _ = slice(
      int(match[2] or 0), int(match[3]) if match[3] else None
    ).indices(len(rows))
    return rows, first, max(first, end)

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    *,
    sequence_length: Mapping[str, int] | None = None,
    use_cached: bool = False,
    num_epochs: int | None = 1,
  ) -> tf.data.Dataset:
    """Examples with `FEATURES`.

    Args:
      split: one of the corpus, or a slice of one.
      shuffle: all rows of the split are permuted, before they are sharded.
      seed: of the permutation; None takes another each time.
      sequence_length: not used, nor is `use_cached`.
      num_epochs: not used; seqio repeats what it gets.
    """
    del sequence_length, use_cached, num_epochs
    rows, first, end = self._slice(split)
    shard = shard_info or seqio.ShardInfo(0, 1)
    n = end - first
    starts = [n * (shard.index + i) // shard.num_shards for i in (0, 1)]
    positions = tf.data.Dataset.range(*starts)
    if shuffle:
      seed = np.random.randint(1 << 31) if seed is None else seed
      seed_2 = tf.cast([seed, 0], tf.int64)
      positions = positions.map(
        lambda i: tf.random.experimental.index_shuffle(i, seed_2, n - 1)
      )
    batches = positions.batch(_BATCH).map(
      lambda batch: self._read(rows, first + batch),
      num_parallel_calls=2,
      deterministic=True,
    )
    return batches.unbatch()

  def _read(self, rows: np.ndarray, positions) -> dict[str, Any]:
    """A batch of examples, those of rank 1 ragged."""
    dtypes = [dtype for dtype, _ in FEATURES.values()]

    def read(batch):
      ids = rows[batch]
      columns = _columns(ids, self._corpus.read(ids))
      lengths = [np.array([len(v) for v in columns[r]]) for r in _RANK_1]
      for name in _RANK_1:
        columns[name] = np.concatenate(columns[name])
      return [
        np.asarray(columns[name], dtype.as_numpy_dtype)
        for name, dtype in zip(FEATURES, dtypes)
      ] + lengths

    columns = tf.numpy_function(
      read, [positions], dtypes + [tf.int64] * len(_RANK_1), stateful=False
    )
    for column in columns:
      column.set_shape([None])
    examples = dict(zip(FEATURES, columns))
    for name, lengths in zip(_RANK_1, columns[len(FEATURES) :]):
      examples[name] = tf.RaggedTensor.from_row_lengths(
        examples[name], lengths, validate=False
      )
    return examples


def _columns(row_ids: np.ndarray, rows: Sequence[StoredRow]) -> dict[str, Any]:
  columns = {
    name: [getattr(row, name) for row in rows]
    for name in FEATURES
    if name not in ("row_id", "targets", "hash")
  }
  hashes = np.array([row.hash for row in rows], np.uint64)
  return columns | {
    "row_id": row_ids,
    "targets": [row.ids for row in rows],
    "domain": [row.domain.encode() for row in rows],
    "split": [row.split.encode() for row in rows],
    "hash": hashes.view(np.int64),
  }
