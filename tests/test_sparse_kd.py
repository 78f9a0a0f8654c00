"""sparse_kd and token_selection: kernel, draws, stored labels, tiny runs."""

import functools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import refused, run, typed, write_corpus
from tiny_config import get_config

from miniplm_jax import config as config_lib
from miniplm_jax import pipeline
from miniplm_jax.config import TokenSelectionConfig
from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import MANIFEST, PARTIAL, Workdir
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation import logits, logits_table
from miniplm_jax.distillation.sparse_kd import SparseKD
from miniplm_jax.distillation.token_selection import TokenSelection, top_share
from miniplm_jax.models import sharding, sparse_labels, vocab_loss, vocab_tiles
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.scoring import table as score_table
from miniplm_jax.training import loop
from miniplm_jax.trainings import Trainings

B, T, D, ROWS, V, K = 8, 6, 8, 128, 61, 5  # the head's last rows are padding
SIZES = (1, 1, 1), (2, 2, 2)  # devices by axis


def arrays():
  rng = np.random.default_rng(0)
  id_BxTxK = rng.integers(0, V, (B, T, K)).astype(np.int32)
  id_BxTxK[..., 1] = id_BxTxK[..., 0]  # one id twice
  weight_BxTxK = rng.random((B, T, K)).astype(np.float32)
  weight_BxTxK[:, -2:] = 0
  h_BxTxD = rng.normal(size=(B, T, D)).astype(np.float32)
  w_VxD = rng.normal(size=(ROWS, D)).astype(np.float32)
  return h_BxTxD, w_VxD, id_BxTxK, weight_BxTxK


def dense(h_BxTxD, w_VxD, target_BxTxV):
  logits_BxTxV = jnp.einsum("btd,vd->btv", h_BxTxD, w_VxD[:V])
  return -jnp.sum(target_BxTxV * jax.nn.log_softmax(logits_BxTxV))


def scattered(id_BxTxK, weight_BxTxK):
  target_BxTxV = np.zeros((*id_BxTxK.shape[:2], V), np.float32)
  b, t = np.ogrid[: id_BxTxK.shape[0], : id_BxTxK.shape[1]]
  np.add.at(target_BxTxV, (b[..., None], t[..., None], id_BxTxK), weight_BxTxK)
  return target_BxTxV


def sparse(h_BxTxD, w_VxD, id_BxTxK, weight_BxTxK, tile=7):
  loss, (nll_BxTxK,) = vocab_loss.tiled_loss(
    vocab_tiles.SparseTile(V, tile),
    h_BxTxD,
    w_VxD,
    (),
    (id_BxTxK, weight_BxTxK),
  )
  return loss, nll_BxTxK


def check_kernel():
  h, w, ids, weights = arrays()
  (loss, nll), grads = jax.jit(
    jax.value_and_grad(sparse, (0, 1), has_aux=True)
  )(h, w, ids, weights)
  wanted, wanted_grads = jax.value_and_grad(dense, (0, 1))(
    h, w, scattered(ids, weights)
  )
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  for found, exact in zip(grads, wanted_grads, strict=True):
    np.testing.assert_allclose(found, exact, atol=1e-5)
  assert not np.asarray(grads[1])[V:].any()
  np.testing.assert_allclose(np.sum(nll * weights), wanted, rtol=1e-5)


ALL = np.arange(B, dtype=np.int32)


def drawn(kind, count, rows=ALL, seed=1):
  h, w, ids, _ = arrays()
  program = functools.partial(
    sparse_labels.draw, kind=kind, count=count, ids=V, vocab_size=V, tokens=7
  )
  return jax.jit(program)(h, w, ids[..., 0], logits.keys(seed, rows, T))


def main() -> bool:
  """For eight_devices.py: both meshes, one result."""
  found = []
  for sizes in SIZES:
    devices = jax.devices()[: np.prod(sizes)]
    with jax.set_mesh(sharding.make_mesh(*sizes, devices)):
      check_kernel()
      made = [drawn(kind, K) for kind in ("top_k", "sampling")]
      value = jnp.asarray(arrays()[0][..., 0])
      where = jax.NamedSharding(
        jax.sharding.get_mesh(), jax.P(sharding.BATCH, None)
      )
      value = jax.device_put(value, where)
      share = jax.jit(lambda x: top_share(x, x < 1.5, 0.6))(value)
      found.append(jax.tree.map(np.asarray, (*made, share)))
  for other in found[1:]:
    for a, b in zip(*map(jax.tree.leaves, (found[0], other)), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)
  return True


