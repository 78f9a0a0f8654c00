"""Cached decoding, sampling, and the stage that a user runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import edited, refused, run, typed
from test_huggingface import SHAPES, new
from tiny_config import get_config

from miniplm_jax import pipeline
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.distillation import minillm
from miniplm_jax.models import architecture, decoder, generation, head, ready
from miniplm_jax.models.generation import Sampling

TOKENS = np.random.default_rng(0).integers(0, 300, (3, 21)).astype(np.int32)


@functools.partial(jax.jit, static_argnames="pieces")
def cached(model, tokens, first, pieces):
  """Hidden states of tokens that come in pieces."""
  cache = model.new_cache(first, tokens.shape[1] + 4, jnp.float32)
  found, start = [], 0
  for size in pieces:
    piece = tokens[:, start : start + size]
    hidden, cache = model.extend(piece, cache)
    found.append(hidden)
    start += size
  return jnp.concatenate(found, 1)


def logits(model, hidden):
  return np.asarray(jnp.einsum("btd,vd->btv", hidden, model.head_VxD))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("pieces", [(21,), (13, 1, 1, 6), (1,) * 21])
def test_cached_decoding_equals_uncached(mesh, name, pieces):
  model = new(SHAPES[name])
  found = cached(model, TOKENS, jnp.zeros(3, jnp.int32), pieces)
  wanted = jax.jit(model)(TOKENS)
  difference = logits(model, found) - logits(model, wanted)
  assert np.abs(difference).max() <= 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_padding_on_the_left_is_not_there(mesh, name):
  """By value and by gradient, whatever the padding's tokens are."""
  model = new(SHAPES[name])
  batch = generation.pad_left([TOKENS[0, :9], TOKENS[1, :4]], 3)
  rows, first = batch["tokens"], batch["first"]
  assert first.tolist() == [0, 5, 5]
  assert batch["row"].tolist() == [0, 1, -1]
  found = cached(model, rows, first, (9,))
  for i, size in enumerate((9, 4)):
    wanted = jax.jit(model)(rows[i : i + 1, -size:])
    difference = found[i, -size:] - wanted[0]
    assert np.abs(difference).max() <= 1e-5
  rows[1, :5] = [250, 251, 252, 253, 254]

  def last(model):
    return jnp.sum(cached(model, rows, first, (9,))[1, -1] ** 2)

  grad = np.asarray(jax.grad(last)(model).embed[...])
  seen = set(np.flatnonzero(np.abs(grad).sum(-1)))
  assert seen == set(rows[1, 5:])


