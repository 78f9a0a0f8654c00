"""MiniPLM-proxy: which rows, what is learned, resuming, fidelity, refusals."""

import json
import pathlib
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from flax import nnx
from helpers import refused, rows, run
from scipy import stats
from test_pipeline import kill

from miniplm_jax import config as config_lib
from miniplm_jax.distillation import proxy
from miniplm_jax.distillation.regression import Regression
from miniplm_jax.models import architecture, regressor
from miniplm_jax.models.likelihood import loss_mask
from miniplm_jax.scoring import units
from miniplm_jax.training import loop

ARCH = architecture.Transformer(
  vocab_size=128,
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=2,
)
EOS = 3


def test_the_sample_is_uniform_nested_and_apart_from_the_split():
  rng = np.random.default_rng(0)
  hashes = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
  one, two = (units.point(hashes, seed) for seed in (1, 2))
  assert one.min() >= 0 and one.max() < 1
  assert stats.kstest(one, "uniform").pvalue > 1e-3
  assert abs(np.corrcoef(one, two)[0, 1]) < 0.01
  # One split is a range of the hash; even neighbors must not go together.
  split = np.sort(hashes)[:4000]
  assert stats.kstest(units.point(split, 1), "uniform").pvalue > 1e-3
  near = units.point(np.arange(4000, dtype=np.uint64), 1)
  assert abs(np.corrcoef(near[1:], near[:-1])[0, 1]) < 0.06
  np.testing.assert_array_equal(one[:5], units.point(hashes[:5], 1))


def batch_of(rng):
  tokens = rng.integers(0, 128, (4, 13)).astype(np.int32)
  tokens[:, 5] = EOS
  length = np.array([13, 2, 9, 6], np.int32)
  return {
    "tokens": tokens,
    "length": length,
    "target": rng.normal(size=4).astype(np.float32),
  }


def new_model():
  model = regressor.Regressor(ARCH, nnx.Rngs(0))
  head = jax.random.normal(jax.random.key(1), (16,))
  model.value_head[...], model.value_bias[...] = head, jnp.float32(0.3)
  return model


def plain_values(model, batch):
  """Token by token: a linear head, and the mean over those that count."""
  values = []
  hidden = model.body(batch["tokens"][:, :-1])
  for row, tokens, length in zip(hidden, batch["tokens"], batch["length"]):
    of_token = [
      jnp.dot(row[t], model.value_head[...]) + model.value_bias[...]
      for t in range(length - 1)
      if tokens[t] != EOS
    ]
    values.append(sum(of_token) / len(of_token))
  return jnp.stack(values)


@pytest.mark.parametrize("reduction", ["instance_mean", "token_mean"])
def test_loss_and_gradient_are_those_of_a_plain_regression(mesh, reduction):
  train = config_lib.default().proxy.train
  train.reduction, train.dtype = reduction, "float32"
  batch, model = batch_of(np.random.default_rng(0)), new_model()
  objective = Regression(train, EOS, "full", np.arange(4), batch["target"])
  tokens = np.array(loss_mask(batch["tokens"][:, :-1], batch["length"], EOS))
  count = tokens.sum(-1)
  weight = np.full(4, 0.25)
  if reduction == "token_mean":
    weight = count / count.sum()

  def plain(model):
    off = plain_values(model, batch) - batch["target"]
    return jnp.sum(jnp.asarray(weight, jnp.float32) * off**2)

  def ours(model):
    arrays, total = objective.loss_inputs(batch, model, (), None)
    assert total == 4
    return objective.loss(model, *arrays, frozen=())[0]

  wanted, wanted_grad = jax.jit(jax.value_and_grad(plain))(model)
  found, grad = jax.jit(jax.value_and_grad(ours))(model)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (grad, wanted_grad)), strict=True):
    # Of some 70: an element's rounding, and that of the sums behind it.
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-5)
  assert float(jnp.abs(grad.body.embed[...]).max()) > 1e-4
  sums, counted = regressor.row_value(
    model, batch, eos_id=EOS, dtype=jnp.float32
  )
  np.testing.assert_array_equal(counted, count)
  values = jax.jit(lambda model: plain_values(model, batch))
  np.testing.assert_allclose(sums / counted, values(model), rtol=1e-4)
  again = values(model.rescaled(-2.0, 3.0))
  np.testing.assert_allclose(again, values(model) * 3 - 2, rtol=1e-4)


