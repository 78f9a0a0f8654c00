"""Batched greedy decoding and sampling, one compiled program for a batch.

B batch, T time of the prompts, N new tokens, D hidden, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from miniplm_jax.models import head, placement
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.models.likelihood import matmul_precision
from miniplm_jax.models.ready import ready

# Columns of a prompt that are read at a time: attention forms the weights of so
# many queries, where 27,000 at once took all memory of a machine.
_PIECE = 1024


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn; the names are those of transformers."""

  max_new_tokens: int  # N
  temperature: float = 1.0  # divides the logits; 0 takes the likeliest token
  top_k: int = 0  # only the k likeliest tokens; 0 is all
  top_p: float = 1.0  # only the likeliest that together have this probability


class Generated(NamedTuple):
  """What a model wrote."""

  tokens: Any  # int32 [B, N]; what follows `length` is no part of a row
  length: Any  # tokens up to and with the end, int32 [B]
  finite: Any  # whether a row's largest logit was always finite, bool [B]


class Decoded(NamedTuple):
  """The tokens of rows, and what was kept of each."""

  tokens: Any  # int32 [B, N]; behind an end it is repeated, or they are 0
  kept: Any  # a pytree of [B, N, …]; behind an end it means nothing
  n: Any  # tokens that the longest row has, int32 scalar


class _State(NamedTuple):
  n: Any  # tokens so far
  token_B: Any
  done_B: Any
  tokens_BxN: Any
  kept: Any
  caches: Any


def decode(
  models: Sequence[Decoder],
  heads: Sequence[Any],
  tokens_BxT,
  first_B,
  done_B,
  choose: Callable[[Sequence[Any], Sequence[Any], Any], tuple[Any, Any]],
  *,
  size: int,
  eos_ids: Sequence[int],
  dtype: Any,
) -> Decoded:
  """Continues prompts, token by token, until all have ended or have N more.

  Each model keeps a cache, so it reads a token once.

  Args:
    heads: their output tables [V, D].
    tokens_BxT: prompts, padded on the left.
    first_B: the column where each prompt begins.
    done_B: rows that are left empty.
    choose: (each model's hidden state [B, D], heads, n) → the n-th new token
      of each row, int32 [B], and what is kept of it, a pytree of [B, …]. The
      heads are ready for `head.logits`.
  """
  batch, prompt = tokens_BxT.shape
  eos = jnp.asarray(eos_ids, jnp.int32)

  def extend(tokens_BxT, caches):
    both = [
      m.extend(tokens_BxT, c, dtype=dtype) for m, c in zip(models, caches)
    ]
    return [h_BxTxD[:, -1] for h_BxTxD, _ in both], [cache for _, cache in both]

  def read(caches):
    first = (prompt - 1) % _PIECE + 1
    carry = extend(tokens_BxT[:, :first], caches)
    if first == prompt:
      return carry
    pieces = tokens_BxT[:, first:].reshape(batch, -1, _PIECE).swapaxes(0, 1)
    step = lambda carry, piece: (extend(piece, carry[1]), None)  # noqa: E731
    return jax.lax.scan(step, carry, pieces)[0]

  def append(state: _State, token_B, kept) -> _State:
    token_B = jnp.where(state.done_B, state.token_B, token_B)
    tokens_BxN, kept = jax.tree.map(
      lambda x_BxNx, x_Bx: x_BxNx.at[:, state.n].set(x_Bx),
      (state.tokens_BxN, state.kept),
      (token_B, kept),
    )
    done_B = state.done_B | jnp.isin(token_B, eos)
    return _State(state.n + 1, token_B, done_B, tokens_BxN, kept, state.caches)

  def step(state: _State) -> _State:
    hidden, caches = extend(state.token_B[:, None], state.caches)
    return append(
      state._replace(caches=caches), *choose(hidden, heads, state.n)
    )

  with matmul_precision(dtype):
    caches = [m.new_cache(first_B, prompt + size, dtype) for m in models]
    models, heads = ready(models, heads, caches, dtype)
    hidden, caches = read(caches)
    token_B, kept = choose(hidden, heads, 0)
    tokens_BxN, kept_BxN = jax.tree.map(
      lambda x: jnp.zeros((batch, size, *x.shape[1:]), x.dtype), (token_B, kept)
    )
    none_B = jnp.zeros_like(token_B)
    state = _State(0, none_B, done_B, tokens_BxN, kept_BxN, caches)
    state = jax.lax.while_loop(
      lambda s: (s.n < size) & ~jnp.all(s.done_B),
      step,
      append(state, token_B, kept),
    )
  return Decoded(state.tokens_BxN, state.kept, state.n)


