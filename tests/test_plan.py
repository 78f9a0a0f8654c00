"""Look plan: the real programs of a config, compiled for slices not here."""

import dataclasses
import json

import pytest
import tiny_config
from etils import epath
from helpers import LONG, run, run_as_process, typed, write_corpus

from miniplm_jax.core.workdir import Workdir
from miniplm_jax.forecast import outlook, outlook_page, topology
from miniplm_jax.forecast.prediction import Prediction
from miniplm_jax.forecast.workload import Decoding
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.training.flops import generation, minillm
from miniplm_jax.trainings import Trainings

needs_libtpu = pytest.mark.skipif(
  not topology.is_installed(), reason="no libtpu: see LIBTPU in the Makefile"
)
PLAN = "--stages=plan", "--config.plan.topology=v5e:2x2"


def lines_of(folder):
  found, price, _ = outlook.read(epath.Path(folder / "run/plan/plan.json"))
  return {line.name: line for line in found if not line.is_tried}, price


def programs_of(tmp_path, **changes):
  """Of the tiny config with those changes, and what is said to be missing."""
  config = tiny_config.get_config()
  config.workdir = str(tmp_path)
  config.update_from_flattened_dict(changes)
  trainings = Trainings(typed(config), Workdir(epath.Path(tmp_path)))
  return {p.name: p for p in trainings.on_tpus()}, trainings.not_on_tpus


@needs_libtpu
def test_a_config_is_planned_without_a_corpus(tmp_path):
  done = run(
    tmp_path,
    *PLAN,
    "--config.plan.price=2",
    "--config.plan.rows=1001",
    "--config.baselines=('vanilla_kd','minillm')",
  )
  found, price = lines_of(tmp_path)
  assert price == 2 and list(found) == [
    "train teacher",
    "train reference",
    "score by teacher",
    "score by reference",
    "train miniplm",
    "train vanilla_kd",
    "train minillm",
    "sample for minillm",
  ]
  # 256 tokens in rows of 32: 8 rows over 4 chips.
  assert found["score by teacher"].prediction.rows == 2
  assert found["score by teacher"].runs == 126
  assert found["train vanilla_kd"].runs < found["train miniplm"].runs == 8
  assert found["train minillm"].slowdown > 1 == found["train miniplm"].slowdown
  for line in found.values():
    f = line.prediction
    assert f.fits and 0 < f.held_bytes < f.peak_bytes < f.hbm_bytes
    assert f.chips == 4 and f.seconds > 0
    assert line.chip_hours * 3600 == pytest.approx(
      line.runs * f.seconds * line.slowdown * 4
    )
    assert line.name in done.stdout
  assert "predicted" in done.stdout and "nothing was measured" in done.stdout
  assert "Not in the totals: held-out losses" in done.stdout
  # Nothing is compiled again, and one more slice only for itself.
  kept = len(list((tmp_path / "run/plan").iterdir()))
  again = run(tmp_path, "--stages=plan", "--config.plan.topology=v5e:2x2")
  assert len(list((tmp_path / "run/plan").iterdir())) == kept
  assert "score by teacher" in again.stdout


def test_every_stage_is_in_the_total_or_named(tmp_path):
  """What is not, is said; no part is left out because it was forgotten."""
  found, missing = programs_of(
    tmp_path,
    **{
      "plan.rows": 1000,
      "baselines": ("seqkd", "minillm", "proxy", "sparse_kd", "staged"),
      "conditional.source": str(tmp_path / "target.jsonl"),
      "score.more": ("counts=ngram:train",),
      "compare.criteria": ("difficulty",),
      "evaluation.tasks": ("arc_easy",),
    },
  )
  assert list(found) == [
    *("train teacher", "train reference", "train conditional"),
    *("score by teacher", "score by reference", "score by conditional"),
    *("fit the proxy", "predict by the proxy"),
    "train miniplm",
    *("generate for seqkd", "train seqkd"),
    *("train minillm", "sample for minillm"),
    "train proxy",
    *("logits for sparse_kd", "train sparse_kd"),
    *("score between stages of staged", "train staged"),
    "train students of compare",
  ]
  assert any("arc_easy" in text for text in missing)
  # Half of D is kept, 8 steps take 8 rows each, prompts have 24 of 32 tokens.
  assert found["logits for sparse_kd"].count == 500
  decoding = found["generate for seqkd"]
  assert (decoding.count, decoding.prompt, decoding.new) == (64, 24, 9)
  sample = found["sample for minillm"]
  assert sample.new == 8 and sample.rows(4) == [2, 1]
  few, _ = programs_of(
    tmp_path,
    **{"baselines": ("minillm",), "run.per_device_batch_size": 1},
  )
  assert few["sample for minillm"].rows(4) == [1]
  # What is drawn takes its own time, and is no part of the training's.
  train, (student, teacher) = found["train minillm"], sample.models
  drawn = sum(generation(m, 24, 8) for m in sample.models) / 32
  spent = train.slowdown * train.token_flops + drawn
  assert spent == pytest.approx(minillm(student, teacher, 24, 8))
  # Of 3 stages that keep a third of 500 rows each; 2 criteria of 3 seeds.
  rest = found["score between stages of staged"].count
  assert rest == pytest.approx(1000 - 500 * 2 / 8 + 1000 - 500 * 5 / 8, abs=1)
  assert found["train students of compare"].runs(1, 1) == 2 * 3 * 8
  assert found["fit the proxy"].slowdown < 1
  plain, _ = programs_of(tmp_path)
  assert list(plain) == [
    *("train teacher", "train reference"),
    *("score by teacher", "score by reference", "train miniplm"),
  ]


