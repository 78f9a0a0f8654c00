"""A decoder's body with one number a row on top: it predicts a row's score.

B batch, T time, D hidden.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.models.likelihood import loss_mask, matmul_precision

sharding.declare({"value_head": P()})  # D


class Regressor(nnx.Module):
  """Predicts a number that is a mean over a row's scored tokens.

  A linear head values the hidden state at each scored token, and the row's
  value is their mean: the form of what it learns, log p − log p_ref as a mean
  per token. There are no logits: the vocabulary costs nothing.
  """

  def __init__(self, arch: Architecture, rngs: nnx.Rngs):
    """Float32 parameters; the head is 0, so a new one says 0 of every row."""
    self.body = Decoder(arch, rngs)
    self.value_head = nnx.Param(jnp.zeros((arch.hidden_size,), jnp.float32))
    self.value_bias = nnx.Param(jnp.zeros((), jnp.float32))

  @property
  def arch(self) -> Architecture:
    """The shape of the body."""
    return self.body.arch

  def __call__(
    self, inputs_BxT, mask_BxT, *, dtype: Any, remat: str | None = None
  ):
    """The value of each row, float32 [B]; of a row without tokens, the bias.

    The mask says which tokens are averaged; `dtype` is that of the activations
    and `remat` what the backward pass keeps, as of `Decoder`.
    """
    with matmul_precision(dtype):
      hidden_BxTxD = self.body(inputs_BxT, dtype=dtype, remat=remat)
      # The head is linear: averaging before it is the same, and cheaper.
      mask_BxT = mask_BxT.astype(jnp.float32)
      count_Bx1 = jnp.maximum(jnp.sum(mask_BxT, -1, keepdims=True), 1)
      mean_BxD = jnp.einsum(
        "btd,bt->bd", hidden_BxTxD.astype(jnp.float32), mask_BxT / count_Bx1
      )
      return mean_BxD @ self.value_head[...] + self.value_bias[...]

  def rescaled(self, mean: float, scale: float) -> "Regressor":
    """One whose values are `mean` + `scale` × this one's."""
    scaled = nnx.clone(self)
    scaled.value_head[...] = self.value_head[...] * scale
    scaled.value_bias[...] = self.value_bias[...] * scale + mean
    return scaled


def row_value(
  model: Regressor, batch: dict[str, Any], *, eos_id: int, dtype: Any
) -> tuple[Any, Any]:
  """Value × tokens, float32 [B], and the tokens, int32 [B].

  Of the form of `likelihood.row_nll`: a sum over the row and its count.
  """
  inputs_BxT = batch["tokens"][:, :-1]
  mask_BxT = loss_mask(inputs_BxT, batch["length"], eos_id)
  count_B = jnp.sum(mask_BxT, -1, dtype=jnp.int32)
  value_B = model(inputs_BxT, mask_BxT, dtype=dtype)
  return value_B * count_B.astype(jnp.float32), count_B
