"""Continuing prompts by student and teacher together.

B batch, T time of the prompts, N new tokens, D hidden, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from miniplm_jax.models import generation, head, sharding
from miniplm_jax.models.decoder import Decoder


class Draws(NamedTuple):
  """What was drawn; behind an end only `tokens` mean something."""

  tokens: Any  # int32 [B, N]; what follows an end is filled up with it
  log_q: Any  # the student's log-probability of each, float32 [B, N]
  log_p: Any  # the teacher's, float32 [B, N]
  hidden: Any  # the teacher's hidden states that predict them, [B, N, D]


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
    student: q.
    teacher: p, with the same tokenizer.
    prompt_BxT: int32, whole prompts of one length.
    size: N.
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