@needs_libtpu
def test_generation_takes_what_weights_and_caches_take_to_be_read():
  """A closed form of its own, of 16 rows a chip of a model of 1 layer."""
  arch = Transformer(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=1,
    num_attention_heads=32,
    num_key_value_heads=8,
  )
  prompt, new = 768, 256
  program = Decoding(
    *("generate", (arch,), "bfloat16", prompt, new, 64, 640, "seqkd.batch_size")
  )
  mesh = topology.mesh("v5e:2x2", 1, 4, 1)
  line = outlook.Slice("v5e:2x2", mesh, "full", None).first_that_fits(program)
  found = line.prediction
  assert (found.rows, line.runs) == (16, 10)
  weights = 2 * 4096 * (4096 + 4096 + 2 * 1024 + 3 * 11_008 + 32_000)
  cache = 2 * 16 * (prompt + new) * 2 * 8 * 128
  read = new * (weights + cache) / 819e9
  # The prompts' products, and their causal attention.
  layer = 2 * 4096 * (4096 + 4096 + 2 * 1024 + 3 * 11_008)
  prompts = 16 * prompt * (layer + 2 * 4096 * prompt) / 197e12
  assert found.optimistic == pytest.approx(read + prompts, rel=0.02)
  assert found.optimistic < found.seconds < found.pessimistic
  # Whole weights of a large model have no room, however few rows there are.
  large = dataclasses.replace(arch, num_hidden_layers=48)
  program = dataclasses.replace(program, models=(large,))
  line = outlook.Slice("v5e:2x2", mesh, "full", None).first_that_fits(program)
  assert not line.prediction.fits and line.prediction.rows == 1


def test_models_that_score_together_need_room_for_all():
  gib = 2**30
  place = "v5e:4x4", (1, 16, 1), 16 * gib, 16
  runs = [
    outlook.Outlook(
      f"score by {name}",
      Prediction(*place, peak_bytes=peak * gib, held_bytes=6 * gib),
      *("", 1),
    )
    for name, peak in (("teacher", 8), ("reference", 9), ("generic", 7))
  ]
  (said,) = outlook_page.together(runs)
  assert "take 21.0 GiB of a chip's 16.0" in said and "score_together" in said
  assert not [*outlook_page.together(runs[:2])]  # 15 GiB
  assert not [*outlook_page.together(runs[:1])]


@needs_libtpu
def test_what_does_not_fit_is_named_with_what_does(tmp_path, monkeypatch):
  config = tiny_config.get_config()
  config.workdir, config.score.dtype = str(tmp_path), "bfloat16"
  config.corpus.max_length = length = 64
  config.teacher.model.hidden_size = 8192
  config.teacher.model.num_hidden_layers = 1
  config.score.batch_tokens = 4 * 8192 * length
  trainings = Trainings(typed(config), Workdir(epath.Path(tmp_path)))
  programs = trainings.on_tpus()
  (program,) = (p for p in programs if p.name == "score by teacher")
  assert program.rows(4)[:2] == [8192, 4096]
  # Compiling what fills the memory takes minutes: go on with few rows.
  monkeypatch.setattr(type(program), "rows", lambda self, shards: [8192, 64])
  mesh = topology.mesh("v5e:2x2", 1, 4, 1)
  line = outlook.Slice("v5e:2x2", mesh, "full", None).first_that_fits(program)
  assert line.prediction.fits and line.prediction.rows == 64
  assert "Ran out of memory" in line.refusal
  assert line.setting == f"--config.score.batch_tokens={4 * 64 * length}"
  said = " ".join(outlook_page.advice([line]))
  assert line.setting in said and line.prediction.largest[0] in said
  # And where nothing fits.
  refused = dataclasses.replace(line.prediction, refusal=line.refusal)
  line = dataclasses.replace(line, prediction=refused)
  assert "not even" in " ".join(outlook_page.advice([line]))
  assert "no total" in " ".join(outlook_page.totals([line], 0))


