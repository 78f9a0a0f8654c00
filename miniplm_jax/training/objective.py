"""What a run minimizes: a value that the training loop is given.

B batch, T time.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from miniplm_jax.config import TrainConfig
from miniplm_jax.models import head, likelihood
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.decoder import Decoder


class NextToken:
  """The plain next-token loss; the base of every other objective."""

  # What it trains is a `Decoder`, so the loop can follow its held-out loss.
  has_curve = True
  # Arrays on the mesh that a step reads and nobody changes, such as another
  # model; an argument of the step, so that it is not compiled in.
  frozen: Any = ()
  # (model, batch) → arrays [B, …] by name that `loss_inputs` finds in the batch
  # as well. Each is of its own row alone, so the rows are taken in the
  # microbatches of the loss. None is no pass.
  first_pass: Callable[[Any, dict[str, Any]], dict[str, Any]] | None = None

  def __init__(
    self,
    train: TrainConfig,
    eos_id: int,
    remat: str,
    source: Any = None,
    section: Any = None,
  ):
    """Takes what is the same for every batch; `remat` as of a `Decoder`.

    The section is the objective's own of the config. A source is what else it
    learns from: a teacher on the mesh, in the dtype that it computes in, or a
    `LogitsTable` of what one has said.
    """
    self._train, self._eos_id, self._remat = train, eos_id, remat
    self._dtype = jnp.dtype(train.dtype)
    self._source, self._section = source, section
    if isinstance(source, nnx.Module):
      self.frozen = source

  @staticmethod
  def new_model(arch: Architecture, rngs: nnx.Rngs) -> nnx.Module:
    """Everything that is trained, as it is drawn from the seed."""
    return Decoder(arch, rngs)

  def started(self, model: nnx.Module) -> nnx.Module:
    """The model that step 0 starts from, given a new one on the mesh."""
    return model

  def with_rows(
    self, batch: dict[str, Any], unused_row_ids: np.ndarray
  ) -> dict[str, Any]:
    """The batch with what else is known of its rows, on the host."""
    return batch

  def loss_inputs(
    self, batch: dict[str, Any], unused_model, unused_frozen, unused_key
  ) -> tuple[tuple[Any, ...], Any]:
    """What `loss` takes of a whole batch, and what is counted of it.

    Given a batch from `with_rows`, on the mesh, what is trained as it is before
    the step, `frozen`, and a key of the seed and the step.

    Returns:
      Arrays [B, …] whose weights are normalized over the batch, so that the
      losses of its microbatches add up; and the number that is logged as
      train/total_weights.
    """
    inputs_BxT, targets_BxT, mask_BxT = self.tokens(batch)
    weight_BxT = likelihood.token_weights(mask_BxT, self._train.reduction)
    return (inputs_BxT, targets_BxT, weight_BxT), jnp.sum(mask_BxT)

  def tokens(self, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Inputs and targets, int32 [B, T], and which targets count, [B, T]."""
    inputs_BxT, targets_BxT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    mask_BxT = likelihood.loss_mask(inputs_BxT, batch["length"], self._eos_id)
    return inputs_BxT, targets_BxT, mask_BxT

  def loss(self, model, inputs, targets, weights, *, frozen):
    """The part of the batch's loss that these rows make, a float32 scalar.

    Also further metrics by name, of which the sum over microbatches is logged.
    """
    del frozen
    with likelihood.matmul_precision(self._dtype):
      hidden = model(inputs, dtype=self._dtype, remat=self._remat)
      return head.weighted_nll(
        hidden,
        model.head_VxD,
        targets,
        weights,
        model.arch.vocab_size,
        None,
        self._train.z_loss,
      ), {}
