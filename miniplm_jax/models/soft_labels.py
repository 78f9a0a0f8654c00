"""The loss of soft labels without the [B, T, V] logits of either model.

Like `head.weighted_nll`: gradients are formed in the forward tiles, under
`shard_map`, so the collectives are those written here. A tile holds the
logits of student and teacher for the same tokens.

B batch, T time, D and E hidden sizes of student and teacher, V and U rows of
their heads, S tokens of a tile.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import tiles
from miniplm_jax.models.sharding import BATCH

# Tokens per tile and device; it holds the logits of two models.
TILE = 512

_HIDDEN, _HEAD = P(BATCH, None, None), P("tensor", "fsdp")


class Labels(NamedTuple):
  """What of the soft labels is fixed for a run.

  Attributes:
    vocab_size: columns of the student; later rows of its head are padding.
    teacher_vocab_size: the same of the teacher. It is a distribution over
      the columns that both have; the others hold ids of no token.
    weight: of the soft labels; 1 − weight is that of the cross-entropy.
    temperature: of both models' soft labels, whose loss is multiplied by its
      square (Hinton et al. 2015), so that gradients keep their size.
    tile: tokens whose logits exist at a time, per device.
  """

  vocab_size: int
  teacher_vocab_size: int
  weight: float = 0.5
  temperature: float = 1.0
  tile: int = TILE


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def weighted_kd(
  h_BxTxD, w_VxD, ht_BxTxE, wt_UxE, y_BxT, weight_BxT, labels: Labels
):
  """Vanilla KD of the paper (section 3.1), weighted over tokens.

  Differentiable in `h_BxTxD` and `w_VxD`, through the first result alone.

  Args:
    h_BxTxD: the student's hidden states in compute dtype.
    w_VxD: its head; cast to the dtype of `h_BxTxD`.
    ht_BxTxE: the teacher's hidden states.
    wt_UxE: its head; cast to the dtype of `ht_BxTxE`.
    y_BxT: int32 targets, ids that both have.
    weight_BxT: float32, as of `head.weighted_nll`.
    labels: what is fixed.

  Returns:
    float32 scalars: the loss (1 − a)·ce + a·kd, and its parts
    ce = Σ weight · −log q(y) and kd = Σ weight · Σ_v −p(v) log q(v).
  """
  return _forward(h_BxTxD, w_VxD, ht_BxTxE, wt_UxE, y_BxT, weight_BxT, labels)[
    0
  ]


def _forward(h_BxTxD, w_VxD, ht_BxTxE, wt_UxE, y_BxT, weight_BxT, labels):
  local = functools.partial(_local, labels)
  mapped = jax.shard_map(
    local,
    in_specs=(_HIDDEN, _HEAD) * 2 + (P(BATCH, None),) * 2,
    out_specs=((P(),) * 3, _HIDDEN, _HEAD),
    check_vma=False,
  )
  # Both heads lie alike over `tensor`.
  wt_VxE = _with_rows(wt_UxE, w_VxD.shape[0])
  losses, dh_BxTxD, dw_VxD = mapped(
    h_BxTxD, w_VxD, ht_BxTxE, wt_VxE, y_BxT, weight_BxT
  )
  return losses, (dh_BxTxD, dw_VxD)


def _backward(unused_labels, gradients, g):
  dh_BxTxD, dw_VxD = gradients
  dh_BxTxD = (dh_BxTxD * g[0]).astype(dh_BxTxD.dtype)
  return dh_BxTxD, dw_VxD * g[0], None, None, None, None


weighted_kd.defvjp(_forward, _backward)


def _local(labels, h_BxTxD, w_VxD, ht_BxTxE, wt_VxE, y_BxT, weight_BxT):
  """What one device does with its tokens."""
  dtype = h_BxTxD.dtype
  full_VxD = tiles.gather(w_VxD, dtype)
  full_VxE = tiles.gather(wt_VxE, ht_BxTxE.dtype)

  def step(carry, xs):
    ce, kd, dw_VxD = carry
    h_SxD, ht_SxE, y_S, weight_S = xs
    z_SxV, u_SxV = _logits(h_SxD, full_VxD), _logits(ht_SxE, full_VxE)
    ce_S, kd_S, dlogits_SxV = _tile(z_SxV, u_SxV, y_S, labels)
    dlogits_SxV *= weight_S[:, None]
    dh_SxD, dw_VxD = tiles.backward(dlogits_SxV, h_SxD, full_VxD, dw_VxD)
    ce += jnp.sum(ce_S * weight_S)
    kd += jnp.sum(kd_S * weight_S)
    return (ce, kd, dw_VxD), tiles.total(dh_SxD, "tensor").astype(dtype)

  arrays = h_BxTxD, ht_BxTxE, y_BxT, weight_BxT
  xs = tuple(tiles.split(x, labels.tile) for x in arrays)
  zero = jnp.zeros((), jnp.float32)
  first = zero, zero, jnp.zeros(full_VxD.shape, jnp.float32)
  (ce, kd, dw_VxD), dh = jax.lax.scan(step, first, xs)
  dw_VxD = tiles.reduced(dw_VxD, w_VxD.dtype)
  ce, kd = tiles.total(ce, BATCH), tiles.total(kd, BATCH)
  loss = (1 - labels.weight) * ce + labels.weight * kd
  return (loss, ce, kd), tiles.joined(dh, h_BxTxD.shape), dw_VxD


def _tile(z_SxV, u_SxV, y_S, labels):
  """Each token's ce and kd, and d loss / d logits of their mixture."""
  a, temperature = labels.weight, labels.temperature
  rows = z_SxV.shape[1]
  first = jax.lax.axis_index("tensor") * rows
  column_V = first + jnp.arange(rows)
  real_V = column_V < labels.vocab_size
  common_V = real_V & (column_V < labels.teacher_vocab_size)
  hit_SxV = y_S[:, None] == column_V[None]

  z_SxV = jnp.where(real_V[None], z_SxV, -jnp.inf)
  lse_S = _logsumexp(z_SxV)
  q_SxV = jnp.exp(z_SxV - lse_S[:, None])
  own_S = tiles.total(jnp.sum(jnp.where(hit_SxV, z_SxV, 0), -1), "tensor")
  ce_S = lse_S - own_S
  dlogits_SxV = (1 - a) * (q_SxV - hit_SxV)

  u_SxV = jnp.where(common_V[None], u_SxV / temperature, -jnp.inf)
  p_SxV = jnp.exp(u_SxV - _logsumexp(u_SxV)[:, None])
  if temperature != 1:
    z_SxV /= temperature
    lse_S = _logsumexp(z_SxV)
    q_SxV = jnp.exp(z_SxV - lse_S[:, None])
  # Σ −p log q, of which Σ p is 1; 0 · −inf where it is padding.
  mean_S = jnp.sum(jnp.where(common_V[None], p_SxV * z_SxV, 0), -1)
  kd_S = temperature**2 * (lse_S - tiles.total(mean_S, "tensor"))
  dlogits_SxV += a * temperature * (q_SxV - p_SxV)
  return ce_S, kd_S, dlogits_SxV


def _logits(h_SxD, w_VxD):
  return jnp.einsum(
    "sd,vd->sv", h_SxD, w_VxD, preferred_element_type=jnp.float32
  )


def _logsumexp(x_SxV):
  """Over the columns of all devices."""
  max_S = jnp.max(x_SxV, -1)
  if jax.lax.axis_size("tensor") > 1:
    max_S = jax.lax.pmax(max_S, "tensor")
  total_S = jnp.sum(jnp.exp(x_SxV - max_S[:, None]), -1)
  return max_S + jnp.log(tiles.total(total_S, "tensor"))


def _with_rows(w_UxE, rows):
  """Cut, or padded with zeros, to so many rows."""
  pad = max(rows - w_UxE.shape[0], 0)
  return jnp.pad(w_UxE[:rows], ((0, pad), (0, 0)))
