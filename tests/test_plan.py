"""Look plan: the real programs of a config, compiled for slices not here."""

import dataclasses
import json

import pytest
import tiny_config
from etils import epath
from helpers import LONG, run, run_as_process, typed, write_corpus

from miniplm_jax.core.workdir import Workdir
from miniplm_jax.forecast import outlook, outlook_page, topology
from miniplm_jax.trainings import Trainings

needs_libtpu = pytest.mark.skipif(
  not topology.is_installed(), reason="no libtpu: see LIBTPU in the Makefile"
)
PLAN = "--stages=plan", "--config.plan.topology=v5e:2x2"


def lines_of(folder):
  found, price = outlook.read(epath.Path(folder / "run/plan/plan.json"))
  return {line.name: line for line in found if not line.is_tried}, price


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
  # Nothing is compiled again, and one more slice only for itself.
  kept = len(list((tmp_path / "run/plan").iterdir()))
  again = run(tmp_path, "--stages=plan", "--config.plan.topology=v5e:2x2")
  assert len(list((tmp_path / "run/plan").iterdir())) == kept
  assert "score by teacher" in again.stdout


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


@pytest.mark.long
@needs_libtpu
def test_a_search_names_what_is_fastest(tmp_path):
  done = run(tmp_path, *PLAN, "--config.plan.search=True")
  found, _ = outlook.read(epath.Path(tmp_path / "run/plan/plan.json"))
  tried = [line for line in found if line.is_tried]
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
