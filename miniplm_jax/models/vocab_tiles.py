"""Losses against more than one label: a teacher's, a few ids', a divergence.

Each is a `Tile` for `vocab_loss.tiled_loss`, which says how tiles, gradients
and devices go together. The next-token loss, which also streams the
vocabulary, is in `head.py`.

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
)


@dataclasses.dataclass(frozen=True)
class SoftLabelTile:
  """(1 − weight) · cross-entropy + weight · a teacher's soft labels.

  Vanilla KD of the paper (section 3.1). Frozen is the teacher; of each token
  there are the target, an id that both have, and what multiplies its loss. The
  values are −log q(y) and Σ_v −p(v) log q(v) of each token.
  """

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
    """See `vocab_loss.Tile`."""
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


@dataclasses.dataclass(frozen=True)
class SparseTile:
  """Σ_K weight · −log q(id) of a few ids of each token.

  Of each token there are the ids, int32 [K], and their weights, float32 [K].
  One id of weight 1 is the next-token loss; an id may stand several times, and
  the weights have any sum. The value is −log q(id) in nats, [K].
  """

  vocab_size: int | None  # rows of the head from here on are padding
  tokens: int = TILE

  def __call__(self, h_SxD, w_VxD, dw_VxD, unused_frozen, per_token):
    """See `vocab_loss.Tile`."""
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


@dataclasses.dataclass(frozen=True)
class ReverseKLTile:
  """Weight · KL(student ‖ teacher), over the vocabulary that both have.

  Frozen is the teacher; of each token there is the weight, of any sign. The
  value is the divergence, Σ_v q(v) log(q(v) / p(v)) in nats.
  """

  vocab_size: int  # rows of the heads from here on take no probability
  tokens: int = TILE

  def __call__(self, h_SxD, w_VxD, dw_VxD, frozen, per_token):
    """See `vocab_loss.Tile`."""
    ((ht_SxE, wt_VxE),), (weight_S,) = frozen, per_token
    log_q_SxV = log_softmax(logits(h_SxD, w_VxD, self.vocab_size))
    log_p_SxV = log_softmax(logits(ht_SxE, wt_VxE, self.vocab_size))
    q_SxV, ratio_SxV = jnp.exp(log_q_SxV), log_q_SxV - log_p_SxV
    kl_S = total(jnp.sum(q_SxV * ratio_SxV, -1), "tensor")
    # Σ_v dq(v) = 0, so of d(log q) nothing is left.
    dlogits_SxV = q_SxV * (ratio_SxV - kl_S[:, None]) * weight_S[:, None]
    gradients = backward(dlogits_SxV, h_SxD, w_VxD, dw_VxD)
    return kl_S * weight_S, (kl_S,), *gradients
