"""What people expect of a trainer: each feature by what it leaves behind."""

import contextlib
import dataclasses
import functools
import itertools
import json
import re
import shutil
import textwrap
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import trainers
from helpers import refused, run, typed, write_corpus
from safetensors.numpy import load_file
from tiny_config import get_config

from miniplm_jax.core import manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import trained_rows
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import hub, huggingface, sharding
from miniplm_jax.training import (
  loop,
  metrics,
  telemetry,
  train_step,
  watch,
)
from miniplm_jax.training import trained as trained_lib
from miniplm_jax.training.spec import TrainSpec


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp("features")
  write_corpus(folder / "text.jsonl")
  run(folder, "--stages=tokenize")
  return Corpus(manifest.require(folder / "run/corpus/manifest.json"))


def spec(corpus, directory, **changes) -> loop.Training:
  """8 steps of the tiny student; changes are of section run."""
  config = get_config()
  config.run.update(changes)
  config = typed(config)
  return loop.Training(
    spec=TrainSpec(
      stage="student",
      folder=manifest.epath.Path(directory),
      shape=config.student.model,
      train=config.train,
      run=config.run,
      max_length=corpus.max_length,
      export=config.export,
    ),
    corpus=corpus,
    row_ids=corpus.rows_of("train"),
    curve_ids=corpus.heldout_rows(16),
  )


def train(what: loop.Training):
  return loop.train(what, sharding.make_mesh(1, 1, 1))


class Broken(trainers.Hooked):
  """Raises or sleeps on the host before step `at` is dispatched."""

  def __init__(self, what: loop.Training, at: int, do):
    spec = what.spec
    super().__init__(spec.train, what.corpus.eos_id, spec.run.remat)
    self._left, self._do = at, do

  def begins(self, batch):
    self._left -= 1
    if not self._left:
      self._do()
    return batch


def test_the_time_left_is_without_first_compilations(
  corpus, tmp_path, monkeypatch, capsys
):
  """Of steps of 1 s, after 600 s, and a first evaluation of 300 s."""
  now = [1e6]
  fake = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(telemetry, "time", fake)
  what = spec(corpus, tmp_path).spec
  told = telemetry.Telemetry(what, 0, telemetry.Clock(tmp_path), True)
  names = ("loss", "grad_norm", "total_weights")
  values = {f"train/{name}": 1.0 for name in names}
  for step in range(1, 9):
    now[0] += 600 if step == 1 else 1
    told.add(step, values, np.zeros(8))
    told.fetch()
    if step % 4 == 0:
      with told.outside("evaluation"):
        now[0] += 300
  lines = capsys.readouterr().out.splitlines()
  first, *others = [line for line in lines if "completed step" in line]
  assert "left" not in first
  assert [line.rpartition("left: ")[2] for line in others] == [
    f"{8 - step:.1f} s" for step in range(2, 9)
  ]


