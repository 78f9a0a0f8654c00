"""Distillation from a few of the teacher's ids that stage logits stored.

loss = (1 − a) · next-token loss − a · Σ_v p̂(v) log q(v). With ids that were
sampled with replacement p̂ is counts / n, so loss and gradient are those of
the teacher's whole distribution on average (Random Sampling KD, Anshumann et
al. 2025, arXiv 2503.16870). With the likeliest ids p̂ leaves out what the
others have, which is biased: a student that minimizes it is too sure; more so
if p̂ is normalized to 1, less if it is not, where the student is drawn to p's
shape with a smaller weight.

B batch, T time, K ids of a token.
"""

import jax.numpy as jnp

from miniplm_jax.models import likelihood, vocab_loss, vocab_tiles
from miniplm_jax.training.objective import NextToken


class SparseKD(NextToken):
  """Next-token loss and stored labels, in one pass through the head."""

  def with_rows(self, batch, row_ids):
    """The batch, `ids` int32 [B, T, K], `log_probs` float16 if there are."""
    stored = dict(self._source.read(row_ids, batch["tokens"].shape[1] - 1))
    del stored["nll"]
    return batch | stored

  def loss_inputs(self, batch, model, frozen, key):
    """Arrays of the next-token loss, with ids and p̂."""
    arrays, total = super().loss_inputs(batch, model, frozen, key)
    id_BxTxK = batch["ids"]
    if "log_probs" not in batch:
      p_BxTxK = jnp.full(id_BxTxK.shape, 1 / id_BxTxK.shape[-1], jnp.float32)
    else:
      p_BxTxK = jnp.exp(batch["log_probs"].astype(jnp.float32))
      if self._section.normalise:
        p_BxTxK /= jnp.sum(p_BxTxK, -1, keepdims=True)
    return (*arrays, id_BxTxK, p_BxTxK), total

  def loss(self, model, inputs, targets, weights, id_BxTxK, p_BxTxK, *, frozen):
    """See base class."""
    del frozen
    share, weight_BxTx1 = self._section.weight, weights[..., None]
    with likelihood.matmul_precision(self._dtype):
      hidden = model(inputs, dtype=self._dtype, remat=self._remat)
      # The label is one more id.
      ids = jnp.concatenate([targets[..., None], id_BxTxK], -1)
      shares = jnp.concatenate(
        [jnp.full_like(weight_BxTx1, 1 - share), share * p_BxTxK], -1
      )
      tile = vocab_tiles.SparseTile(model.arch.vocab_size)
      loss, (nll_BxTxK,) = vocab_loss.tiled_loss(
        tile, hidden, model.head_VxD, (), (ids, weight_BxTx1 * shares)
      )
    return loss, {
      "train/lm_loss": jnp.sum(weights * nll_BxTxK[..., 0]),
      "train/kd_loss": jnp.sum(weight_BxTx1 * p_BxTxK * nll_BxTxK[..., 1:]),
    }
