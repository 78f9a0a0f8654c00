"""A few ids of a teacher's distribution at each token: likeliest or sampled.

They are taken from one tile's logits at a time, under `shard_map` as in
`vocab_loss.py`; `vocab_tiles.SparseTile` is the loss against them.

B batch, T time, D hidden, V vocabulary, K ids of a token, S tokens of a tile.
"""

import jax
import jax.numpy as jnp

from miniplm_jax.models import vocab_loss
from miniplm_jax.models.sharding import BY_TOKEN, TABLE, total

# Tokens per tile and device when ids are drawn: there are several arrays of
# the size of the logits, 256 × 151,936 of float32 are 148 MiB.
DRAW_TILE = 256


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
  tokens: int = DRAW_TILE,
):
  """What is kept of a teacher's distribution at each token.

  "sampling" draws with replacement from p (Anshumann et al. 2025, arXiv
  2503.16870): each id with weight 1 / count is an unbiased estimate of p, up
  to the rounding of a float32 cumulative sum. "top_k" takes the likeliest.

  Args:
    h_BxTxD: the teacher's hidden states, in compute dtype.
    key_BxTx2: uint32 key data of each token, for "sampling".
    count: K, ids of a token; with 0 only the labels are looked at.
    ids: ids from here on are never taken.
    vocab_size: rows of the head from here on take no probability.
    tokens: tokens whose logits exist at a time, per device.

  Returns:
    −log p of the labels, float32 [B, T]; ids int32 [B, T, K], ascending; and
    their log p, float32 [B, T, K], over the head's whole vocabulary.
  """

  def local(h_BxTxD, w_VxD, y_BxT, key_BxTx2):
    w_VxD = vocab_loss.gather(w_VxD, h_BxTxD.dtype)
    first = vocab_loss.first_row(w_VxD)
    column_V = jnp.arange(w_VxD.shape[0])

    def one(xs):
      h_SxD, y_S, key_Sx2 = xs
      logits_SxV = vocab_loss.logits(h_SxD, w_VxD, vocab_size)
      lse_S = vocab_loss.logsumexp(logits_SxV)
      hit_SxV = (y_S - first)[:, None] == column_V[None]
      own_S = jnp.sum(jnp.where(hit_SxV, logits_SxV, 0), -1)
      nll_S = lse_S - total(own_S, "tensor")
      if jax.lax.axis_size("tensor") > 1 and count:
        logits_SxV = jax.lax.all_gather(
          logits_SxV, "tensor", axis=1, tiled=True
        )
      log_p_SxV = logits_SxV[:, :ids] - lse_S[:, None]
      id_SxK = _chosen(log_p_SxV, key_Sx2, kind, count)
      return nll_S, id_SxK, jnp.take_along_axis(log_p_SxV, id_SxK, 1)

    arrays = h_BxTxD, y_BxT, key_BxTx2
    of_tiles = jax.lax.map(
      one, tuple(vocab_loss.split(x, tokens) for x in arrays)
    )
    return tuple(vocab_loss.joined(x, y_BxT.shape) for x in of_tiles)

  mapped = jax.shard_map(
    local,
    in_specs=(BY_TOKEN, TABLE, BY_TOKEN, BY_TOKEN),
    out_specs=BY_TOKEN,
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