def test_goodput_counts_steps_and_not_what_is_done_again(
  corpus, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(telemetry, "_BEAT", 0.0)

  def die():
    raise RuntimeError("killed")

  what = spec(corpus, tmp_path, checkpoint_every=4)
  with pytest.raises(RuntimeError):
    train(dataclasses.replace(what, objective=Broken(what, 7, die)))
  found = json.loads((tmp_path / "metrics/wall_time.json").read_text())
  lost = found["seconds"]["steps"] - found["checkpoints"][-1][1]
  assert found["checkpoints"][-1][0] == 4 and lost > 0
  train(what)
  found = json.loads((tmp_path / "metrics/wall_time.json").read_text())
  seconds = found["seconds"]
  assert seconds["steps done again"] == pytest.approx(lost)
  for part in ("start", "compilation", "evaluation", "saving", "steps"):
    assert seconds[part] > 0, part
  said = capsys.readouterr().out.splitlines()[-1]
  share = seconds["steps"] / sum(seconds.values())
  assert f"goodput {share:.1%} of " in said
  lines = metrics.read(tmp_path / "metrics")
  shares = [m["train/goodput"] for m in lines if "train/loss" in m]
  assert len(shares) == 8 and all(0 < s < 1 for s in shares)


def test_steps_take_neither_evaluation_nor_saving_nor_compilation(
  corpus, tmp_path, monkeypatch
):
  """100 seconds more of each, on the clock alone, show in no step."""
  clock_s, more = time.monotonic, itertools.count()

  def slow(function):
    def slower(*args):
      late = 100 * (next(more) + 1)
      monkeypatch.setattr(time, "monotonic", lambda: clock_s() + late)
      return function(*args)

    return slower

  monkeypatch.setattr(loop.Heldout, "__call__", slow(loop.Heldout.__call__))
  monkeypatch.setattr(loop.Checkpoints, "save", slow(loop.Checkpoints.save))
  monkeypatch.setattr(watch, "memory_report", slow(watch.memory_report))
  what = spec(corpus, tmp_path)
  train(what)
  lines = metrics.read(tmp_path / "metrics")
  rates = [m["train/tokens_per_second"] for m in lines if "train/loss" in m]
  tokens = what.spec.train.batch_size * corpus.max_length
  assert len(rates) == 8 and tokens / min(rates) < 90
  spent = json.loads((tmp_path / "metrics/wall_time.json").read_text())
  for part in ("evaluation", "saving", "compilation"):
    assert spent["seconds"][part] > 100, part


def test_step_and_evaluation_are_compiled_once(
  corpus, tmp_path, caplog, capsys
):
  jax.clear_caches()
  with jax.log_compiles(), caplog.at_level("WARNING"):
    train(spec(corpus, tmp_path))
  compiled = re.findall(r"Finished XLA compilation of (\S+) in", caplog.text)
  assert compiled.count("jit(step)") == 1, compiled
  assert compiled.count("jit(rows)") == 1, compiled
  lines = metrics.read(tmp_path / "metrics")
  assert len([m for m in lines if "eval/loss" in m]) == 2
  assert "memory of a device" in capsys.readouterr().out


def test_the_memory_line_adds_up(corpus, tmp_path, capsys):
  what = spec(corpus, tmp_path)
  train(what)
  line = next(
    line for line in capsys.readouterr().out.splitlines() if "memory" in line
  )
  rows = what.spec.shape.table_rows - what.spec.shape.vocab_size
  weights = 4 * (
    what.spec.shape.parameters() + rows * what.spec.shape.hidden_size
  )
  assert f"weights {watch.amount(weights)}, " in line
  # Two moments, and two counts of steps.
  assert f"optimizer state {watch.amount(2 * weights + 8)}, frozen 0 B" in line
  assert re.search(r"needs [\d.]+ \w+ of temporaries .* in all", line)
  assert [watch.amount(n) for n in (12, 3482, 2**34)] == [
    "12 B",
    "3.4 KiB",
    "16.0 GiB",
  ]


def test_a_profile_of_the_steps_that_were_asked_for(corpus, tmp_path):
  train(spec(corpus, tmp_path, profile_steps=2, profile_first_step=3))
  (trace,) = (tmp_path / "metrics/profile").rglob("*.xplane.pb")
  data = jax.profiler.ProfileData.from_file(str(trace))
  steps = {
    dict(event.stats)["step_num"]
    for plane in data.planes
    for line in plane.lines
    for event in line.events
    if event.name == "train"
  }
  assert steps == {3, 4}


def test_a_profile_that_training_ends_in_is_written(corpus, tmp_path):
  train(spec(corpus, tmp_path, profile_steps=9, profile_first_step=8))
  assert list((tmp_path / "metrics/profile").rglob("*.xplane.pb"))


def test_a_step_that_hangs_has_its_stack_written(corpus, tmp_path, capsys):
  stacks = tmp_path / "metrics/stacks-5.txt"

  def hang():  # until it is noticed, however busy the machine
    until = time.monotonic() + 60
    while not (stacks.exists() and "in hang" in stacks.read_text()):
      assert time.monotonic() < until
      time.sleep(0.05)

  what = spec(corpus, tmp_path, hang_seconds=0.8)
  train(dataclasses.replace(what, objective=Broken(what, 6, hang)))
  # On a busy machine a compilation may take longer than that too.
  assert "in hang" in stacks.read_text()
  told = capsys.readouterr()
  assert 1 <= told.err.count("in hang") <= 2
  said = [line for line in told.out.splitlines() if "stacks-5.txt" in line]
  assert said and all("nothing has ended" in line for line in said)
  assert len([m for m in metrics.read(tmp_path / "metrics")]) == 10


def test_the_first_step_may_take_as_long_as_it_wants(tmp_path, capsys):
  dog = watch.Watchdog("x", manifest.epath.Path(tmp_path), 0.1)
  with dog.watching():
    time.sleep(0.4)
  assert not list(tmp_path.iterdir())
  with dog.watching():
    dog.beat(1)
  assert "nothing" not in capsys.readouterr().out


STANDIN = """
import json, os
def init(**given):
  return Run(given)
class Run:
  def __init__(self, given):
    self.path = os.environ["STANDIN"]
    self.say("init", given)
  def say(self, *what):
    with open(self.path, "a") as f:
      f.write(json.dumps(what) + "\\n")
  def log(self, values, step):
    self.say("log", step, values)
  def finish(self):
    self.say("finish")
"""


def test_metrics_go_to_wandb_and_one_run_goes_on(corpus, tmp_path, monkeypatch):
  (tmp_path / "wandb.py").write_text(STANDIN)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setenv("STANDIN", str(tmp_path / "said"))
  for _ in range(2):
    train(spec(corpus, tmp_path / "run", wandb_project="mine"))
  said = [json.loads(x) for x in (tmp_path / "said").read_text().splitlines()]
  begun = [what[1] for what in said if what[0] == "init"]
  assert begun[0] == begun[1] and begun[0]["project"] == "mine"
  assert begun[0]["resume"] == "allow" and len(begun[0]["id"]) == 8
  assert begun[0]["config"]["train"]["steps"] == 8
  logged = [what[1:] for what in said if what[0] == "log"]
  assert [step for step, v in logged if "train/loss" in v] == [*range(1, 9)]
  assert [step for step, v in logged if "eval/loss" in v] == [4, 8]
  lines = metrics.read(tmp_path / "run/metrics")
  assert [{"step": s} | v for s, v in logged] == lines
  assert said[-1] == ["finish"]


def test_wandb_is_missing_or_fails_in_one_line(corpus, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  for body, words in (
    ("raise ImportError('not here')", "pip install wandb, or"),
    ("def init(**_):\n  raise ValueError('no key')", "WANDB_MODE=offline"),
  ):
    (tmp_path / "wandb.py").write_text(textwrap.dedent(body))
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    with pytest.raises(UserError, match=re.escape(words)):
      train(spec(corpus, tmp_path / "run", wandb_project="mine"))


def test_without_a_project_wandb_is_not_imported(corpus, tmp_path, monkeypatch):
  (tmp_path / "wandb.py").write_text("raise RuntimeError('imported')")
  monkeypatch.syspath_prepend(tmp_path)
  train(spec(corpus, tmp_path / "run"))


FOUR = (
  "--stages=train",
  "--config.train.steps=4",
  "--config.train.warmup_steps=1",
)


def test_a_model_is_exported_while_it_trains(corpus, tmp_path, capsys):
  """At its steps, whole; not again after a kill; like the checkpoint."""
  folder, ids = manifest.epath.Path(tmp_path), corpus.rows_of("train")
  what = spec(corpus, tmp_path, export_every=2, keep_checkpoints=9)
  export = functools.partial(train_step._export, what.spec, corpus, ids)
  what = dataclasses.replace(what, export=export)

  def die():
    raise RuntimeError("killed")

  with pytest.raises(RuntimeError):
    train(dataclasses.replace(what, objective=Broken(what, 7, die)))
  assert sorted(p.name for p in tmp_path.glob("hf-*")) == [
    "hf-2",
    "hf-4",
    "hf-6",
  ]
  # Step 6 comes after the checkpoint: it is come by again.
  before = (tmp_path / "hf-6/model.safetensors").stat().st_mtime_ns
  train(what)
  assert (tmp_path / "hf-6/model.safetensors").stat().st_mtime_ns == before
  assert capsys.readouterr().out.count("hf-6") == 1
  assert {p.name for p in (tmp_path / "hf-8").iterdir()} == {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    trained_rows.NAME,
    *corpus.tokenizer().to_files(),
  }
  with pytest.raises(UserError, match=f"trained on {len(ids)} of {len(ids)}"):
    trained_rows.refuse(folder / "hf-8", corpus, ids, "it")
  mesh = sharding.make_mesh(1, 1, 1)
  abstract = loop.abstract_state(what.spec.shape, what.spec.train, mesh)
  checkpoints = loop.Checkpoints(folder / "checkpoints", None)
  with contextlib.closing(checkpoints):
    saved = checkpoints.restore(8, abstract).model
  for value, ours in zip(
    jax.tree.leaves(huggingface.load(folder / "hf-8", mesh)),
    jax.tree.leaves(saved),
  ):
    np.testing.assert_array_equal(value, ours)


def test_no_memory_is_no_fault_of_a_checkpoint(tmp_path, corpus, monkeypatch):
  """Neither set aside nor told to be removed."""
  what = spec(corpus, tmp_path)
  train(what)
  abstract = loop.abstract_state(
    what.spec.shape, what.spec.train, sharding.make_mesh(1, 1, 1)
  )

  def full(*unused, **also_unused):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3.00G")

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", full)
  folder = tmp_path / "checkpoints"
  with (
    contextlib.closing(loop.Checkpoints(folder, None)) as checkpoints,
    pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"),
  ):
    checkpoints.restore_newest("run", abstract)
  assert {"4", "8"} <= {path.name for path in folder.iterdir()}


def test_only_parameters_of_a_checkpoint_are_read_and_checked(tmp_path, corpus):
  """For evaluation and export; a spoilt optimizer state is not met."""
  what = spec(corpus, tmp_path)
  mesh = sharding.make_mesh(1, 1, 1)
  model = train(what)
  trained = manifest.Manifest(
    path=tmp_path / "manifest.json",
    stage="train",
    settings={"model": dataclasses.asdict(what.spec.shape)},
    inputs={},
    weights=huggingface.weights_fingerprint(model),
    counts={"steps": 8},
  )
  abstract = loop.abstract_state(what.spec.shape, what.spec.train, mesh)

  def restored(part):
    """What training and what evaluation make of a changed checkpoint."""
    spoil(tmp_path / "checkpoints" / "8" / "default", part)
    folder = tmp_path / "checkpoints"
    with (
      contextlib.closing(loop.Checkpoints(folder, None)) as checkpoints,
      pytest.raises(UserError, match=r"checkpoint 8 .*\(checksum\)"),
    ):
      checkpoints.restore(8, abstract)
    return trained_lib.restore(trained, mesh)

  found = restored("opt_state")
  assert huggingface.weights_fingerprint(found) == trained.weights
  assert found.arch == what.spec.shape
  with pytest.raises(UserError, match=r"model/embed.* is not what was saved"):
    restored("model")
  other = dataclasses.replace(what.spec.shape, qk_norm=True)
  other = {"model": dataclasses.asdict(other)}
  trained = dataclasses.replace(trained, settings=other)
  words = (
    "8 is of another model: model/layers/.* is null there and .*shape back"
  )
  with pytest.raises(UserError, match=words):
    trained_lib.restore(trained, mesh)


def spoil(folder, part):
  """Adds 1 to every array of a part of the state."""
  content = trainers.content(folder)
  content["state"][part] = jax.tree.map(lambda x: x + 1, content["state"][part])
  trainers.put_content(folder, content)


def test_a_student_begins_with_given_weights(copy):
  hf = copy / "run/reference/hf"
  init = f"--config.student.init={hf}"
  student = copy / "run/students/miniplm"
  shutil.rmtree(student)
  # A shape that does not fit is named, and binds nothing.
  wide = "--config.student.model.hidden_size=32"
  error = refused(copy, *FOUR, init, wide)
  assert "hidden_size 16 and not 32" in error
  done = run(
    copy,
    *FOUR,
    init,
    "--config.train.learning_rate=1e-9",
    "--config.run.export_every=2",
  )
  assert sorted(p.name for p in student.glob("hf-*")) == ["hf-2", "hf-4"]
  given, found = (
    load_file(path / "model.safetensors") for path in (hf, student / "hf-4")
  )
  assert given.keys() == found.keys()
  for name, value in given.items():
    assert found[name].dtype == np.float32
    np.testing.assert_allclose(found[name], value, atol=1e-7, err_msg=name)
  mesh = sharding.make_mesh(1, 1, 1)
  weights = huggingface.weights_fingerprint(huggingface.load(hf, mesh))
  assert f"weights {weights[:12]}" in done.stdout
  facts = json.loads((student / "manifest.json").read_text())
  assert facts["inputs"]["init"] == hub.Given(str(hf), "")()
  spent = facts["details"]["offline_flops"]
  assert spent["the weights that it begins with"] is None
  error = refused(copy, *FOUR, "--config.train.learning_rate=1e-9")
  assert "inputs.init" in error
  # Other weights in the same folder are noticed; --force leaves no export.
  shutil.copy(student / "hf-4/model.safetensors", hf / "model.safetensors")
  slow = "--config.train.learning_rate=1e-9"
  assert "inputs.init" in refused(copy, *FOUR, init, slow)
  run(copy, *FOUR, init, slow, "--force")
  assert not list(student.glob("hf-*"))


def test_a_model_of_another_tokenizer_is_no_beginning(copy):
  other = copy / "other"
  shutil.copytree(copy / "run/reference/hf", other)
  text = (other / "tokenizer.json").read_text()
  body = json.loads(text)
  body["model"]["merges"].pop()
  (other / "tokenizer.json").write_text(json.dumps(body))
  shutil.rmtree(copy / "run/students/miniplm")
  error = refused(copy, *FOUR, f"--config.student.init={other}")
  assert "another tokenizer" in error


def step_of(config, folder, row_ids, **more):
  """A step that trains the student's shape on these rows."""
  config = typed(config)
  planned = TrainSpec(
    stage="teacher",
    folder=manifest.epath.Path(folder),
    shape=config.student.model,
    train=config.train,
    run=config.run,
    max_length=config.corpus.max_length,
    rows="D",
    row_ids=lambda *_: row_ids,
    ignore_domains=config.evaluate.ignore_domains,
    **more,
  )
  return train_step.step(planned, {})


def test_rows_of_weight_0_are_not_said_to_be_trained_on(
  corpus, tmp_path, monkeypatch, capsys
):
  """Neither by the manifest, nor by the exported folder, nor by the log."""
  config = get_config()
  config.train.domain_weights = ("odd=0",)
  rows = corpus.rows_of("train")
  odd = np.array(corpus.domains(rows)) == "odd"

  def train(what, _):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/metrics.jsonl").write_text("")
    loop._say_size(what, what.spec.run)

  monkeypatch.setattr(loop, "train", train)
  step = step_of(config, tmp_path, rows, writes_hf=True)
  monkeypatch.setattr(huggingface, "weights_fingerprint", lambda _: "w")
  monkeypatch.setattr(
    huggingface, "save", lambda *a, **_: saved.append(a) or {}
  )
  saved = []
  found = step.run({"corpus": corpus.manifest})
  even = int((~odd).sum())
  assert 0 < even < len(rows) and found["counts"]["rows"] == even
  assert f" epochs of {even} rows" in capsys.readouterr().out
  body = saved[0][3][trained_rows.NAME]
  assert body == trained_rows.encode(corpus, rows[~odd])


def test_a_checkpoint_says_of_which_rows_its_curve_is(
  corpus, tmp_path, monkeypatch, capsys
):
  """Others, however few, are another curve's; the same are not."""
  config, seen = get_config(), []

  def train(what, _):
    seen.append(what.made_by)
    raise InterruptedError

  monkeypatch.setattr(loop, "train", train)

  def made_by(eval_rows, *ignored):
    config.run.eval_rows, config.evaluate.ignore_domains = eval_rows, ignored
    step = step_of(config, tmp_path, corpus.rows_of("train"))
    with pytest.raises(InterruptedError):
      step.run({"corpus": corpus.manifest})
    return seen[-1]

  total = len(corpus.rows_of("heldout"))
  assert made_by(total) == made_by(2 * total)
  few = made_by(total // 2)
  name = manifest.first_difference(made_by(total), few)
  assert "run.eval_rows and evaluate.ignore_domains" in name
  some = corpus.domains()[corpus.heldout_rows(1)][0]
  assert made_by(total, some) != made_by(total)
  assert made_by(total, "zzz") == made_by(total)
  assert "warning: no row is of domain 'zzz'" in capsys.readouterr().out
