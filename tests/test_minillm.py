"""MiniLLM: its gradient by enumeration, its kernel, its draws, a tiny run."""

import functools
import itertools
import json
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import refused, run, weights, write_corpus
from test_pipeline import kill

from miniplm_jax import config as config_lib
from miniplm_jax.distillation import minillm
from miniplm_jax.models import decoder, vocab_loss, vocab_tiles
from miniplm_jax.models.architecture import Mamba, Transformer
from miniplm_jax.training import loop
from miniplm_jax.training.objective import NextToken

EOS, IDS, NEW = 3, 4, 3
PROMPT = [0, 2, 1, 2]


def shape(vocabulary, hidden, **more):
  return Transformer(
    vocab_size=vocabulary,
    hidden_size=hidden,
    intermediate_size=2 * hidden,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    initializer_range=0.5,
    **more,
  )


STUDENT = shape(IDS, 8)
TEACHER = shape(IDS + 1, 12, tie_word_embeddings=False)  # it knows one id more


@functools.cache
def models(student=STUDENT, teacher=TEACHER):
  made = zip((student, teacher), (1, 2), strict=True)
  return [decoder.Decoder(arch, nnx.Rngs(seed)) for arch, seed in made]


def continuations():
  """All that can follow, filled up behind an end as a sample is."""
  found = set()
  for ids in itertools.product(range(IDS), repeat=NEW):
    size = ids.index(EOS) + 1 if EOS in ids else NEW
    found.add(ids[:size] + (EOS,) * (NEW - size))
  return np.array(sorted(found), np.int32)


Y = continuations()
ROWS = np.concatenate([np.tile(PROMPT, (len(Y), 1)), Y], 1).astype(np.int32)
REAL = np.asarray(minillm.until_end(Y, EOS))


def dense(model):
  """Log-softmax over the common ids at every new token, [B, N, V]."""
  hidden = model(ROWS)[:, len(PROMPT) - 1 : -1]
  logits = jnp.einsum("bnd,vd->bnv", hidden, model.head_VxD[:IDS])
  return jax.nn.log_softmax(logits)


def of_tokens(log_probs):
  found = jnp.take_along_axis(log_probs, Y[..., None], -1)[..., 0]
  return jnp.where(REAL, found, 0)


def estimated(student, teacher, weight, advantage):
  """The gradient of our surrogate on all rows, with given weights."""
  log_q, log_p = (of_tokens(dense(m)) for m in (student, teacher))
  hidden = teacher(ROWS)[:, len(PROMPT) - 1 : -1]
  sample = minillm.Draws(jnp.asarray(Y), log_q, log_p, hidden)

  def loss(student):
    hidden = student(ROWS)[:, len(PROMPT) - 1 : -1]
    return minillm.policy_loss(
      student,
      teacher,
      hidden,
      sample,
      jnp.asarray(weight, jnp.float32),
      jnp.asarray(weight * advantage(sample), jnp.float32),
    )[0]

  return jax.jit(jax.grad(loss))(student)


def flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def probabilities(mix):
  """log q, log p and log p̃ of each token of each continuation."""
  q, p = (np.asarray(of_tokens(dense(m)), np.float64) for m in models())
  mixed = np.where(REAL, np.log((1 - mix) * np.exp(q) + mix * np.exp(p)), 0)
  return q, p, mixed


def exact_gradient():
  """Of KL(q ‖ p) of whole continuations, by its definition."""
  student, teacher = models()
  log_p = jnp.sum(of_tokens(dense(teacher)), -1)

  def kl(student):
    log_q = jnp.sum(of_tokens(dense(student)), -1)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p))

  return flat(jax.jit(jax.grad(kl))(student))


def test_the_expected_gradient_is_that_of_the_reverse_kl(mesh):
  """Over all continuations, each as often as the student draws it."""
  q, _, mixed = probabilities(0)
  np.testing.assert_allclose(q, mixed)
  chance = np.exp(q.sum(-1))
  assert chance.sum() == pytest.approx(1, abs=1e-6)
  assert REAL.sum(-1).min() == 1  # some end at once
  found = estimated(
    *models(),
    chance[:, None] * REAL,
    lambda s: minillm.advantages(s, REAL, 0.0, normalized=False),
  )
  wanted = exact_gradient()
  assert np.abs(wanted).max() > 0.1
  np.testing.assert_allclose(flat(found), wanted, atol=1e-5)
  # Neither part alone is it.
  single = estimated(
    *models(), chance[:, None] * REAL, lambda s: jnp.zeros(Y.shape)
  )
  assert np.abs(flat(single) - wanted).max() > 0.01


