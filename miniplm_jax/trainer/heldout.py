"""The held-out losses of a learning curve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import likelihood, sharding
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.trainer import batches


class Heldout:
  """Mean losses on the same rows each time."""

  def __init__(self, spec, mesh: Mesh, batch_size: int):
    """Takes a `loop.Run`; `batch_size` rows are looked at a time."""
    self._spec, self._mesh, self._size = spec, mesh, batch_size
    self._row_nll = jax.jit(
      functools.partial(
        likelihood.row_nll,
        eos_id=spec.corpus.eos_id,
        dtype=jnp.dtype(spec.train.dtype),
      ),
      out_shardings=NamedSharding(mesh, P()),
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
    found = []
    for start in range(0, len(ids), size):
      here = ids[start : start + size]
      batch = batches.take(corpus, here, size, corpus.max_length)
      batch = sharding.put_batch(batch, self._mesh)
      found.append(self._row_nll(model, batch))
    nll, count = (np.concatenate(x) for x in zip(*jax.device_get(found)))
    real = count > 0
    mean, token_mean = likelihood.mean_losses(nll[real], count[real])
    return {"eval/loss": mean, "eval/loss_token_mean": token_mean}
