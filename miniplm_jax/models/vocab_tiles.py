"""Losses against more than one label: a teacher's, a few ids', a divergence.

Each is a `Tile` of `vocab_loss.tiled_loss`, which says how tiles, gradients
and devices go together, with a function that calls it. The next-token loss,
which also streams the vocabulary, is in `head.py`.

B batch, T time, D and E hidden sizes of student and teacher, V and U rows of
their heads, K ids of a token, S tokens of a tile.
"""

import dataclasses

import jax.numpy as jnp

from miniplm_jax.models.sharding import total
from miniplm_jax.models.vocab_loss import (
  TILE,
  backward,
  first_row,
  log_softmax,
  logits,
  logsumexp,
  tiled_loss,
)


@dataclasses.dataclass(frozen=True)
class SoftLabelTile:
  """(1 − weight) · cross-entropy + weight · a teacher's soft labels."""

  vocab_size: int  # rows of the student's head from here on are padding
  # The same of the teacher. It is a distribution over the ids that both have;
  # its others are ids of no token.
  teacher_vocab_size: int
  weight: float = 0.5  # of the soft labels
  # Of both models' soft labels, whose loss is multiplied by its square (Hinton
  # et al. 2015), so that gradients keep their size.
  temperature: float = 1.0
  tokens: int = 512  # the logits of two models exist at a time

  def __call__(self, h_SxD, w_VxD, dw_VxD, frozen, per_token):
    """Values: each token's cross-entropy, and that against soft labels."""
    ((ht_SxE, wt_VxE),), (y_S, weight_S) = frozen, per_token
    share, temperature = self.weight, self.temperature
    common = min(self.vocab_size, self.teacher_vocab_size)
    column_V = first_row(w_VxD) + jnp.arange(w_VxD.shape[0])
    hit_SxV = y_S[:, None] == column_V[None]

    z_SxV = logits(h_SxD, w_VxD, self.vocab_size)
    lse_S = logsumexp(z_SxV)
    q_SxV = jnp.exp(z_SxV - lse_S[:, None])
    own_S = total(jnp.sum(jnp.where(hit_SxV, z_SxV, 0), -1), "tensor")
    ce_S = lse_S - own_S
    dlogits_SxV = (1 - share) * (q_SxV - hit_SxV)

    u_SxV = logits(ht_SxE, wt_VxE, common) / temperature
    p_SxV = jnp.exp(u_SxV - logsumexp(u_SxV)[:, None])
    if temperature != 1:
      z_SxV /= temperature
      lse_S = logsumexp(z_SxV)
      q_SxV = jnp.exp(z_SxV - lse_S[:, None])
    # Σ −p log q, of which Σ p is 1.
    mean_S = total(jnp.sum(p_SxV * z_SxV, -1), "tensor")
    kd_S = temperature**2 * (lse_S - mean_S)
    dlogits_SxV += share * temperature * (q_SxV - p_SxV)

    loss_S = ((1 - share) * ce_S + share * kd_S) * weight_S
    dlogits_SxV *= weight_S[:, None]
    gradients = backward(dlogits_SxV, h_SxD, w_VxD, dw_VxD)
    return loss_S, (ce_S, kd_S), *gradients


def weighted_kd(
  h_BxTxD, w_VxD, ht_BxTxE, wt_UxE, y_BxT, weight_BxT, tile: SoftLabelTile
):
  """Vanilla KD of the paper (section 3.1), weighted over tokens.

  Of hidden states and heads of student and teacher, and targets that both
  have. Differentiable in `h_BxTxD` and `w_VxD`, through the first result
  alone.

  Returns:
    float32 scalars: the loss (1 − a)·ce + a·kd, and its parts
    ce = Σ weight · −log q(y) and kd = Σ weight · Σ_v −p(v) log q(v).
  """
  frozen = ((ht_BxTxE, wt_UxE),)
  loss, (ce_BxT, kd_BxT) = tiled_loss(
    tile, h_BxTxD, w_VxD, frozen, (y_BxT, weight_BxT)
  )
  return loss, jnp.sum(ce_BxT * weight_BxT), jnp.sum(kd_BxT * weight_BxT)


