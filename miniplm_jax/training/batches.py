"""Batches as a function of (rows, seed, step): nothing to save or restore."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import grain
import numpy as np
from jax.sharding import Mesh

from miniplm_jax.config import TrainConfig
from miniplm_jax.core import groups
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import weight_of
from miniplm_jax.corpus.batching import Batch, pad
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import placement


class _Rows(grain.sources.RandomAccessDataSource):
  """Chosen rows of a corpus, padded, for grain."""

  def __init__(self, corpus: Corpus, row_ids: np.ndarray):
    self._corpus, self._row_ids = corpus, row_ids

  def __len__(self):
    return len(self._row_ids)

  def __getitem__(self, i):
    row_id = int(self._row_ids[i])
    (row,) = self._corpus.read([row_id])
    batch = pad([row.ids], self._corpus.max_length, self._corpus.eos_id, 1)
    return {k: v[0] for k, v in batch.items()} | {"row_id": np.int64(row_id)}

  def __repr__(self):
    return f"_Rows({len(self)})"


class _Interleaved(grain.transforms.DatasetSelectionMap):
  """Which data set an element is of, and which of its elements: exact."""

  def __init__(self, shares: Sequence[int]):
    self._shares = shares

  def __len__(self):
    return sys.maxsize

  def __getitem__(self, i):
    # Of the first n elements ⌊n·share⌋ or one more are of each data set. One
    # after the other takes its elements out of those that the last ones left.
    first, after, left = i, i + 1, sum(self._shares)
    for data, share in enumerate(self._shares):
      kept_first = first * (left - share) // left
      kept_after = after * (left - share) // left
      if after - kept_after > first - kept_first:  # element i is among them
        return data, first - kept_first
      first, after, left = kept_first, kept_after, left - share
    raise AssertionError(i)


class _Own(grain.transforms.DatasetSelectionMap):
  """Takes of each batch the rows that this process holds."""

  def __init__(self, own: np.ndarray, batch_size: int, steps: int):
    self._own, self._batch_size, self._steps = own, batch_size, steps

  def __len__(self):
    return self._steps * len(self._own)

  def __getitem__(self, i):
    step, place = divmod(i, len(self._own))
    return 0, step * self._batch_size + int(self._own[place])


def by_domain(
  corpus: Corpus, row_ids: np.ndarray, weights: Sequence[str]
) -> list[tuple[str, np.ndarray, Fraction]]:
  """Rows by domain, with each domain's share of the batches.

  Weights are as train.domain_weights; domains that are not named have 1.

  Returns:
    (domain, its rows in the given order, rows × weight as a share of all),
    by name, without those of weight 0.

  Raises:
    UserError: a domain has no rows, or nothing is left.
  """
  where = f"train.domain_weights, corpus {corpus.directory}"
  codes, every = corpus.domain_codes
  rows_of = zip(every, groups.places(codes[row_ids], len(every)))
  rows_of = {name: row_ids[places] for name, places in rows_of if len(places)}
  factors, names = dict(map(weight_of, weights)), sorted(rows_of)
  groups.refuse_unknown(factors, names, "row to train on", where)
  share_of = shares({name: len(rows_of[name]) for name in names}, weights)
  if not share_of:
    raise UserError("every domain has weight 0", where, "leave one")
  return [(name, rows_of[name], share) for name, share in share_of.items()]


def shares(
  rows: Mapping[str, int], weights: Sequence[str]
) -> dict[str, Fraction]:
  """Rows × weight as a share of all, by domain, without those of weight 0."""
  factors, one = dict(map(weight_of, weights)), Fraction(1)
  parts = {name: n * factors.get(name, one) for name, n in rows.items()}
  total = sum(parts.values())
  return {name: part / total for name, part in parts.items() if part}


def trained_on(
  corpus: Corpus, row_ids: np.ndarray, weights: Sequence[str]
) -> np.ndarray:
  """Returns the rows that batches can have: of domains with a share."""
  if not weights:
    return row_ids
  return np.concatenate(
    [ids for _, ids, _ in by_domain(corpus, row_ids, weights)]
  )


def _rows(corpus, row_ids, seed, shuffle) -> grain.MapDataset:
  """Rows without end; every epoch is shuffled anew, or in the given order."""
  data = grain.MapDataset.source(_Rows(corpus, row_ids))
  if shuffle:
    data = data.seed(seed).shuffle()
  return data.repeat()


def stream(
  corpus: Corpus,
  row_ids: np.ndarray,
  train: TrainConfig,
  *,
  first_step: int,
  steps: int,
  mesh: Mesh,
  with_rows: Callable[[Batch, np.ndarray], Batch] | None = None,
) -> Iterator[Batch]:
  """This process's rows of batches first_step … steps − 1.

  Batch s is the same whatever first_step is, and over all processes it is the
  same for any number of them and any mesh. `with_rows` adds what else is known
  of the rows, in the threads that read them. Rows are repeated, and shuffled
  anew, as often as the steps need.

  With `train.domain_weights` every domain is such a stream of its own, and they
  are interleaved: among the first n rows, for any n, each has its share of
  `by_domain`, to within as many rows as there are domains.

  Yields:
    `tokens` int32 [b, max_length + 1], `length` int32 [b], `row_id` int64
    [b], of the b rows that `placement.local_rows` names.
  """
  seed, shuffle, batch_size = train.seed, train.shuffle, train.batch_size
  if train.domain_weights:
    parts = by_domain(corpus, row_ids, train.domain_weights)
    shares = [share for *_, share in parts]
    unit = math.lcm(*(share.denominator for share in shares))
    data = grain.MapDataset.select_from_datasets(
      [
        _rows(corpus, rows, _seed_of(seed, i), shuffle)
        for i, (_, rows, _) in enumerate(parts)
      ],
      _Interleaved([int(share * unit) for share in shares]),
    )
  else:
    data = _rows(corpus, row_ids, seed, shuffle)
  own = _Own(placement.local_rows(mesh, batch_size), batch_size, steps)
  data = grain.MapDataset.select_from_datasets([data], own)
  data = data.batch(len(own) // steps)
  # Not more: with 50 labels a token a batch of 512 rows is 0.16 GB.
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  data = data[first_step:]
  if with_rows:
    data = data.map(lambda batch: with_rows(batch, batch["row_id"]))
  return iter(data.to_iter_dataset(options))


def _seed_of(seed: int, i: int) -> int:
  """Returns the seed of domain i: two of one size are not shuffled alike."""
  return int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