def test_the_kernel_is_the_dense_loss(mesh):
  check_kernel()


def test_eight_devices_find_the_same(eight_devices):
  assert eight_devices("sparse_kd")


def test_what_is_kept_of_the_teacher(mesh):
  h, w, ids, _ = arrays()
  log_p = np.asarray(jax.nn.log_softmax(h @ w[:V].T))
  nll, top, top_log_p = drawn("top_k", K)
  label = np.take_along_axis(log_p, ids[..., :1], -1)[..., 0]
  np.testing.assert_allclose(nll, -label, atol=1e-5)
  wanted = np.sort(np.argsort(-log_p)[..., :K])
  np.testing.assert_array_equal(top, wanted)
  np.testing.assert_allclose(
    top_log_p, np.take_along_axis(log_p, wanted, -1), atol=1e-5
  )
  # Drawn ids depend on the row and its position, not on the batch.
  first = np.asarray(drawn("sampling", K)[1])
  rows = np.arange(B, dtype=np.int32)[::-1].copy()
  assert not np.array_equal(first, drawn("sampling", K, rows)[1])
  assert not np.array_equal(first, drawn("sampling", K, seed=2)[1])
  key = np.asarray(logits.keys(1, rows, T))[::-1]
  np.testing.assert_array_equal(key, logits.keys(1, rows[::-1].copy(), T))
  assert drawn("top_k", 0)[1].shape == (B, T, 0)


def test_all_ids_are_the_whole_distribution(mesh):
  h, w, _, _ = arrays()
  _, ids, log_p = drawn("top_k", V)
  student = h + 0.3
  found, grad = jax.value_and_grad(
    lambda h: sparse(h, w, ids, jnp.exp(log_p))[0]
  )(student)
  target = jax.nn.softmax(h @ w[:V].T)
  wanted, exact = jax.value_and_grad(dense)(student, w, target)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  np.testing.assert_allclose(grad, exact, atol=1e-5)


def test_sampling_is_unbiased(mesh):
  """The gradient of many seeds; top_k's is off by much more."""
  h, w, _, _ = arrays()
  w = w * 0.5
  student = h[:1, :1] + 0.3
  row = np.zeros(1, np.int32)
  target = np.asarray(jax.nn.softmax(h[:1, :1] @ w[:V].T))

  def grads(ids, weights):
    return jax.grad(lambda h: sparse(h, w, ids, weights)[0])(student)

  def of_seed(seed):
    key = logits.keys(seed, row, 1)
    _, ids, _ = sparse_labels.draw(
      h[:1, :1],
      w,
      row[None],
      key,
      kind="sampling",
      count=K,
      ids=V,
      vocab_size=V,
    )
    return ids

  n = 4000
  ids = np.concatenate(
    jax.jit(lambda s: jax.lax.map(of_seed, s))(jnp.arange(n))
  )
  counts = np.stack([np.bincount(x, minlength=V) for x in ids[:, 0]]) / K
  # Each id as often as it is likely, so its every function's mean is exact.
  p = target[0, 0]
  error = (counts.mean(0) - p) / np.sqrt(p * (1 - p) / (n * K))
  assert np.abs(error).max() < 4.5 and 0.7 < np.std(error) < 1.3
  # The gradient is linear in the counts: that of their mean is the mean.
  every = np.arange(V, dtype=np.int32)[None, None]
  exact = grads(every, target)
  mean = grads(every, jnp.asarray(counts.mean(0), jnp.float32)[None, None])
  top = np.argsort(-p)[None, None, :K].astype(np.int32)
  biased = grads(top, jnp.asarray(p[top[0, 0]])[None, None])
  assert np.abs(mean - exact).max() < 0.02
  assert np.abs(biased - exact).max() > 0.1


