"""Part pieces: what a training step is made of, each against its ceiling.

Counted are the model's FLOPs and the fewest bytes: each input read and each
output written once; what the backward pass keeps or forms again is ours to
choose. The page holds the time against both at the rates of part device.

B batch, T time, S tokens, D hidden, V vocabulary, N heads, K key heads, H head.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.accelerator import device, ours
from benchmarks.accelerator.races import REMAT
from benchmarks.accelerator.results import Store
from benchmarks.accelerator.settings import Settings

_LAYERS = 4  # of the decoder whose layers are timed, without a vocabulary
_SETS = 3  # of inputs that take turns


class _Piece(NamedTuple):
  """A piece before it is timed.

  Attributes:
    run: what is called.
    inputs: of it, in turns.
    flops: of the model.
    moved: the fewest bytes.
    count: what it is several of.
  """

  run: Callable[..., Any]
  inputs: list[tuple]
  flops: float
  moved: float
  count: int = 1


def run(settings: Settings, store: Store):
  """Measures each piece of one shape."""
  plan, variant = settings.plan, settings.variant
  shape, rows = plan.pieces
  shape = settings.shapes[0] if settings.shapes else shape
  rows = variant.rows or rows
  pending = {
    settings.key(f"{name} of {shape}, {rows} rows"): make
    for name, make in _PIECES.items()
  }
  if all([store.is_done(key) for key in pending]):
    return
  import jax

  from miniplm_jax.models import sharding

  variant.apply()
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  arch = plan.shapes[shape]
  remat = variant.remat or REMAT
  with jax.set_mesh(mesh):
    for key, make in pending.items():
      if settings.left < 5:
        settings.say("no time left")
        return
      one = functools.partial(make, arch, rows, plan.length, remat)
      store.attempt(key, _measure, one, plan.repeats, str(variant))


def _measure(make, repeats: int, variant: str) -> dict[str, Any]:
  import jax

  piece = make()
  found = device.seconds(piece.run, piece.inputs, repeats)
  for name in ("seconds", "least", "most"):
    found[name] /= piece.count
  jax.clear_caches()  # and with it the programs, and their constants
  return found | {
    "flops": piece.flops,
    "bytes": piece.moved,
    "variant": variant,
  }


def _random(shape, count=_SETS, dtype="bfloat16", scale=1.0):
  """Arrays of random numbers, each another."""
  import jax
  import jax.numpy as jnp

  @functools.partial(jax.jit, static_argnums=0)
  def draw(shape, key):
    return (scale * jax.random.normal(key, shape)).astype(jnp.dtype(dtype))

  keys = jax.random.split(jax.random.key(sum(shape)), count)
  return [draw(tuple(shape), key) for key in keys]


def _ids(arch, rows, length):
  import jax
  import jax.numpy as jnp

  return [
    jax.random.randint(key, (rows, length), 1, arch.vocab_size, jnp.int32)
    for key in jax.random.split(jax.random.key(1), _SETS)
  ]


def _with_gradient(function, arguments: int):
  """Function and gradients, from the gradient of what it returns."""
  import jax

  def both(g, *inputs):
    own, rest = inputs[:arguments], inputs[arguments:]
    out, back = jax.vjp(lambda *own: function(*own, *rest), *own)
    return out, back(g)

  return jax.jit(both)


def _attention(is_training, arch, rows, length, unused_remat):
  import jax

  from miniplm_jax.models.attention import attention

  heads, keys = arch.num_attention_heads, arch.num_key_value_heads
  shapes = ((rows, length, n, arch.head_size) for n in (heads, keys))
  (q, g), (k, v) = (
    (both[::2], both[1::2]) for both in (_random(s, 2 * _SETS) for s in shapes)
  )
  tokens = rows * length
  flops = tokens * arch.mixing_flops(length)
  moved = 2 * tokens * 2 * (arch.query_size + arch.key_size)
  if not is_training:
    return _Piece(jax.jit(attention), list(zip(q, k, v)), flops, moved)
  run = _with_gradient(attention, 3)
  moved += 2 * tokens * (2 * arch.query_size + arch.key_size * 2)
  return _Piece(run, list(zip(g, q, k, v)), 3 * flops, moved)


def _head(is_training, arch, rows, length, unused_remat):
  import jax

  from miniplm_jax.models import head

  tokens, width = rows * length, arch.hidden_size
  h, y = _random((rows, length, width)), _ids(arch, rows, length)
  table = arch.table_rows * width
  flops = 2 * tokens * arch.vocab_size * width
  if not is_training:
    w = _random((arch.table_rows, width), scale=0.02)
    run = jax.jit(lambda h, w, y: head.token_nll(h, w, y, arch.vocab_size))
    moved = 2 * table + tokens * (2 * width + 8)
    return _Piece(run, list(zip(h, w, y)), flops, moved)
  w = _random((arch.table_rows, width), dtype="float32", scale=0.02)
  weight = _random((rows, length), dtype="float32")

  def loss(h, w, y, weight):
    return head.weighted_nll(h, w, y, weight, arch.vocab_size)

  run = jax.jit(jax.value_and_grad(loss, (0, 1)))
  moved = 8 * table + tokens * (4 * width + 8)
  return _Piece(run, list(zip(h, w, y, weight)), 3 * flops, moved)


def _layer(is_training, arch, rows, length, remat):
  """Of a decoder with a small vocabulary, over all of its layers."""
  import dataclasses

  import jax
  import jax.numpy as jnp
  from flax import nnx

  from miniplm_jax.models.decoder import Decoder

  bare = dataclasses.replace(
    arch,
    # With fewer rows, tokens would wait for each other to add to the same one.
    vocab_size=min(arch.vocab_size, 4096),
    num_hidden_layers=_LAYERS,
    tie_word_embeddings=True,
  )
  decoder = jax.jit(lambda: Decoder(bare, nnx.Rngs(0)))()
  dtype = jnp.dtype("bfloat16")
  tokens, ids = rows * length, _ids(bare, rows, length)
  each = 2 * arch.layer_matmul_parameters() + arch.mixing_flops(length)
  weights = arch.layer_matmul_parameters() + arch.layer_other_parameters()
  moved = 4 * weights + 4 * tokens * arch.hidden_size
  if not is_training:
    run = jax.jit(lambda m, y: m(y, dtype=dtype))
    inputs = [(decoder, y) for y in ids]
    return _Piece(run, inputs, tokens * each, moved, _LAYERS)
  g = _random((rows, length, arch.hidden_size))
  run = _with_gradient(lambda m, y: m(y, dtype=dtype, remat=remat), 1)
  inputs = [(g, decoder, y) for g, y in zip(g, ids)]
  # The weights are read twice; their gradient and that of x are written.
  moved += 8 * weights + 4 * tokens * arch.hidden_size
  return _Piece(run, inputs, tokens * 3 * each, moved, _LAYERS)


def _embedding(is_training, arch, rows, length, unused_remat):
  import jax
  import jax.numpy as jnp

  from miniplm_jax.models import decoder

  w = _random((arch.table_rows, arch.hidden_size), 1, "float32")[0]
  tokens = rows * length

  def look_up(w, y):
    return decoder.look_up(w, y, jnp.dtype("bfloat16"))

  moved = 6 * tokens * arch.hidden_size
  ids = _ids(arch, rows, length)
  if not is_training:
    return _Piece(jax.jit(look_up), [(w, y) for y in ids], 0, moved)
  g = _random((rows, length, arch.hidden_size))
  run = _with_gradient(look_up, 1)
  moved += 2 * tokens * arch.hidden_size + 4 * w.size
  return _Piece(run, [(g, w, y) for g, y in zip(g, ids)], 0, moved)


def _optimizer(arch, rows, unused_length, unused_remat):
  """Clipping, AdamW and the new weights, in place."""
  import jax
  import optax
  from flax import nnx

  from miniplm_jax.models.decoder import Decoder
  from miniplm_jax.training import optimizer

  tx = optimizer.make(ours.section(rows))
  model, gradients, other = (
    jax.jit(lambda i=i: Decoder(arch, nnx.Rngs(i)))() for i in range(3)
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, gradients):
    model, opt_state = state
    updates, opt_state = tx.update(gradients, opt_state, model)
    return optax.apply_updates(model, updates), opt_state

  state = model, jax.jit(tx.init)(model)

  def run(gradients):
    nonlocal state
    state = step(state, gradients)
    return state

  # Weights and both moments are read and written, the gradients read twice:
  # their norm is to be known before.
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
  return _Piece(run, [(gradients,), (other,)], 0, 8 * size)


def _product(arch, rows, length, unused_remat):
  """The plain product of a token with the FFN's first matrix."""
  import jax
  import jax.numpy as jnp

  tokens, width, ffn = rows * length, arch.hidden_size, arch.intermediate_size
  x, w = _random((tokens, width)), _random((width, ffn), scale=0.02)
  moved = 2 * (tokens * width + width * ffn + tokens * ffn)
  flops = 2 * tokens * width * ffn
  return _Piece(jax.jit(jnp.matmul), list(zip(x, w)), flops, moved)


_PIECES = {
  "attention, forward": functools.partial(_attention, False),
  "attention": functools.partial(_attention, True),
  "layer, forward": functools.partial(_layer, False),
  "layer": functools.partial(_layer, True),
  "head, scoring": functools.partial(_head, False),
  "head, training": functools.partial(_head, True),
  "embedding, forward": functools.partial(_embedding, False),
  "embedding": functools.partial(_embedding, True),
  "optimizer": _optimizer,
  "product of the FFN": _product,
}
