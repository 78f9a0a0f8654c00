"""Soft labels: the kernel against plain JAX, and the methods end to end."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import LONG, refused, run

from miniplm_jax import config as config_lib
from miniplm_jax.distillation.vanilla_kd import SoftLabels
from miniplm_jax.models import likelihood
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.models.vocab_loss import tiled_loss
from miniplm_jax.models.vocab_tiles import SoftLabelTile
from miniplm_jax.training import loop

STUDENT = Transformer(
  vocab_size=61,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
)
TEACHER = dataclasses.replace(STUDENT, vocab_size=59, hidden_size=32)


def dense(h, w, ht, wt, y, weight, labels):
  """The definition, with all logits of both models."""
  n = min(labels.vocab_size, labels.teacher_vocab_size)
  t = labels.temperature
  z = h @ w[: labels.vocab_size].T
  p = jax.nn.softmax(ht @ wt[:n].T / t)
  log_q = jax.nn.log_softmax(z)
  ce = -jnp.take_along_axis(log_q, y[..., None], -1)[..., 0]
  kd = -t * t * jnp.sum(p * jax.nn.log_softmax(z / t)[..., :n], -1)
  ce, kd = jnp.sum(weight * ce), jnp.sum(weight * kd)
  return (1 - labels.weight) * ce + labels.weight * kd, ce, kd


def weighted_kd(h, w, ht, wt, y, weight, tile):
  loss, (ce, kd) = tiled_loss(tile, h, w, ((ht, wt),), (y, weight))
  return loss, jnp.sum(ce * weight), jnp.sum(kd * weight)


def drawn(reduction, rows=128, teacher_rows=128):
  """Hidden states, heads, targets below 59 and weights."""
  rng = np.random.default_rng(0)
  batch, time_ = 3, 7
  length_B = rng.integers(2, time_ + 2, batch)
  y = rng.integers(0, 59, (batch, time_)).astype(np.int32)
  mask = likelihood.loss_mask(y, length_B, 3)
  return (
    rng.normal(size=(batch, time_, 16)).astype(np.float32),
    rng.normal(size=(rows, 16)).astype(np.float32),
    rng.normal(size=(batch, time_, 32)).astype(np.float32),
    rng.normal(size=(teacher_rows, 32)).astype(np.float32),
    y,
    likelihood.token_weights(mask, reduction),
  )


@pytest.mark.parametrize(
  ("reduction", "temperature", "sizes", "rows"),
  [
    ("instance_mean", 1.0, (61, 61), 128),
    ("token_mean", 1.0, (61, 59), 128),
    ("instance_mean", 2.0, (60, 70), 80),
    ("token_mean", 2.0, (128, 300), 384),
  ],
)
def test_kernel_equals_its_definition(
  mesh, reduction, temperature, sizes, rows
):
  arrays = drawn(reduction, teacher_rows=rows)
  labels = SoftLabelTile(*sizes, weight=0.3, temperature=temperature, tokens=8)

  def both(f):
    def loss(*arrays):
      loss, *parts = f(*arrays, labels)
      return loss, parts

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(
      *arrays
    )

  with jax.default_matmul_precision("highest"):
    (loss, parts), (dh, dw, dht, dwt) = both(weighted_kd)
    (wanted, wanted_parts), (wanted_dh, wanted_dw, *_) = both(dense)
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  np.testing.assert_allclose(parts, wanted_parts, rtol=1e-5)
  np.testing.assert_allclose(dh, wanted_dh, atol=1e-5)
  np.testing.assert_allclose(dw, wanted_dw, atol=1e-5)
  assert np.abs(dh).max() > 1e-3
  assert not np.any(dht) and not np.any(dwt)
  assert not np.any(dw[sizes[0] :])  # padding


def test_bfloat16_is_near(mesh):
  h, w, ht, wt, y, weight = drawn("token_mean")
  labels = SoftLabelTile(61, 59)
  wanted = dense(h, w, ht, wt, y, weight, labels)
  h, ht = h.astype(jnp.bfloat16), ht.astype(jnp.bfloat16)
  found = jax.jit(weighted_kd, static_argnums=6)(
    h, w, ht, wt, y, weight, labels
  )
  np.testing.assert_allclose(found, wanted, rtol=2e-2)


def objective(teacher, reduction="instance_mean"):
  config = config_lib.default()
  with config.unlocked():
    config.train.update(
      {"steps": 10, "warmup_steps": 0, "dtype": "float32"}
      | {"reduction": reduction}
    )
    config.kd.temperature = 2.0
  return SoftLabels(config.train, 3, "full", teacher, config.kd), config.train


def tokens(batch=8, length=16):
  rng = np.random.default_rng(0)
  return {
    "tokens": rng.integers(0, 59, (batch, length + 1)).astype(np.int32),
    "length": rng.integers(2, length + 2, batch).astype(np.int32),
  }


@pytest.mark.parametrize("reduction", ["instance_mean", "token_mean"])
def test_every_parameter_gets_the_gradient_of_the_definition(mesh, reduction):
  model, teacher = Decoder(STUDENT, nnx.Rngs(0)), Decoder(TEACHER, nnx.Rngs(1))
  made, _ = objective(teacher, reduction)
  (inputs, targets, weight), _ = made.loss_inputs(
    tokens(), model, teacher, None
  )

  def plain(model, teacher):
    h, ht = model(inputs), teacher(inputs)
    labels = SoftLabelTile(61, 59, 0.5, 2.0)
    return dense(
      h, model.head_VxD, ht, teacher.head_VxD, targets, weight, labels
    )[0]

  def tiled(model, teacher):
    return made.loss(model, inputs, targets, weight, frozen=teacher)[0]

  with jax.default_matmul_precision("highest"):
    wanted, d_wanted = jax.jit(jax.value_and_grad(plain))(model, teacher)
  found, d_found = jax.jit(jax.value_and_grad(tiled))(model, teacher)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), d_found, d_wanted
  )
  d_teacher = jax.jit(jax.grad(tiled, 1))(model, teacher)
  assert not any(np.any(x) for x in jax.tree.leaves(d_teacher))


@pytest.mark.parametrize("micro", [1, 2])
def test_steps_leave_the_teacher_alone(mesh, micro):
  teacher = Decoder(TEACHER, nnx.Rngs(1))
  before = jax.tree.map(np.array, teacher)
  made, train = objective(teacher)
  abstract = loop.abstract_state(STUDENT, train, mesh)
  state = loop._new_state(STUDENT, train, made.new_model, jax.random.key(0))
  step = loop.step_function(abstract, train, made, mesh, micro)
  compiled = step.lower(state, tokens(), made.frozen).compile()
  assert not re.search(
    "all-gather|all-reduce|reduce-scatter|permute", compiled.as_text()
  )
  losses = []
  for _ in range(5):
    state, found = compiled(state, tokens(), made.frozen)
    losses.append(float(found["train/loss"]))
    np.testing.assert_allclose(
      losses[-1], 0.5 * (found["train/ce"] + found["train/kd"]), rtol=1e-6
    )
  assert losses[-1] < losses[0]
  jax.tree.map(np.testing.assert_array_equal, teacher, before)


def test_eight_devices_equal_one(eight_devices):
  one, *others = eight_devices("kd")
  assert one["collectives"] == 0
  for found in others:
    assert found["collectives"] > 0
    for name in ("losses", "weights"):
      np.testing.assert_allclose(found[name], one[name], rtol=1e-5)
  for found in (one, *others):
    assert found["logits"] == []


KD = "--config.method=miniplm_kd"
BOTH = "--config.baselines=('vanilla_kd',)"


def curve(folder, student):
  path = folder / "run" / "students" / student / "metrics" / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return [line for line in lines if "train/kd" in line]


def test_both_methods_end_to_end(copy):
  stages = "--stages=select,train,evaluate,export"
  run(copy, KD, BOTH, LONG, stages, "--config.kd.weight=1.0")
  for student, rows in (("vanilla_kd", "pretrain"), ("miniplm_kd", "miniplm")):
    steps = curve(copy, student)
    first, last = (
      np.mean([line["train/kd"] for line in part])
      for part in (steps[:10], steps[-10:])
    )
    # Its teacher of 8 steps is nearly uniform: there is little to learn.
    assert last < first - 0.03
    assert steps[-1]["train/loss"] == pytest.approx(steps[-1]["train/kd"])
    made = json.loads(
      (copy / "run" / "students" / student / "manifest.json").read_text()
    )
    assert made["settings"]["kd"] == {
      "weight": 1.0,
      "temperature": 1.0,
      "dtype": "float32",
    }
    assert made["settings"]["rows"] == f"selection {rows}"
    assert "teacher_weights" in made["inputs"]
    assert (copy / "run" / "students" / student / "hf").exists()


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("--config.kd.weight=1.5", "kd.weight"),
    ("--config.kd.temperature=0.0", "kd.temperature"),
    ("--config.kd.dtype=int8", "kd.dtype"),
    ("--config.teacher.scores=x.npy", "teacher.scores"),
    ("--config.student.tokenizer=x", "student.tokenizer"),
  ],
)
def test_what_kd_cannot_do_is_said(tmp_path, argument, words):
  more = ("--config.student.eos_token=</s>",) * ("tokenizer" in argument)
  assert words in refused(tmp_path, KD, argument, *more)