def test_the_top_share_is_that_of_numpy():
  rng = np.random.default_rng(0)
  for ratio in (0.1, 0.6, 1.0):
    value = rng.integers(0, 9, (B, T)).astype(np.float32)  # with ties
    mask = rng.random((B, T)) < 0.7
    value[0, 0] = np.nan
    found = np.asarray(top_share(jnp.asarray(value), jnp.asarray(mask), ratio))
    places = np.flatnonzero(mask)
    low = np.where(np.isnan(value), np.inf, -value).reshape(-1)[places]
    best = places[np.argsort(low, kind="stable")]
    wanted = np.zeros(B * T, bool)
    wanted[best[: int(np.floor(ratio * len(places) + 0.5))]] = True
    np.testing.assert_array_equal(found.reshape(-1), wanted)


class Stored:
  """A table in memory."""

  def __init__(self, **found):
    self._found = found

  def read(self, row_ids, length):
    del row_ids, length
    return self._found


class Fixed:
  """A model whose hidden states are given."""

  def __init__(self, h_BxTxD, w_VxD):
    self.arch = types.SimpleNamespace(vocab_size=V)
    self._hidden, self.head_VxD = h_BxTxD, w_VxD

  def __call__(self, inputs, **unused):
    return self._hidden


def batch():
  rng = np.random.default_rng(3)
  tokens = rng.integers(1, V, (B, T + 1)).astype(np.int32)
  return {"tokens": tokens, "length": np.full(B, T + 1, np.int32)}


def train_section():
  train = config_lib.default().train
  with train.unlocked():
    train.dtype, train.reduction = "float32", "token_mean"
  return train


@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_of_sparse_kd(mesh, normalise):
  h, w, ids, p = arrays()
  section = config_lib.default().sparse_kd
  with section.unlocked():
    section.weight, section.normalise = 0.3, normalise
  table = Stored(nll=None, ids=ids, log_probs=np.log(p + 0.01))
  made = SparseKD(train_section(), 0, "none", table, section)
  given = made.with_rows(batch(), np.arange(B))
  found, _ = made.loss_inputs(given, None, (), None)
  loss, parts = made.loss(Fixed(h, w), *found, frozen=())
  p = p + 0.01
  if normalise:
    p = p / p.sum(-1, keepdims=True)
  label = scattered(given["tokens"][:, 1:, None], np.float32(1))
  wanted = dense(h, w, (0.7 * label + 0.3 * scattered(ids, p)) / (B * T))
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  np.testing.assert_allclose(
    loss, 0.7 * parts["train/lm_loss"] + 0.3 * parts["train/kd_loss"], rtol=1e-5
  )


SIXTY_PERCENT = TokenSelectionConfig(ratio=0.6)


def test_tokens_with_the_largest_excess_are_trained_on(mesh):
  h, w, _, _ = arrays()
  frozen = np.random.default_rng(4).random((B, T)).astype(np.float32) * 5
  made = TokenSelection(
    train_section(), 0, "none", Stored(nll=frozen, ids=None), SIXTY_PERCENT
  )
  given = made.with_rows(batch(), np.arange(B))
  given |= made.first_pass(Fixed(h, w), given)
  (*found, _), total = made.loss_inputs(given, None, (), None)
  label = given["tokens"][:, 1:, None]
  log_p = np.asarray(jax.nn.log_softmax(h @ w[:V].T))
  excess = -np.take_along_axis(log_p, label, -1)[..., 0] - frozen
  kept = np.zeros(B * T, bool)
  kept[np.argsort(-excess.reshape(-1))[:29]] = True  # 0.6 of 48
  assert total == 29
  np.testing.assert_allclose(found[2].reshape(-1), kept / 29)


def test_turns_choose_the_tokens_of_the_whole_batch(mesh):
  """And what the first pass holds of the rows shrinks with the turns."""
  rng = np.random.default_rng(4)
  rows, length = 32, 64
  given = {
    "tokens": rng.integers(1, V, (rows, length + 1)).astype(np.int32),
    "length": rng.integers(2, length + 2, rows).astype(np.int32),
    "frozen_nll": rng.random((rows, length)).astype(np.float32) * 5,
  }
  train = train_section()
  made = TokenSelection(train, 0, "full", None, SIXTY_PERCENT)
  arch = Transformer(
    vocab_size=V,
    hidden_size=16,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
  )
  abstract = loop.abstract_state(arch, train, mesh)
  found, temporary = [], []
  for micro in (1, 8):
    new = functools.partial(loop._new_state, arch, train, made.new_model)
    state = jax.jit(new)(jax.random.key(0))
    step = loop.step_function(abstract, train, made, mesh, micro)
    compiled = step.lower(state, given).compile()
    temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    state, said = compiled(state, given)
    found.append((state.model, said))
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert temporary[1] < temporary[0] / 5