@needs_libtpu
def test_a_search_names_the_fastest_rows_of_scoring(tmp_path, monkeypatch):
  found, _ = programs_of(tmp_path)
  program = dataclasses.replace(found["score by teacher"], count=1000)

  def predict(program, slice_name, mesh, rows, *unused):
    if rows == 16:
      return Prediction(slice_name, (1, 4, 1), 1, rows, refusal="too large")
    # 2 rows a run in the time of 1, and more than twice that for 4.
    seconds = {1: 1.0, 2: 1.0, 4: 2.5, 8: 6.0}[rows]
    return Prediction(slice_name, (1, 4, 1), 1, rows, seconds=seconds)

  monkeypatch.setattr("miniplm_jax.forecast.prediction.predict", predict)
  place = outlook.Slice("v5e:2x2", topology.mesh("v5e:2x2", 1, 4, 1), "", None)
  own = dataclasses.replace(program, batch_tokens=4 * 8 * program.length)
  known = place.first_that_fits(own)
  assert (known.prediction.rows, known.runs) == (8, 32)
  tried = place.search(own, known)
  assert [line.prediction.rows for line in tried] == [2, 4, 1]
  (said,) = outlook_page.advice([known, *tried])
  assert f"--config.score.batch_tokens={4 * 2 * program.length}" in said
  best = dataclasses.replace(tried[0], is_tried=False, setting="")
  (said,) = outlook_page.advice([best, *tried[1:]])
  assert "nothing that was tried for score by teacher is faster" in said


@pytest.mark.long
@needs_libtpu
def test_a_search_names_what_is_fastest(tmp_path):
  done = run(tmp_path, *PLAN, "--config.plan.search=True")
  found, *_ = outlook.read(epath.Path(tmp_path / "run/plan/plan.json"))
  tried = [line for line in found if line.is_tried and line.remat]
  assert {line.remat for line in tried} == {"full", "dots"}
  # One head of keys: nothing to split by tensor.
  meshes = {line.prediction.mesh for line in tried}
  assert meshes == {(1, 4, 1), (2, 2, 1)}
  seconds = [line.prediction.seconds for line in tried]
  assert seconds == sorted(seconds)
  best = tried[0]
  own = next(x for x in found if x.name == best.name and not x.is_tried)
  data, fsdp, tensor = best.prediction.mesh
  flags = (
    f"--config.run.data={data} --config.run.fsdp={fsdp} "
    f"--config.run.tensor={tensor} "
    f"--config.run.per_device_batch_size={best.prediction.rows} "
    f"--config.run.remat={best.remat}"
  )
  is_better = best.seconds < own.seconds
  assert (flags in done.stdout) == is_better
  assert ("nothing that was tried is faster" in done.stdout) != is_better


@pytest.mark.long
@needs_libtpu
def test_the_report_has_it(copy):
  run(copy, *PLAN)
  run(copy, "--stages=report", "--config.baselines=('pretrain',)", LONG)
  text = (copy / "run/report.html").read_text()
  assert "Plan: predicted, not measured" in text and "v5e:2x2" in text
  made = json.loads((copy / "run/report.json").read_text())
  assert "plan" in made["inputs"]


@pytest.mark.parametrize(
  ("bad", "said"),
  [
    ("--config.plan.topology=", "config.plan.topology"),
    ("--config.plan.price=-1.0", "config.plan.price"),
    ("--config.plan.rows=0", "config.plan.rows"),
  ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, bad, said):
  done = run_as_process(tmp_path, "--stages=plan", bad, code=1)
  assert said in done.stderr


def test_a_dry_run_compiles_nothing(tmp_path):
  write_corpus(tmp_path / "text.jsonl", 2)
  done = run(tmp_path, *PLAN, "--dry_run")
  assert "would compile" in done.stdout and not (tmp_path / "run").exists()
