import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from gradients import assert_same_gradients

from miniplm_jax import config as config_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.models import (
  attention,
  config_json,
  decoder,
  head,
  likelihood,
  mamba,
  sharding,
  splash,
  transformer,
)
from miniplm_jax.models.architecture import SHAPES, Mamba, Transformer
from miniplm_jax.training import optimizer

ARCH = Transformer(
  vocab_size=61,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
)


KINDS = {
  "qwen2": ARCH,
  "qwen3": dataclasses.replace(ARCH, qkv_bias=False, qk_norm=True, head_dim=6),
  "llama": dataclasses.replace(
    ARCH, qkv_bias=False, rope_type="llama3", rope_factor=8.0
  ),
  "mamba": Mamba(
    vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=3
  ),
}


@pytest.mark.parametrize(
  ("name", "total", "bare"),
  [
    ("qwen-45m", 45_328_640, 6_433_024),
    ("qwen-104m", 103_502_336, 25_711_104),
    ("qwen-200m", 203_437_824, 86_750_976),
    ("qwen-300m", 246_812_928, 130_126_080),
    ("qwen-500m", 463_987_712, 308_405_248),
    ("qwen-1.2b", 1_160_566_272, 693_818_880),
    ("qwen1.5-1.8b", 1_836_828_672, None),
    ("qwen1.5-4b", 3_950_369_280, None),
    ("llama3.1-212m", 211_766_016, None),
    ("mamba-130m", 140_458_752, 90_520_320),
  ],
)
def test_parameter_counts_are_the_papers(name, total, bare):
  arch = SHAPES[name]
  assert arch.parameters() == total
  assert bare is None or arch.non_embedding_parameters() == bare
  leaves = jax.tree.leaves(decoder.abstract(arch))
  assert sum(x.size for x in leaves) == total


def test_unknown_keys_are_ignored_and_missing_ones_named():
  good = config_json.write(ARCH, 0, "float32")
  assert config_json.read(good | {"x": 1}, "here") == ARCH
  for key in ("hidden_size", "num_attention_heads", "vocab_size"):
    less = {k: v for k, v in good.items() if k != key}
    with pytest.raises(UserError, match=f"{key} is missing, here"):
      config_json.read(less, "here")


