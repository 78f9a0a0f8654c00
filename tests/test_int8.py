"""int8 weights, and whether they keep the order of the rows."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from miniplm_jax.core.errors import UserError
from miniplm_jax.models import decoder, int8, likelihood, sharding
from miniplm_jax.models.architecture import Mamba, Transformer
from miniplm_jax.scoring import fidelity

ARCHS = {
  "transformer": Transformer(
    vocab_size=61,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
  ),
  "mamba": Mamba(
    vocab_size=61, hidden_size=128, intermediate_size=256, num_hidden_layers=3
  ),
}
MATRICES = {
  "transformer": {
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
  },
  "mamba": {"in_proj", "gate_proj", "x_proj", "out_proj"},
}


def made(mesh, kind, dtype=jnp.float32):
  """A model whose layers matter: weights are 5 times the usual ones."""
  arch = dataclasses.replace(ARCHS[kind], initializer_range=0.1)
  model = decoder.Decoder(arch, nnx.Rngs(0), dtype)
  return jax.device_put(model, sharding.shardings(model, mesh))


def on_host(model):
  """[(name, array or QArray)]."""
  leaves = jax.tree_util.tree_leaves_with_path(model, int8.is_quantized)
  return [
    (sharding.name_of(path), jax.tree.map(np.asarray, leaf))
    for path, leaf in leaves
  ]


@pytest.fixture(params=ARCHS)
def kind(request):
  return request.param


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_matrices_are_rounded_by_their_greatest_and_nothing_else(
  mesh, kind, dtype
):
  before = on_host(made(mesh, kind, dtype))
  after = on_host(int8.quantize(made(mesh, kind, dtype)))
  found = set()
  for (name, w_LxDxE), (same_name, q) in zip(before, after, strict=True):
    assert name == same_name
    if not int8.is_quantized(q):
      assert q.dtype == w_LxDxE.dtype
      np.testing.assert_array_equal(q, w_LxDxE)
      continue
    found.add(name)
    w_LxDxE = w_LxDxE.astype(np.float32)
    scale_Lx1xE = np.abs(w_LxDxE).max(1, keepdims=True) / np.float32(127.5)
    assert q.qvalue.dtype == np.int8 and q.scale.dtype == np.float32
    np.testing.assert_allclose(q.scale, scale_Lx1xE, rtol=1e-6)
    # The nearest integer: the greatest are 127.5, and go either way.
    np.testing.assert_allclose(q.qvalue, w_LxDxE / scale_Lx1xE, atol=0.5001)
    assert np.abs(q.qvalue.astype(int)).max(1).min() >= 127
  assert found == MATRICES[kind]


def test_float_matrices_are_given_up_and_all_else_is_kept(mesh, kind):
  model = made(mesh, kind)
  leaves = jax.tree_util.tree_leaves_with_path(model)
  int8.quantize(model)
  for path, leaf in leaves:
    name = sharding.name_of(path)
    assert leaf.is_deleted() == (name in MATRICES[kind]), name


def test_layers_take_half_the_bytes_of_bfloat16(mesh, kind):
  def held(model):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.layers))

  model = made(mesh, kind, jnp.bfloat16)
  before = held(model)
  share = held(int8.quantize(model)) / before
  # A scale is 4 bytes; Mamba's dt_proj stays, and what its scan reads.
  assert share < {"transformer": 0.53, "mamba": 0.6}[kind]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_close_to_those_of_floats(mesh, kind, dtype):
  """To 0.02 nats per token, and not the same."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, 61, (8, 33)).astype(np.int32)
  batch = {"tokens": tokens, "length": np.full(8, 33, np.int32)}
  f = jax.jit(
    functools.partial(likelihood.row_nll, eos_id=0, dtype=jnp.dtype(dtype))
  )
  wanted, count = f(made(mesh, kind), batch)
  found, _ = f(int8.quantize(made(mesh, kind)), batch)
  difference = np.abs(found - wanted) / count
  assert 1e-5 < difference.max() < 0.02


def test_a_cache_sees_the_same_model(mesh, kind):
  model = int8.quantize(made(mesh, kind))
  tokens = jnp.arange(12)[None]
  whole = jax.jit(lambda m: m(tokens))(model)

  @jax.jit
  def piecewise(m):
    cache = m.new_cache(jnp.zeros(1, int), 12, jnp.float32)
    first, cache = m.extend(tokens[:, :7], cache)
    return jnp.concatenate([first, m.extend(tokens[:, 7:], cache)[0]], 1)

  np.testing.assert_allclose(piecewise(model), whole, atol=1e-4)