@pytest.mark.parametrize("piece", [1024, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_greedy_is_the_argmax_of_the_uncached_model(
  mesh, name, piece, monkeypatch
):
  monkeypatch.setattr(generation, "_PIECE", piece)
  model = new(SHAPES[name])
  program = generation.compiled(
    mesh,
    sampling=Sampling(12, temperature=0),
    seed=0,
    eos_ids=(),
    vocabulary=20,
    dtype=jnp.float32,
  )
  batch = generation.pad_left([TOKENS[0, :7], TOKENS[1, :3]], 3)
  found = program(model, batch).values
  assert found.finite.all()
  assert found.length.tolist()[:2] == [12, 12]
  assert not found.tokens[2].any()  # what fills the batch is not continued
  for prompt, new_ids in zip((TOKENS[0, :7], TOKENS[1, :3]), found.tokens):
    whole = np.concatenate([prompt, new_ids])[None]
    best = logits(model, jax.jit(model)(whole))[0, :, :20].argmax(-1)
    np.testing.assert_array_equal(best[len(prompt) - 1 : -1], new_ids)


def test_a_long_prompt_is_read_in_pieces(mesh):
  """No weights of all its queries are formed: they took all memory."""
  shape = next(iter(SHAPES.values()))
  program = generation.compiled(
    mesh,
    sampling=Sampling(2, temperature=0),
    seed=0,
    eos_ids=(),
    vocabulary=20,
    dtype=jnp.float32,
  )
  length = 8192
  batch = generation.pad_left([np.zeros(length, np.int32)], 1)
  lowered = program.lower(new(shape), batch)
  used = lowered.compile().memory_analysis().temp_size_in_bytes
  assert used < shape.num_attention_heads * length**2 * 4


def sample(mesh, model, prompts, numbers, *, eos_ids=(), **settings):
  program = generation.compiled(
    mesh,
    sampling=Sampling(8, **settings),
    seed=3,
    eos_ids=eos_ids,
    vocabulary=300,
    dtype=jnp.float32,
  )
  batch = generation.pad_left(prompts, len(prompts), numbers=numbers)
  made = program(model, batch)
  assert made.row_B.tolist() == list(numbers)
  return made.values


@pytest.mark.bits
def test_a_row_does_not_depend_on_its_batch(mesh):
  model = new(SHAPES["transformer"])
  prompts = [TOKENS[0, :7], TOKENS[1, :3], TOKENS[1, :3]]
  many = sample(mesh, model, prompts, [0, 1, 2]).tokens
  alone = sample(mesh, model, prompts[1:2], [1]).tokens
  np.testing.assert_array_equal(many[1], alone[0])
  assert (many[1] != many[2]).any()  # same prompt, other number


def test_a_row_ends_at_its_end(mesh):
  model = new(SHAPES["transformer"])
  prompts = [TOKENS[0, :7], TOKENS[1, :3]]
  free = np.asarray(sample(mesh, model, prompts, [0, 1]).tokens)
  end = int(free[0, 2])
  assert end not in free[1]
  found = sample(mesh, model, prompts, [0, 1], eos_ids=(end, 5))
  assert found.length.tolist() == [3, 8]
  np.testing.assert_array_equal(found.tokens[0, :3], free[0, :3])
  assert (np.asarray(found.tokens[0, 3:]) == end).all()
  np.testing.assert_array_equal(found.tokens[1], free[1])


@pytest.mark.parametrize(
  "settings",
  [
    {"temperature": 0.5},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.7},
    {"top_p": 0.01},
    {"temperature": 2.0, "top_k": 20, "top_p": 0.5},
  ],
)
def test_what_may_be_drawn_is_what_transformers_draws_from(settings):
  torch = pytest.importorskip("torch", reason="needs the parity extra")
  transformers = pytest.importorskip(
    "transformers", reason="needs the parity extra"
  )
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(4, 300)).astype(np.float32) * 3
  wanted = torch.tensor(scores)
  for key, warper in (
    ("temperature", transformers.TemperatureLogitsWarper),
    ("top_k", transformers.TopKLogitsWarper),
    ("top_p", transformers.TopPLogitsWarper),
  ):
    if key in settings:
      wanted = warper(settings[key])(None, wanted)
  found = generation.filtered(jnp.asarray(scores), Sampling(1, **settings))
  wanted -= wanted.max(-1, keepdim=True).values  # ours counts from the top
  np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_a_tiny_temperature_draws_the_likeliest():
  scores = jnp.asarray([[1.0, 3.0, 2.0], [5.0, -1.0, 4.9]])
  found = generation.filtered(scores, Sampling(1, temperature=1e-40))
  assert found.argmax(-1).tolist() == [1, 0]
  assert found.max(-1).tolist() == [0, 0]


def test_draws_follow_the_probabilities(mesh):
  """4,000 draws of one next token against its softmax."""
  model = new(SHAPES["transformer"])
  prompts = [TOKENS[0, :5]] * 4000
  first_token = np.asarray(sample(mesh, model, prompts, range(4000)).tokens)[
    :, 0
  ]
  hidden = jax.jit(model)(TOKENS[:1, :5])[:, -1]
  # Compiled: without, it is for arrays that JAX has placed by the mesh, and
  # whether it has depends on what was computed before.
  logits_of = jax.jit(head.logits, static_argnums=2)
  p = jax.nn.softmax(logits_of(hidden, model.head_VxD, 300)[0])[:300]
  counts = np.bincount(first_token, minlength=300)
  expected = np.asarray(p) * 4000
  chi2 = ((counts - expected) ** 2 / expected).sum()
  assert chi2 < 299 + 6 * np.sqrt(2 * 299)


def casts_in_loops(jaxpr, is_loop=False):
  """Sizes of what loops turn from float32 into bfloat16."""
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if is_loop and name == "convert_element_type":
      dtypes = eqn.invars[0].aval.dtype, params["new_dtype"]
      if dtypes == (jnp.float32, jnp.bfloat16):
        yield eqn.invars[0].aval.size
    for value in jax.tree.leaves(list(params.values())):
      if inner := getattr(value, "jaxpr", None):
        yield from casts_in_loops(inner, is_loop or name in ("while", "scan"))


