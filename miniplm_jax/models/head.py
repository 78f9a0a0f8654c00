"""From hidden states to log-probs without the [B, T, V] logits.

One kernel for scoring, training and evaluation. It runs under `shard_map`,
so its collectives are those written here and no others: one all-gather of
the head over `fsdp`; over `tensor` a max and two sums per tile; and for
gradients one reduction of the head's at the end.

Gradients are formed in the forward tiles: a tile's logits give its loss, and
times the weight of each token, its gradients. That takes 3 passes through
the head where recomputing tiles in the backward pass takes 4.

B batch, T time, D hidden, V vocabulary, S tokens of a tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from miniplm_jax.models.sharding import BATCH

# Tokens per tile and device. 1024 × 151,936 float32 logits are 594 MiB.
TILE = 1024

_SPECS = (P(BATCH, None, None), P("tensor", "fsdp"), P(BATCH, None))


def token_nll(
  h_BxTxD, w_VxD, y_BxT, vocab_size: int | None = None, tile: int = TILE
):
  """−log p(y | h) of each token, float32 [B, T], in nats.

  Args:
    h_BxTxD: hidden states in compute dtype.
    w_VxD: the head; cast to the dtype of `h_BxTxD`.
    y_BxT: int32 targets in [0, vocab_size).
    vocab_size: rows of the head from here on are padding and take no
      probability; None if there are none.
    tile: tokens whose logits exist at a time, per device.
  """

  def local(h_BxTxD, w_VxD, y_BxT):
    w_VxD = _gather(w_VxD, h_BxTxD.dtype)
    h, y = _tiles(h_BxTxD, tile), _tiles(y_BxT, tile)
    nll = jax.lax.map(
      lambda a: _tile_nll(a[0], w_VxD, a[1], vocab_size)[0], (h, y)
    )
    return nll.reshape(-1)[: y_BxT.size].reshape(y_BxT.shape)

  mapped = jax.shard_map(
    local, in_specs=_SPECS, out_specs=P(BATCH, None), check_vma=False
  )
  return mapped(h_BxTxD, w_VxD, y_BxT)


def logits(h_BxD, w_VxD, vocab_size: int):
  """Logits of one position a row, float32 [B, V]; −inf from vocab_size on."""
  # Gathered over `fsdp`, or the product would be a ring of permutes.
  w_VxD = jax.lax.with_sharding_constraint(
    w_VxD.astype(h_BxD.dtype), P("tensor", None)
  )
  logits_BxV = jnp.einsum(
    "bd,vd->bv", h_BxD, w_VxD, preferred_element_type=jnp.float32
  )
  real_V = jnp.arange(w_VxD.shape[0]) < vocab_size
  return jnp.where(real_V[None], logits_BxV, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def weighted_nll(
  h_BxTxD,
  w_VxD,
  y_BxT,
  weight_BxT,
  vocab_size: int | None = None,
  tile: int = TILE,
):
  """Σ weight · −log p(y | h), a float32 scalar.

  A weighted sum covers every reduction: the weights say whether it is a mean
  over tokens or MiniPLM's mean of means. Differentiable in `h_BxTxD` and
  `w_VxD`, not in the weights.
  """
  nll_BxT = token_nll(h_BxTxD, w_VxD, y_BxT, vocab_size, tile)
  return jnp.sum(nll_BxT * weight_BxT)


def _forward(h_BxTxD, w_VxD, y_BxT, weight_BxT, vocab_size, tile):
  def local(h_BxTxD, w_VxD, y_BxT, weight_BxT):
    dtype = h_BxTxD.dtype
    full_VxD = _gather(w_VxD, dtype)

    def step(carry, xs):
      loss, dw_VxD = carry
      h_SxD, y_S, weight_S = xs
      nll_S, logits_SxV, lse_S, hit_SxV = _tile_nll(
        h_SxD, full_VxD, y_S, vocab_size
      )
      p_SxV = jnp.exp(logits_SxV - lse_S[:, None])
      dlogits_SxV = ((p_SxV - hit_SxV) * weight_S[:, None]).astype(dtype)
      dh_SxD = jnp.matmul(
        dlogits_SxV, full_VxD, preferred_element_type=jnp.float32
      )
      dh_SxD = _sum(dh_SxD, "tensor").astype(dtype)
      dw_VxD += jnp.einsum(
        "sv,sd->vd", dlogits_SxV, h_SxD, preferred_element_type=jnp.float32
      )
      return (loss + jnp.sum(nll_S * weight_S), dw_VxD), dh_SxD

    xs = tuple(_tiles(x, tile) for x in (h_BxTxD, y_BxT, weight_BxT))
    zero = jnp.zeros((), jnp.float32), jnp.zeros(full_VxD.shape, jnp.float32)
    (loss, dw_VxD), dh = jax.lax.scan(step, zero, xs)
    dh = dh.reshape(-1, h_BxTxD.shape[-1])[: y_BxT.size]
    if jax.lax.axis_size("fsdp") > 1:
      dw_VxD = jax.lax.psum_scatter(
        dw_VxD, "fsdp", scatter_dimension=1, tiled=True
      )
    dw_VxD = _sum(dw_VxD, "data").astype(w_VxD.dtype)
    return _sum(loss, BATCH), dh.reshape(h_BxTxD.shape), dw_VxD

  mapped = jax.shard_map(
    local,
    in_specs=(*_SPECS, P(BATCH, None)),
    out_specs=(P(), *_SPECS[:2]),
    check_vma=False,
  )
  loss, dh_BxTxD, dw_VxD = mapped(h_BxTxD, w_VxD, y_BxT, weight_BxT)
  return loss, (dh_BxTxD, dw_VxD)


def _backward(unused_vocab_size, unused_tile, gradients, g):
  dh_BxTxD, dw_VxD = gradients
  return (dh_BxTxD * g).astype(dh_BxTxD.dtype), dw_VxD * g, None, None


weighted_nll.defvjp(_forward, _backward)


def _gather(w_VxD, dtype):
  """This device's vocabulary rows, whole, in compute dtype."""
  w_VxD = w_VxD.astype(dtype)
  if jax.lax.axis_size("fsdp") == 1:
    return w_VxD
  return jax.lax.all_gather(w_VxD, "fsdp", axis=1, tiled=True)


