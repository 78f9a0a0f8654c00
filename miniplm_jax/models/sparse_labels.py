"""Labels that are a few ids with weights, instead of one id or all of them.

As `head.py`: under `shard_map`, by tiles, and never the [B, T, V] logits: of
one tile's logits are taken a teacher's likeliest or sampled ids, and the loss
with its gradients of a student against such ids.

B batch, T time, D hidden, V vocabulary, K ids of a token, S tokens of a tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import tiles
from miniplm_jax.models.head import TILE
from miniplm_jax.models.sharding import BATCH

# Tokens per tile and device when ids are drawn: there are several arrays of
# the size of the logits, 256 × 151,936 of float32 are 148 MiB.
DRAW_TILE = 256
KINDS = ("top_k", "sampling")


def draw(
  h_BxTxD,
  w_VxD,
  y_BxT,
  key_BxTx2,
  *,
  kind: str,
  count: int,
  ids: int,
  vocab_size: int,
  tile: int = DRAW_TILE,
):
  """What is kept of a teacher's distribution at each token.

  "sampling" draws with replacement from p (Anshumann et al. 2025, arXiv
  2503.16870): each id with weight 1 / count is an unbiased estimate of p, up
  to the rounding of a float32 cumulative sum. "top_k" takes the likeliest.

  Args:
    h_BxTxD: the teacher's hidden states, in compute dtype.
    w_VxD: its head.
    y_BxT: int32 labels.
    key_BxTx2: uint32 key data of each token, for "sampling".
    kind: one of `KINDS`.
    count: K, ids of a token; with 0 only the labels are looked at.
    ids: ids from here on are never taken.
    vocab_size: rows of the head from here on take no probability.
    tile: tokens whose logits exist at a time, per device.

  Returns:
    −log p of the labels, float32 [B, T]; ids int32 [B, T, K], ascending; and
    their log p, float32 [B, T, K], over the head's whole vocabulary.
  """

  def local(h_BxTxD, w_VxD, y_BxT, key_BxTx2):
    w_VxD = tiles.gather(w_VxD, h_BxTxD.dtype)

    def one(xs):
      h_SxD, y_S, key_Sx2 = xs
      nll_S, logits_SxV, lse_S, _ = tiles.nll(h_SxD, w_VxD, y_S, vocab_size)
      if jax.lax.axis_size("tensor") > 1 and count:
        logits_SxV = jax.lax.all_gather(
          logits_SxV, "tensor", axis=1, tiled=True
        )
      log_p_SxV = logits_SxV[:, :ids] - lse_S[:, None]
      id_SxK = _chosen(log_p_SxV, key_Sx2, kind, count)
      return nll_S, id_SxK, jnp.take_along_axis(log_p_SxV, id_SxK, 1)

    xs = tuple(tiles.split(x, tile) for x in (h_BxTxD, y_BxT, key_BxTx2))
    made = jax.lax.map(one, xs)
    flat = (jnp.concatenate(x)[: y_BxT.size] for x in made)
    return tuple(x.reshape(*y_BxT.shape, *x.shape[1:]) for x in flat)

  by_token = P(BATCH, None, None)
  mapped = jax.shard_map(
    local,
    in_specs=(*tiles.SPECS, by_token),
    out_specs=(P(BATCH, None), by_token, by_token),
    check_vma=False,
  )
  return mapped(h_BxTxD, w_VxD, y_BxT, key_BxTx2)


def _chosen(log_p_SxV, key_Sx2, kind: str, count: int):
  """The ids of a tile, int32 [S, K], ascending."""
  if not count:
    return jnp.zeros((len(log_p_SxV), 0), jnp.int32)
  if kind == "top_k":
    return jnp.sort(jax.lax.top_k(log_p_SxV, count)[1], -1)

  def drawn(log_p_V, key_2):
    key = jax.random.wrap_key_data(key_2)
    point_K = jnp.sort(jax.random.uniform(key, (count,)))
    sum_V = jnp.cumsum(jnp.exp(log_p_V))
    # The first whose sum is larger: an id without probability is never it.
    id_K = jnp.searchsorted(sum_V, point_K * sum_V[-1], side="right")
    return jnp.minimum(id_K, len(log_p_V) - 1).astype(jnp.int32)

  return jax.vmap(drawn)(log_p_SxV, key_Sx2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def weighted_nll(
  h_BxTxD,
  w_VxD,
  id_BxTxK,
  weight_BxTxK,
  vocab_size: int | None = None,
  tile: int = TILE,
):
  """Σ weight · −log q(id | h), and what is weighted.

  One id of weight 1 is the next-token loss. An id may stand several times,
  and the weights of a token have any sum. Differentiable in `h_BxTxD` and
  `w_VxD` of the scalar; in nothing else.

  Args:
    h_BxTxD: the student's hidden states, in compute dtype.
    w_VxD: its head, cast to that.
    id_BxTxK: int32 in [0, vocab_size).
    weight_BxTxK: float32.
    vocab_size: rows of the head from here on take no probability.
    tile: tokens whose logits exist at a time, per device.

  Returns:
    A float32 scalar, and −log q(id) in nats, float32 [B, T, K].
  """
  arrays = h_BxTxD, w_VxD, id_BxTxK, weight_BxTxK
  return _forward(*arrays, vocab_size, tile)[0]


def _forward(h_BxTxD, w_VxD, id_BxTxK, weight_BxTxK, vocab_size, tile):
  def local(h_BxTxD, w_VxD, id_BxTxK, weight_BxTxK):
    dtype = h_BxTxD.dtype
    full_VxD = tiles.gather(w_VxD, dtype)
    rows = full_VxD.shape[0]
    first = jax.lax.axis_index("tensor") * rows

    def step(carry, xs):
      loss, dw_VxD = carry
      h_SxD, id_SxK, weight_SxK = xs
      _, logits_SxV, lse_S, _ = tiles.nll(
        h_SxD, full_VxD, id_SxK[:, 0], vocab_size
      )
      is_own_SxK = (id_SxK >= first) & (id_SxK < first + rows)
      # Rows of other devices: a negative index would wrap around.
      place_SxK = jnp.where(is_own_SxK, id_SxK - first, rows)
      own_SxK = jnp.take_along_axis(
        logits_SxV, place_SxK, 1, mode="fill", fill_value=0
      )
      nll_SxK = lse_S[:, None] - tiles.total(own_SxK, "tensor")
      mass_S = jnp.sum(weight_SxK, -1)
      q_SxV = jnp.exp(logits_SxV - lse_S[:, None])
      token_Sx1 = jnp.arange(len(id_SxK))[:, None]
      dlogits_SxV = (q_SxV * mass_S[:, None]).at[token_Sx1, place_SxK]
      dlogits_SxV = dlogits_SxV.add(-weight_SxK, mode="drop")
      dh_SxD, dw_VxD = tiles.backward(dlogits_SxV, h_SxD, full_VxD, dw_VxD)
      dh_SxD = tiles.total(dh_SxD, "tensor").astype(dtype)
      return (loss + jnp.sum(nll_SxK * weight_SxK), dw_VxD), (dh_SxD, nll_SxK)

    arrays = h_BxTxD, id_BxTxK, weight_BxTxK
    xs = tuple(tiles.split(x, tile) for x in arrays)
    zero = jnp.zeros((), jnp.float32), jnp.zeros(full_VxD.shape, jnp.float32)
    (loss, dw_VxD), (dh, nll) = jax.lax.scan(step, zero, xs)
    dw_VxD = tiles.reduced(dw_VxD, w_VxD.dtype)
    nll_BxTxK = tiles.joined(nll, id_BxTxK.shape)
    dh_BxTxD = tiles.joined(dh, h_BxTxD.shape)
    return tiles.total(loss, BATCH), nll_BxTxK, dh_BxTxD, dw_VxD

  by_token = P(BATCH, None, None)
  mapped = jax.shard_map(
    local,
    in_specs=(*tiles.SPECS[:2], by_token, by_token),
    out_specs=(P(), by_token, *tiles.SPECS[:2]),
    check_vma=False,
  )
  loss, nll_BxTxK, *gradients = mapped(h_BxTxD, w_VxD, id_BxTxK, weight_BxTxK)
  return (loss, nll_BxTxK), gradients


def _backward(unused_vocab_size, unused_tile, gradients, g):
  dh_BxTxD, dw_VxD = gradients
  g, _ = g
  return (dh_BxTxD * g).astype(dh_BxTxD.dtype), dw_VxD * g, None, None


weighted_nll.defvjp(_forward, _backward)
