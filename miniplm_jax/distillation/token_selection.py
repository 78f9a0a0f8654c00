"""Training on the tokens of a batch that have most left to learn.

Rho-1 (Lin et al. 2024, arXiv 2404.07965): a token's excess loss is the
student's −log p less that of a frozen model; the tokens of a batch with the
largest are trained on. Rho-1 trains its frozen model on chosen, good text.
Here `reference` is the small model of a random part of the corpus, so its
excess tells what can be learned at all from what is noise, not what is good;
give such a model as reference.path, or say `teacher`.

B batch, T time.
"""

import jax.numpy as jnp

from miniplm_jax.models import head, likelihood
from miniplm_jax.training.objective import NextToken


class TokenSelection(NextToken):
  """The next-token loss of the chosen tokens; weights are over these."""

  def with_rows(self, batch, row_ids):
    """The batch and `frozen_nll` float32 [B, T]."""
    stored = self._source.read(row_ids, batch["tokens"].shape[1] - 1)
    return batch | {"frozen_nll": stored["nll"]}

  def first_pass(self, model, batch):
    """The model's own −log p of each token, `nll` float32 [B, T]."""
    inputs_BxT, targets_BxT, mask_BxT = self.tokens(batch)
    with likelihood.matmul_precision(self._dtype):
      nll_BxT = head.token_nll(
        model(inputs_BxT, dtype=self._dtype),
        model.head_VxD,
        targets_BxT,
        model.arch.vocab_size,
        mask_BxT,
      )
    return {"nll": nll_BxT}

  def loss_inputs(self, batch, *unused):
    """Arrays of the next-token loss, weighted anew; the loss of all tokens."""
    inputs_BxT, targets_BxT, mask_BxT = self.tokens(batch)
    nll_BxT, reduction = batch["nll"], self._train.reduction
    excess_BxT = nll_BxT - batch["frozen_nll"]
    chosen_BxT = top_share(excess_BxT, mask_BxT, self._section.ratio)
    weight_BxT = likelihood.token_weights(chosen_BxT, reduction)
    of_all_BxT = nll_BxT * likelihood.token_weights(mask_BxT, reduction)
    arrays = inputs_BxT, targets_BxT, weight_BxT, of_all_BxT
    return arrays, jnp.sum(chosen_BxT)

  def loss(self, model, inputs, targets, weights, of_all, *, frozen):
    """See base class."""
    loss, _ = super().loss(model, inputs, targets, weights, frozen=frozen)
    return loss, {"train/lm_loss": jnp.sum(of_all)}


def top_share(value_BxT, mask_BxT, ratio: float):
  """The tokens with the largest values, bool [B, T].

  Of n tokens of the whole batch exactly floor(ratio · n + 1/2) are taken; of
  equal values the earlier ones. A NaN is taken last. `mask_BxT` says which
  tokens count.
  """
  low_N = jnp.where(mask_BxT, -value_BxT, jnp.inf).reshape(-1)
  # What does not count comes behind a NaN too.
  order_N = jnp.lexsort((low_N, ~mask_BxT.reshape(-1)))
  count = jnp.floor(ratio * jnp.sum(mask_BxT) + 0.5).astype(jnp.int32)
  is_taken_N = jnp.arange(low_N.size) < count
  taken_N = jnp.zeros(low_N.shape, bool).at[order_N].set(is_taken_N)
  return taken_N.reshape(mask_BxT.shape)
