"""What the kernels between hidden states and losses share.

They run under `shard_map`, a tile of tokens at a time: `head.py`,
`soft_labels.py`, `sparse_labels.py` and `reverse_kl.py`.

B batch, T time, D hidden, V vocabulary, S tokens of a tile.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from miniplm_jax.models.sharding import BATCH

# Hidden states [B, T, D], a head [V, D], and what there is one of a token.
SPECS = (P(BATCH, None, None), P("tensor", "fsdp"), P(BATCH, None))


def gather(w_VxD, dtype):
  """This device's vocabulary rows, whole, in compute dtype."""
  w_VxD = w_VxD.astype(dtype)
  if jax.lax.axis_size("fsdp") == 1:
    return w_VxD
  return jax.lax.all_gather(w_VxD, "fsdp", axis=1, tiled=True)


def total(x, axes):
  """Sum over mesh axes; nothing is compiled for a single device."""
  return x if jax.lax.axis_size(axes) == 1 else jax.lax.psum(x, axes)


def split(x_BxTx, tile):
  """[B, T, …] → [tiles, S, …], zero-padded at the end."""
  flat = x_BxTx.reshape(-1, *x_BxTx.shape[2:])
  tile = min(tile, flat.shape[0])
  pad = -flat.shape[0] % tile
  flat = jnp.pad(flat, [(0, pad)] + [(0, 0)] * (flat.ndim - 1))
  return flat.reshape(-1, tile, *flat.shape[1:])


def joined(tiles, shape):
  """Undoes `split`: results of all tiles as an array of `shape` [B, T, …]."""
  tokens = shape[0] * shape[1]
  return tiles.reshape(-1, *shape[2:])[:tokens].reshape(shape)


def nll(h_SxD, w_VxD, y_S, vocab_size):
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
  lse_S = max_S + jnp.log(total(total_S, "tensor"))
  own_S = jnp.sum(jnp.where(hit_SxV, logits_SxV, 0), -1)
  nll_S = lse_S - total(own_S, "tensor")
  return nll_S, logits_SxV, lse_S, hit_SxV


def backward(dlogits_SxV, h_SxD, w_VxD, dw_VxD):
  """Through the logits of one tile.

  Args:
    dlogits_SxV: the loss's gradient, of this device's rows of the head.
    h_SxD: hidden states; the products are formed in their dtype.
    w_VxD: those rows.
    dw_VxD: float32, what earlier tiles added up.

  Returns:
    dh float32 [S, D], not yet summed over `tensor`; and the new `dw_VxD`.
  """
  dlogits_SxV = dlogits_SxV.astype(h_SxD.dtype)
  dh_SxD = jnp.matmul(dlogits_SxV, w_VxD, preferred_element_type=jnp.float32)
  dw_VxD += jnp.einsum(
    "sv,sd->vd", dlogits_SxV, h_SxD, preferred_element_type=jnp.float32
  )
  return dh_SxD, dw_VxD


def reduced(dw_VxD, dtype):
  """The head's gradient over all tokens, split as the head is."""
  if jax.lax.axis_size("fsdp") > 1:
    dw_VxD = jax.lax.psum_scatter(
      dw_VxD, "fsdp", scatter_dimension=1, tiled=True
    )
  return total(dw_VxD, "data").astype(dtype)