def test_layers_of_zeros_stay_zero(mesh):
  model = jax.tree.map(jnp.zeros_like, made(mesh, "transformer"))
  layers = int8.dequantized(int8.quantize(model).layers)
  assert not any(leaf.any() for leaf in jax.tree.leaves(layers))


@pytest.fixture(scope="module")
def meshes(eight_devices):
  """What one and 8 simulated devices compute, by family."""
  return eight_devices("int8")


def test_every_mesh_rounds_and_scores_alike(meshes, kind):
  one, eight = meshes[kind]
  np.testing.assert_allclose(eight["nll"], one["nll"], rtol=1e-5)
  assert eight["values"] == one["values"]


def test_matrices_are_split_as_floats_are_and_scales_where_they_can(meshes):
  _, eight = meshes["transformer"]
  # Of [2, 64, 96] and [2, 96, 64] on data, fsdp and tensor of 2.
  assert eight["shards"]["up_proj"] == [[2, 32, 48], [2, 1, 48]]
  assert eight["shards"]["down_proj"] == [[2, 48, 32], [2, 1, 32]]
  _, eight = meshes["mamba"]
  # Of [2, 128, R + 2 N = 36].
  assert eight["shards"]["x_proj"] == [[2, 32, 36], [2, 1, 36]]


def test_layers_travel_as_int8(meshes, kind):
  one, eight = meshes[kind]
  assert one["gathers"] == []
  gathers = eight["gathers"]
  as_int8 = [shape for dtype, shape in gathers if dtype == "s8"]
  assert len(as_int8) == len(MATRICES[kind])
  # What else is gathered by a layer is small: scales, and Mamba's dt_proj.
  least = min(math.prod(shape) for shape in as_int8)
  floats = [
    shape
    for dtype, shape in gathers
    if dtype != "s8" and shape not in eight["tables"]
  ]
  assert all(math.prod(shape) < least for shape in floats), floats


def test_a_report_by_hand():
  exact = np.arange(10, dtype=np.float32)
  rounded = exact.copy()
  rounded[[4, 5]] = rounded[[5, 4]]
  assert fidelity.report(exact, rounded, alpha=0.5) == {
    "rows": 10,
    "spearman": pytest.approx(1 - 6 * 2 / (10 * 99)),
    "alpha": 0.5,
    "agreement": {"0.1": 1.0, "0.3": 1.0, "0.5": 0.8},
    "mean_difference": 0.2,
    "max_difference": 1.0,
  }


def test_a_report_in_words():
  report = fidelity.report([0, 1, 2, 4], [0, 1, 2.5, 4], alpha=0.5)
  assert fidelity.in_words(report) == (
    "on 4 rows, rounded weights give a rank correlation of 1.0000 and 100.0% "
    "of the highest 50%; scores differ by 0.12 nats per token, at most 0.5"
  )


def test_ties_share_a_rank_and_the_lower_row_is_kept():
  def found(exact, rounded):
    report = fidelity.report(exact, rounded, alpha=0.5)
    return report["spearman"], report["agreement"]["0.5"]

  # Ranks −1.5 0 0 1.5 and −1.5 −0.5 0.5 1.5: 4.5 / √(4.5 · 5). Rows 3 and 1
  # are the highest, and 3 and 2.
  rank = pytest.approx(4.5 / 22.5**0.5)
  assert found([1, 2, 2, 3], [1, 2, 3, 4]) == (rank, 0.5)
  # Rows 0 and 1 of equal ones; of the others, rows 3 and 0.
  assert found([1, 1, 1, 1], [0, 0, 0, 1]) == (0, 0.5)
  assert found([1, 2, 3, 4], [4, 3, 2, 1]) == (pytest.approx(-1), 0)


def test_scores_that_would_select_other_rows_are_refused():
  report = fidelity.report([0, 1, 2, 3, 4, 5], [0, 1, 3, 2, 4, 5], alpha=0.5)
  assert report["agreement"] == {
    "0.1": 1,
    "0.3": 1,
    "0.5": pytest.approx(2 / 3),
  }
  spearman = 1 - 6 * 2 / (6 * 35)
  fidelity.check(report, 0.94, 0.66, "here")
  for bounds in ((0.95, 0.66), (0.94, 0.67)):
    with pytest.raises(UserError, match=r"0\.9429 .* 0\.6667 .*, here, ") as e:
      fidelity.check(report, *bounds, "here")
    assert "\n" not in str(e.value)
  assert report["spearman"] == pytest.approx(spearman)
  with pytest.raises(UserError, match="nan"):
    fidelity.check(report | {"spearman": float("nan")}, 0.94, 0.66, "here")
