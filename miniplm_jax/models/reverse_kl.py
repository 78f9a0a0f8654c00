"""KL(student ‖ teacher) of each token, over the vocabulary, in tiles.

As `head.py`: under `shard_map`, gradients formed in the forward tiles, and
never the [B, T, V] logits of either model.

B batch, T time, D and E hidden sizes, V vocabulary, S tokens of a tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import tiles
from miniplm_jax.models.head import TILE
from miniplm_jax.models.sharding import BATCH

# Of what is no token: finite, so that nothing is −inf − −inf.
_NEVER = -1e30


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def weighted_reverse_kl(
  q_BxTxD, q_VxD, p_BxTxE, p_VxE, weight_BxT, vocab_size: int, tile: int = TILE
):
  """Σ weight · Σ_v q(v) log(q(v) / p(v)), and what is weighted.

  Differentiable in `q_BxTxD` and `q_VxD` of the scalar; in nothing else.

  Args:
    q_BxTxD: hidden states of the student, in compute dtype.
    q_VxD: its head, cast to that.
    p_BxTxE: hidden states of the teacher, in compute dtype.
    p_VxE: its head, with as many rows.
    weight_BxT: float32, of any sign.
    vocab_size: rows of the heads from here on take no probability.
    tile: tokens whose logits exist at a time, per device.

  Returns:
    A float32 scalar, and the divergences in nats, float32 [B, T].
  """
  arrays = q_BxTxD, q_VxD, p_BxTxE, p_VxE, weight_BxT
  return _forward(*arrays, vocab_size, tile)[0]


def _forward(q_BxTxD, q_VxD, p_BxTxE, p_VxE, weight_BxT, vocab_size, tile):
  def local(q_BxTxD, q_VxD, p_BxTxE, p_VxE, weight_BxT):
    dtype = q_BxTxD.dtype
    full_VxD = tiles.gather(q_VxD, dtype)
    teacher_VxE = tiles.gather(p_VxE, p_BxTxE.dtype)

    def step(carry, xs):
      loss, dw_VxD = carry
      h_SxD, h_SxE, weight_S = xs
      log_q_SxV = _log_probs(h_SxD, full_VxD, vocab_size)
      q_SxV = jnp.exp(log_q_SxV)
      ratio_SxV = log_q_SxV - _log_probs(h_SxE, teacher_VxE, vocab_size)
      kl_S = tiles.total(jnp.sum(q_SxV * ratio_SxV, -1), "tensor")
      # Σ_v dq(v) = 0, so of d(log q) nothing is left.
      dlogits_SxV = q_SxV * (ratio_SxV - kl_S[:, None]) * weight_S[:, None]
      dh_SxD, dw_VxD = tiles.backward(dlogits_SxV, h_SxD, full_VxD, dw_VxD)
      dh_SxD = tiles.total(dh_SxD, "tensor").astype(dtype)
      return (loss + jnp.sum(kl_S * weight_S), dw_VxD), (dh_SxD, kl_S)

    xs = tuple(tiles.split(x, tile) for x in (q_BxTxD, p_BxTxE, weight_BxT))
    zero = jnp.zeros((), jnp.float32), jnp.zeros(full_VxD.shape, jnp.float32)
    (loss, dw_VxD), (dh, kl) = jax.lax.scan(step, zero, xs)
    dw_VxD = tiles.reduced(dw_VxD, q_VxD.dtype)
    kl_BxT = tiles.joined(kl, weight_BxT.shape)
    dh_BxTxD = tiles.joined(dh, q_BxTxD.shape)
    return tiles.total(loss, BATCH), kl_BxT, dh_BxTxD, dw_VxD

  by_token = P(BATCH, None)
  hidden, table, _ = tiles.SPECS
  mapped = jax.shard_map(
    local,
    in_specs=(hidden, table, hidden, table, by_token),
    out_specs=(P(), by_token, hidden, table),
    check_vma=False,
  )
  loss, kl_BxT, *gradients = mapped(q_BxTxD, q_VxD, p_BxTxE, p_VxE, weight_BxT)
  return (loss, kl_BxT), gradients


def _backward(unused_vocab_size, unused_tile, gradients, g):
  dh_BxTxD, dw_VxD = gradients
  g, _ = g
  return (dh_BxTxD * g).astype(dh_BxTxD.dtype), dw_VxD * g, None, None, None


weighted_reverse_kl.defvjp(_forward, _backward)


def _log_probs(h_SxD, w_VxD, vocab_size):
  """log-softmax of one tile, of the vocabulary rows that this device holds."""
  logits_SxV = jnp.einsum(
    "sd,vd->sv", h_SxD, w_VxD, preferred_element_type=jnp.float32
  )
  rows = w_VxD.shape[0]
  first = jax.lax.axis_index("tensor") * rows
  if vocab_size != rows * jax.lax.axis_size("tensor"):
    real_V = first + jnp.arange(rows) < vocab_size
    logits_SxV = jnp.where(real_V[None], logits_SxV, _NEVER)
  top_S = jnp.max(logits_SxV, -1)
  if jax.lax.axis_size("tensor") > 1:
    top_S = jax.lax.pmax(top_S, "tensor")
  logits_SxV -= top_S[:, None]
  total_S = tiles.total(jnp.sum(jnp.exp(logits_SxV), -1), "tensor")
  return logits_SxV - jnp.log(total_S)[:, None]
