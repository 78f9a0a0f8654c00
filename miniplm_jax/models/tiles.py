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
