"""The held-out losses of a learning curve."""

import functools

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from miniplm_jax.corpus import batching
from miniplm_jax.models import likelihood, placement
from miniplm_jax.models.decoder import Decoder

PREFIX = "eval/"  # of the names of what is measured


class Heldout:
  """Mean losses on the same rows each time."""

  def __init__(self, spec, mesh: Mesh, batch_size: int):
    """Takes a `loop.Run`; `batch_size` rows are looked at a time."""
    self._spec, self._mesh, self._size = spec, mesh, batch_size
    self._row_nll = likelihood.row_nll_step(
      mesh, eos_id=spec.corpus.eos_id, dtype=jnp.dtype(spec.train.dtype)
    )

  def is_due(self, done: int) -> bool:
    """True after a step with which the curve gets a point."""
    every = self._spec.run.eval_every
    if not (every and self._spec.objective.has_curve):
      return False
    if not len(self._spec.heldout_ids):
      return False
    return done % every == 0 or done == self._spec.train.steps

  def __call__(self, model: Decoder) -> dict[str, float]:
    """The losses now, in nats."""
    corpus, ids, size = self._spec.corpus, self._spec.heldout_ids, self._size
    nll, count = np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int32)

    parts = np.split(np.arange(len(ids)), range(size, len(ids), size))
    batches = (
      (
        places,
        batching.take(corpus, ids, places, size, corpus.max_length, self._mesh),
      )
      for places in parts
    )
    run = functools.partial(self._row_nll, model)
    for places, values in placement.run_rows(run, batches, self._mesh):
      nll[places], count[places] = values
    real = count > 0
    mean, token_mean = likelihood.mean_losses(nll[real], count[real])
    return {f"{PREFIX}loss": mean, f"{PREFIX}loss_token_mean": token_mean}
