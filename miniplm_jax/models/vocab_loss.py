"""The engine of every loss over the vocabulary, without [B, T, V] logits.

It runs under `shard_map`, so its collectives are those written here and no
others: one all-gather of each head over `fsdp`, over `tensor` what a tile
sums up, and at the end one reduction of the head's gradient.

Gradients are formed in the forward tiles: a tile's logits give its loss and,
times the weight of each token, its gradients. That takes 3 passes through the
head where recomputing tiles in the backward pass takes 4.

An objective is a `Tile`: `head.NextTokenTile` and those of `vocab_tiles.py`.

B batch, T time, D hidden, V vocabulary, S tokens of a tile.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from miniplm_jax.models.sharding import BATCH, BY_TOKEN, TABLE, total

# Tokens of a tile. 1024 × 151,936 float32 logits are 594 MiB.
TILE = 1024

# The logit of a row of the head that is padding. Finite, so that nothing is
# −inf − −inf on a device that holds no other rows; beside a real logit its
# exponential is 0.
NO_LOGIT = -1e30


class Tile(Protocol):
  """What an objective does with S tokens; hashable, so that it is static."""

  tokens: int  # S, at most

  def __call__(
    self, h_SxD, w_VxD, dw_VxD, frozen: tuple, per_token: tuple
  ) -> tuple[Any, tuple, Any, Any]:
    """Loss and gradients; under `shard_map`, with this device's rows of heads.

    Args:
      h_SxD: hidden states in compute dtype.
      w_VxD: the head, whole over `fsdp`, in that dtype.
      dw_VxD: float32, the head's gradient that earlier tiles added up.
      frozen: hidden states [S, E] and head [V, E] of each frozen model.

    Returns:
      The weighted loss of each token, float32 [S]; further values [S, …];
      dh float32 [S, D], not yet summed over `tensor`; and the new `dw_VxD`.
    """


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tiled_loss(tile: Tile, h_BxTxD, w_VxD, frozen: tuple, per_token: tuple):
  """The sum of a tile's losses over all tokens, and its further values.

  Differentiable in `h_BxTxD` and `w_VxD` of the scalar; in nothing else.

  Args:
    w_VxD: cast to the dtype of `h_BxTxD`.
    frozen: pairs of hidden states [B, T, E] and head [U, E] of other models.
      Their heads are cut, or padded with zeros, to V rows, so that all lie
      alike over `tensor`.
    per_token: arrays [B, T, …]. Tokens that fill up the last tile have zeros
      there, so a weight among them has to multiply the loss.

  Returns:
    A float32 scalar and a tuple of arrays [B, T, …].
  """
  return _forward(tile, h_BxTxD, w_VxD, frozen, per_token)[0]


def _forward(tile, h_BxTxD, w_VxD, frozen, per_token):
  hidden = tuple(h_BxTxE for h_BxTxE, _ in frozen)
  heads = tuple(_with_rows(w_UxE, w_VxD.shape[0]) for _, w_UxE in frozen)
  mapped = jax.shard_map(
    functools.partial(_local, tile),
    in_specs=(BY_TOKEN, TABLE, BY_TOKEN, TABLE, BY_TOKEN),
    out_specs=(P(), BY_TOKEN, BY_TOKEN, TABLE),
    check_vma=False,
  )
  loss, values, *gradients = mapped(h_BxTxD, w_VxD, hidden, heads, per_token)
  return (loss, values), gradients


def _backward(unused_tile, gradients, g):
  dh_BxTxD, dw_VxD = gradients
  g, _ = g
  return (dh_BxTxD * g).astype(dh_BxTxD.dtype), dw_VxD * g, None, None


tiled_loss.defvjp(_forward, _backward)


def _local(tile, h_BxTxD, w_VxD, hidden, heads, per_token):
  """What one device does with its tokens."""
  full_VxD = gather(w_VxD, h_BxTxD.dtype)
  heads = [gather(w, h.dtype) for h, w in zip(hidden, heads)]

  def step(carry, xs):
    loss, dw_VxD = carry
    h_SxD, hidden, per_token = xs
    frozen = tuple(zip(hidden, heads))
    loss_S, values, dh_SxD, dw_VxD = tile(
      h_SxD, full_VxD, dw_VxD, frozen, per_token
    )
    dh_SxD = total(dh_SxD, "tensor").astype(h_BxTxD.dtype)
    return (loss + jnp.sum(loss_S), dw_VxD), (dh_SxD, values)

  xs = jax.tree.map(
    lambda x_BxTx: split(x_BxTx, tile.tokens), (h_BxTxD, hidden, per_token)
  )
  zero = jnp.zeros((), jnp.float32), jnp.zeros(full_VxD.shape, jnp.float32)
  (loss, dw_VxD), of_tiles = jax.lax.scan(step, zero, xs)
  dh_BxTxD, values = jax.tree.map(
    lambda x_NxSx: joined(x_NxSx, h_BxTxD.shape[:2]), of_tiles
  )
  dw_VxD = _reduced(dw_VxD, w_VxD.dtype)
  return total(loss, BATCH), values, dh_BxTxD, dw_VxD


def gather(w_VxD, dtype):
  """This device's vocabulary rows, whole, in compute dtype."""
  w_VxD = w_VxD.astype(dtype)
  if jax.lax.axis_size("fsdp") == 1:
    return w_VxD
  return jax.lax.all_gather(w_VxD, "fsdp", axis=1, tiled=True)