def test_a_row_that_is_not_finite_is_refused():
  row = np.array([1, np.nan], np.float32), np.zeros((2, 1), np.int32), None
  with pytest.raises(UserError, match="of row 7 are not finite"):
    logits_table.encode(7, row, "mark")


def test_labels_of_another_table_are_refused(tmp_path):
  settings = {"kind": "top_k", "ids": 1, "rows_per_part": 2, "seed": 0}
  nll, ids = np.ones(3, np.float32), np.array([[4], [5], [6]], np.int32)
  row = nll, ids, np.zeros((3, 1), np.float32)
  path = tmp_path / logits_table.part_name(0, 1)

  def read(weights, seed=0, architecture=None):
    made = manifest_lib.Manifest(
      epath.Path(tmp_path / MANIFEST),
      stage="logits",
      settings=settings | {"seed": seed},
      inputs={},
      weights=weights,
      counts={"parts": 1},
      files={path.name: files.describe(path)},
      details={"architecture": architecture} if architecture else {},
    )
    table = logits_table.LogitsTable(made, np.arange(2))
    return table.read([1], 3)["ids"][0]

  mark = logits_table.mark(settings, "mine", None)
  records = [logits_table.encode(i, row, mark) for i in range(2)]
  logits_table.write_part(path, records)
  assert read("mine").tolist() == read("mine", seed=5).tolist() == ids.tolist()
  with pytest.raises(UserError, match=f"another table.*{path.name}"):
    read("another model")
  with pytest.raises(UserError, match="another table"):
    read("mine", architecture="the same weights otherwise put to use")


METHODS = (
  "--config.method=sparse_kd",
  "--config.baselines=('token_selection',)",
  "--config.train.steps=40",
)
TEACHERS = "teacher-sampling-8-10"  # the folder of its labels
EARLIER = "--stages=tokenize,teacher,reference,score,select"


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
  """A run up to its students."""
  folder = tmp_path_factory.mktemp("labeled")
  write_corpus(folder / "text.jsonl")
  run(folder, EARLIER, *METHODS)
  run(folder, "--stages=logits", *METHODS)
  return folder


def contents(folder):
  return {p.name: p.read_bytes() for p in sorted(folder.glob("*.array_record"))}


def open_table(folder, selection, labels):
  root = epath.Path(folder / "run")
  directory = root / "selection" / selection
  kept = kept_rows(manifest_lib.require(directory / MANIFEST))
  made = manifest_lib.require(directory / "logits" / labels / MANIFEST)
  corpus = Corpus(manifest_lib.require(root / "corpus" / MANIFEST))
  return logits_table.LogitsTable(made, kept), kept, made, corpus


@pytest.mark.bits
def test_stored_labels_are_those_of_the_score_table(labeled):
  table, kept, made, corpus = open_table(labeled, "pretrain", "reference-nll")
  scores = labeled / "run" / "scores" / "reference" / MANIFEST
  parts = list(score_table.parts(manifest_lib.require(epath.Path(scores))))
  ids = np.concatenate([p["row_id"] for p in parts])
  sums = np.concatenate([p["nll_sum"] for p in parts])
  found = table.read(kept[::-1], corpus.max_length)["nll"]
  for i, row in enumerate(corpus.read(kept[::-1])):
    counts = np.asarray(row.ids[:-1]) != corpus.eos_id
    wanted = sums[np.searchsorted(ids, kept[::-1][i])]
    size = len(row.ids) - 1
    assert found[i, :size][counts].sum() == pytest.approx(wanted, rel=1e-4)
    assert not found[i, size:].any()
  assert made.counts["rows"] == len(kept)
  spent = made.details["offline_flops"]
  assert set(spent) == {"logits of reference", "training of reference"}
  assert min(spent.values()) > 0