def test_what_weights_of_one_step_leave_biased(mesh):
  """A sample's whole weight is exact; one step's takes the rest from p̃."""
  student, teacher = models()
  q, p, mixed = probabilities(0.2)
  chance, exact = np.exp(mixed.sum(-1)), exact_gradient()
  assert chance.sum() == pytest.approx(1, abs=1e-6)
  whole = chance * np.exp((q - mixed).sum(-1))
  found = estimated(
    student,
    teacher,
    whole[:, None] * REAL,
    lambda s: minillm.advantages(s, REAL, 0.0, normalized=False),
  )
  np.testing.assert_allclose(flat(found), exact, atol=1e-5)

  found = estimated(
    student,
    teacher,
    chance[:, None] * REAL,
    lambda s: minillm.advantages(s, REAL, 0.2, normalized=False),
  )
  # y_t from q; what stands before and after it from p̃.
  np.testing.assert_allclose(
    flat(found), flat(nested_gradient(q, p, mixed)), atol=1e-5
  )
  a, b = flat(found), exact
  assert np.abs(a - b).max() > 1e-3
  assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.98


def nested_gradient(q, p, mixed):
  """Σ_t E_{before ~ p̃} [∇ KL_t + E_{y_t ~ q} E_{after ~ p̃} …], summed up."""
  before = np.exp(np.cumsum(mixed, -1) - mixed)
  after = np.exp(mixed.sum(-1, keepdims=True) - np.cumsum(mixed, -1))
  later = (p - q).sum(-1, keepdims=True) - np.cumsum(p - q, -1)
  long = before * np.exp(q) * after * later * REAL
  # Each prefix once.
  single = np.zeros(Y.shape)
  for t in range(NEW):
    seen = set()
    for b, row in enumerate(Y):
      if REAL[b, t] and tuple(row[:t]) not in seen:
        seen.add(tuple(row[:t]))
        single[b, t] = before[b, t]
  student, teacher = models()
  log_p = dense(teacher)

  def loss(student):
    log_q = dense(student)
    kl = jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1)
    return jnp.sum(single * kl) - jnp.sum(long * of_tokens(log_q))

  return jax.jit(jax.grad(loss))(student)


def test_a_weight_on_the_single_step_changes_no_expectation(mesh):
  """Given what stands before a token, w_t is 1 in the mean."""
  q, _, mixed = probabilities(0.2)
  chance = np.exp(mixed.sum(-1))[:, None] * REAL
  found = [
    flat(estimated(*models(), w, lambda s: jnp.zeros(Y.shape)))
    for w in (chance, chance * np.exp(q - mixed))
  ]
  np.testing.assert_allclose(*found, atol=1e-5)


def test_returns_are_means_of_what_follows():
  tokens = jnp.array([[0, 1, EOS, EOS], [0, 1, 2, 0]])
  real = minillm.until_end(tokens, EOS)
  assert real.tolist() == [[1, 1, 1, 0], [1] * 4]
  p = jnp.log(jnp.array([[0.5, 0.2, 0.1, 0.9], [0.1, 0.4, 0.2, 0.3]]))
  q = jnp.log(jnp.full((2, 4), 0.4))
  sample = minillm.Draws(tokens, q, p, None)
  r, w = np.asarray(p - q), 0.4 / (0.8 * 0.4 + 0.2 * np.exp(p))
  found = minillm.advantages(sample, real, 0.2)
  wanted = np.zeros((2, 4))
  wanted[0, 0] = w[0, 0] * r[0, 1:3].mean()
  wanted[0, 1] = w[0, 1] * r[0, 2]
  for t in range(3):
    wanted[1, t] = w[1, t] * r[1, t + 1 :].mean()
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def dense_reverse_kl(q_h, q_w, p_h, p_w, weight, vocabulary):
  log_q, log_p = (
    jax.nn.log_softmax(jnp.einsum("btd,vd->btv", h, w[:vocabulary]))
    for h, w in ((q_h, q_w), (p_h, p_w))
  )
  kl = jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1)
  return jnp.sum(kl * weight), kl


def reverse_kl(q_h, q_w, p_h, p_w, weight, vocabulary, tokens=1024):
  tile = vocab_tiles.ReverseKLTile(vocabulary, tokens)
  loss, (kl,) = vocab_loss.tiled_loss(tile, q_h, q_w, ((p_h, p_w),), (weight,))
  return loss, kl


