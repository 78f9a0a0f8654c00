"""The decoder, in Flax NNX: modules hold the parameters, JAX does the rest.

An NNX module is a pytree, so `jax.jit`, `jax.grad` and `jax.lax.scan` take
it as it is. Parameters are stacked over layers, in memory and on disk.

B batch, T time, S time of the keys, D hidden, N heads, K key heads, G = N / K,
H head size, F FFN, V vocabulary, L layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from miniplm_jax.models import sharding
from miniplm_jax.models.architecture import Architecture

# What the backward pass keeps of a layer.
REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def _rms_norm(x_BxTxD, scale_D, eps):
  # float32 whatever the compute dtype, like the reference implementation
  y_BxTxD = x_BxTxD.astype(jnp.float32)
  mean_BxT1 = jnp.mean(y_BxTxD * y_BxTxD, -1, keepdims=True)
  y_BxTxD = (y_BxTxD * jax.lax.rsqrt(mean_BxT1 + eps)).astype(x_BxTxD.dtype)
  return y_BxTxD * scale_D.reshape((1,) * (y_BxTxD.ndim - 1) + (-1,))


def _rope_table(arch: Architecture, length: int):
  """Cosines and sines, float32 [T, H/2]."""
  half = jnp.arange(0, arch.head_size, 2, dtype=jnp.float32) / arch.head_size
  frequency = 1.0 / arch.rope_theta**half
  if arch.rope_type == "linear":
    frequency /= arch.rope_factor
  elif arch.rope_type == "llama3":
    # 1 where the original length holds many wavelengths, 0 where few
    low, high = arch.rope_low_freq_factor, arch.rope_high_freq_factor
    turns = arch.rope_original_length * frequency / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    frequency *= kept + (1 - kept) / arch.rope_factor
  position = jnp.arange(length, dtype=jnp.float32)
  angle = position[:, None] * frequency[None, :]
  return jnp.cos(angle), jnp.sin(angle)


def _rotate(x_BxTxNxH, table):
  """Rotary embedding, the two halves of a head as real and imaginary."""
  cos, sin = (t[None, :, None, :] for t in table)
  a, b = jnp.split(x_BxTxNxH.astype(jnp.float32), 2, -1)
  rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
  return rotated.astype(x_BxTxNxH.dtype)


def _project(x_BxTxD, w):
  """X @ w with the tokens as one dimension.

  XLA's CPU backend takes twice as long for the gradient of the 3-D product.
  """
  y = x_BxTxD.reshape(-1, x_BxTxD.shape[-1]) @ w[...]
  return y.reshape(*x_BxTxD.shape[:2], -1)


def _attention(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH):
  """Causal attention, softmax in float32; N / K queries share a key.

  Documents of a row see each other and positions run on: as released.
  Normalising after the product with the values saves a pass over the
  [T, T] weights: 1.6× less time than jax.nn.dot_product_attention on CPU,
  forward and backward, at 32 × 256 tokens and 6 heads of 32.
  """
  batch, length, heads, size = q_BxTxNxH.shape
  keys = k_BxTxKxH.shape[2]
  q_BxTxKxGxH = q_BxTxNxH.reshape(batch, length, keys, heads // keys, size)
  q_BxKxGxTxH = q_BxTxKxGxH.transpose(0, 2, 3, 1, 4) * size**-0.5
  k_BxKxSxH = k_BxTxKxH.swapaxes(1, 2)
  v_BxKxSxH = v_BxTxKxH.swapaxes(1, 2)
  score_BxKxGxTxS = jnp.einsum(
    "bkgth,bksh->bkgts",
    q_BxKxGxTxH,
    k_BxKxSxH,
    preferred_element_type=jnp.float32,
  )
  causal_TxS = jnp.tril(jnp.ones((length, length), bool))
  score_BxKxGxTxS = jnp.where(
    causal_TxS[None, None, None], score_BxKxGxTxS, -1e30
  )
  top = jax.lax.stop_gradient(jnp.max(score_BxKxGxTxS, -1, keepdims=True))
  weight_BxKxGxTxS = jnp.exp(score_BxKxGxTxS - top)
  total = jnp.sum(weight_BxKxGxTxS, -1, keepdims=True)
  out_BxKxGxTxH = jnp.einsum(
    "bkgts,bksh->bkgth",
    weight_BxKxGxTxS.astype(v_BxKxSxH.dtype),
    v_BxKxSxH,
    preferred_element_type=jnp.float32,
  )
  out_BxKxGxTxH = (out_BxKxGxTxH / total).astype(q_BxTxNxH.dtype)
  return out_BxKxGxTxH.transpose(0, 3, 1, 2, 4).reshape(q_BxTxNxH.shape)


class Layers(nnx.Module):
  """All layers' parameters, stacked; a slice of it is one layer."""

  def __init__(self, arch: Architecture, dtype: Any, rngs: nnx.Rngs):
    self.arch = arch
    d, f = arch.hidden_size, arch.intermediate_size
    nh, kh = arch.query_size, arch.key_size
    layers = arch.num_hidden_layers

    def normal(*shape):
      draw = jax.random.normal(rngs.params(), (layers, *shape), jnp.float32)
      return nnx.Param((draw * arch.initializer_range).astype(dtype))

    def norm(n, used=True):
      return nnx.Param(jnp.ones((layers, n), dtype)) if used else None

    def bias(n):
      used = arch.qkv_bias
      return nnx.Param(jnp.zeros((layers, n), dtype)) if used else None

    self.input_norm = norm(d)
    # 2-D: a head size of 64 as its own dimension is padded to 128 on TPU.
    self.q_proj, self.q_bias = normal(d, nh), bias(nh)
    self.k_proj, self.k_bias = normal(d, kh), bias(kh)
    self.v_proj, self.v_bias = normal(d, kh), bias(kh)
    self.q_norm = norm(arch.head_size, arch.qk_norm)
    self.k_norm = norm(arch.head_size, arch.qk_norm)
    self.o_proj = normal(nh, d)
    self.post_attention_norm = norm(d)
    self.gate_proj = normal(d, f)
    self.up_proj = normal(d, f)
    self.down_proj = normal(f, d)

  def __call__(self, x_BxTxD, rope):
    """One layer; `self` is a slice without the leading L."""
    arch, eps = self.arch, self.arch.rms_norm_eps

    def heads(w, b, norm=None):
      y = _project(y_BxTxD, w)
      if b is not None:
        y += b[...][None, None, :]
      y = y.reshape(*y.shape[:2], -1, arch.head_size)
      if norm is not None:
        y = _rms_norm(y, norm[...], eps)
      return jax.lax.with_sharding_constraint(
        y, P(sharding.BATCH, None, "tensor", None)
      )

    y_BxTxD = _rms_norm(x_BxTxD, self.input_norm[...], eps)
    q_BxTxNxH = _rotate(heads(self.q_proj, self.q_bias, self.q_norm), rope)
    k_BxTxKxH = _rotate(heads(self.k_proj, self.k_bias, self.k_norm), rope)
    v_BxTxKxH = heads(self.v_proj, self.v_bias)
    o_BxTxNxH = _attention(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH)
    o_BxTxNH = o_BxTxNxH.reshape(*x_BxTxD.shape[:2], -1)
    x_BxTxD = _by_batch(x_BxTxD + _project(o_BxTxNH, self.o_proj))

    y_BxTxD = _rms_norm(x_BxTxD, self.post_attention_norm[...], eps)
    gate_BxTxF = jax.nn.silu(_project(y_BxTxD, self.gate_proj))
    y_BxTxF = gate_BxTxF * _project(y_BxTxD, self.up_proj)
    return _by_batch(x_BxTxD + _project(y_BxTxF, self.down_proj))


