"""The formats of a materialized selection, shard by shard.

Each appears whole or not at all, and the same rows make the same bytes.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from miniplm_jax.core import files
from miniplm_jax.corpus import datasets, megatron, store
from miniplm_jax.corpus.store import Corpus, StoredRow


class Writer:
  """Writes a selection's rows in one format, shard by shard."""

  def __init__(
    self, directory: epath.Path, lengths: Sequence[int], corpus: Corpus
  ):
    """Takes the folder, the rows of each shard to be, and the corpus."""
    self._directory, self._lengths = directory, list(lengths)
    self._corpus = corpus

  def has(self, shard: int) -> bool:
    """Whether this shard is whole."""
    raise NotImplementedError

  def write(self, shard: int, row_ids: np.ndarray, rows: Iterable[StoredRow]):
    """Writes a shard of rows, which have these ids."""
    raise NotImplementedError

  def finish(self):
    """Writes what belongs to all shards."""


class _ArrayRecord(Writer):
  """The corpus's own: msgpack records, and an index of Parquet beside them."""

  def has(self, shard):
    return store.has(self._directory, self._names(shard))

  def write(self, shard, row_ids, rows):
    names = self._names(shard)
    store.write_shard(self._directory, names, rows, {}, row_ids=row_ids)

  def _names(self, shard):
    return store.shard_names(shard, len(self._lengths))


class _Megatron(Writer):
  """The released .bin and .idx: ids alone."""

  def has(self, shard):
    stem = self._directory / f"data_{shard}"
    return all(stem.with_suffix(end).exists() for end in (".bin", ".idx"))

  def write(self, shard, row_ids, rows):
    vocab_size = self._corpus.manifest.details["vocab_size"]
    ids = (row.ids for row in rows)
    megatron.write(self._directory, shard, ids, vocab_size)


class _Tfds(Writer):
  """What `tfds.builder_from_directory` opens: one record a row, and row_id."""

  def __init__(self, directory, lengths, corpus):
    super().__init__(directory, lengths, corpus)
    tfds = self._tfds = datasets.library("config.materialize.format=tfds")
    number = tfds.features.Scalar(np.int64)
    self._features = tfds.features.FeaturesDict(
      {
        "row_id": number,
        "targets": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "domain": tfds.features.Text(),
        "split": tfds.features.Text(),
        "part": number,
        "documents": tfds.features.Tensor(shape=(None,), dtype=np.int64),
        "offset": number,
        "n_bytes": number,
        # Its 64 bits: TFDS writes larger numbers but cannot read them.
        "hash": number,
      }
    )
    self._files = tfds.core.ShardedFileTemplate(
      data_dir=directory,
      dataset_name="refined",
      split="train",
      filetype_suffix="array_record",
    )

  def has(self, shard):
    return self._path(shard).exists()

  def write(self, shard, row_ids, rows):
    from array_record.python.array_record_module import ArrayRecordWriter

    with files.replacing(self._path(shard)) as scratch:
      # One record at a time can be read, as in the corpus.
      writer = ArrayRecordWriter(str(scratch), "group_size:1,zstd:1")
      for row_id, row in zip(row_ids, rows, strict=True):
        example = vars(row) | {
          "row_id": row_id,
          "targets": row.ids,
          "documents": np.array(row.documents, np.int64),
          "hash": np.uint64(row.hash).astype(np.int64),
        }
        example = {name: example[name] for name in self._features}
        writer.write(self._features.serialize_example(example))
      writer.close()

  def finish(self):
    tfds = self._tfds
    paths = [self._path(shard) for shard in range(len(self._lengths))]
    split = tfds.core.SplitInfo(
      name="train",
      shard_lengths=self._lengths,
      num_bytes=sum(path.stat().length for path in paths),
      filename_template=self._files,
    )
    tfds.folder_dataset.write_metadata(
      data_dir=self._directory,
      features=self._features,
      split_infos=[split],
      # It would read by as_dataset, which TFDS does not have for ArrayRecord.
      check_data=False,
      description="The rows that MiniPLM selected, in corpus order.",
    )

  def _path(self, shard):
    return self._files.sharded_filepath(
      shard_index=shard, num_shards=len(self._lengths)
    )


FORMATS = {"array_record": _ArrayRecord, "megatron": _Megatron, "tfds": _Tfds}
