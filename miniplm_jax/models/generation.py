"""Batched greedy decoding and sampling, one compiled program for a batch.

B batch, T time of the prompts, N new tokens, D hidden, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from miniplm_jax.models import head, placement
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.models.likelihood import matmul_precision
from miniplm_jax.models.ready import ready


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn; the names are those of transformers.

  Attributes:
    max_new_tokens: N.
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: only the k likeliest tokens; 0 is all.
    top_p: only the likeliest tokens that together have this probability.
  """

  max_new_tokens: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0


class Generated(NamedTuple):
  """What came out.

  Attributes:
    tokens: int32 [B, N]; what follows `length` is no part of a row.
    length: tokens up to and with the end, int32 [B].
    finite: whether a row's largest logit was always finite, bool [B].
  """

  tokens: Any
  length: Any
  finite: Any


class _State(NamedTuple):
  n: Any  # tokens that there are
  token_B: Any
  tokens_BxN: Any
  done_B: Any
  finite_B: Any
  cache: Any


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
    model: the decoder.
    tokens_BxT: prompts, int32, padded on the left.
    first_B: the column where each prompt begins.
    row_B: each row's number, int32 [B]; below 0 the row is left empty.
    sampling: how to draw.
    seed: of the draws.
    eos_ids: ids that end a row; none means that nothing does.
    vocabulary: ids from here on are never drawn: rows of the head that
      belong to no token.
    dtype: of the computation and of the cache.
  """
  batch, prompt = tokens_BxT.shape
  size = sampling.max_new_tokens
  eos = jnp.asarray(eos_ids, jnp.int32)
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  key_B = fold(jax.random.key(seed), row_B)

  def draw(hidden_BxD, n):
    logits_BxV = head.logits(hidden_BxD, head_VxD, vocabulary)
    finite_B = jnp.isfinite(jnp.max(logits_BxV, -1))
    if sampling.temperature == 0:
      return jnp.argmax(logits_BxV, -1).astype(jnp.int32), finite_B
    key_n = jax.vmap(jax.random.fold_in, (0, None))(key_B, n)
    drawn_B = jax.vmap(jax.random.categorical)(
      key_n, filtered(logits_BxV, sampling)
    )
    return drawn_B.astype(jnp.int32), finite_B

  def extend(tokens_BxT, cache):
    hidden_BxTxD, cache = model.extend(tokens_BxT, cache, dtype=dtype)
    return hidden_BxTxD[:, -1], cache

  def step(state: _State) -> _State:
    hidden_BxD, cache = extend(state.token_B[:, None], state.cache)
    token_B, finite_B = draw(hidden_BxD, state.n)
    return put(state._replace(cache=cache), token_B, finite_B)

  def put(state: _State, token_B, finite_B) -> _State:
    token_B = jnp.where(state.done_B, state.token_B, token_B)
    return state._replace(
      n=state.n + 1,
      token_B=token_B,
      tokens_BxN=state.tokens_BxN.at[:, state.n].set(token_B),
      done_B=state.done_B | jnp.isin(token_B, eos),
      finite_B=state.finite_B & (finite_B | state.done_B),
    )

  with matmul_precision(dtype):
    cache = model.new_cache(first_B, prompt + size, dtype)
    (model,), (head_VxD,) = ready([model], [model.head_VxD], [cache], dtype)
    hidden_BxD, cache = extend(tokens_BxT, cache)
    nothing = jnp.zeros((batch,), jnp.int32)
    state = _State(
      n=0,
      token_B=nothing,
      tokens_BxN=jnp.zeros((batch, size), jnp.int32),
      done_B=row_B < 0,
      finite_B=nothing == 0,
      cache=cache,
    )
    state = jax.lax.while_loop(
      lambda s: (s.n < size) & ~jnp.all(s.done_B),
      step,
      put(state, *draw(hidden_BxD, 0)),
    )
  column_N = jnp.arange(size)
  ended_BxN = jnp.isin(state.tokens_BxN, eos) & (column_N < state.n)[None]
  length_B = jnp.where(
    jnp.any(ended_BxN, -1), jnp.argmax(ended_BxN, -1) + 1, state.n
  )
  return Generated(state.tokens_BxN, length_B, state.finite_B)


def compiled(mesh: Mesh, **settings):
  """`generate` as a program of `placement`, for batches as of `pad_left`.

  Settings are all keyword arguments of `generate`.
  """

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

  Args:
    prompts: ids, at least one.
    batch: rows, at least as many.
    length: T; 0 is that of the longest.
    numbers: of the prompts; None counts them from 0.

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
