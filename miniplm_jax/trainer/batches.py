"""Batches as a function of (rows, seed, step): nothing to save or restore."""

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np

from miniplm_jax.corpus.store import Corpus, pad

Batch = dict[str, Any]


class _Rows(grain.sources.RandomAccessDataSource):
  """Chosen rows of a corpus, padded, for grain."""

  def __init__(self, corpus: Corpus, row_ids: np.ndarray):
    self._corpus, self._row_ids = corpus, row_ids

  def __len__(self):
    return len(self._row_ids)

  def __getitem__(self, i):
    row_id = int(self._row_ids[i])
    rows = self._corpus.read([row_id])
    batch = pad(rows, self._corpus.max_length, self._corpus.eos_id)
    return {k: v[0] for k, v in batch.items()} | {"row_id": np.int64(row_id)}

  def __repr__(self):
    return f"_Rows({len(self)})"


def stream(
  corpus: Corpus,
  row_ids: np.ndarray,
  *,
  batch_size: int,
  first_step: int,
  steps: int,
  seed: int,
  shuffle: bool,
) -> Iterator[Batch]:
  """This process's share of batches first_step … steps − 1.

  Batch s is the same whatever first_step is, and its rows over all processes
  are the same for any number of them. Rows are repeated, and shuffled anew,
  as often as the steps need.

  Yields:
    `tokens` int32 [b, max_length + 1], `length` int32 [b], `row_id` int64
    [b], with b = batch_size / processes.
  """
  data = grain.MapDataset.source(_Rows(corpus, row_ids))
  if shuffle:
    data = data.seed(seed).shuffle()
  data = data.repeat()
  data = data[: steps * batch_size]
  data = data[jax.process_index() :: jax.process_count()]
  data = data.batch(batch_size // jax.process_count())
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
  return iter(data[first_step:].to_iter_dataset(options))


def take(
  corpus: Corpus, row_ids: np.ndarray, batch_size: int, length: int
) -> Batch:
  """This process's share of a batch of given rows.

  Args:
    corpus: the rows.
    row_ids: int64 [n], n ≤ batch_size.
    batch_size: rows over all processes; missing ones get length 0.
    length: inputs of a row.

  Returns:
    `tokens` int32 [b, length + 1], `length` int32 [b].
  """
  share = batch_size // jax.process_count()
  row_ids = row_ids[jax.process_index() * share :][:share]
  batch = pad(corpus.read(row_ids), length, corpus.eos_id)
  missing = share - len(row_ids)
  return {
    "tokens": np.pad(
      batch["tokens"], ((0, missing), (0, 0)), constant_values=corpus.eos_id
    ),
    "length": np.pad(batch["length"], (0, missing)),
  }
