"""The formats of a materialized selection, shard by shard.

Each appears whole or not at all, and the same rows make the same bytes.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus import megatron, store
from miniplm_jax.corpus.store import Instance

Rows = Iterable[tuple[int, Instance]]


class Writer(Protocol):
  """Writes a selection's rows in one format, shard by shard."""

  def __init__(
    self, directory: epath.Path, lengths: Sequence[int], corpus: Manifest
  ):
    """Takes the folder, the rows of each shard to be, and the corpus."""

  def has(self, shard: int) -> bool:
    """Whether this shard is whole."""

  def write(self, shard: int, rows: Rows):
    """Writes a shard of (row id, row)."""

  def finish(self):
    """Writes what belongs to all shards."""


class ArrayRecord(Writer):
  """The corpus's own: msgpack records, and an index of Parquet beside them."""

  def __init__(
    self, directory: epath.Path, lengths: Sequence[int], corpus: Manifest
  ):
    del corpus
    self._directory, self._shards = directory, len(lengths)

  def has(self, shard: int) -> bool:
    """Whether records and index are there."""
    return store.has(self._directory, self._names(shard))

  def write(self, shard: int, rows: Rows):
    """Writes the records and the index."""
    row_ids: list[int] = []

    def taken():
      for row_id, row in rows:
        row_ids.append(row_id)
        yield row

    store.write_shard(
      self._directory, self._names(shard), taken(), {}, row_ids=row_ids
    )

  def _names(self, shard):
    return store.shard_names(shard, self._shards)


class Megatron(Writer):
  """The released .bin and .idx: ids alone."""

  def __init__(
    self, directory: epath.Path, lengths: Sequence[int], corpus: Manifest
  ):
    del lengths
    self._directory = directory
    self._vocab_size = corpus.details["vocab_size"]

  def has(self, shard: int) -> bool:
    """Whether both files are there."""
    stem = self._directory / f"data_{shard}"
    return all(stem.with_suffix(end).exists() for end in (".bin", ".idx"))

  def write(self, shard: int, rows: Rows):
    """Writes .bin and .idx."""
    ids = (row.ids for _, row in rows)
    megatron.write(self._directory, shard, ids, self._vocab_size)


class Tfds(Writer):
  """What `tfds.builder_from_directory` opens: one record a row, and row_id."""

  def __init__(
    self, directory: epath.Path, lengths: Sequence[int], corpus: Manifest
  ):
    import tensorflow_datasets as tfds

    del corpus
    self._lengths = list(lengths)
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
    self._directory = directory
    self._files = tfds.core.ShardedFileTemplate(
      data_dir=directory,
      dataset_name="refined",
      split="train",
      filetype_suffix="array_record",
    )

  def has(self, shard: int) -> bool:
    """Whether the shard's file is there."""
    return self._path(shard).exists()

  def write(self, shard: int, rows: Rows):
    """Writes one record a row."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with files.replacing(self._path(shard)) as scratch:
      # One record at a time can be read, as in the corpus.
      writer = ArrayRecordWriter(str(scratch), "group_size:1,zstd:1")
      for row_id, row in rows:
        example = dataclasses.asdict(row)
        del example["source_rows"]  # of converted corpora
        example |= {"row_id": row_id, "targets": example.pop("ids")}
        example["documents"] = np.array(row.documents, np.int64)
        example["hash"] = np.uint64(row.hash).astype(np.int64)
        writer.write(self._features.serialize_example(example))
      writer.close()

  def finish(self):
    """Writes dataset_info.json and features.json."""
    import tensorflow_datasets as tfds

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


FORMATS = {"array_record": ArrayRecord, "megatron": Megatron, "tfds": Tfds}