@pytest.mark.parametrize("tile", [4, 1024])
def test_the_tiled_kernel_is_the_dense_divergence(mesh, tile):
  keys = jax.random.split(jax.random.key(0), 5)
  sizes = (2, 7, 16), (64, 16), (2, 7, 24), (64, 24), (2, 7)
  arrays = [jax.random.normal(k, s) for k, s in zip(keys, sizes)]

  def value(function, *more):
    def of(h, w):
      loss, kl = function(h, w, *arrays[2:], *more)
      return 3 * loss, kl

    return jax.jit(jax.value_and_grad(of, (0, 1), has_aux=True))(*arrays[:2])

  found = value(reverse_kl, 61, tile)
  wanted = value(dense_reverse_kl, 61)
  near = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
  jax.tree.map(near, found, wanted)
  assert not found[1][1][61:].any()
  text = str(jax.make_jaxpr(lambda: value(reverse_kl, 61, 4))())
  assert not re.search(r"\[(14|2,7),64\]", text)
  # A model is no distance away from itself.
  h, w = arrays[:2]
  loss, kl = reverse_kl(h, w, h, w, arrays[4], 61)
  assert abs(loss) < 1e-5 and np.abs(kl).max() < 1e-5
  # What is not finite is seen.
  h = h.at[1, 2, 3].set(jnp.nan)
  loss, _ = reverse_kl(h, w, *arrays[2:], 61)
  assert np.isnan(loss)


def section(**changes):
  found = config_lib.default().minillm
  with found.unlocked():
    found.update(changes)
  return found


LARGE = shape(300, 16), shape(280, 24)


def batch_of(rows, length=16):
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, 280, (rows, length + 1)).astype(np.int32)
  return {
    "tokens": tokens,
    "length": np.full(rows, length + 1, np.int32),
    "row": np.arange(rows, dtype=np.int32) + 100,
  }


def objective_of(teacher, **changes):
  train = config_lib.default().train
  train.dtype, train.warmup_steps, train.steps = "float32", 0, 10
  return minillm.MiniLLM(train, EOS, "none", teacher, section(**changes)), train


def test_what_is_drawn_follows_the_mixture(mesh):
  """And its log-probabilities are those of the uncached models."""
  student, teacher = models()
  rows = 4000
  keys = minillm.keys_of_rows(jax.random.key(0), jnp.arange(rows))
  sample = jax.jit(
    functools.partial(
      minillm.draw, size=NEW, teacher_mix=0.3, eos_id=EOS, dtype=jnp.float32
    )
  )(student, teacher, np.tile(np.int32(PROMPT), (rows, 1)), keys)
  q, p, mixed = probabilities(0.3)
  place = {tuple(row): i for i, row in enumerate(Y)}
  found = np.array([place[tuple(row)] for row in np.asarray(sample.tokens)])
  for mine, wanted in ((sample.log_q, q), (sample.log_p, p)):
    difference = np.where(REAL[found], mine - wanted[found], 0)
    assert np.abs(difference).max() < 1e-5
  hidden = np.asarray(jax.jit(teacher)(ROWS))[:, len(PROMPT) - 1 : -1]
  difference = (sample.hidden - hidden[found]) * REAL[found][..., None]
  assert np.abs(difference).max() < 1e-4
  expected = np.exp(mixed.sum(-1)) * rows
  counts = np.bincount(found, minlength=len(Y))
  chi2 = ((counts - expected) ** 2 / expected).sum()
  assert chi2 < len(Y) + 6 * np.sqrt(2 * len(Y))


def test_turns_of_a_batch_give_the_step_of_the_whole(mesh):
  """With the same draws, whatever rows stand beside; a short row has none."""
  _, teacher = models(*LARGE)
  objective, train = objective_of(teacher)
  batch = batch_of(8)
  batch["length"][2] = 5
  batch["tokens"][3, 11] = EOS  # the prompt's last
  found = []
  for micro in (1, 4):
    abstract = loop.abstract_state(LARGE[0], train, mesh)
    state = loop._new_state(
      LARGE[0], train, NextToken.new_model, jax.random.key(0)
    )
    step = loop.step_function(abstract, train, objective, mesh, micro)
    for _ in range(2):
      state, said = step(state, batch, objective.frozen)
    found.append((state.model, said))
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  arrays, _ = objective.loss_inputs(batch, None, (), jax.random.key(0))
  _, _, _, slots, of_row, _ = arrays
  assert np.flatnonzero(slots.sum(-1) == 0).tolist() == [2, 3]
  np.testing.assert_allclose(slots[0], 1 / 4 / 8)
  np.testing.assert_allclose(of_row, [1 / 6, 1 / 6, 0, 0] + [1 / 6] * 4)


def test_the_student_comes_near_the_teacher(mesh):
  """Without the rows' loss; the vocabularies differ."""
  arch, teacher_arch = LARGE
  teacher = decoder.Decoder(teacher_arch, nnx.Rngs(2))
  objective, train = objective_of(teacher, lm_weight=0.0, prompt_share=0.5)
  train.steps, train.learning_rate = 40, 2e-2
  batch = batch_of(16)
  abstract = loop.abstract_state(arch, train, mesh)
  state = loop._new_state(arch, train, NextToken.new_model, jax.random.key(0))
  step = loop.step_function(abstract, train, objective, mesh, 1)
  divergence = []
  for _ in range(40):
    state, said = step(state, batch, objective.frozen)
    divergence.append(float(said["train/reverse_kl"]))
    assert 1 <= said["train/mean_length"] <= 8
  assert np.mean(divergence[-5:]) < 0.85 * np.mean(divergence[:5])