@dataclasses.dataclass(frozen=True)
class SparseTile:
  """Σ_K weight · −log q(id) of a few ids of each token."""

  vocab_size: int | None  # rows of the head from here on are padding
  tokens: int = TILE

  def __call__(self, h_SxD, w_VxD, dw_VxD, frozen, per_token):
    """The value is −log q of each id, [S, K]."""
    del frozen
    id_SxK, weight_SxK = per_token
    logits_SxV = logits(h_SxD, w_VxD, self.vocab_size)
    lse_S = logsumexp(logits_SxV)
    first, rows = first_row(w_VxD), w_VxD.shape[0]
    is_own_SxK = (id_SxK >= first) & (id_SxK < first + rows)
    # Rows of other devices: a negative index would wrap around.
    place_SxK = jnp.where(is_own_SxK, id_SxK - first, rows)
    own_SxK = jnp.take_along_axis(
      logits_SxV, place_SxK, 1, mode="fill", fill_value=0
    )
    nll_SxK = lse_S[:, None] - total(own_SxK, "tensor")
    mass_S = jnp.sum(weight_SxK, -1)
    q_SxV = jnp.exp(logits_SxV - lse_S[:, None])
    token_Sx1 = jnp.arange(len(id_SxK))[:, None]
    dlogits_SxV = (q_SxV * mass_S[:, None]).at[token_Sx1, place_SxK]
    dlogits_SxV = dlogits_SxV.add(-weight_SxK, mode="drop")
    loss_S = jnp.sum(nll_SxK * weight_SxK, -1)
    gradients = backward(dlogits_SxV, h_SxD, w_VxD, dw_VxD)
    return loss_S, (nll_SxK,), *gradients


def weighted_sparse_nll(
  h_BxTxD,
  w_VxD,
  id_BxTxK,
  weight_BxTxK,
  vocab_size: int | None = None,
  tokens: int = TILE,
):
  """Σ weight · −log q(id | h), and what is weighted.

  One id of weight 1 is the next-token loss. An id may stand several times,
  and the weights of a token have any sum. Differentiable in `h_BxTxD` and
  `w_VxD` of the scalar; in nothing else.

  Returns:
    A float32 scalar, and −log q(id) in nats, float32 [B, T, K].
  """
  tile = SparseTile(vocab_size, tokens)
  loss, (nll_BxTxK,) = tiled_loss(
    tile, h_BxTxD, w_VxD, (), (id_BxTxK, weight_BxTxK)
  )
  return loss, nll_BxTxK


@dataclasses.dataclass(frozen=True)
class ReverseKLTile:
  """Weight · KL(student ‖ teacher), over the vocabulary that both have."""

  vocab_size: int  # rows of the heads from here on take no probability
  tokens: int = TILE

  def __call__(self, h_SxD, w_VxD, dw_VxD, frozen, per_token):
    """The value is the divergence of each token."""
    ((ht_SxE, wt_VxE),), (weight_S,) = frozen, per_token
    log_q_SxV = log_softmax(logits(h_SxD, w_VxD, self.vocab_size))
    log_p_SxV = log_softmax(logits(ht_SxE, wt_VxE, self.vocab_size))
    q_SxV, ratio_SxV = jnp.exp(log_q_SxV), log_q_SxV - log_p_SxV
    kl_S = total(jnp.sum(q_SxV * ratio_SxV, -1), "tensor")
    # Σ_v dq(v) = 0, so of d(log q) nothing is left.
    dlogits_SxV = q_SxV * (ratio_SxV - kl_S[:, None]) * weight_S[:, None]
    gradients = backward(dlogits_SxV, h_SxD, w_VxD, dw_VxD)
    return kl_S * weight_S, (kl_S,), *gradients


def weighted_reverse_kl(
  q_BxTxD,
  q_VxD,
  p_BxTxE,
  p_VxE,
  weight_BxT,
  vocab_size: int,
  tokens: int = TILE,
):
  """Σ weight · Σ_v q(v) log(q(v) / p(v)), and what is weighted.

  Of hidden states and heads of the student, q, and of the teacher, p. Weights
  have any sign. Differentiable in `q_BxTxD` and `q_VxD` of the scalar; in
  nothing else.

  Returns:
    A float32 scalar, and the divergences in nats, float32 [B, T].
  """
  tile = ReverseKLTile(vocab_size, tokens)
  loss, (kl_BxT,) = tiled_loss(
    tile, q_BxTxD, q_VxD, ((p_BxTxE, p_VxE),), (weight_BxT,)
  )
  return loss, kl_BxT
