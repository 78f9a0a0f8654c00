"""Continuing prompts by student and teacher together.

B batch, T time of the prompts, N new tokens, D hidden, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import head
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.models.ready import ready


class Sample(NamedTuple):
  """What was drawn.

  Attributes:
    tokens: int32 [B, N]; what follows an end is filled up with it.
    log_q: the student's log-probability of each, float32 [B, N].
    log_p: the teacher's, float32 [B, N].
    hidden: the teacher's hidden states that predict them, [B, N, D].
  """

  tokens: Any
  log_q: Any
  log_p: Any
  hidden: Any


def common_vocabulary(student: Decoder, teacher: Decoder) -> int:
  """Ids that both models know; probabilities are over these alone."""
  return min(student.arch.vocab_size, teacher.arch.vocab_size)


def common_heads(student: Decoder, teacher: Decoder):
  """The two heads, with the same number of rows."""
  rows = min(student.arch.table_rows, teacher.arch.table_rows)

  def cut(w_VxD):
    if w_VxD.shape[0] == rows:
      return w_VxD
    return jax.lax.with_sharding_constraint(w_VxD[:rows], P("tensor", "fsdp"))

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
) -> Sample:
  """Draws from p̃ = teacher_mix · p + (1 − teacher_mix) · q, token by token.

  Both models keep a cache, so each of them reads a token once. A row's tokens
  depend on its prompt and its key alone, not on the batch or the mesh.

  Args:
    student: q.
    teacher: p, with the same tokenizer.
    prompt_BxT: int32, whole prompts of one length, 2 or more.
    key_Bx2: from `keys_of_rows`.
    size: N.
    teacher_mix: α, the share of p.
    eos_id: ends a row.
    dtype: of the computation and of the caches.
  """
  batch, length = prompt_BxT.shape
  key_B = jax.random.wrap_key_data(key_Bx2)
  vocabulary = common_vocabulary(student, teacher)
  share = jnp.asarray([1 - teacher_mix, teacher_mix], jnp.float32)

  def extend(tokens_BxT, caches):
    made = [
      m.extend(tokens_BxT, c, dtype=dtype) for m, c in zip(models, caches)
    ]
    return [h_BxTxD[:, -1] for h_BxTxD, _ in made], [cache for _, cache in made]

  def step(carry, n):
    token_B, done_B, caches = carry
    hidden, caches = extend(token_B[:, None], caches)
    log_q_BxV, log_p_BxV = (
      jax.nn.log_softmax(head.logits(h_BxD, w_VxD, vocabulary))
      for h_BxD, w_VxD in zip(hidden, heads)
    )
    log_share = jnp.log(share)
    mixed_BxV = jnp.logaddexp(
      log_q_BxV + log_share[0], log_p_BxV + log_share[1]
    )
    key_n = jax.vmap(jax.random.fold_in, (0, None))(key_B, n)
    drawn_B = jax.vmap(jax.random.categorical)(key_n, mixed_BxV)
    token_B = jnp.where(done_B, token_B, drawn_B.astype(jnp.int32))
    log_q_B, log_p_B = (
      jnp.take_along_axis(x, token_B[:, None], 1)[:, 0]
      for x in (log_q_BxV, log_p_BxV)
    )
    done_B |= token_B == eos_id
    return (token_B, done_B, caches), (token_B, log_q_B, log_p_B, hidden[1])

  first_B = jnp.zeros((batch,), jnp.int32)
  models, heads = (student, teacher), common_heads(student, teacher)
  caches = [m.new_cache(first_B, length + size - 1, dtype) for m in models]
  models, heads = ready(models, heads, caches, dtype)
  _, caches = extend(prompt_BxT[:, :-1], caches)
  carry = prompt_BxT[:, -1], first_B > 0, caches
  _, made = jax.lax.scan(step, carry, jnp.arange(size))
  return Sample(*(x.swapaxes(0, 1) for x in made))