def test_turns_of_a_batch_give_the_step_of_the_whole(mesh):
  train = config_lib.default().proxy.train
  train.dtype, train.warmup_steps = "float32", 0
  batch = batch_of(np.random.default_rng(1))
  target = batch.pop("target")
  ids = np.array([2, 3, 5, 7])
  objective = Regression(train, EOS, "none", ids, target)
  order = np.array([7, 2, 5, 3])
  placed = objective.with_rows(batch, order)
  np.testing.assert_array_equal(placed["target"], target[[3, 0, 2, 1]])
  found = []
  for micro in (1, 2):
    abstract = loop.abstract_state(ARCH, train, mesh, objective.new_model)
    state = loop._new_state(ARCH, train, objective.new_model, jax.random.key(0))
    step = loop.step_function(abstract, train, objective, mesh, micro)
    for _ in range(3):  # the head begins as 0: the body moves from step 2 on
      state, said = step(state, placed)
    found.append((state.model, said))
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  assert float(jnp.abs(found[0][0].value_head[...]).max()) > 0


def test_it_may_begin_with_given_weights():
  train = config_lib.default().proxy.train
  given, new = new_model().body, new_model()
  objective = Regression(train, EOS, "none", np.arange(1), np.ones(1), given)
  assert objective.started(new).body is given


def test_fidelity_is_that_of_scipy():
  rng = np.random.default_rng(0)
  true = np.round(rng.normal(size=501), 1).astype(np.float32)  # with ties
  predicted = np.round(true + rng.normal(size=501), 1).astype(np.float32)
  found = proxy.report(proxy.Comparison(true, predicted, 9, 510), 0.5)
  for name, function in (
    ("spearman", stats.spearmanr),
    ("pearson", stats.pearsonr),
  ):
    wanted = function(np.float64(true), np.float64(predicted)).statistic
    assert found[name] == pytest.approx(wanted, abs=1e-9)
  order = [np.argsort(-x, kind="stable")[:250] for x in (true, predicted)]
  both = len(set(order[0]) & set(order[1])) / 250
  assert found["agreement"]["0.5"] == pytest.approx(both)
  assert found["rows"] == 501 and found["rows_of_d"] == 510


# Enough to learn something and to be killed in.
GIVEN = (
  "--config.baselines=('proxy',)",
  "--config.proxy.train.steps=100",
)


@pytest.fixture(scope="module")
def proxied(finished, tmp_path_factory):
  """An uninterrupted run of the proxy over scores of all of D."""
  folder = tmp_path_factory.mktemp("proxied")
  shutil.copytree(finished, folder, dirs_exist_ok=True)
  done = run(folder, *GIVEN, "--stages=proxy,select")
  (folder / "said").write_text(done.stdout)
  return folder


def manifest(folder: pathlib.Path, name: str) -> dict:
  return json.loads((folder / "run" / name / "manifest.json").read_text())


def table(folder: pathlib.Path, model: str) -> dict[str, np.ndarray]:
  found = pq.read_table(
    sorted((folder / "run/scores" / model).glob("*.parquet"))
  )
  return {name: found[name].to_numpy() for name in found.column_names}


def split_train(folder: pathlib.Path) -> np.ndarray:
  index = pq.read_table(sorted((folder / "run/corpus").glob("*.parquet")))
  return np.flatnonzero(np.array(index["split"].to_pylist()) == "train")