def test_killed_and_resumed_the_labels_are_the_same(labeled, tmp_path):
  """Also of parts that are not those that belong there."""
  shutil.copytree(labeled, tmp_path, dirs_exist_ok=True)
  folder = tmp_path / "run" / "selection" / "miniplm" / "logits" / TEACHERS
  whole = contents(folder)
  assert len(whole) > 3
  (folder / MANIFEST).rename(folder / "manifest.partial.json")
  for name in list(whole)[1::2]:
    (folder / name).unlink()
  first, other, third, *_ = whole
  (folder / first).write_bytes(b"cut off by a copy")
  (folder / third).write_bytes(whole[other])
  done = run(tmp_path, "--stages=logits", *METHODS)
  assert "resuming" in done.stdout
  assert contents(folder) == whole
  # Batches of another size, and another model.
  again = "--stages=logits", *METHODS, "--config.score.batch_tokens=96"
  assert "batch_tokens" in refused(tmp_path, *again)
  first = open_table(tmp_path, "miniplm", TEACHERS)
  rows, size = first[1], first[3].max_length
  before = first[0].read(rows, size)
  run(tmp_path, *again, "--force")
  after = open_table(tmp_path, "miniplm", TEACHERS)[0].read(rows, size)
  assert np.mean(before["ids"] == after["ids"]) > 0.999
  np.testing.assert_allclose(before["nll"], after["nll"], atol=1e-4)
  other = f"--config.teacher.path={tmp_path / 'run' / 'reference' / 'hf'}"
  assert "inputs.weights is" in refused(tmp_path, *again, other)
  assert "logits" in refused(
    tmp_path, "--stages=train", *METHODS, "--config.sparse_kd.ids=9"
  )


def test_labels_of_two_kinds_lie_in_two_folders(tmp_path):
  config = get_config()
  config.method, config.baselines = "sparse_kd", ("token_selection",)
  config.token_selection.model = "teacher"
  config.select.definition, config.select.name = "random", "both"
  workdir = Workdir(epath.Path(tmp_path))

  def steps():
    return pipeline.Stages(typed(config), workdir).logits()

  def folders():
    return [step.name for step in steps()]

  assert folders() == [TEACHERS, "teacher-nll"]
  # Each student reads its own.
  trainings = Trainings(typed(config), workdir)
  for names, folder in zip(typed(config).names, folders()):
    (path, _) = trainings.student(names).objective.inputs.values()
    assert path.parent.name == folder
  # What an earlier version made goes on where it is; another kind does not.
  made = steps()[0]
  old = workdir.selection("both") / "logits" / "teacher" / PARTIAL
  manifest_lib.Manifest(old, "logits", made.settings, {}).write()
  assert folders() == ["teacher", "teacher-nll"]
  config.sparse_kd.kind = "top_k"
  assert folders() == ["teacher-top_k-8", "teacher-nll"]


@pytest.mark.long
def test_both_methods_learn(labeled, tmp_path):
  shutil.copytree(labeled, tmp_path, dirs_exist_ok=True)
  run(tmp_path, "--stages=train", *METHODS)
  for student, names in (
    ("sparse_kd", ("loss", "lm_loss", "kd_loss")),
    ("token_selection", ("loss", "lm_loss")),
  ):
    folder = tmp_path / "run" / "students" / student
    text = (folder / "metrics" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for name in names:
      values = [x[f"train/{name}"] for x in lines if f"train/{name}" in x]
      # The teacher has trained for 8 steps: its words are nearly uniform.
      least = 0.03 if name == "kd_loss" else 0.3
      assert np.mean(values[-5:]) < np.mean(values[:5]) - least, name


def test_what_cannot_be_meant_is_refused(tmp_path):
  for argument, words in (
    ("sparse_kd.kind=x", "sparse_kd.kind is 'x'"),
    ("sparse_kd.ids=0", "sparse_kd.ids is 0"),
    ("sparse_kd.normalise=True", "counts of samples"),
    ("token_selection.ratio=0", "token_selection.ratio is 0"),
    (f"teacher.scores={tmp_path}/x.npy", "sparse_kd runs it"),
    (f"reference.scores={tmp_path}/x.npy", "token_selection runs it"),
  ):
    done = refused(tmp_path, "--dry_run", *METHODS, f"--config.{argument}")
    assert words in done
