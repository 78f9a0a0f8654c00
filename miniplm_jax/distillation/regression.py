"""What the proxy minimizes: the squared error of a row's score.

B batch, T time.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from miniplm_jax.config import TrainConfig
from miniplm_jax.models import likelihood
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.models.regressor import Regressor
from miniplm_jax.training.objective import NextToken


class Regression(NextToken):
  """Σ weight · (predicted − target)² over rows; trains a `Regressor`."""

  has_curve = False  # of next tokens: a regressor predicts none

  def __init__(
    self,
    train: TrainConfig,
    eos_id: int,
    remat: str,
    row_ids: np.ndarray,
    targets: np.ndarray,
    body: Decoder | None = None,
  ):
    """Takes what is known of the rows.

    Args:
      row_ids: int64 [n], ascending.
      targets: float32 [n], what to predict of each.
      body: float32 weights to begin with, given up; None draws new ones.
    """
    super().__init__(train, eos_id, remat)
    self._row_ids, self._targets, self._body = row_ids, targets, body

  @staticmethod
  def new_model(arch: Architecture, rngs: nnx.Rngs) -> Regressor:
    """See base class."""
    return Regressor(arch, rngs)

  def started(self, model: Regressor) -> Regressor:
    """See base class."""
    if self._body is not None:
      model.body, self._body = self._body, None
    return model

  def with_rows(self, batch, row_ids):
    """The batch and `target` float32 [B]."""
    places = np.searchsorted(self._row_ids, row_ids)
    return batch | {"target": self._targets[places]}

  def loss_inputs(self, batch, *unused):
    """Inputs, mask, targets and weights of rows; the number of rows.

    `instance_mean` weighs all rows alike, `token_mean` by their tokens.
    """
    inputs_BxT, _, mask_BxT = self.tokens(batch)
    weight_BxT = likelihood.token_weights(mask_BxT, self._train.reduction)
    weight_B = jnp.sum(weight_BxT, -1)
    target_B = batch["target"]
    return (inputs_BxT, mask_BxT, target_B, weight_B), target_B.shape[0]

  def loss(self, model: Regressor, inputs, mask, target_B, weight_B, *, frozen):
    """See base class."""
    del frozen
    predicted_B = model(inputs, mask, dtype=self._dtype, remat=self._remat)
    return jnp.sum(weight_B * (predicted_B - target_B) ** 2), {}
