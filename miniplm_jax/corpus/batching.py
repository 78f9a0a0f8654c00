"""Rows → batches of few static shapes, read ahead of the device."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jax.sharding import Mesh

from miniplm_jax.config.sections import (
  BATCH_TOKENS,
  CPU_BATCH_TOKENS,
  TPU_BATCH_TOKENS,
)
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import placement
from miniplm_jax.models.sharding import batch_shards

Batch = dict[str, Any]

_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


@dataclasses.dataclass(frozen=True)
class Planned:
  """One batch to be."""

  places: np.ndarray  # which of the given rows, int64 [at most size]
  length: int  # inputs of a row, with padding
  size: int  # rows over all devices, with empty ones

  @property
  def padded_tokens(self) -> int:
    """Inputs that the device computes."""
    return self.length * self.size


def tokens_of(asked: int, mesh: Mesh) -> int:
  """Inputs of a batch; if 0 are asked for, by the kind of device."""
  on_tpus = TPU_BATCH_TOKENS * batch_shards(mesh)
  by_kind = {"cpu": CPU_BATCH_TOKENS, "tpu": on_tpus}
  return asked or by_kind.get(mesh.devices.flat[0].platform, BATCH_TOKENS)


def plan(
  inputs_R: np.ndarray,
  lengths: Sequence[int],
  batch_tokens: int,
  shards: int,
) -> list[Planned]:
  """Groups rows of like length; a function of its arguments alone.

  Rows that do not fill a batch move on to the next length if that wastes less
  than a batch with empty rows. So a length that few rows have costs no
  compilation, and none has more than one such batch. The longest come first:
  what does not fit in memory fails at once.

  Args:
    inputs_R: inputs of each row.
    lengths: ascending; the last holds the longest row.
    batch_tokens: inputs of a batch over all devices, padding included.
    shards: a batch has a multiple of these rows.
  """
  order = np.argsort(inputs_R, kind="stable")
  ends = np.searchsorted(inputs_R[order], lengths, "right")
  planned, start = [], 0
  for i, (length, end) in enumerate(zip(lengths, ends)):
    size = max(batch_tokens // length // shards, 1) * shards
    while end - start >= size:
      planned.append(Planned(order[start : start + size], length, size))
      start += size
    if end == start:
      continue
    is_last = end == len(order)
    longer = 0 if is_last else (end - start) * (lengths[i + 1] - length)
    if is_last or longer > (size - (end - start)) * length:
      planned.append(Planned(order[start:end], length, size))
      start = end
  return planned[::-1]


def pad(
  rows: Sequence[Sequence[int]], length: int, eos_id: int, size: int
) -> Batch:
  """The ids of rows as a batch of `size` B; what they leave has length 0.

  `tokens` int32 [B, length + 1], `length` int32 [B].
  """
  tokens = np.full((size, length + 1), eos_id, np.int32)
  lengths = np.zeros(size, np.int32)
  for i, ids in enumerate(rows):
    tokens[i, : len(ids)] = ids
    lengths[i] = len(ids)
  return {"tokens": tokens, "length": lengths}


def take(
  corpus: Corpus, row_ids: np.ndarray, planned: Planned, mesh: Mesh
) -> Batch:
  """This process's rows of a batch of some of `row_ids`, int64.

  Returns:
    `tokens` int32 [b, length + 1], `length` int32 [b] and `row` int32 [b], a
    place in `row_ids` or −1, of the b rows that `placement.local_rows` names.
  """
  own = placement.local_rows(mesh, planned.size)
  places = planned.places[own[own < len(planned.places)]]
  rows = [row.ids for row in corpus.read(row_ids[places])]
  place = np.full(len(own), -1, np.int32)
  place[: len(places)] = places
  batch = pad(rows, planned.length, corpus.eos_id, len(own))
  return batch | {placement.ROW: place}


class ReadAhead:
  """This process's rows of planned batches, read by other threads."""

  def __init__(
    self,
    corpus: Corpus,
    row_ids: np.ndarray,
    planned: Sequence[Planned],
    mesh: Mesh,
  ):
    """Begins to read batches of `row_ids` that will lie on `mesh`."""
    batches = grain.MapDataset.source(planned).map(
      lambda batch: take(corpus, row_ids, batch, mesh)
    )
    self._batches = iter(batches.to_iter_dataset(_READ_AHEAD))
    self._planned = planned
    # Seconds that the caller has waited for a batch.
    self.host_wait = 0.0

  def __iter__(self) -> Iterator[tuple[np.ndarray, Batch]]:
    """Each batch's places in `row_ids`, and its arrays as of `take`."""
    for planned in self._planned:
      start = time.perf_counter()
      batch = next(self._batches)
      self.host_wait += time.perf_counter() - start
      yield planned.places, batch