@pytest.mark.parametrize("fits", [True, False])
def test_weights_are_cast_once_and_not_for_every_token(mesh, monkeypatch, fits):
  monkeypatch.setattr(ready, "_fits", lambda *_: fits)
  model = new(SHAPES["transformer"])
  common = {"dtype": jnp.bfloat16}

  def generate(model, tokens, first, row):
    return generation.generate(
      model,
      tokens,
      first,
      row,
      sampling=Sampling(4),
      seed=0,
      eos_ids=(),
      vocabulary=20,
      **common,
    )

  def draw(model, tokens, first, row):
    key = minillm.keys_of_rows(jax.random.key(0), row)
    return minillm.draw(
      model, model, tokens, key, size=4, teacher_mix=0.5, eos_id=0, **common
    )

  batch = generation.pad_left([TOKENS[0, :2]], 1)
  arrays = batch["tokens"], batch["first"], batch["row"]
  for program in (generate, draw):
    jaxpr = jax.make_jaxpr(program)(model, *arrays).jaxpr
    # What is left are hidden states of two tokens, and their FFN.
    small = 2 * model.arch.intermediate_size
    assert (max(casts_in_loops(jaxpr)) <= small) == fits


def test_weights_that_do_not_fit_are_named(mesh, monkeypatch, capsys):
  """Qwen1.5-4B in bfloat16 takes 7.4 GiB of a v5e's 15.75."""
  arch = architecture.SHAPES["qwen1.5-4b"]
  given = decoder.abstract(arch, jnp.bfloat16), jnp.zeros(8, jnp.int32)

  def fits(found=None):
    def trace(model, first):
      nonlocal found
      cache = model.new_cache(first, 1024, jnp.bfloat16)
      found = ready._fits([model.layers], [model.head_VxD], [cache])

    jax.eval_shape(trace, *given)
    return found

  held = {"bytes_limit": 15.75 * 2**30, "bytes_in_use": 3 * 2**30}

  class Device:
    platform = "cpu"
    memory_stats = staticmethod(lambda: held)

  monkeypatch.setattr(ready.jax, "local_devices", lambda: [Device])
  assert fits()
  assert not capsys.readouterr().out
  held["bytes_in_use"] = 5 * 2**30
  assert not fits() and not fits()
  (line,) = capsys.readouterr().out.splitlines()
  for words in (
    "weights of 6.6 GiB",
    "caches of 3.1 GiB",
    "10.8 GiB",
    "tensor",
  ):
    assert words in line


def test_a_student_that_was_trained_again_is_exported_again(copy):
  config = get_config()
  config.generate.prompts = ("Comparisons can",)
  workdir = Workdir(epath.Path(copy / "run"))
  with edited(copy / "run/students/miniplm/manifest.json") as trained:
    trained["settings"]["train"]["seed"] += 1
  with pytest.raises(UserError, match=r"inputs\.model .* --stages=export --f"):
    pipeline.Stages(typed(config), workdir).generate(False)


def test_a_user_looks_at_the_student(copy, tmp_path):
  arguments = "--prompt=Comparisons can", "--config.generate.max_new_tokens=5"
  other = "--config.student.name=other"
  error = refused(tmp_path, "--stages=generate", *arguments, other)
  assert "not exported yet" in error
  before = sorted((tmp_path / "run").rglob("*"))
  more = "--prompt=Strings", "--config.generate.samples=2"
  done = run(tmp_path, "--stages=generate", *arguments, *more)
  assert done.stdout.count("\nComparisons can") == 2
  assert done.stdout.count("\nStrings") == 2
  assert "tokens/s" in done.stdout
  again = run(tmp_path, "--stages=generate", *arguments, *more)
  assert done.stdout.split("[")[0] == again.stdout.split("[")[0]
  assert sorted((tmp_path / "run").rglob("*")) == before
  for flags, words in (
    ([], "nothing to continue"),
    (["--prompt="], "generate.prompts is ''"),
    (["--config.generate.prompts=(1,2)"], "generate.prompts is 1"),
    ([*arguments, "--config.generate.max_new_tokens=40000"], "do not fit"),
    ([*arguments, "--config.generate.top_p=0"], "generate.top_p is 0"),
  ):
    assert words in refused(tmp_path, "--stages=generate", *flags)
  error = refused(tmp_path, "--stages=report", *arguments)
  assert "nothing that reads it" in error
