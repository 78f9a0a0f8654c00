"""From hidden states to log-probs without the [B, T, V] logits.

`token_nll` streams the vocabulary in blocks, with a running maximum and sum,
and its tiles hold the tokens of a mask alone; over `tensor` it takes a max and
two sums per tile. `weighted_nll` is differentiable and goes through
`vocab_loss.tiled_loss`.

B batch, T time, D hidden, V vocabulary, S tokens of a tile.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import sharding, vocab_loss
from miniplm_jax.models.architecture import ROW_MULTIPLE
from miniplm_jax.models.sharding import AXES, BY_TOKEN, TABLE, total
from miniplm_jax.models.vocab_loss import NO_LOGIT, TILE


@dataclasses.dataclass(frozen=True)
class Tiling:
  """Which logits of a device exist at a time."""

  tokens: int  # of a tile
  rows: int = 0  # of the head, at most; 0 is all of them
  # Their maximum and the sum of their exponentials are taken in one pass,
  # which takes two exponentials a logit and not one.
  is_read_once: bool = False


# By platform, where logits are only read. On CPU a tile that stays in the
# cache: 2,048 tokens of width 512 take 1.9 s where whole vocabularies take
# 3.2 s. On GPUs logits go through the main memory: written by the product,
# read for the maximum, for the sum and for gradients. 4,096 tokens are 2.3 GiB
# of them, so each time is 0.8 ms of an H100; both entries are chosen by what
# XLA compiles for one, and not measured yet.
SCORING = {
  "cpu": Tiling(512, 2048),
  "gpu": Tiling(4096, is_read_once=True),
  "tpu": Tiling(TILE),
}

# The same where gradients are formed. The gradient of the head is read and
# written once a tile: predicted for the 500M on v5e:4x4, 233 ms a step with
# 2,048 tokens, 222 with 4,096.
TRAINING = {
  "cpu": Tiling(256, 2048),
  "gpu": Tiling(4096, is_read_once=True),
  "tpu": Tiling(4096),
}


def token_nll(
  h_BxTxD,
  w_VxD,
  y_BxT,
  vocab_size: int | None = None,
  mask_BxT=None,
  tiling: Tiling | None = None,
):
  """−log p(y | h) of each token, float32 [B, T], in nats.

  The head is cast to the dtype of `h_BxTxD`. Rows of it from `vocab_size` on
  are padding and take no probability; None if there are none. Tokens outside
  of the mask, None for all, are 0 and cost nothing: tiles are filled with
  the others alone. `tiling`: None is the platform's of `SCORING`.
  """
  arrays = h_BxTxD, w_VxD, y_BxT
  return _by_tiles(*arrays, vocab_size, mask_BxT, tiling, False)[0]


def nll_and_top(h_BxTxD, w_VxD, y_BxT, vocab_size: int, mask_BxT):
  """`token_nll`, and whether no token is likelier than y, bool [B, T]."""
  arrays = h_BxTxD, w_VxD, y_BxT
  return _by_tiles(*arrays, vocab_size, mask_BxT, None, True)


def _by_tiles(h_BxTxD, w_VxD, y_BxT, vocab_size, mask_BxT, tiling, with_top):
  """What `_streamed` gives of the mask's tokens, 0 and False elsewhere."""
  if mask_BxT is None:
    mask_BxT = jnp.ones(y_BxT.shape, bool)
  tiling = tiling or SCORING[sharding.platform()]
  dtypes = (jnp.float32, bool)[: 1 + with_top]

  def local(h_BxTxD, w_VxD, y_BxT, mask_BxT):
    w_VxD = vocab_loss.gather(w_VxD, h_BxTxD.dtype)
    h_NxD, y_N = h_BxTxD.reshape(-1, h_BxTxD.shape[-1]), y_BxT.reshape(-1)
    in_mask_N = mask_BxT.reshape(-1)
    size = min(tiling.tokens, len(y_N))
    # The mask's tokens first. What fills the last tile lies outside: it reads
    # the last token and is dropped when it is written.
    order_N = jnp.argsort(~in_mask_N, stable=True)
    order_N = jnp.where(in_mask_N[order_N], order_N, len(y_N))
    pad = -len(y_N) % size
    order_N = jnp.pad(order_N, (0, pad), constant_values=len(y_N))

    full_tiles = -(-jnp.sum(in_mask_N) // size)
    if jax.lax.axis_size("tensor") > 1:
      # Tiles have collectives: all devices take part in as many.
      full_tiles = jax.lax.pmax(full_tiles, AXES)

    def one(results, xs):
      i, place_S = xs

      def computed():
        h_SxD = h_NxD.at[place_S].get(mode="clip")
        y_S = y_N.at[place_S].get(mode="clip")
        of_tile = _streamed(h_SxD, w_VxD, y_S, vocab_size, tiling, with_top)
        return tuple(
          all_N.at[place_S].set(tile_S, mode="drop")
          for all_N, tile_S in zip(results, of_tile)
        )

      return jax.lax.cond(i < full_tiles, computed, lambda: results), None

    places = order_N.reshape(-1, size)
    results = tuple(jnp.zeros(y_N.shape, dtype) for dtype in dtypes)
    results, _ = jax.lax.scan(one, results, (jnp.arange(len(places)), places))
    return tuple(x_N.reshape(y_BxT.shape) for x_N in results)

  mapped = jax.shard_map(
    local,
    in_specs=(BY_TOKEN, TABLE, BY_TOKEN, BY_TOKEN),
    out_specs=BY_TOKEN,
    check_vma=False,
  )
  return mapped(h_BxTxD, w_VxD, y_BxT, mask_BxT)


def logits(h_BxD, w_VxD, vocab_size: int):
  """Logits of one position a row, float32 [B, V]; −inf from vocab_size on."""
  # Gathered over `fsdp`, or the product would be a ring of permutes.
  w_VxD = jax.lax.with_sharding_constraint(
    w_VxD.astype(h_BxD.dtype), P("tensor", None)
  )
  logits_BxV = jnp.einsum(
    "bd,vd->bv", h_BxD, w_VxD, preferred_element_type=jnp.float32
  )
  real_V = jnp.arange(w_VxD.shape[0]) < vocab_size
  return jnp.where(real_V[None], logits_BxV, -jnp.inf)


def weighted_nll(
  h_BxTxD,
  w_VxD,
  y_BxT,
  weight_BxT,
  vocab_size: int | None = None,
  tiling: Tiling | None = None,
  z_loss: float = 0.0,
):
  """Σ weight · (−log p(y | h) + z_loss · log² Z), a float32 scalar.

  A weighted sum covers every reduction: the weights say whether it is a mean
  over tokens or MiniPLM's mean of means. Differentiable in `h_BxTxD` and
  `w_VxD`, not in the weights. `tiling`: None is the platform's of `TRAINING`.
  `z_loss` keeps log Z, the normalizer, near 0 (PaLM, arXiv 2204.02311,
  section 5).
  """
  tiling = tiling or TRAINING[sharding.platform()]
  tile = NextTokenTile(vocab_size, tiling, z_loss)
  per_token = y_BxT, weight_BxT
  return vocab_loss.tiled_loss(tile, h_BxTxD, w_VxD, (), per_token)[0]


def _streamed(h_SxD, w_VxD, y_S, vocab_size, tiling, with_top):
  """NLL of one tile, with the logits of some rows of the head at a time.

  With `with_top` also whether no logit is above the target's. That one is
  then taken out of the same product: another may round it differently.
  """
  count = w_VxD.shape[0]
  first = vocab_loss.first_row(w_VxD)
  has_padding = vocab_size not in (None, count * jax.lax.axis_size("tensor"))
  # The last block is longer, so that it holds all of the padding.
  rows = tiling.rows or count
  blocks = max((count - ROW_MULTIPLE) // rows, 0)

  def add(carry, start, rows, is_padded):
    softmax, own_S = carry
    w_RxD = jax.lax.dynamic_slice_in_dim(w_VxD, start, rows)
    real = vocab_size - first - start if is_padded else None
    softmax, logits_RxS = _add(softmax, w_RxD, h_SxD, real, tiling)
    if with_top:
      hit_RxS = jnp.arange(rows)[:, None] == (y_S - first - start)[None]
      own_S += jnp.sum(jnp.where(hit_RxS, logits_RxS, 0), 0)
    return softmax, own_S

  carry = _nothing(y_S), jnp.zeros(y_S.shape)
  if blocks:
    carry, _ = jax.lax.scan(
      lambda carry, i: (add(carry, i * rows, rows, False), None),
      carry,
      jnp.arange(blocks),
    )
  carry = add(carry, blocks * rows, count - blocks * rows, has_padding)
  softmax, own_S = carry
  top_S, log_S = vocab_loss.over_devices(*softmax)
  lse_S = top_S + log_S
  if not with_top:
    return (lse_S - _own(h_SxD, w_VxD, y_S, first),)
  own_S = total(own_S, "tensor")
  return lse_S - own_S, own_S >= top_S


def _nothing(y_S):
  """Maximum and sum of the exponentials of no logits."""
  return jnp.full(y_S.shape, NO_LOGIT), jnp.zeros(y_S.shape)


def _joined(a, b):
  """Maximum and sum of the exponentials of two sets of logits."""
  (top_a, total_a), (top_b, total_b) = a, b
  top = jnp.maximum(top_a, top_b)
  return top, total_a * jnp.exp(top_a - top) + total_b * jnp.exp(top_b - top)


def _add(carry, w_RxD, h_SxD, real, tiling):
  """Maximum and sum with the logits of R more rows, and these, [R, S].

  From row `real` on it is padding; None says that there is none.
  """
  top_S, total_S = carry
  logits_RxS = jnp.einsum(
    "rd,sd->rs", w_RxD, h_SxD, preferred_element_type=jnp.float32
  )
  if real is not None:
    real_R = jnp.arange(len(w_RxD)) < real
    logits_RxS = jnp.where(real_R[:, None], logits_RxS, NO_LOGIT)
  if tiling.is_read_once:
    of_block = jax.lax.reduce(
      (logits_RxS, jnp.ones_like(logits_RxS)),
      (jnp.float32(NO_LOGIT), jnp.float32(0)),
      _joined,
      (0,),
    )
    return _joined(carry, of_block), logits_RxS
  new_S = jnp.maximum(top_S, jnp.max(logits_RxS, 0))
  total_S *= jnp.exp(top_S - new_S)
  total_S += jnp.sum(jnp.exp(logits_RxS - new_S[None]), 0)
  return (new_S, total_S), logits_RxS


@dataclasses.dataclass(frozen=True)
class NextTokenTile:
  """The next-token loss, block by block of rows of the head.

  The logits are kept between the two passes over the blocks.
  """

  vocab_size: int | None
  tiling: Tiling
  z_loss: float

  @property
  def tokens(self) -> int:
    """Tokens of a tile, at most."""
    return self.tiling.tokens

  def __call__(self, h_SxD, w_VxD, dw_VxD, unused_frozen, per_token):
    """There are no further values."""
    y_S, weight_S = per_token
    count, width = w_VxD.shape
    most_rows = min(self.tiling.rows or count, count)
    rows = max(r for r in range(1, most_rows + 1) if count % r == 0)
    first = vocab_loss.first_row(w_VxD)
    has_padding = self.vocab_size not in (
      None,
      count * jax.lax.axis_size("tensor"),
    )
    w_NxRxD = w_VxD.reshape(-1, rows, width)
    start_N = jnp.arange(len(w_NxRxD)) * rows

    def read(carry, xs):
      start, w_RxD = xs
      real = self.vocab_size - first - start if has_padding else None
      return _add(carry, w_RxD, h_SxD, real, self.tiling)

    carry = _nothing(y_S)
    carry, logits_NxRxS = jax.lax.scan(read, carry, (start_N, w_NxRxD))
    top_S, log_S = vocab_loss.over_devices(*carry)
    lse_S = top_S + log_S
    loss_S = lse_S - _own(h_SxD, w_VxD, y_S, first)
    slope_S = jnp.ones_like(lse_S)  # what multiplies p in the gradient
    if self.z_loss:
      loss_S += self.z_loss * lse_S**2
      slope_S += 2 * self.z_loss * lse_S

    def write(carry, xs):
      dh_SxD, dw_VxD = carry
      start, w_RxD, logits_RxS = xs
      hit_RxS = jnp.arange(rows)[:, None] == (y_S - first - start)[None]
      p_RxS = jnp.exp(logits_RxS - lse_S[None])
      dlogits_RxS = (p_RxS * slope_S[None] - hit_RxS) * weight_S[None]
      dlogits_RxS = dlogits_RxS.astype(h_SxD.dtype)
      dh_SxD += jnp.einsum(
        "rs,rd->sd", dlogits_RxS, w_RxD, preferred_element_type=jnp.float32
      )
      dw_RxD = jax.lax.dynamic_slice_in_dim(dw_VxD, start, rows)
      dw_RxD += jnp.matmul(
        dlogits_RxS, h_SxD, preferred_element_type=jnp.float32
      )
      dw_VxD = jax.lax.dynamic_update_slice_in_dim(dw_VxD, dw_RxD, start, 0)
      return (dh_SxD, dw_VxD), None

    carry = jnp.zeros(h_SxD.shape, jnp.float32), dw_VxD
    xs = start_N, w_NxRxD, logits_NxRxS
    (dh_SxD, dw_VxD), _ = jax.lax.scan(write, carry, xs)
    return loss_S * weight_S, (), dh_SxD, dw_VxD


def _own(h_SxD, w_VxD, y_S, first):
  """The targets' logits."""
  # Rows of other devices are 0; a negative index would wrap around.
  place_S = jnp.where(y_S >= first, y_S - first, len(w_VxD))
  w_SxD = w_VxD.at[place_S].get(mode="fill", fill_value=0)
  own_S = jnp.einsum(
    "sd,sd->s", h_SxD, w_SxD, preferred_element_type=jnp.float32
  )
  return total(own_S, "tensor")
