"""MiniLLM: the student minimizes KL(q ‖ p) of what it would write itself.

Gu et al. 2023 (arXiv 2306.08543), as a baseline of pre-training: a row's first
tokens are a prompt, the student q and the teacher p continue it together, and
the gradient of the reverse KL comes from that sample. With r_t =
log p(y_t) / q(y_t) it has two parts:

- single step: ∇ Σ_v q(v) log q(v) / p(v) at each position, exact over the
  vocabulary;
- long term: −w_t · R_{t+1} · ∇ log q(y_t), where R_{t+1} is the mean of r over
  the tokens that follow (the paper's length normalization) and w_t =
  q(y_t) / p̃(y_t) makes up for drawing from p̃ = α p + (1 − α) q.

The exact weight of a sample is the product of all its ratios; the paper takes
those of one step, as here. What is biased by that: the tokens before and after
t come from p̃ and not from q, with α = 0 nothing. w_t is not applied to the
single step, where y_t is summed out: given what stands before it its mean is
1, so it would only add noise. Each sample is used for one step, with the
weights that drew it, so nothing is clipped as PPO does.

The next-token loss of the rows is added, as in the paper. [inferred] MiniPLM's
recipe of this baseline is not public beyond 768 + 256 tokens and the number of
steps: α = 0.2 and the normalization are MiniLLM's; the weight 1 of the
next-token loss, temperature 1, and that rows which do not fill the prompt, or
whose prompt ends with a document, add their next-token loss alone, are ours.

What follows an end adds nothing, so a student that is far from its teacher is
drawn toward ends: train/mean_length tells.

B batch, T time, P prompt, N new tokens, D hidden, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from miniplm_jax.core import fields
from miniplm_jax.models import (
  generation,
  head,
  likelihood,
  sharding,
  vocab_loss,
  vocab_tiles,
)
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.training.objective import NextToken


class Draws(NamedTuple):
  """What was drawn; behind an end only `tokens` mean something."""

  tokens: Any  # int32 [B, N]; what follows an end is filled up with it
  log_q: Any  # the student's log-probability of each, float32 [B, N]
  log_p: Any  # the teacher's, float32 [B, N]
  hidden: Any  # the teacher's hidden states that predict them, [B, N, D]


class MiniLLM(NextToken):
  """lm_weight · next-token loss + reverse KL per token; see the module."""

  def with_rows(self, batch, row_ids):
    """The batch and `row` int32 [B]."""
    return batch | {"row": row_ids.astype(np.int32)}

  def loss_inputs(self, batch, model, frozen, key):
    """Arrays of the next-token loss; slots' and rows' weights; rows' keys.

    A row has N slots for new tokens. They are weighted as tokens are, those
    behind an end as well, so weights do not depend on what is drawn.
    """
    arrays, total = super().loss_inputs(batch, model, frozen, key)
    inputs_BxT = arrays[0]
    prompt = self._prompt(inputs_BxT)
    full_B = batch["length"] >= prompt
    # What follows an end is not learned from (likelihood.loss_mask).
    continued_B = full_B & (inputs_BxT[:, prompt - 1] != self._eos_id)
    slot_BxN = jnp.broadcast_to(
      continued_B[:, None], inputs_BxT[:, prompt:].shape
    )
    weight_BxN = likelihood.token_weights(slot_BxN, self._train.reduction)
    row_weight_B = continued_B / jnp.maximum(jnp.sum(continued_B), 1)
    key_Bx2 = keys_of_rows(key, batch["row"])
    return (*arrays, weight_BxN, row_weight_B, key_Bx2), total

  def _prompt(self, inputs_BxT) -> int:
    return fields.of(self._section.prompt_share, inputs_BxT.shape[1])

  def loss(self, model, inputs, targets, weights, *of_sample, frozen):
    """See base class."""
    weight_BxN, row_weight_B, key_Bx2 = of_sample
    lm_loss, _ = super().loss(model, inputs, targets, weights, frozen=frozen)
    prompt = self._prompt(inputs)
    with likelihood.matmul_precision(self._dtype):
      sample = draw(
        jax.lax.stop_gradient(model),
        frozen,
        inputs[:, :prompt],
        key_Bx2,
        size=inputs.shape[1] - prompt,
        teacher_mix=self._section.teacher_mix,
        eos_id=self._eos_id,
        dtype=self._dtype,
      )
      real_BxN = until_end(sample.tokens, self._eos_id)
      weight_BxN *= real_BxN
      tokens_BxT = jnp.concatenate([inputs[:, :prompt], sample.tokens], 1)
      hidden_BxTxD = model(tokens_BxT, dtype=self._dtype, remat=self._remat)
      kl_loss, kl_BxN = policy_loss(
        model,
        frozen,
        hidden_BxTxD[:, prompt - 1 : -1],
        sample,
        weight_BxN,
        weight_BxN * advantages(sample, real_BxN, self._section.teacher_mix),
      )
    length_B = jnp.sum(real_BxN, -1)
    kl_B = jnp.sum(kl_BxN * real_BxN, -1) / length_B
    return self._section.lm_weight * lm_loss + kl_loss, {
      "train/lm_loss": lm_loss,
      "train/reverse_kl": jnp.sum(row_weight_B * kl_B),
      "train/mean_length": jnp.sum(row_weight_B * length_B),
    }


def until_end(tokens_BxN, eos_id: int):
  """What was drawn, up to and with an end, bool [B, N]."""
  ends_BxN = tokens_BxN == eos_id
  return jnp.cumsum(ends_BxN, -1) - ends_BxN == 0


def advantages(
  sample: Draws, real_BxN, teacher_mix: float, normalized: bool = True
):
  """w_t · R_{t+1} of each token, float32 [B, N].

  Args:
    real_BxN: which of the sample counts.
    teacher_mix: α, the teacher's share in p̃.
    normalized: R is the mean, and not the sum, of what follows.
  """
  ratio_BxN = jnp.where(real_BxN, sample.log_p - sample.log_q, 0)

  def after(x_BxN):
    sums_BxN = jnp.cumsum(x_BxN[:, ::-1], -1)[:, ::-1]
    return jnp.pad(sums_BxN[:, 1:], ((0, 0), (0, 1)))

  return_BxN = after(ratio_BxN)
  if normalized:
    return_BxN /= jnp.maximum(after(real_BxN.astype(jnp.float32)), 1)
  # q / (α p + (1 − α) q), at most 1 / (1 − α).
  weight_BxN = 1 / (teacher_mix * jnp.exp(ratio_BxN) + 1 - teacher_mix)
  return jnp.where(real_BxN, weight_BxN * return_BxN, 0)


def policy_loss(
  student: Decoder,
  teacher: Decoder,
  hidden_BxNxD,
  sample: Draws,
  weight_BxN,
  advantage_BxN,
):
  """A scalar with the value of the single steps and the gradient of both parts.

  Args:
    hidden_BxNxD: the student's hidden states that predict the sample.
    weight_BxN: of each single step, float32.
    advantage_BxN: what multiplies ∇ −log q(y_t), float32.

  Returns:
    Σ weight · KL, a float32 scalar; and KL(q ‖ p) of each position, float32
    [B, N].
  """
  heads = common_heads(student, teacher)
  vocabulary = common_vocabulary(student, teacher)
  single, (kl_BxN,) = vocab_loss.tiled_loss(
    vocab_tiles.ReverseKLTile(vocabulary),
    hidden_BxNxD,
    heads[0],
    ((sample.hidden, heads[1]),),
    (weight_BxN,),
  )
  long = head.weighted_nll(
    hidden_BxNxD, heads[0], sample.tokens, advantage_BxN, vocabulary
  )
  # Its value means nothing.
  return single + long - jax.lax.stop_gradient(long), kl_BxN


def common_vocabulary(student: Decoder, teacher: Decoder) -> int:
  """Ids that both models know; probabilities are over these alone."""
  return min(student.arch.vocab_size, teacher.arch.vocab_size)


def common_heads(student: Decoder, teacher: Decoder):
  """The two heads, with the same number of rows."""
  rows = min(student.arch.table_rows, teacher.arch.table_rows)

  def cut(w_VxD):
    if w_VxD.shape[0] == rows:
      return w_VxD
    return jax.lax.with_sharding_constraint(w_VxD[:rows], sharding.TABLE)

  return cut(student.head_VxD), cut(teacher.head_VxD)


def keys_of_rows(key, row_B):
  """A key for each row, as uint32 [B, 2]: of the key and its number alone."""
  key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_B)
  return jax.random.key_data(key_B)


def draw(
  student: Decoder,
  teacher: Decoder,
  prompt_BxT,
  key_Bx2,
  *,
  size: int,
  teacher_mix: float,
  eos_id: int,
  dtype: Any,
) -> Draws:
  """Draws from p̃ = teacher_mix · p + (1 − teacher_mix) · q, token by token.

  A row's tokens depend on its prompt and its key alone, not on the batch or
  the mesh.

  Args:
    teacher: p, with the same tokenizer as the student, q.
    prompt_BxT: int32, whole prompts of one length.
    dtype: of the computation and of the caches.
  """
  key_B = jax.random.wrap_key_data(key_Bx2)
  vocabulary = common_vocabulary(student, teacher)
  log_share = jnp.log(jnp.asarray([1 - teacher_mix, teacher_mix], jnp.float32))

  def choose(hidden, heads, n):
    log_q_BxV, log_p_BxV = (
      jax.nn.log_softmax(head.logits(h_BxD, w_VxD, vocabulary))
      for h_BxD, w_VxD in zip(hidden, heads)
    )
    mixed_BxV = jnp.logaddexp(
      log_q_BxV + log_share[0], log_p_BxV + log_share[1]
    )
    token_B = generation.draw(key_B, n, mixed_BxV)
    log_q_B, log_p_B = (
      jnp.take_along_axis(x, token_B[:, None], 1)[:, 0]
      for x in (log_q_BxV, log_p_BxV)
    )
    return token_B, (log_q_B, log_p_B, hidden[1])

  first_B = jnp.zeros(len(prompt_BxT), jnp.int32)
  tokens_BxN, kept, _ = generation.decode(
    (student, teacher),
    common_heads(student, teacher),
    prompt_BxT,
    first_B,
    first_B > 0,
    choose,
    size=size,
    eos_ids=(eos_id,),
    dtype=dtype,
  )
  # The loop stops when all have ended.
  ended_BxN = jnp.cumsum(tokens_BxN == eos_id, -1) > 0
  return Draws(jnp.where(ended_BxN, eos_id, tokens_BxN), *kept)
