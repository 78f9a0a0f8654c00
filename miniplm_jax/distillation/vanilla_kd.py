"""Vanilla KD: the student learns from the teacher's distributions, online.

B batch, T time.
"""

import jax
import jax.numpy as jnp

from miniplm_jax.config import KDConfig, TrainConfig
from miniplm_jax.models import likelihood, vocab_tiles
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.training.objective import NextToken


class SoftLabels(NextToken):
  """(1 − a)·cross-entropy + a·soft labels, the paper's with a = 0.5.

  The teacher reads the rows of a turn in the step that trains on them.
  """

  def __init__(
    self,
    train: TrainConfig,
    eos_id: int,
    remat: str,
    teacher: Decoder,
    kd: KDConfig,
  ):
    """Takes the teacher.

    Args:
      train: how the student is trained.
      eos_id: the end-of-document id.
      remat: what the student's backward pass keeps.
      teacher: on the mesh, in the dtype that it computes in.
      kd: weight, temperature and the teacher's dtype.
    """
    super().__init__(train, eos_id, remat)
    self.frozen = teacher
    self._kd, self._teacher_dtype = kd, jnp.dtype(kd.dtype or train.dtype)

  def loss(self, model, inputs, targets, weights, *, frozen):
    """See base class; train/ce and train/kd are the parts, unweighted."""
    with likelihood.matmul_precision(self._teacher_dtype):
      teacher_BxTxE = jax.lax.stop_gradient(
        frozen(inputs, dtype=self._teacher_dtype)
      )
    with likelihood.matmul_precision(self._dtype):
      hidden_BxTxD = model(inputs, dtype=self._dtype, remat=self._remat)
      loss, ce, kd = vocab_tiles.weighted_kd(
        hidden_BxTxD,
        model.head_VxD,
        teacher_BxTxE,
        frozen.head_VxD,
        targets,
        weights,
        vocab_tiles.SoftLabelTile(
          model.arch.vocab_size,
          frozen.arch.vocab_size,
          self._kd.weight,
          self._kd.temperature,
        ),
      )
    return loss, {"train/ce": ce, "train/kd": kd}