@pytest.mark.parametrize(
  "bad",
  [
    {"model_type": "gpt2"},
    {"model_type": "falcon_mamba"},
    {"attention_bias": True},
    {"attention_dropout": 0.1},
    {"mlp_bias": True},
    {"pretraining_tp": 2},
    {"partial_rotary_factor": 0.5},
    {"quantization_config": {"quant_method": "gptq"}},
    {"hidden_act": "gelu"},
    {"use_sliding_window": True},
    {"layer_types": ["full_attention", "sliding_attention"]},
    {"layer_types": [{}]},
    {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    {"rope_scaling": {"type": "linear"}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    {"rope_scaling": "linear"},
    {"rope_parameters": {"rope_type": "dynamic"}},
    {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
    {"rope_parameters": {"partial_rotary_factor": 0.5}},
    {"num_attention_heads": 3},
    {"num_attention_heads": "4"},
    {"num_hidden_layers": 2.5},
    {"rms_norm_eps": "1e-6"},
    {"rope_theta": float("nan"), "rope_parameters": None},
    {"tie_word_embeddings": "no"},
  ],
  ids=str,
)
def test_what_is_not_implemented_is_refused(bad):
  good = config_json.write(ARCH, 0, "float32")
  with pytest.raises(UserError, match="here"):
    config_json.read(good | bad, "here")


@pytest.mark.parametrize(
  "bad",
  [
    {"use_bias": True},
    {"use_conv_bias": False},
    {"residual_in_fp32": False},
    {"hidden_act": "gelu"},
    {"time_step_rank": "foo"},
    {"intermediate_size": 24},
  ],
  ids=str,
)
def test_what_is_not_implemented_of_mamba_is_refused(bad):
  good = config_json.write(KINDS["mamba"], 0, "float32")
  assert config_json.read(good, "here") == KINDS["mamba"]
  assert (
    config_json.read(good | {"time_step_rank": "auto"}, "here")
    == (KINDS["mamba"])
  )
  with pytest.raises(UserError, match="here"):
    config_json.read(good | bad, "here")


# What the published files say, as far as it is read.
PUBLISHED = {
  "Qwen1.5-1.8B": (
    {
      "model_type": "qwen2",
      "attention_dropout": 0.0,
      "hidden_act": "silu",
      "hidden_size": 2048,
      "intermediate_size": 5504,
      "max_position_embeddings": 32768,
      "max_window_layers": 21,
      "num_attention_heads": 16,
      "num_hidden_layers": 24,
      "num_key_value_heads": 16,
      "rms_norm_eps": 1e-6,
      "rope_theta": 1000000.0,
      "sliding_window": 32768,
      "tie_word_embeddings": False,
      "use_sliding_window": False,
      "vocab_size": 151936,
    },
    1_836_828_672,
  ),
  "Llama-3.1-8B": (
    {
      "model_type": "llama",
      "attention_bias": False,
      "attention_dropout": 0.0,
      "bos_token_id": 128000,
      "hidden_act": "silu",
      "hidden_size": 4096,
      "intermediate_size": 14336,
      "max_position_embeddings": 131072,
      "mlp_bias": False,
      "num_attention_heads": 32,
      "num_hidden_layers": 32,
      "num_key_value_heads": 8,
      "pretraining_tp": 1,
      "rms_norm_eps": 1e-5,
      "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
      },
      "rope_theta": 500000.0,
      "tie_word_embeddings": False,
      "vocab_size": 128256,
    },
    8_030_261_248,
  ),
  "Llama-2-7B": (
    {
      "model_type": "llama",
      "hidden_act": "silu",
      "hidden_size": 4096,
      "intermediate_size": 11008,
      "max_position_embeddings": 4096,
      "num_attention_heads": 32,
      "num_hidden_layers": 32,
      "num_key_value_heads": 32,
      "pretraining_tp": 1,
      "rms_norm_eps": 1e-5,
      "rope_scaling": None,
      "tie_word_embeddings": False,
      "vocab_size": 32000,
    },
    6_738_415_616,
  ),
  "mamba-130m-hf": (
    {
      "model_type": "mamba",
      "conv_kernel": 4,
      "expand": 2,
      "hidden_act": "silu",
      "hidden_size": 768,
      "intermediate_size": 1536,
      "layer_norm_epsilon": 1e-5,
      "num_hidden_layers": 24,
      "residual_in_fp32": True,
      "state_size": 16,
      "time_step_rank": 48,
      "use_bias": False,
      "use_conv_bias": True,
      "vocab_size": 50280,
    },
    129_135_360,
  ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read(name):
  config, parameters = PUBLISHED[name]
  assert config_json.read(config, "here").parameters() == parameters


def test_rope_is_read_in_the_order_of_transformers():
  good = config_json.write(ARCH, 0, "float32") | {"rope_theta": 5.0}
  linear = {"rope_type": "linear", "factor": 3.0}
  old = {"type": "linear", "rope_type": "default", "rope_theta": 7.0}
  for rope, wanted in (
    ({"rope_parameters": {"rope_type": "default"}}, ("default", 5.0)),
    ({"rope_parameters": linear | {"rope_theta": 7.0}}, ("linear", 7.0)),
    ({"rope_parameters": {}, "rope_scaling": linear}, ("linear", 5.0)),
    ({"rope_parameters": linear, "rope_scaling": old}, ("default", 7.0)),
    ({"rope_parameters": None}, ("default", 5.0)),
  ):
    found = config_json.read(good | rope, "here")
    assert (found.rope_type, found.rope_theta) == wanted


def dense_nll(h, w, y):
  logits = h.astype(jnp.float32) @ w.T.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, y[..., None], -1)[..., 0]
  return jax.nn.logsumexp(logits, -1) - picked


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("tile", [1, 5, 100])
def test_head_equals_the_dense_one_with_gradients(
  mesh, monkeypatch, tile, platform
):
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  # As the platform has it, in smaller tiles; on CPU four blocks of rows.
  training = dataclasses.replace(
    head.TRAINING[platform], tokens=tile, rows=16 if platform == "cpu" else 0
  )
  keys = jax.random.split(jax.random.key(0), 4)
  h = jax.random.normal(keys[0], (2, 7, 16))
  w = jax.random.normal(keys[1], (64, 16))
  y = jax.random.randint(keys[2], (2, 7), 0, 64)
  weight = jax.random.uniform(keys[3], (2, 7), minval=-0.5)
  wanted = dense_nll(h, w, y)
  mask = jax.random.bernoulli(keys[3], 0.6, (2, 7))
  for rows in (1, 20, 64, 99):
    f = jax.jit(
      functools.partial(head.token_nll, tiling=head.Tiling(tile, rows))
    )
    np.testing.assert_allclose(f(h, w, y), wanted, atol=1e-5)
    masked = f(h, w, y, mask_BxT=mask)
    np.testing.assert_allclose(masked, jnp.where(mask, wanted, 0), atol=1e-5)

  def ours(h, w, z):
    return 3 * head.weighted_nll(h, w, y, weight, None, training, z)

  def dense(h, w, z):
    log_z = jax.nn.logsumexp(jnp.einsum("btd,vd->btv", h, w), -1)
    return 3 * jnp.sum((dense_nll(h, w, y) + z * log_z**2) * weight)

  for z in (0.0, 0.1):
    found = jax.jit(jax.value_and_grad(ours, (0, 1)), static_argnums=2)(h, w, z)
    wanted = jax.value_and_grad(dense, (0, 1))(h, w, z)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-5),
      found,
      wanted,
    )
  assert float(jax.jit(ours, static_argnums=2)(h, w, z)) == found[0]


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_padding_of_the_vocabulary_takes_no_probability(
  mesh, monkeypatch, platform
):
  """Whatever stands there, and it gets no gradient."""
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  keys = jax.random.split(jax.random.key(0), 3)
  h = jax.random.normal(keys[0], (2, 7, 16))
  w = jax.random.normal(keys[1], (64, 16)) * 9
  y = jax.random.randint(keys[2], (2, 7), 0, 61)

  def loss(w, vocab_size):
    weights = jnp.ones((2, 7))
    return head.weighted_nll(h, w, y, weights, vocab_size)

  f = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  value, gradient = f(w, 61)
  wanted, of_61 = f(w[:61], 61)
  assert float(value) == pytest.approx(float(wanted), rel=1e-6)
  np.testing.assert_allclose(gradient[:61], of_61, atol=1e-4)
  assert not gradient[61:].any()
  logits = jax.jit(head.logits, static_argnums=2)(h[:, 0], w, 61)
  assert np.isneginf(logits[:, 61:]).all()
  assert np.isfinite(logits[:, :61]).all()


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_no_logits_of_all_tokens_exist(mesh, monkeypatch, platform):
  """Tiles of 8 tokens: nothing of [64, V] or [2, 32, V] is in the HLO."""
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  h, w = jnp.ones((2, 32, 16)), jnp.ones((509, 16))
  y, weight = jnp.zeros((2, 32), int), jnp.ones((2, 32))

  def loss(h, w, tile):
    # Blocks of rows hold some of the CPU's logits: it is asked for the others.
    tiling = dataclasses.replace(head.TRAINING[platform], tokens=tile)
    return head.weighted_nll(h, w, y, weight, None, tiling)

  def shapes(tile):
    f = jax.grad(functools.partial(loss, tile=tile), (0, 1))
    text = jax.jit(f).lower(h, w).compile().as_text()
    return set(re.findall(r"\[([\d,]+)\]", text))

  assert "509,8" in shapes(8)
  assert not {"64,509", "509,64", "1,509,64", "2,32,509"} & shapes(8)
  assert "509,64" in shapes(64)  # the check can see it


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_sees_only_what_stands_before_it(mesh, kind):
  """So padding, which follows a row, is seen by none of it."""
  model = decoder.Decoder(KINDS[kind], nnx.Rngs(0))
  tokens = jnp.arange(12)[None] % 61

  def at(model):
    return jnp.sum(model(tokens)[0, 5] ** 2)

  grads = jax.jit(jax.grad(at))(model).embed[...]
  seen = np.abs(np.asarray(grads)).sum(-1) > 0
  np.testing.assert_array_equal(np.flatnonzero(seen), np.arange(6))


@pytest.mark.parametrize("length", [1, 63, 64, 150])
def test_the_scan_over_chunks_is_the_recurrence(length):
  """Against the definition, one position after the other, and gradients."""
  rng = np.random.default_rng(0)
  shapes = (2, length, 6), (2, length, 6), (4, 6), (2, length, 4)
  x, dt, a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
  c, start = jnp.flip(b, -1) + 1, jnp.ones((2, 4, 6))
  dt, a = jax.nn.softplus(dt), -jnp.exp(a)

  def by_definition(x, dt, a, b, c, h):
    def step(h, at):
      x, dt, b, c = at
      h = jnp.exp(dt[:, None] * a[None]) * h
      h += b[..., None] * (dt * x)[:, None]
      return h, jnp.sum(h * c[..., None], 1)

    by_time = [jnp.swapaxes(z, 0, 1) for z in (x, dt, b, c)]
    h, y = jax.lax.scan(step, h, tuple(by_time))
    return jnp.swapaxes(y, 0, 1), h

  def loss(scan, *arguments):
    y, h = scan(*arguments)
    return jnp.sum(jnp.sin(y)) + jnp.sum(h**2)

  arguments = x, dt, a, b, c, start

  def both(scan):
    gradient = jax.grad(functools.partial(loss, scan), range(6))
    return jax.jit(lambda *z: (scan(*z), gradient(*z)))(*arguments)

  found, wanted = both(mamba._selective_scan), both(by_definition)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=2e-4, rtol=1e-4),
    found,
    wanted,
  )


