"""Training: the step against torch, exact resume, damage, mixtures."""

import collections
import contextlib
import dataclasses
import json
import logging
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trainers
from etils import epath
from helpers import command, environment, refused, run, write_corpus
from test_pipeline import kill
from trainers import assert_same_run, lines, saved, spec, stopped

from miniplm_jax import config as config_lib
from miniplm_jax.config import TrainConfig
from miniplm_jax.core import errors, files
from miniplm_jax.core.errors import UserError
from miniplm_jax.models import huggingface, sharding
from miniplm_jax.training import (
  batches,
  checkpoints,
  comparable,
  loop,
  metrics,
  optimizer,
  telemetry,
)
from miniplm_jax.training.checkpoints import Checkpoints
from miniplm_jax.training.objective import NextToken

# Every way of training is killed and must come out the same.
METHODS_TO_KILL = (
  "vanilla_kd",
  pytest.param("pretrain", marks=pytest.mark.long),
  pytest.param("miniplm_kd", marks=pytest.mark.long),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Real text, packed: some hundred rows of two domains."""
  folder = tmp_path_factory.mktemp("packed")
  write_corpus(folder / "text.jsonl")
  run(folder, "--stages=tokenize")
  return trainers.corpus_of(folder)


# The step.


@pytest.mark.parametrize(
  ("reduction", "steps"), [("instance_mean", 20), ("token_mean", 5)]
)
def test_a_step_is_that_of_torch(tmp_path, mesh, reduction, steps):
  """Same weights, batches, clip, decay and schedule: same losses, weights."""
  torch = pytest.importorskip("torch", reason="needs the parity extra")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    vocab_size=97,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=3,
    tie_word_embeddings=True,
    initializer_range=0.1,
    attn_implementation="eager",
  )
  theirs = transformers.Qwen2ForCausalLM(config).train()
  theirs.save_pretrained(tmp_path / "before")
  ours = huggingface.load(epath.Path(tmp_path / "before"), mesh)
  train, eos = config_lib.default().train, 3
  train.update(
    {
      "steps": steps,
      "warmup_steps": 4,
      "learning_rate": 3e-3,
      "weight_decay": 0.1,
      "clip_norm": 0.5,
      "reduction": reduction,
      "dtype": "float32",
    }
  )
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 97, (steps, 6, 18)).astype(np.int32)
  tokens[rng.random(tokens.shape) < 0.1] = eos
  length = rng.integers(2, 19, (steps, 6)).astype(np.int32)

  decayed = torch.optim.AdamW(
    theirs.parameters(),
    lr=1.0,
    betas=(0.9, 0.98),
    eps=1e-6,
    weight_decay=0.1,
  )
  wanted, clipped = [], 0
  for t in range(steps):
    rate = 3e-3 * t / 4
    if t >= 4:
      turn = np.cos(np.pi * (t - 4) / (steps - 4))
      rate = 3e-4 + 0.5 * (3e-3 - 3e-4) * (1 + turn)
    for group in decayed.param_groups:
      group["lr"] = rate
    ids = torch.tensor(tokens[t], dtype=torch.long)
    ce = torch.nn.functional.cross_entropy(
      theirs(ids[:, :-1]).logits.transpose(1, 2), ids[:, 1:], reduction="none"
    )
    inside = torch.arange(17) < torch.tensor(length[t])[:, None] - 1
    mask = (ids[:, :-1] != eos) & inside
    loss = (ce * mask).sum(1) / mask.sum(1).clamp(min=1)
    loss = loss.sum() / (mask.sum(1) > 0).sum()
    if reduction == "token_mean":
      loss = (ce * mask).sum() / mask.sum()
    decayed.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    clipped += float(norm) > 0.5
    decayed.step()
    wanted.append(loss.item())
  assert clipped  # so that the clip is tested
  theirs.save_pretrained(tmp_path / "after")

  abstract = loop.abstract_state(ours.arch, train, mesh)
  step = loop.step_function(
    abstract, train, NextToken(train, eos, "none"), mesh, 1
  )
  opt_state = optimizer.make(train).init(ours)
  state = loop.State(jnp.zeros((), jnp.int32), ours, opt_state)
  found = []
  for t in range(steps):
    state, said = step(state, {"tokens": tokens[t], "length": length[t]})
    found.append(float(said["train/loss"]))
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  assert abs(found[0] - found[-1]) > 0.01
  after = huggingface.load(epath.Path(tmp_path / "after"), mesh)
  for a, b in zip(*map(jax.tree.leaves, (state.model, after)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


# Epochs and mixtures.


def drawn(corpus, rows, *, first=0, steps=6, shuffle=True, weights=(), seed=1):
  """int64 [steps, 8] row ids of the batches."""
  stream = batches.stream(
    corpus,
    rows,
    TrainConfig(
      batch_size=8, seed=seed, shuffle=shuffle, domain_weights=weights
    ),
    first_step=first,
    steps=steps,
    mesh=sharding.make_mesh(1, 1, 1),
  )
  return np.array([batch["row_id"] for batch in stream])


@pytest.mark.parametrize("shuffle", [False, True])
def test_four_epochs_of_a_quarter_see_every_row_four_times(corpus, shuffle):
  """The data-limited setting: ratio 0.25, steps for 4 epochs."""
  rows = corpus.rows_of("train")
  rows = rows[: len(rows) // 4 // 8 * 8]
  steps = 4 * len(rows) // 8
  found = drawn(corpus, rows, steps=steps, shuffle=shuffle)
  epochs = found.reshape(4, -1)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), rows)
  orders = {tuple(epoch) for epoch in epochs}
  assert len(orders) == (4 if shuffle else 1)
  if not shuffle:
    np.testing.assert_array_equal(epochs[0], rows)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_mixture_has_its_shares_in_every_prefix(corpus, shuffle):
  rows = corpus.rows_of("train")
  domain = dict(zip(rows.tolist(), corpus.domains(rows)))
  size = collections.Counter(domain.values())
  weights = ("odd=2", "even=0.5")
  found = drawn(corpus, rows, steps=60, shuffle=shuffle, weights=weights)
  seen = [domain[row] for row in found.ravel().tolist()]
  share = 2 * size["odd"] / (2 * size["odd"] + 0.5 * size["even"])
  odd = np.cumsum([name == "odd" for name in seen])
  n = np.arange(1, len(seen) + 1)
  assert np.abs(odd - share * n).max() <= 1
  # Within a domain it is a stream like any other: whole epochs, in order.
  for name in ("odd", "even"):
    mine = [row for row in found.ravel().tolist() if domain[row] == name]
    epoch = mine[: size[name]]
    own = [row for row in rows.tolist() if domain[row] == name][: len(epoch)]
    assert len(set(epoch)) == len(epoch)
    assert (epoch == own) != shuffle
  # Any first step; and another seed is another order.
  for first in (1, 17, 59):
    again = drawn(
      corpus, rows, first=first, steps=60, shuffle=shuffle, weights=weights
    )
    np.testing.assert_array_equal(again, found[first:])
  other = drawn(
    corpus, rows, steps=60, shuffle=shuffle, weights=weights, seed=2
  )
  assert (other == found).all() != shuffle


def test_weight_0_leaves_a_domain_out_and_unknown_ones_are_named(corpus):
  rows = corpus.rows_of("train")
  found = drawn(corpus, rows, weights=("odd=0",))
  assert set(corpus.domains(np.unique(found))) == {"even"}
  with pytest.raises(UserError, match=r"domain code, .*choose from even, odd"):
    drawn(corpus, rows, weights=("code=2",))
  with pytest.raises(UserError, match="weight 0"):
    drawn(corpus, rows, weights=("odd=0", "even=0"))
  seen = batches.trained_on(corpus, rows, ("odd=0",))
  wanted = [row for row in rows if corpus.domains([row])[0] == "even"]
  assert seen.tolist() == wanted and len(wanted) < len(rows)
  assert batches.trained_on(corpus, rows, ()) is rows


def test_many_domains_are_interleaved_exactly():
  shares = [1, 7, 30, 2, 11]
  pick = batches._Interleaved(shares)
  found = [pick[i] for i in range(3 * sum(shares))]
  count = np.zeros(len(shares), int)
  for i, (which, key) in enumerate(found):
    assert key == count[which]
    count[which] += 1
    wanted = (i + 1) * np.array(shares) / sum(shares)
    assert np.abs(count - wanted).max() < 2
  np.testing.assert_array_equal(count, 3 * np.array(shares))
  # Far out, in exact arithmetic.
  far = 10**15 * sum(shares)
  assert pick[far] == (found[0][0], 10**15 * shares[found[0][0]])


# Exact resume.


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
  """20 steps that nobody disturbed."""
  folder = tmp_path_factory.mktemp("whole")
  made = spec(corpus, folder, steps=20)
  mesh = loop.sharding.make_mesh(1, 1, 1)
  loop.train(made, mesh)
  return folder, made.objective.row_ids


@pytest.fixture(scope="module")
def partial(corpus, tmp_path_factory):
  """The same, stopped after 12 of the 20; and its rows."""
  folder = tmp_path_factory.mktemp("partial")
  made = spec(corpus, folder, {"stop_at": 12}, steps=20)
  stopped(made, loop.sharding.make_mesh(1, 1, 1))
  assert saved(folder) == [8, 12]
  return folder, made.objective.row_ids


def test_stopped_and_resumed_is_the_same_run(
  corpus, whole, partial, mesh, tmp_path
):
  (folder, row_ids), (begun, before) = whole, partial
  shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
  rest = spec(corpus, tmp_path, steps=20)
  loop.train(rest, mesh)
  assert before + rest.objective.row_ids == row_ids
  assert_same_run(tmp_path, folder, 20)


def test_a_mixture_is_resumed_in_the_middle(corpus, mesh, tmp_path):
  given = {"steps": 12, "domain_weights": ("odd=3",)}
  one = spec(corpus, tmp_path / "one", **given)
  loop.train(one, mesh)
  two = spec(corpus, tmp_path / "two", {"stop_at": 5}, **given)
  stopped(two, mesh)
  rest = spec(corpus, tmp_path / "two", **given)
  loop.train(rest, mesh)
  both = two.objective.row_ids + rest.objective.row_ids
  assert both == one.objective.row_ids
  assert_same_run(tmp_path / "two", tmp_path / "one", 12)


def test_a_checkpoint_of_another_run_is_refused(mesh, tmp_path):
  where = jax.NamedSharding(mesh, jax.P())
  state = {"step": jax.device_put(jnp.int32(4), where)}
  shapes = {"step": jax.ShapeDtypeStruct((), jnp.int32, sharding=where)}

  def opened(folder, seed, **more):
    made_by = {"settings": {"train": {"seed": seed}}} if seed else None
    made_by = made_by and made_by | more
    kept = Checkpoints(tmp_path / folder, None, made_by=made_by)
    return contextlib.closing(kept)

  for step, (folder, seed) in enumerate(
    [("one", 1), ("two", 2), ("old", 0)], 1
  ):
    with opened(folder, seed) as kept:
      kept.save(step, state)
  shutil.copytree(tmp_path / "two" / "2", tmp_path / "one" / "2")
  refused = r"2 is of another run: settings\.train\.seed is 2 there and 1 here"
  with opened("one", 1) as kept, pytest.raises(UserError, match=refused):
    kept.restore_newest("x", shapes)
  assert (tmp_path / "one" / "2").exists()  # what is there is the user's
  for folder, seed, step in (("two", 2, 2), ("old", 1, 3)):
    with opened(folder, seed) as kept:
      assert kept.restore_newest("x", shapes)[0] == step
  # What an earlier version did not say is not compared; what is said, is.
  with opened("two", 2, rows="a") as kept:
    assert kept.restore_newest("x", shapes)[0] == 2
    kept.save(3, state)
  with opened("two", 2, rows="b") as kept, pytest.raises(UserError, match="ro"):
    kept.restore_newest("x", shapes)
  # Only the curve is of other rows; without one nothing is known of it.
  shutil.rmtree(tmp_path / "one" / "2")
  with opened("one", 1, **{comparable.CURVE_OF: "a"}) as kept:
    assert kept.is_same_curve(1)
    kept.save(2, state)
  for rows, is_same in (("a", True), ("b", False)):
    with opened("one", 1, **{comparable.CURVE_OF: rows}) as kept:
      assert kept.restore_newest("x", shapes)[0] == 2
      assert kept.is_same_curve(2) == is_same


def test_other_rows_of_the_curve_leave_the_checkpoints(
  corpus, mesh, tmp_path, capsys
):
  def curve(rows, stop_at=0, **run):
    run = {"checkpoint_every": 2, "eval_every": 1} | run
    one = spec(corpus, tmp_path, {"stop_at": stop_at}, run, steps=3)
    held = corpus.rows_of("heldout")[:rows]
    made_by = {"settings": {"seed": 1}, comparable.CURVE_OF: str(rows)}
    one = dataclasses.replace(one, curve_ids=held, made_by=made_by)
    stopped(one, mesh) if stop_at else loop.train(one, mesh)
    return metrics.curve(lines(tmp_path), "eval/loss")[0]

  assert curve(8, stop_at=2) == [1, 2]
  # Points of other rows do not stand in the new one, though it has none yet.
  assert curve(16, eval_every=0) == []
  told = capsys.readouterr().out
  assert "restored checkpoint 2" in told and "the learning curve begins" in told
  assert metrics.curve(lines(tmp_path), "train/loss")[0] == [1, 2, 3]


def test_of_a_checkpoint_of_another_model_no_array_is_read(
  mesh, tmp_path, monkeypatch
):
  """Readers that fail at once leave each other behind, and that is told."""
  where = jax.NamedSharding(mesh, jax.P())
  state = {"a": jnp.ones((4, 2)), "b": jnp.ones(3)}
  state = jax.device_put(state, where)
  other = {
    name: jax.ShapeDtypeStruct((3,), jnp.float32, sharding=where)
    for name in state
  }
  monkeypatch.setattr(Checkpoints, "_read", None)
  kept = Checkpoints(epath.Path(tmp_path), keep=2)
  with contextlib.closing(kept):
    kept.save(1, state)
    kept.wait()
    refused = r"1 is of another model: a is \[4, 2\] there and \[3\] here"
    with pytest.raises(UserError, match=refused):
      kept.restore(1, other)


def test_what_orbax_leaves_behind_is_not_told(monkeypatch):
  told = []
  monkeypatch.setattr(sys, "unraisablehook", told.append)
  monkeypatch.setattr(logging.getLogger("absl"), "filters", [])
  checkpoints._quieten()

  async def read():
    pass

  ours = read()
  theirs = types.FunctionType(
    read.__code__.replace(co_filename="/orbax/serialization.py"), {}
  )()
  loop_closed = RuntimeError("Event loop is closed")
  for what, error in (
    (None, loop_closed),
    (theirs, Exception("Encountered error")),
    (ours, Exception("ours")),
  ):
    sys.unraisablehook(types.SimpleNamespace(object=what, exc_value=error))
  ours.close(), theirs.close()
  assert [f"{x.exc_value}" for x in told] == ["ours"]


def test_a_passing_fault_is_not_taken_for_damage(
  corpus, partial, mesh, tmp_path, monkeypatch
):
  shutil.copytree(partial[0], tmp_path, dirs_exist_ok=True)
  restore = checkpoints.ocp.PyTreeCheckpointHandler.restore

  def fails_once(self, directory, **more):
    monkeypatch.undo()
    raise ValueError(f"open {directory}: Too many open files")

  monkeypatch.setattr(
    checkpoints.ocp.PyTreeCheckpointHandler, "restore", fails_once
  )
  with pytest.raises(ValueError, match=r"12.*: Too many open files"):
    loop.train(spec(corpus, tmp_path, steps=20), mesh)
  assert checkpoints.ocp.PyTreeCheckpointHandler.restore is restore
  assert saved(tmp_path) == [8, 12]  # none is set aside


@contextlib.contextmanager
def files_up_to(size: int):
  """The disk is full, for what would make a file larger than that."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["run [x]", "a\\b", "run*"])
def test_where_checkpoints_could_not_be_read_none_is_written(tmp_path, name):
  folder = epath.Path(tmp_path) / name / "checkpoints"
  with pytest.raises(UserError, match="cannot be read back below a name with"):
    Checkpoints(folder, keep=2)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_asleep_while_saving", [False, True])
def test_a_run_that_was_taken_over_saves_no_more(
  corpus, mesh, tmp_path, is_asleep_while_saving
):
  """As one that was suspended, before it saved or while its threads did."""

  folder = tmp_path / "checkpoints"

  def guard():
    is_main = threading.current_thread() is threading.main_thread()
    if is_main != is_asleep_while_saving and (folder / "8").exists():
      raise UserError("taken over", "here", "wait")

  with files.guarded([guard]), pytest.raises(UserError, match="taken over"):
    loop.train(spec(corpus, tmp_path, steps=20), mesh)
  assert not (folder / "20").exists()
  assert metrics.read(tmp_path / "metrics")[-1]["step"] < 20


def test_a_disk_that_is_full_is_one_line_and_gone_on_from(
  corpus, whole, mesh, tmp_path, caplog
):
  with (
    files_up_to(20_000),
    pytest.raises(UserError, match=r"saved .*File too large.* checkpoint 0"),
  ):
    loop.train(spec(corpus, tmp_path, steps=20), mesh)
  assert all(r.levelname != "ERROR" for r in caplog.records)  # of threads
  loop.train(spec(corpus, tmp_path, steps=20), mesh)
  assert_same_run(tmp_path, whole[0], 20)


def test_a_board_on_a_full_disk_does_not_hang(tmp_path):
  board = metrics.TensorBoard(epath.Path(tmp_path), 0)
  with files_up_to(10_000), pytest.raises(OSError) as e:
    for step in range(10_000):
      board.write(step, {"train/loss": 1.0})
  assert errors.one_line(e.value).startswith(f"File too large, {tmp_path}, ")


@pytest.mark.parametrize(
  ("name", "damage"),
  [
    ("metrics.jsonl", b'{"step": 2, "train/lo'),
    ("metrics.jsonl", b"\xff\n"),
    ("metrics.jsonl", b"[]"),
    ("metrics.jsonl", b'{"step": 2, "train/loss": null}'),
    ("wall_time.json", b"{}"),
    ("wall_time.json", b'{"seconds": {"steps": "x"}, "checkpoints": []}'),
    ("wall_time.json", b""),
  ],
)
def test_damaged_metrics_are_one_line(tmp_path, name, damage):
  path = tmp_path / name
  path.write_bytes(b'{"step": 1}\n' * name.startswith("metrics") + damage)
  with pytest.raises(UserError, match=f"is damaged .*{name}"):
    metrics.read(epath.Path(tmp_path))
    telemetry.Clock(epath.Path(tmp_path))


def test_a_damaged_row_is_told_by_the_threads_that_read(corpus, mesh, tmp_path):
  folder = tmp_path / "run" / "corpus"
  shutil.copytree(corpus.directory, folder)
  (shard,) = folder.glob("instances-*")
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 1
  shard.write_bytes(content)
  damaged = trainers.corpus_of(tmp_path)
  rows = np.arange(len(damaged))
  train = TrainConfig(batch_size=8, seed=0, shuffle=False)
  given = {"first_step": 0, "steps": len(rows) // 8 + 1}
  stream = batches.stream(damaged, rows, train, mesh=mesh, **given)
  with pytest.raises(UserError, match=rf"file is damaged .*{shard.name}"):
    list(stream)


def test_the_newest_and_every_so_many_are_kept(corpus, mesh, tmp_path):
  run = {"checkpoint_every": 2, "keep_checkpoints": 2, "keep_every": 6}
  loop.train(spec(corpus, tmp_path, run=run, steps=16), mesh)
  assert saved(tmp_path) == [6, 12, 14, 16]


def test_what_was_kept_for_good_stays(mesh, tmp_path):
  """Whatever a later start keeps."""
  where = jax.NamedSharding(mesh, jax.P())
  state = {"step": jax.device_put(jnp.int32(0), where)}

  def after(keep_every, *steps):
    kept = Checkpoints(tmp_path / "checkpoints", 1, keep_every)
    with contextlib.closing(kept):
      for step in steps:
        kept.save(step, state)
    return saved(tmp_path)

  assert after(2, 1, 2, 3, 4, 5) == [2, 4, 5]
  assert after(0, 6, 7) == [2, 4, 7]
  assert after(7, 8, 9) == [2, 4, 7, 9]
  # An earlier version did not say.
  for path in tmp_path.glob("checkpoints/*/_CHECKPOINT_METADATA"):
    path.write_text(path.read_text().replace("for_good", "other"))
  assert after(0, 10, 11) == [2, 4, 7, 9, 11]


def largest(folder: pathlib.Path) -> pathlib.Path:
  """The file with the arrays."""
  return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


def truncated(folder):
  path = largest(folder)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(folder):
  """One bit, where the arrays are stored: no file format sees it."""
  path = largest(folder)
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 0x10
  path.write_bytes(content)


def garbled(folder):
  path = largest(folder)
  path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def without_metadata(folder):
  for path in folder.rglob("manifest.ocdbt"):
    path.unlink()


def garbled_metadata(folder):
  (folder / "default" / "_METADATA").write_bytes(b"\xff{")


def half_copied(folder):
  shutil.rmtree(folder / "default")


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


@pytest.mark.parametrize(
  "damage",
  [
    truncated,
    flipped,
    garbled,
    without_metadata,
    garbled_metadata,
    half_copied,
    empty,
  ],
)
def test_a_damaged_newest_checkpoint_is_skipped(
  corpus, whole, partial, mesh, tmp_path, capsys, damage
):
  folder, row_ids = whole
  shutil.copytree(partial[0], tmp_path, dirs_exist_ok=True)
  damage(tmp_path / "checkpoints" / "12")
  rest = spec(corpus, tmp_path, steps=20)
  capsys.readouterr()
  loop.train(rest, mesh)
  said = capsys.readouterr().out
  (warning,) = [line for line in said.splitlines() if "warning" in line]
  assert "checkpoint 12 cannot be used: " in warning
  assert "restored checkpoint 8 of 20 steps" in said
  # The steps after 8 are done again, 12 is saved again, nothing is double.
  assert rest.objective.row_ids == row_ids[8:]
  assert_same_run(tmp_path, folder, 20)
  assert (tmp_path / "checkpoints" / "broken-12").is_dir()
  assert saved(tmp_path) == [16, 20]


def test_without_a_sound_checkpoint_nothing_is_touched(
  corpus, partial, mesh, tmp_path
):
  """It may be the code that does not fit: days of training are not dropped."""
  shutil.copytree(partial[0], tmp_path, dirs_exist_ok=True)
  for step in (8, 12):
    flipped(tmp_path / "checkpoints" / str(step))
  before = sorted(p for p in tmp_path.rglob("*") if "metrics" not in p.parts)
  with pytest.raises(UserError, match="checkpoint 12 cannot be used"):
    loop.train(spec(corpus, tmp_path, steps=20), mesh)
  after = sorted(p for p in tmp_path.rglob("*") if "metrics" not in p.parts)
  assert after == before


def test_after_a_loss_that_is_not_finite_the_mended_run_goes_on(
  corpus, whole, mesh, tmp_path
):
  folder, row_ids = whole
  made = spec(corpus, tmp_path, {"spoilt": 10}, steps=20)
  with pytest.raises(UserError, match="at step 10"):
    loop.train(made, mesh)
  path = tmp_path / "metrics" / "not_finite.json"
  assert json.loads(path.read_text())["row_ids"] == row_ids[9]
  assert saved(tmp_path) == [4, 8]
  loop.train(spec(corpus, tmp_path, steps=20), mesh)
  assert_same_run(tmp_path, folder, 20)


# Real processes.


def killed_after(folder, step: int, *arguments):
  """kill -9 once a step was logged and a checkpoint is there."""
  process = subprocess.Popen(
    command(folder, *arguments),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    env=environment(),
  )
  place = folder / "run" / "students"
  for line in process.stdout:
    if f"completed step: {step}," in line:
      break
  while not list(place.glob("*/checkpoints/15")):
    assert process.poll() is None
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  assert process.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("method", METHODS_TO_KILL)
def test_kill_9_leaves_no_trace(finished, tmp_path, method):
  """40 steps in one go, and 40 steps with a kill -9 after the 17th."""
  given = (
    f"--config.method={method}",
    "--stages=select,train",
    "--config.train.steps=40",
    "--config.equal_flops=False",
    "--config.run.checkpoint_every=5",
    "--config.run.keep_checkpoints=8",
    "--config.run.eval_every=1",  # longer steps: time to be killed in
  )
  students = []
  for name in ("whole", "killed"):
    folder = tmp_path / name
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "run" / "students")
    students.append(folder / "run" / "students" / method)
  run(tmp_path / "whole", *given)
  killed_after(tmp_path / "killed", 17, *given)
  assert not (students[1] / "manifest.json").exists()
  assert 15 in saved(students[1]) and 40 not in saved(students[1])
  assert "restored checkpoint" in run(tmp_path / "killed", *given).stdout
  assert_same_run(*students, 40)
  made = [json.loads((s / "manifest.json").read_text()) for s in students]
  assert made[0]["weights"] == made[1]["weights"]


def test_a_part_of_a_run_binds_config_and_selection(copy):
  shutil.rmtree(copy / "run" / "students")
  appears = "students/miniplm/checkpoints/4"
  given = ("--stages=train", "--config.train.steps=100")
  assert kill(copy, appears, signal.SIGKILL, *given) == -signal.SIGKILL
  error = refused(copy, *given, "--config.train.learning_rate=0.02")
  assert "settings.train.learning_rate is 0.01 there and 0.02" in error
  ratio = "--config.select.ratio=0.25"
  run(copy, "--stages=select", "--force", ratio)
  error = refused(copy, *given, ratio)
  assert "inputs.selection" in error and "--stages=train --force" in error


def test_8_devices_then_4_then_8_are_one_run(eight_devices, finished):
  whole, resumed = eight_devices("resume", finished / "run" / "corpus")
  assert len(whole["row_ids"]) == 12
  assert resumed["row_ids"] == whole["row_ids"]
  assert len(resumed["loss"]) == 12
  np.testing.assert_allclose(resumed["loss"], whole["loss"], rtol=1e-6)
  assert whole["devices"] == [8] and resumed["devices"] == [8, 4, 8]
  assert resumed["shards"] == [[256, 8], [512, 4], [256, 8]]


def test_intervals_that_nobody_said_follow_the_steps():
  def every(steps, **options):
    run = config_lib.RunConfig(**options).of(steps)
    return run.checkpoint_every, run.eval_every

  assert [every(n) for n in (1, 120, 100_000)] == [
    (1, 1),
    (12, 6),
    (1000, 1000),
  ]
  assert every(120, checkpoint_every=7, eval_every=0) == (7, 0)
  assert every(120, keep_every=2000) == (1000, 6)


def test_fields_of_training_that_cannot_be_meant_are_refused(copy):
  for argument, words in (
    ("--config.train.domain_weights=('odd',)", "train.domain_weights"),
    ("--config.train.domain_weights=('odd=-1',)", "train.domain_weights"),
    ("--config.train.domain_weights=('odd=1','odd=2')", "each domain once"),
    ("--config.run.keep_every=6", "a multiple of checkpoint_every, 4"),
  ):
    assert words in refused(copy, argument, "--dry_run")