def _by_batch(x_BxTxD):
  spec = P(sharding.BATCH, None, None)
  return jax.lax.with_sharding_constraint(x_BxTxD, spec)


class Decoder(nnx.Module):
  """A decoder language model up to, and without, its logits.

  Logits are never formed here: `head.py` goes from hidden states to
  log-probs in tiles.
  """

  def __init__(
    self, arch: Architecture, rngs: nnx.Rngs, dtype: Any = jnp.float32
  ):
    """Initialises parameters in `dtype`: normal, zero biases, unit norms."""
    self.arch = arch

    def table():
      shape = arch.vocab_size, arch.hidden_size
      draw = jax.random.normal(rngs.params(), shape, jnp.float32)
      return nnx.Param((draw * arch.initializer_range).astype(dtype))

    self.embed = table()
    self.layers = Layers(arch, dtype, rngs)
    self.final_norm = nnx.Param(jnp.ones((arch.hidden_size,), dtype))
    self.head = None if arch.tie_word_embeddings else table()

  @property
  def head_VxD(self):
    """The output table; a tied embedding is the same parameter."""
    return (self.embed if self.head is None else self.head)[...]

  def __call__(
    self, tokens_BxT, *, dtype: Any = jnp.float32, remat: str = "none"
  ):
    """Final hidden states, after the last norm.

    Needs a mesh in context (`jax.set_mesh`).

    Args:
      tokens_BxT: int32 ids.
      dtype: of the activations; parameters are cast where they are used.
      remat: what the backward pass keeps, a key of `REMAT`.

    Returns:
      [B, T, D] in `dtype`.
    """
    table_VxD = jax.lax.with_sharding_constraint(
      self.embed[...].astype(dtype), P("tensor", None)
    )
    x_BxTxD = _by_batch(jnp.take(table_VxD, tokens_BxT, axis=0))
    rope = _rope_table(self.arch, tokens_BxT.shape[1])

    def one_layer(x_BxTxD, layer):
      layer = jax.tree.map(lambda w: w.astype(dtype), layer)
      return sharding.gather_fsdp(layer)(x_BxTxD, rope), None

    if remat != "none":
      one_layer = jax.checkpoint(one_layer, policy=REMAT[remat])
    x_BxTxD, _ = jax.lax.scan(one_layer, x_BxTxD, self.layers)
    norm_D = self.final_norm[...].astype(dtype)
    return _rms_norm(x_BxTxD, norm_D, self.arch.rms_norm_eps)


def abstract(arch: Architecture, dtype: Any = jnp.float32) -> Decoder:
  """A decoder of ShapeDtypeStructs."""
  return jax.eval_shape(lambda: Decoder(arch, nnx.Rngs(0), dtype))