# Relative and absolute: roundings of the last digit.
CLOSE = {"float32": (2e-7, 1e-7), "bfloat16": (2**-8, 2**-9)}


@pytest.mark.parametrize(
  ("length", "heads", "keys"), [(300, 4, 4), (129, 4, 2), (7, 3, 1)]
)
def test_attention_has_the_gradients_of_the_dense_one(
  length, heads, keys, mesh
):
  """Several blocks, the last one short; heads that share keys."""
  rng = np.random.default_rng(0)
  q, k, v, g = (
    jnp.asarray(rng.normal(size=(2, length, n, 6)), jnp.float32)
    for n in (heads, keys, keys, heads)
  )

  def dense(q, k, v):
    k, v = (jnp.repeat(x, heads // keys, 2) for x in (k, v))
    score = jnp.einsum("bthd,bshd->bhts", q, k)  # queries are scaled
    seen = jnp.tril(jnp.ones((length, length), bool))
    p = jax.nn.softmax(jnp.where(seen[None, None], score, -jnp.inf))
    return jnp.einsum("bhts,bshd->bthd", p, v)

  assert_same_gradients(attention.attention, dense, (q, k, v, g), 2e-6)


@pytest.mark.parametrize(
  ("length", "heads", "keys"), [(384, 2, 2), (640, 4, 2)]
)
def test_splash_attention_is_attention(length, heads, keys, mesh):
  """The TPU's kernel, interpreted, in float32: value and gradients."""
  rng = np.random.default_rng(0)
  q, k, v, g = (
    jnp.asarray(rng.normal(size=(2, length, n, 64)), jnp.float32)
    for n in (heads, keys, keys, heads)
  )

  of_kernel = functools.partial(splash.attention, interpret=True)
  arrays = q, k, v, g
  assert_same_gradients(of_kernel, attention.attention, arrays, 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotary_of_tpus_is_rotary(dtype, mesh, monkeypatch):
  """Rotated by a product, and in two halves: value and gradient."""
  rng = np.random.default_rng(0)
  x, g = (jnp.asarray(rng.normal(size=(2, 9, 3, 6)), dtype) for _ in range(2))
  shared = transformer.context(
    dataclasses.replace(ARCH, hidden_size=48, num_attention_heads=8), 9
  )

  def rotated(platform):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    value, back = jax.vjp(lambda x: transformer._rotate(x, shared, 0.5), x)
    return value, back(g)[0]

  for ours, halves in zip(rotated("tpu"), rotated("cpu")):
    np.testing.assert_allclose(
      np.float64(ours), np.float64(halves), *CLOSE[dtype]
    )


def test_splash_attention_is_not_for_every_shape():
  assert splash.fits(1024, 64)
  assert not splash.fits(1000, 64)


@pytest.mark.parametrize("unroll", [1, 0])
@pytest.mark.parametrize("remat", ["full", "dots"])
@pytest.mark.parametrize("kind", ["qwen2", "mamba"])
def test_remat_changes_nothing(mesh, monkeypatch, remat, kind, unroll):
  monkeypatch.setitem(decoder.UNROLL, "cpu", unroll)  # 0 as on GPUs
  model = decoder.Decoder(KINDS[kind], nnx.Rngs(0))
  tokens = jnp.arange(24).reshape(2, 12)

  def loss(model, remat):
    return jnp.mean(model(tokens, remat=remat) ** 3)

  one = jax.value_and_grad(functools.partial(loss, remat="none"))
  two = jax.value_and_grad(functools.partial(loss, remat=remat))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6),
    jax.jit(one)(model),
    jax.jit(two)(model),
  )
  # The gradient computes again what was not kept, products only if full.
  once, again = (str(jax.make_jaxpr(f)(model)) for f in (one, two))
  assert again.count("logistic") > once.count("logistic")
  more = again.count("dot_general") - once.count("dot_general")
  assert more > 0 if remat == "full" else more == 0


def test_the_loss_mask_leaves_out_padding_and_what_follows_an_end():
  eos = 9
  tokens = jnp.array([[1, 9, 2, 3, 9, 9], [9, 4, 5, 6, 7, 8]])
  mask = likelihood.loss_mask(tokens[:, :-1], jnp.array([5, 6]), eos)
  # Row 0 has ids 1 9 2 3 9: the end at position 1 is predicted, from 1; its
  # successor is not; the end at position 4 is predicted, from 3.
  np.testing.assert_array_equal(
    mask, [[True, False, True, True, False], [False, True, True, True, True]]
  )


def test_reductions_are_those_of_their_names():
  mask = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
  nll = jnp.array([[1.0, 2, 3, 50], [8, 50, 50, 50]])
  for reduction, wanted in (("instance_mean", 5.0), ("token_mean", 3.5)):
    weights = likelihood.token_weights(mask, reduction)
    assert float(jnp.sum(weights * nll)) == pytest.approx(wanted)


def train_section(**changes):
  section = config_lib.default().train
  with section.unlocked():
    section.update(changes)
  return section


def test_learning_rate_goldens_of_the_200m_run():
  schedule = optimizer.learning_rate_schedule(train_section())
  for step, wanted in (
    (0, 0),
    (1, 3e-7),
    (1999, 5.997e-4),
    (2000, 6e-4),
    (51_000, 3.3e-4),
    (100_000, 6e-5),
  ):
    assert float(schedule(step)) == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_the_optimizer_is_adamw_with_decay_on_everything():
  """Against the update rule written out in numpy."""
  train = train_section(
    learning_rate=0.1, warmup_steps=0, steps=10, weight_decay=0.1
  )
  tx, schedule = optimizer.make(train), optimizer.learning_rate_schedule(train)
  rng = np.random.default_rng(0)
  params = {"norm": jnp.ones(3), "w": jnp.asarray(rng.normal(size=(2, 3)))}
  state = tx.init(params)
  ours = {k: np.asarray(v, np.float64) for k, v in params.items()}
  m = {k: np.zeros_like(v) for k, v in ours.items()}
  v = {k: np.zeros_like(v) for k, v in ours.items()}
  for t in range(5):
    grads = {k: rng.normal(size=x.shape) * 2 for k, x in ours.items()}
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    lr = float(schedule(t))
    updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
    params = optax.apply_updates(params, updates)
    for k, g in grads.items():
      g = g / max(norm, 1.0)
      m[k] = 0.9 * m[k] + 0.1 * g
      v[k] = 0.98 * v[k] + 0.02 * g**2
      mean, square = m[k] / (1 - 0.9 ** (t + 1)), v[k] / (1 - 0.98 ** (t + 1))
      ours[k] -= lr * (mean / (np.sqrt(square) + 1e-6) + 0.1 * ours[k])
  for k in ours:
    np.testing.assert_allclose(params[k], ours[k], rtol=2e-4)


def test_flops_are_two_per_weight_and_causal_attention():
  arch = SHAPES["qwen-500m"]
  weights = arch.matmul_parameters()
  assert arch.forward_flops(1024) == 2 * weights + 2 * 24 * 1024 * 1024
  small = dataclasses.replace(arch, num_key_value_heads=8)
  assert small.matmul_parameters() == weights - 24 * 1024 * 1024
