"""Vanilla KD: the student learns from the teacher's distributions, online.

B batch, T time.
"""

import jax
import jax.numpy as jnp

from miniplm_jax.models import likelihood, vocab_loss, vocab_tiles
from miniplm_jax.training.objective import NextToken


class SoftLabels(NextToken):
  """(1 − a)·cross-entropy + a·soft labels, the paper's with a = 0.5.

  The teacher reads the rows of a microbatch in the step that trains on them.
  """

  def loss(self, model, inputs, targets, weights, *, frozen):
    """See base class; train/ce and train/kd are the parts, unweighted."""
    dtype = jnp.dtype(self._section.dtype or self._train.dtype)
    with likelihood.matmul_precision(dtype):
      teacher_BxTxE = jax.lax.stop_gradient(frozen(inputs, dtype=dtype))
    with likelihood.matmul_precision(self._dtype):
      hidden_BxTxD = model(inputs, dtype=self._dtype, remat=self._remat)
      tile = vocab_tiles.SoftLabelTile(
        model.arch.vocab_size,
        frozen.arch.vocab_size,
        self._section.weight,
        self._section.temperature,
      )
      loss, (ce_BxT, kd_BxT) = vocab_loss.tiled_loss(
        tile,
        hidden_BxTxD,
        model.head_VxD,
        ((teacher_BxTxE, frozen.head_VxD),),
        (targets, weights),
      )
    return loss, {
      "train/ce": jnp.sum(ce_BxT * weights),
      "train/kd": jnp.sum(kd_BxT * weights),
    }