def filtered(logits_BxV, sampling: Sampling):
  """Logits at temperature 1 of what may be drawn; −inf elsewhere.

  In the order of transformers: temperature, top-k, top-p.
  """
  # From the largest, or a small temperature would overflow; and one below
  # float32's range would be 0.
  top_Bx1 = jnp.max(logits_BxV, -1, keepdims=True)
  logits_BxV = (logits_BxV - top_Bx1) / max(sampling.temperature, 1e-30)
  if 0 < sampling.top_k < logits_BxV.shape[-1]:
    least_B = jax.lax.top_k(logits_BxV, sampling.top_k)[0][:, -1]
    logits_BxV = _at_least(logits_BxV, least_B)
  if sampling.top_p < 1:
    sorted_BxV = jnp.sort(logits_BxV, -1, descending=True)
    p_BxV = jax.nn.softmax(sorted_BxV, -1)
    before_BxV = jnp.cumsum(p_BxV, -1) - p_BxV
    # The likeliest token stays whatever top_p is.
    kept_BxV = (before_BxV < sampling.top_p).at[:, 0].set(True)
    least_B = jnp.min(jnp.where(kept_BxV, sorted_BxV, jnp.inf), -1)
    logits_BxV = _at_least(logits_BxV, least_B)
  return logits_BxV


def _at_least(logits_BxV, least_B):
  return jnp.where(logits_BxV < least_B[:, None], -jnp.inf, logits_BxV)


def generate(
  model: Decoder,
  tokens_BxT,
  first_B,
  row_B,
  *,
  sampling: Sampling,
  seed: int,
  eos_ids: tuple[int, ...],
  vocabulary: int,
  dtype: Any,
) -> Generated:
  """Continues prompts until all have ended or have N new tokens.

  A row's tokens depend on its prompt, its number and the seed alone, not on
  the batch that it is in.

  Args:
    tokens_BxT: prompts, padded on the left.
    first_B: the column where each prompt begins.
    row_B: each row's number; below 0 the row is left empty.
    eos_ids: ids that end a row; none means that nothing does.
    vocabulary: ids from here on are never drawn: rows of the head that
      belong to no token.
  """
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  key_B = fold(jax.random.key(seed), row_B)

  def choose(hidden, heads, n):
    ((hidden_BxD,), (head_VxD,)) = hidden, heads
    logits_BxV = head.logits(hidden_BxD, head_VxD, vocabulary)
    finite_B = jnp.isfinite(jnp.max(logits_BxV, -1))
    if sampling.temperature == 0:
      return jnp.argmax(logits_BxV, -1).astype(jnp.int32), finite_B
    return draw(key_B, n, filtered(logits_BxV, sampling)), finite_B

  size = sampling.max_new_tokens
  tokens_BxN, finite_BxN, n = decode(
    [model],
    [model.head_VxD],
    tokens_BxT,
    first_B,
    row_B < 0,
    choose,
    size=size,
    eos_ids=eos_ids,
    dtype=dtype,
  )
  column_N = jnp.arange(size)
  ended_BxN = jnp.isin(tokens_BxN, jnp.asarray(eos_ids, jnp.int32))
  ended_BxN &= (column_N < n)[None]
  length_B = jnp.where(jnp.any(ended_BxN, -1), jnp.argmax(ended_BxN, -1) + 1, n)
  is_behind_BxN = column_N[None] >= length_B[:, None]
  return Generated(
    tokens_BxN, length_B, jnp.all(finite_BxN | is_behind_BxN, -1)
  )


def draw(key_B, n, logits_BxV):
  """The n-th token of each row, int32 [B], by the row's key alone."""
  key_n = jax.vmap(jax.random.fold_in, (0, None))(key_B, n)
  token_B = jax.vmap(jax.random.categorical)(key_n, logits_BxV)
  return token_B.astype(jnp.int32)


def compiled(mesh: Mesh, **settings):
  """`generate` with these keyword arguments, for batches as of `pad_left`."""

  def function(model, batch):
    arrays = batch["tokens"], batch["first"], batch[placement.ROW]
    return generate(model, *arrays, **settings)

  return placement.program(function, mesh)


def pad_left(
  prompts: Sequence[Sequence[int]],
  batch: int,
  length: int = 0,
  numbers: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
  """Prompts as one batch, with copies of the last to fill it.

  A `length` of 0 is that of the longest; without `numbers` they are counted
  from 0.

  Returns:
    `tokens` int32 [batch, T]; `first`, the column of each one's first token,
    int32 [batch]; and `row`, its number, −1 for the copies, int32 [batch].
  """
  length = length or max(map(len, prompts))
  tokens = np.zeros((batch, length), np.int32)
  first = np.zeros(batch, np.int32)
  for i in range(batch):
    ids = prompts[min(i, len(prompts) - 1)]
    first[i] = length - len(ids)
    tokens[i, first[i] :] = ids
  row = np.full(batch, -1, np.int32)
  row[: len(prompts)] = range(len(prompts)) if numbers is None else numbers
  return {"tokens": tokens, "first": first, placement.ROW: row}
