"""Log-probs of many rows under one model, in few static shapes."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import likelihood, sharding
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.trainer import batches

# Batches under way on the device while the host prepares the next.
_AHEAD = 2


class Scorer:
  """Scores rows of a corpus under one model."""

  def __init__(
    self,
    model: Decoder,
    corpus: Corpus,
    mesh: Mesh,
    *,
    dtype: str,
    lengths: Sequence[int],
    batch_tokens: int,
  ):
    """Compiles nothing yet; one compilation per length that occurs.

    Args:
      model: on `mesh`.
      corpus: the rows.
      mesh: rows are split over its batch axes.
      dtype: of the computation.
      lengths: rows are padded to the least of these and of the corpus's
        max_length that fits.
      batch_tokens: inputs of a batch over all devices, padding included.
    """
    self._model, self._corpus, self._mesh = model, corpus, mesh
    shards = sharding.batch_shards(mesh)
    lengths = {min(n, corpus.max_length) for n in lengths}
    self._lengths = sorted(lengths | {corpus.max_length})
    self._batch_size = {
      n: max(batch_tokens // n // shards, 1) * shards for n in self._lengths
    }
    self._row_nll = jax.jit(
      functools.partial(
        likelihood.row_nll, eos_id=corpus.eos_id, dtype=jnp.dtype(dtype)
      ),
      out_shardings=NamedSharding(mesh, P()),
    )

  def __call__(
    self, row_ids: np.ndarray, progress: Callable[[int], Any]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores some rows.

    Args:
      row_ids: int64 [n].
      progress: called with the number of rows that are done.

    Returns:
      Σ nll in nats, float32 [n], and the tokens summed over, int32 [n].
    """
    nll_sum = np.zeros(len(row_ids), np.float32)
    n_tokens = np.zeros(len(row_ids), np.int32)
    pending = collections.deque()

    def fetch():
      places, found = pending.popleft()
      nll, count = jax.device_get(found)
      nll_sum[places] = nll[: len(places)]
      n_tokens[places] = count[: len(places)]
      progress(len(places))

    with jax.set_mesh(self._mesh):
      inputs = self._corpus.lengths[row_ids] - 1
      bucket = np.searchsorted(self._lengths, inputs)
      for i, length in enumerate(self._lengths):
        places = np.flatnonzero(bucket == i)
        size = self._batch_size[length]
        for start in range(0, len(places), size):
          here = places[start : start + size]
          batch = batches.take(self._corpus, row_ids[here], size, length)
          batch = sharding.put_batch(batch, self._mesh)
          pending.append((here, self._row_nll(self._model, batch)))
          if len(pending) > _AHEAD:
            fetch()
      while pending:
        fetch()
    return nll_sum, n_tokens