@pytest.mark.long
def test_a_mamba_may_be_the_student(mesh):
  """What it drew from its states is what it says of whole rows."""
  arch = Mamba(
    vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2
  )
  student, teacher = models(arch, LARGE[1])
  prompt = batch_of(4)["tokens"][:, :5] % 256
  sample = jax.jit(
    functools.partial(
      minillm.draw, size=4, teacher_mix=0.2, eos_id=EOS, dtype=jnp.float32
    )
  )(
    student,
    teacher,
    prompt,
    minillm.keys_of_rows(jax.random.key(0), np.arange(4)),
  )
  whole = jnp.concatenate([prompt, sample.tokens], 1)
  for model, wanted in ((student, sample.log_q), (teacher, sample.log_p)):
    hidden = jax.jit(model)(whole)[:, 4:-1]
    logits = jnp.einsum("bnd,vd->bnv", hidden, model.head_VxD[:256])
    found = jax.nn.log_softmax(logits)
    found = jnp.take_along_axis(found, sample.tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_teacher_that_is_not_finite_is_seen(mesh):
  arch, teacher_arch = LARGE
  teacher = decoder.Decoder(teacher_arch, nnx.Rngs(2))
  teacher.final_norm[...] = teacher.final_norm[...].at[0].set(jnp.nan)
  objective, train = objective_of(teacher)
  abstract = loop.abstract_state(arch, train, mesh)
  state = loop._new_state(arch, train, NextToken.new_model, jax.random.key(0))
  step = loop.step_function(abstract, train, objective, mesh, 1)
  _, said = step(state, batch_of(4), objective.frozen)
  assert np.isnan(said["train/loss"]) and np.isfinite(said["train/lm_loss"])


TRAIN = "--stages=train,export"
METHOD = "--config.method=minillm"


@pytest.mark.long
def test_a_tiny_run_learns_and_resumes(tmp_path):
  """The loss and the reverse KL fall; killed and resumed it is the same."""
  write_corpus(tmp_path / "text.jsonl")
  before = "--stages=tokenize,teacher,reference,score,select"
  more = "--config.teacher.train.steps=150", METHOD, "--config.train.steps=40"
  more += ("--config.equal_flops=False",)
  run(tmp_path, before, *more)
  done = run(tmp_path, TRAIN, *more)
  assert "FLOPs" in done.stdout
  folder = tmp_path / "run" / "students" / "minillm"
  lines = [
    json.loads(line)
    for line in (folder / "metrics" / "metrics.jsonl").read_text().splitlines()
  ]
  for name in ("train/loss", "train/lm_loss", "train/reverse_kl"):
    values = [line[name] for line in lines if name in line]
    assert len(values) == 40
    assert np.mean(values[-8:]) < 0.9 * np.mean(values[:8]), name
  again = (TRAIN, *more, "--config.student.name=again")
  appears = "students/again/checkpoints/8"
  assert kill(tmp_path, appears, signal.SIGKILL, *again) == -signal.SIGKILL
  assert "restored checkpoint" in run(tmp_path, *again).stdout
  assert weights(tmp_path, "again") == weights(tmp_path, "minillm")


def test_what_cannot_be_meant_is_refused(tmp_path):
  (tmp_path / "scores.npy").write_bytes(b"")
  for arguments, words in (
    (["--config.minillm.prompt_share=1"], "minillm.prompt_share is 1"),
    (["--config.minillm.prompt_share=0.05"], "minillm.prompt_share is 0.05"),
    (["--config.minillm.teacher_mix=1"], "minillm.teacher_mix is 1"),
    (["--config.minillm.lm_weight=-1"], "minillm.lm_weight is -1"),
    (
      ["--config.student.tokenizer=x", "--config.student.eos_token=</s>"],
      "needs the corpus's tokens",
    ),
    ([f"--config.teacher.scores={tmp_path}/scores.npy"], "minillm runs it"),
  ):
    assert words in refused(tmp_path, METHOD, "--dry_run", *arguments)


@pytest.mark.long
def test_every_mesh_draws_and_learns_the_same(eight_devices):
  one, *meshes = eight_devices("minillm")
  assert len(meshes) == 1 and one["logits"] == []
  for found in meshes:
    assert found["tokens"] == one["tokens"] and found["logits"] == []
    np.testing.assert_allclose(found["ratio"], one["ratio"], atol=1e-5)
    np.testing.assert_allclose(
      found["weights"], one["weights"], rtol=1e-4, atol=1e-5
    )
    for name, value in one["found"].items():
      assert found["found"][name] == pytest.approx(value, rel=1e-4), name
