"""The held-out losses of a learning curve."""

import functools

import numpy as np
from jax.sharding import Mesh

from miniplm_jax.corpus import batching
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import likelihood, placement
from miniplm_jax.models.decoder import Decoder

PREFIX = "eval/"  # of the names of what is measured


class Heldout:
  """Mean losses on the same rows each time."""

  def __init__(
    self, corpus: Corpus, row_ids: np.ndarray, dtype, mesh: Mesh, size: int
  ):
    """Compiles nothing yet; `size` is the rows of a batch."""
    self._corpus, self._row_ids = corpus, row_ids
    self._mesh, self._size = mesh, size
    self._row_nll = placement.program(
      likelihood.row_nll, mesh, eos_id=corpus.eos_id, dtype=dtype
    )

  def __call__(self, model: Decoder) -> dict[str, float]:
    """The losses now, in nats."""
    corpus, ids, size = self._corpus, self._row_ids, self._size
    nll, count = np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int32)
    planned = [
      batching.Planned(places, corpus.max_length, size)
      for places in np.split(np.arange(len(ids)), range(size, len(ids), size))
    ]
    stream = batching.ReadAhead(corpus, ids, planned, self._mesh)
    run = functools.partial(self._row_nll, model)
    for places, values in placement.run_rows(run, stream, self._mesh):
      nll[places], count[places] = values
    real = count > 0
    mean, token_mean = likelihood.mean_losses(nll[real], count[real])
    return {f"{PREFIX}loss": mean, f"{PREFIX}loss_token_mean": token_mean}