def _sum(x, axes):
  """Sum over mesh axes; nothing is compiled for a single device."""
  return x if jax.lax.axis_size(axes) == 1 else jax.lax.psum(x, axes)


def _tiles(x_BxTx, tile):
  """[B, T, …] → [tiles, S, …], zero-padded at the end."""
  flat = x_BxTx.reshape(-1, *x_BxTx.shape[2:])
  tile = min(tile, flat.shape[0])
  pad = -flat.shape[0] % tile
  flat = jnp.pad(flat, [(0, pad)] + [(0, 0)] * (flat.ndim - 1))
  return flat.reshape(-1, tile, *flat.shape[1:])


def _tile_nll(h_SxD, w_VxD, y_S, vocab_size):
  """NLL of one tile against the vocabulary rows that this device holds."""
  logits_SxV = jnp.einsum(
    "sd,vd->sv", h_SxD, w_VxD, preferred_element_type=jnp.float32
  )
  rows = w_VxD.shape[0]
  first = jax.lax.axis_index("tensor") * rows
  if vocab_size not in (None, rows * jax.lax.axis_size("tensor")):
    real_V = first + jnp.arange(rows) < vocab_size
    logits_SxV = jnp.where(real_V[None], logits_SxV, -jnp.inf)
  hit_SxV = (y_S - first)[:, None] == jnp.arange(rows)[None, :]
  max_S = jnp.max(logits_SxV, -1)
  if jax.lax.axis_size("tensor") > 1:
    max_S = jax.lax.pmax(max_S, "tensor")
  total_S = jnp.sum(jnp.exp(logits_SxV - max_S[:, None]), -1)
  lse_S = max_S + jnp.log(_sum(total_S, "tensor"))
  own_S = jnp.sum(jnp.where(hit_SxV, logits_SxV, 0), -1)
  nll_S = lse_S - _sum(own_S, "tensor")
  return nll_S, logits_SxV, lse_S, hit_SxV