def check_selection(folder: pathlib.Path):
  """All of D is predicted, and the top half of the predictions is kept."""
  found = table(folder, "proxy")
  assert set(found) == {"row_id", "diff_sum", "n_tokens"}
  np.testing.assert_array_equal(found["row_id"], split_train(folder))
  score = found["diff_sum"] / found["n_tokens"].astype(np.float32)
  order = np.lexsort((found["row_id"], -score))
  wanted = np.sort(found["row_id"][order[: len(score) // 2]])
  kept = np.load(folder / "run/selection/proxy/rows.npy")
  np.testing.assert_array_equal(kept, wanted)
  return score


def test_it_learns_the_score_and_says_how_well(proxied):
  made = manifest(proxied, "scores/proxy")
  report, flops = (made["details"][k] for k in ("fidelity", "flops_compared"))
  score, learned = check_selection(proxied), manifest(proxied, "proxy")
  p, p_ref = (table(proxied, m) for m in ("teacher", "reference"))
  true = (p_ref["nll_sum"] - p["nll_sum"]) / p["n_tokens"]
  index = pq.read_table(sorted((proxied / "run/corpus").glob("*.parquet")))
  hashes = index["hash"].to_numpy()[p["row_id"]]
  mine = units.point(hashes, 10) < 0.5
  assert report["learned_rows"] == learned["counts"]["rows"] == mine.sum()
  assert report["rows"] == (~mine).sum()
  rank = stats.spearmanr(true[~mine], score[~mine]).statistic
  assert report["spearman"] == pytest.approx(rank, abs=1e-4)
  assert report["spearman"] > 0.3
  assert learned["details"]["mean"] == pytest.approx(
    true[mine].mean(), rel=1e-4
  )
  assert learned["details"]["scale"] == pytest.approx(
    true[mine].std(), rel=1e-4
  )
  # A nat is a nat: the predictions are on the scale of the scores.
  assert score.mean() == pytest.approx(true.mean(), abs=true.std() / 2)
  both = flops["sample"] + flops["test"]
  assert both == pytest.approx(flops["full"])
  way = flops["sample"] + flops["train"] + flops["score"]
  assert flops["share_of_full"] == pytest.approx(way / flops["full"])
  parts = made["details"]["offline_flops"].values()
  assert sum(parts) == pytest.approx(way)
  assert "Spearman" in (proxied / "said").read_text()


def test_a_kill_in_training_and_one_in_scoring_change_nothing(
  proxied, tmp_path
):
  shutil.copytree(proxied, tmp_path, dirs_exist_ok=True)
  for name in ("proxy", "scores/proxy", "selection/proxy"):
    shutil.rmtree(tmp_path / "run" / name)
  given = (*GIVEN, "--stages=proxy,select", "--config.score.rows_per_part=64")
  for appears in ("proxy/checkpoints/4", "scores/proxy/part-00000*"):
    assert kill(tmp_path, appears, signal.SIGKILL, *given) == -signal.SIGKILL
  assert (tmp_path / "run/proxy/manifest.json").exists()
  assert not (tmp_path / "run/scores/proxy/manifest.json").exists()
  assert "resuming" in run(tmp_path, *given).stdout
  assert rows(tmp_path, "proxy") == rows(proxied, "proxy")
  wanted = sorted((proxied / "run/scores/proxy").glob("*.parquet"))
  assert len(wanted) > 5
  for path in wanted:
    assert (tmp_path / "run/scores/proxy" / path.name).read_bytes() == (
      path.read_bytes()
    )
  for name in ("proxy", "scores/proxy"):
    assert (
      manifest(tmp_path, name)["weights"] == manifest(proxied, name)["weights"]
    )


def test_most_of_d_is_never_seen_by_the_teacher(copy):
  """Method proxy alone, end to end, over scores of 60 % of D."""
  half = len(split_train(copy)) // 2
  given = (
    "--config.method=proxy",
    "--config.select.ratio=0.0",
    f"--config.select.rows={half}",
    "--config.score.share=0.6",
    "--config.proxy.sample=0.4",
    "--config.proxy.from_reference=True",
    "--config.train.steps=4",
  )
  assert "settings.seed" in refused(copy, *given, "--stages=score")
  shutil.rmtree(copy / "run/scores")
  stages = "--stages=score,proxy,select,train,evaluate,report,verify"
  done = run(copy, *given, stages)
  assert "0.6 of the rows of D" in done.stdout
  # Three tables check themselves, and stage verify two of them.
  off = re.findall(r"scored again, off by at most (\S+) nats", done.stdout)
  assert len(off) == 5 and max(map(float, off)) < 1e-5
  every, scored = split_train(copy), table(copy, "teacher")["row_id"]
  assert set(scored) < set(every)
  assert 0.5 < len(scored) / len(every) < 0.7
  np.testing.assert_array_equal(scored, table(copy, "reference")["row_id"])
  check_selection(copy)
  made = manifest(copy, "scores/proxy")["details"]["fidelity"]
  assert made["learned_rows"] + made["rows"] == len(scored)
  assert made["rows_of_d"] == len(every)
  page = (copy / "run/report.html").read_text()
  for words in ("The proxy", "inferred", "Spearman", "FLOPs: the proxy is"):
    assert words in page, words
  for said in (done.stdout, page):  # a budget in rows is no share
    assert "of the highest 50%" in said and "the highest 0%" not in said
    assert "had only the sample been scored" in said
  again = run(copy, *given, "--stages=score,proxy,select")
  assert again.stdout.count("skipped") == 5


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("--config.score.share=0.5",), "score.share is 0.5"),
    (("--config.score.share=1.5", "--config.method=proxy"), "score.share"),
    (("--config.proxy.sample=1.0", "--config.method=proxy"), "proxy.sample"),
    (("--config.proxy.sample=0.0", "--config.method=proxy"), "proxy.sample"),
    (("--config.proxy.name=teacher",), "proxy.name"),
    (("--config.proxy.model.tie_word_embeddings=False",), "tie_word"),
    (("--config.select.definition=proxy",), "--config.method=proxy"),
    (
      (
        "--config.method=proxy",
        "--config.proxy.sample=1e-9",
        "--stages=proxy",
      ),
      "0 scored rows to learn from",
    ),
    (
      (
        "--config.method=proxy",
        "--config.proxy.from_reference=True",
        "--config.proxy.model.hidden_size=32",
        "--stages=proxy",
      ),
      "proxy.from_reference",
    ),
  ],
)
def test_what_cannot_be_is_refused_in_one_line(copy, arguments, words):
  assert words in refused(copy, *arguments)
  assert not (copy / "run/scores/proxy").exists()
