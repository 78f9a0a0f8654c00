"""What a model says of packed rows: the loss mask, row NLL, the loss.

B batch, T time, R rows.
"""

from typing import Any

import jax
import jax.numpy as jnp

from miniplm_jax.models import head
from miniplm_jax.models.decoder import Decoder


def loss_mask(inputs_BxT, length_B, eos_id: int):
  """Which predictions count, bool [B, T].

  The position right after a document's end is not scored, predicting the end
  itself is (released code: input id ≠ eos). `length_B` counts the ids of a
  row; padding follows.
  """
  position_T = jnp.arange(inputs_BxT.shape[1])
  real_BxT = position_T[None, :] < (length_B - 1)[:, None]
  return real_BxT & (inputs_BxT != eos_id)


def row_nll(
  model: Decoder, batch: dict[str, Any], *, eos_id: int, dtype: Any
) -> tuple[Any, Any]:
  """Σ nll in nats, float32 [B], and the tokens summed over, int32 [B].

  Of a batch it reads `tokens` int32 [B, T + 1] and `length` int32 [B].
  """
  inputs_BxT, targets_BxT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
  mask_BxT = loss_mask(inputs_BxT, batch["length"], eos_id)
  with matmul_precision(dtype):
    hidden_BxTxD = model(inputs_BxT, dtype=dtype)
    nll_BxT = head.token_nll(
      hidden_BxTxD, model.head_VxD, targets_BxT, model.arch.vocab_size, mask_BxT
    )
  return jnp.sum(nll_BxT, -1), jnp.sum(mask_BxT, -1, dtype=jnp.int32)


def continuation_nll(
  model: Decoder, batch: dict[str, Any], *, dtype: Any
) -> tuple[Any, Any]:
  """What a model says of the ends of rows.

  Of a batch it reads `tokens` int32 [B, T + 1], `length` int32 [B], and
  `scored` int32 [B], how many of a row's last ids are the end.

  Returns:
    −log p of each id in nats, float32 [B, T], 0 before the end and after it;
    and whether each row's end is what greedy decoding gives, bool [B].
  """
  inputs_BxT, targets_BxT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
  position_1xT = jnp.arange(inputs_BxT.shape[1])[None]
  end_Bx1 = batch["length"][:, None] - 1
  mask_BxT = position_1xT < end_Bx1
  mask_BxT &= position_1xT >= end_Bx1 - batch["scored"][:, None]
  with matmul_precision(dtype):
    hidden_BxTxD = model(inputs_BxT, dtype=dtype)
    nll_BxT, is_top_BxT = head.nll_and_top(
      hidden_BxTxD, model.head_VxD, targets_BxT, model.arch.vocab_size, mask_BxT
    )
  return nll_BxT, jnp.all(is_top_BxT | ~mask_BxT, -1)


def matmul_precision(dtype: Any):
  """A context in which float32 means float32: TPUs multiply it in bfloat16."""
  wide = jnp.dtype(dtype) == jnp.float32
  return jax.default_matmul_precision("highest" if wide else "default")


def token_weights(mask_BxT, reduction: str):
  """Weights whose weighted sum of NLL is the loss, float32 [B, T].

  `instance_mean`: mean over instances of the per-instance mean (released
  code). `token_mean`: mean over tokens.
  """
  mask_BxT = mask_BxT.astype(jnp.float32)
  if reduction == "token_mean":
    return mask_BxT / jnp.maximum(jnp.sum(mask_BxT), 1)
  count_Bx1 = jnp.maximum(jnp.sum(mask_BxT, -1, keepdims=True), 1)
  return mask_BxT / count_Bx1 / mask_BxT.shape[0]


def mean_losses(nll_R, count_R) -> tuple[float, float]:
  """Mean over rows of the mean per token, and mean over all tokens, in nats.

  Of each row's Σ nll, and its tokens, none 0.
  """
  return float((nll_R / count_R).mean()), float(nll_R.sum() / count_R.sum())