def split(x_BxTx, tokens: int):
  """[B, T, …] → [tiles, S, …], zero-padded at the end."""
  flat = x_BxTx.reshape(-1, *x_BxTx.shape[2:])
  size = min(tokens, flat.shape[0])
  pad = -flat.shape[0] % size
  flat = jnp.pad(flat, [(0, pad)] + [(0, 0)] * (flat.ndim - 1))
  return flat.reshape(-1, size, *flat.shape[1:])


def joined(x_NxSx, shape: tuple[int, int]):
  """Undoes `split`: results of all tiles as [B, T, …], given (B, T)."""
  tiles, size, *rest = x_NxSx.shape  # `rest` may hold a 0, so no −1
  batch, time = shape
  flat = x_NxSx.reshape(tiles * size, *rest)
  return flat[: batch * time].reshape(batch, time, *rest)


def first_row(w_VxD):
  """The id of the first of the head's rows that this device holds."""
  return jax.lax.axis_index("tensor") * w_VxD.shape[0]


def logits(h_SxD, w_VxD, vocab_size: int | None):
  """Float32 [S, V]; ids from `vocab_size` on have `NO_LOGIT`."""
  logits_SxV = jnp.einsum(
    "sd,vd->sv", h_SxD, w_VxD, preferred_element_type=jnp.float32
  )
  rows = w_VxD.shape[0]
  if vocab_size in (None, rows * jax.lax.axis_size("tensor")):
    return logits_SxV
  real_V = first_row(w_VxD) + jnp.arange(rows) < vocab_size
  return jnp.where(real_V[None], logits_SxV, NO_LOGIT)


def logsumexp(x_SxV):
  """Over the columns of all devices, float32 [S]."""
  top_S, log_S = _normalizer(x_SxV)
  return top_S + log_S


def log_softmax(x_SxV):
  """Over the columns of all devices, of those that this one holds.

  The largest is subtracted first: with the log-sum-exp in one number, a
  log-probability is off by an ulp of that, which a difference of two shows.
  """
  top_S, log_S = _normalizer(x_SxV)
  return x_SxV - top_S[:, None] - log_S[:, None]


def _normalizer(x_SxV):
  """Log-sum-exp of all devices' columns, as of `over_devices`."""
  top_S = jnp.max(x_SxV, -1)
  return over_devices(top_S, jnp.sum(jnp.exp(x_SxV - top_S[:, None]), -1))


def over_devices(top_S, total_S):
  """Log-sum-exp over all rows, as a sum of two.

  Given the largest logit of this device's rows and the sum of exp(logit − top)
  over them: the largest of all rows, and log Σ exp(logit − that).
  """
  if jax.lax.axis_size("tensor") > 1:
    own_S, top_S = top_S, jax.lax.pmax(top_S, "tensor")
    total_S *= jnp.exp(own_S - top_S)
  return top_S, jnp.log(total(total_S, "tensor"))


def backward(dlogits_SxV, h_SxD, w_VxD, dw_VxD):
  """Through the logits of one tile, of this device's rows of the head.

  The products are formed in the dtype of `h_SxD`.

  Returns:
    dh float32 [S, D], not yet summed over `tensor`; and the new `dw_VxD`.
  """
  dlogits_SxV = dlogits_SxV.astype(h_SxD.dtype)
  dh_SxD = jnp.matmul(dlogits_SxV, w_VxD, preferred_element_type=jnp.float32)
  dw_VxD += jnp.einsum(
    "sv,sd->vd", dlogits_SxV, h_SxD, preferred_element_type=jnp.float32
  )
  return dh_SxD, dw_VxD


def _reduced(dw_VxD, dtype):
  """The head's gradient over all tokens, split as the head is."""
  if jax.lax.axis_size("fsdp") > 1:
    dw_VxD = jax.lax.psum_scatter(
      dw_VxD, "fsdp", scatter_dimension=1, tiled=True
    )
  return total(dw_VxD, "data").astype(dtype)


def _with_rows(w_UxE, rows: int):
  """The head cut, or padded with zeros, to so many rows."""
  pad = max(rows - w_UxE.shape[0], 0)
  return jnp.pad(w_UxE[:rows], ((0, pad), (0, 0)))
