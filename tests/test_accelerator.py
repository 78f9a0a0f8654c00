"""The measurement of an accelerator, rehearsed on CPU at its smallest size."""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest
from helpers import ROOT, environment

from benchmarks.accelerator import (
  contest,
  models,
  page,
  races,
  results,
  settings,
  sizes,
  theirs,
)
from benchmarks.accelerator.contest import Contender, Entrant

HAS_TORCH = bool(
  importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
)
parity = pytest.mark.parity
# The first test waits for all parts: three minutes on two idle cores.
pytestmark = pytest.mark.timeout(1200)
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="the parity extra")


def measure(out: pathlib.Path, *arguments: str, check: bool = True):
  """The command; what it printed."""
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "benchmarks.accelerator",
      "--size=tiny",
      f"--out={out}",
      *arguments,
    ],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
    timeout=900,
  )
  if check:
    logs = [path.read_text()[-2000:] for path in out.glob("*.log")]
    assert done.returncode == 0, [done.stdout, done.stderr, *logs]
  return done.stdout + done.stderr


def found(out: pathlib.Path):
  return results.read(out / "result.json")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  """Every part, once; what is tested again below is left out of the rest."""
  out = tmp_path_factory.mktemp("measured")
  return out, measure(out, "--minutes=14", "--turns=2")


def numbers(value):
  """All numbers of a result."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    for one in value:
      yield from numbers(one)
  elif isinstance(value, float | int) and not isinstance(value, bool):
    yield value


@pytest.mark.long
def test_every_part_is_measured(measured):
  out, printed = measured
  made = found(out)
  wanted = set(sizes.SIZES["tiny"].limits)
  if not HAS_TORCH:
    wanted.remove("correctness")
  assert wanted <= set(made["parts"]), printed
  for name in wanted:
    part = made["parts"][name]
    assert part["results"] and not part["failed"], (name, part, printed)
    for value in numbers(part["results"]):
      assert math.isfinite(value)
  assert not made["run"]["notes"]
  assert made["facts"]["device_kind"] == "cpu"
  assert made["facts"]["versions"]["jax"]
  assert made["facts"]["source"]
  pieces = made["parts"]["pieces"]["results"]
  assert len(pieces) == 10
  assert all(one["seconds"] > 0 and one["bytes"] > 0 for one in pieces.values())
  for part in ("scoring", "training", "more_training"):
    for race in made["parts"][part]["results"].values():
      ours = race["ours"]
      assert len(ours["seconds"]) == 2
      assert ours["tokens_per_second"] > 0 and ours["memory"]["gib"] > 0.1
      assert ours["mfu"] is None  # of a CPU it is not known


@pytest.mark.long
def test_a_run_that_was_killed_equals_one_that_was_not(measured):
  (one,) = found(measured[0])["parts"]["resume"]["results"].values()
  assert 0 < one["killed_after"] < one["steps"] == 60
  assert one["equal"] and one["most train/loss"] == 0
  assert 1e-4 < one["step_seconds"] < 60
  assert 0 < one["last_loss"] < 8


@pytest.mark.long
def test_the_demo_runs_to_its_report(measured):
  one = found(measured[0])["parts"]["demo"]["results"]["demo"]
  assert one["finished"]
  stages = {name.split(":")[0] for name in one["jobs"]}
  assert {"tokenize", "teacher", "score", "select", "train"} <= stages


@parity
@needs_torch
@pytest.mark.long
def test_both_sides_are_as_near_to_float64(measured):
  made = found(measured[0])["parts"]["correctness"]["results"]
  ours, theirs = made["ours"], made["transformers"]
  for side in (ours, theirs):
    assert side["float32"]["nll_most"] < 1e-4
    assert side["bfloat16"]["nll_mean"] < 2e-2
    assert side["float32"]["nll_most"] < side["bfloat16"]["nll_most"] / 100
  # A step is near the sign of the gradient, and that of a key's bias near 0.
  for dtype, name, of_kind, of_all in (
    ("float32", "gradients", 1e-5, 1e-5),
    ("bfloat16", "gradients", 5e-2, 5e-2),
    ("float32", "change", 1e-1, 1e-3),
    ("bfloat16", "change", 2, 0.3),
  ):
    kinds = ours[dtype][name]
    assert len(kinds) == 15 and kinds.keys() == theirs[dtype][name].keys()
    for kind, off in kinds.items():
      assert 0 < off < of_kind, (dtype, name, kind)
    assert kinds["all"] < min(of_all, 3 * theirs[dtype][name]["all"])


@parity
@needs_torch
@pytest.mark.long
def test_both_sides_do_the_same_work(measured):
  parts = found(measured[0])["parts"]
  for part, most in (
    ("scoring", 1e-2),
    ("training", 1e-2),
    ("more_training", 1e-2),
  ):
    for race in parts[part]["results"].values():
      assert not race["failed"]
      assert len(race["ratio"]) == 3 and race["ratio"][0] > 0
      assert race["transformers"]["memory"]["gib"] > 0.1
      agree = race["agree"]
      off = agree.get("most_of_a_row", agree.get("most_of_a_loss"))
      assert 0 < off < most, (part, agree)
  first, second = parts["training"]["results"]["tiny-a"]["agree"][
    "losses_theirs"
  ]
  assert first != second


@pytest.mark.long
def test_the_page_says_what_was_found(measured):
  out, _ = measured
  text = (out / "page.md").read_text()
  assert "The times mean nothing" in text
  for title in ("Goals", "Ceilings", "Scoring", "Training", "Pieces", "Killed"):
    assert f"\n## {title}" in text
  assert text.rstrip().endswith("Nothing.") == HAS_TORCH
  assert "| scoring 1.8B: MFU ≥ 0.55 | not run |" in text
  if HAS_TORCH:
    assert "| NLL in float32: from float64, any token ≤ 0.0001 | met |" in text
  made = found(out)
  made["parts"]["scoring"]["results"]["qwen1.5-1.8b"] = {
    "ours": {"mfu": 0.5},
    "ratio": [1.6, 1.5, 1.7],
  }
  told = {goal: state for goal, state, _ in page.goals(made)}
  assert told["scoring 1.8B: MFU ≥ 0.55"] == "missed"
  assert told["scoring 1.8B: × transformers ≥ 1.5"] == "met"


def test_goals_are_of_one_device_and_of_turns_together(tmp_path):
  store = results.Store(given(tmp_path))
  theirs = side(way="layers", rows=2)
  race = {"ours": side(), "transformers": theirs, "ratio": [1.6, 1, 2]}
  store.put("qwen1.5-1.8b", race)
  made = results.collect(tmp_path)
  goal, states = "scoring 1.8B: × transformers ≥ 1.5", page.goals(made)
  assert (goal, "met", "1.6, 4 rows against 2 rows, layers") in states
  made["parts"]["scoring"]["results"]["qwen1.5-1.8b"]["ours"]["alone"] = True
  states = {goal: state for goal, state, _ in page.goals(made)}
  assert states[goal] == "not judged: measured alone"
  assert states["scoring 1.8B: MFU ≥ 0.55"] == "met"
  made["facts"]["devices"] = 8
  states = [state for _, state, _ in page.goals(made)]
  assert "not judged: not one device" in states and "met" not in states
  del made["parts"]["scoring"]["results"]["qwen1.5-1.8b"]["transformers"]
  text = page.text(made)
  assert "transformers is measured beside one device only" in text
  assert "qwen1.5-1.8b: ours alone was measured" in text


def test_a_race_is_measured_anew_with_more(tmp_path):
  told, alone = given(tmp_path), given(tmp_path, against=False)
  store = results.Store(told)
  store.facts["devices"] = 8
  assert not races._asked(told, store)["against"]
  store.facts["devices"] = 1
  asked = races._asked(told, store)
  assert asked == {"against": True, "compiled": False, "turns": 2}
  store.put("tiny-a", {"asked": races._asked(alone, store)})
  assert store.is_done("tiny-a", **races._asked(alone, store))
  assert not store.is_done("tiny-a", **asked)
  store.put("tiny-a", {"asked": asked, "transformers": {"note": "no time"}})
  assert store.is_done("tiny-a", **asked)
  assert store.is_done("tiny-a", **races._asked(alone, store))
  again = results.Store(given(tmp_path, again=True))
  assert not again.is_done("tiny-a", **asked)


def test_who_waits_for_one_model_waits_for_no_other(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "made").touch()
  with models._locked(tmp_path, "b"):
    assert models.ready(given(tmp_path, scratch=str(tmp_path)), "a")


def test_the_fastest_way_is_compiled_again_in_time():
  class Ways(theirs._Ways):
    compiled = 0

    def eager(self):
      self._now = "eager"
      return 3.0

    def layers(self):
      self._now, self.compiled = "layers", self.compiled + 1
      if self.compiled == 2:
        raise TimeoutError("too late")
      return 1.0

    def whole(self):
      self._now = "whole"
      return 2.0

  model = types.SimpleNamespace(model=types.SimpleNamespace(layers=()))
  made = Ways(model, None).fastest(lambda seconds: seconds, time.time() + 99)
  assert made[0] == 3.0 and made[1]["way"] == "eager"
  assert "layers, once more: TimeoutError: too late" in made[1]["note"]
  made = Ways(model, None).fastest(lambda seconds: seconds, time.time() + 45)
  assert made[0] == 1.0 and made[1]["note"] == "whole: no time to compile"


@pytest.mark.long
def test_a_second_start_makes_only_what_is_missing(measured, tmp_path):
  out, _ = measured
  before = found(out)
  content = json.loads((out / "device.json").read_text())
  del content["results"]["copy"]
  (out / "device.json").write_text(json.dumps(content))
  printed = measure(out, "--only=device,scoring", "--turns=2")
  assert "bf16 product: was there" in printed
  assert "copy: was there" not in printed
  assert "scoring: tiny-a: was there" in printed
  after = found(out)
  assert after["parts"]["scoring"] == before["parts"]["scoring"]
  assert "copy" in after["parts"]["device"]["results"]


@pytest.mark.long
def test_what_time_cuts_off_is_kept_and_finished_later(tmp_path):
  """On whatever machine: seconds are too few for a training to compile."""
  measure(tmp_path, "--only=device", "--alone")
  before = found(tmp_path)["parts"]["device"]
  alone = "--only=device,training", "--alone", "--turns=1"
  measure(tmp_path, *alone, "--minutes=0.15")
  cut = found(tmp_path)
  assert cut["parts"]["device"] == before
  assert "tiny-a" not in cut["parts"].get("training", {}).get("results", {})
  told = (tmp_path / "page.md").read_text().split("## What is missing")[1]
  assert "training" in told
  measure(tmp_path, *alone, "--minutes=9", "--again")
  whole = found(tmp_path)
  one = whole["parts"]["training"]["results"]["tiny-a"]
  assert one["ours"]["tokens_per_second"] > 0 and "transformers" not in one
  text = (tmp_path / "page.md").read_text()
  assert "tiny-a: ours alone was measured" in text


@parity
@needs_torch
@pytest.mark.long
def test_a_contender_that_crashes_is_reported_and_a_sweep_has_its_best(
  tmp_path,
):
  only = "--only=scoring", "--shapes=tiny-a", "--turns=1"
  measure(tmp_path, *only, "--crash=transformers")
  one = found(tmp_path)["parts"]["scoring"]["results"]["tiny-a"]
  assert "it was told to crash" in one["failed"]["transformers"]
  assert one["ours"]["tokens_per_second"] > 0
  text = (tmp_path / "page.md").read_text()
  assert "tiny-a, transformers failed: RuntimeError" in text
  measure(tmp_path, *only, "--sweep=rows:4,8")
  made = found(tmp_path)["parts"]["scoring"]["results"]
  assert made.keys() == {"tiny-a", "tiny-a | rows=4", "tiny-a | rows=8"}
  assert [made[f"tiny-a | rows={n}"]["ours"]["rows"] for n in (4, 8)] == [4, 8]
  assert (tmp_path / "page.md").read_text().count("**") == 4  # and the warning


def test_help_answers_at_once_and_wrong_words_are_refused(tmp_path):
  code = (
    "import sys, benchmarks.accelerator.__main__; "
    "print({'jax', 'torch', 'etils', 'numpy'} & set(sys.modules))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.stdout == "set()\n", done.stderr
  assert "--minutes" in measure(tmp_path, "--help", check=False)
  assert "no such part: x" in measure(tmp_path, "--only=x", check=False)
  (tmp_path / "file").touch()
  for argument, told in (
    ("--sweep=speed:1", "'speed:1'"),
    ("--sweep=tile:x", "'tile:x': give whole numbers"),
    ("--sweep=remat:all", "remat=all: give one of full, dots, none"),
    ("--logits=int8", "logits=int8: give one of float32, bfloat16"),
    ("--rows=-1", "rows=-1: give 0 or more"),
    ("--shapes=nope", "no such shape: nope; there are tiny-a, tiny-b"),
    (f"--out={tmp_path}/file", "file: File exists"),
    ("--minutes=0", "--minutes"),
  ):
    printed = measure(tmp_path, argument, check=False)
    assert told in printed and "Traceback" not in printed, printed


def started(out: pathlib.Path, *arguments: str):
  """The command, as soon as a part of it has begun."""
  words = ["-m", "benchmarks.accelerator", "--size=tiny", f"--out={out}"]
  process = subprocess.Popen(
    [sys.executable, *words, *arguments],
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    # In the background it may be ignored, and that is inherited.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
  )
  assert any("begins" in line for line in process.stdout)
  return process


def left(out: pathlib.Path):
  """Processes that write there and stay; one that was killed takes a while."""
  until = time.time() + 20
  while True:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
      with contextlib.suppress(OSError):
        if str(out) in path.read_text():
          found.append(path.parent.name)
    if not found or time.time() > until:
      return found
    time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_a_command_that_is_killed_or_interrupted_leaves_no_process(tmp_path):
  only = "--only=demo", "--alone"
  process = started(tmp_path, *only)
  told = measure(tmp_path, *only, check=False)
  assert f"error: another command writes to --out={tmp_path}" in told
  process.kill()
  process.communicate()
  assert not left(tmp_path)
  process = started(tmp_path, *only)
  process.send_signal(signal.SIGINT)
  said = process.communicate(timeout=60)[0]
  assert process.returncode == 130 and "Traceback" not in said, said
  assert "interrupted; the same command goes on\n" in said
  assert "What is missing" in (tmp_path / "page.md").read_text()
  assert not left(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_what_a_part_started_is_gone_when_the_part_is_ended():
  """A process of 1 GiB takes 0.1 s to go after the signal that ends it."""
  big = "b = bytearray(1 << 30); print(end='.', flush=True); input()"
  start = "import subprocess, sys; "
  start += f"subprocess.run([sys.executable, '-c', {big!r}])"
  code = f"""if True:
    import os, subprocess, sys
    from benchmarks.accelerator import __main__ as command, program
    program.adopt_orphans()
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    words = [sys.executable, "-c", {start!r}]
    part = subprocess.Popen(words, start_new_session=True, **pipes)
    part.stdout.read(1)
    command._end(part)
    os.killpg(part.pid, 0)"""
  words = [sys.executable, "-c", code]
  told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stderr
  assert told.endswith("ProcessLookupError: [Errno 3] No such process\n"), told


def test_variants():
  base = settings.Variant(remat="none")
  made = list(settings.sweep("tile:16,32;logits:bfloat16", base))
  assert [str(v) for v in made] == [
    "tile=16, logits=bfloat16, remat=none",
    "tile=32, logits=bfloat16, remat=none",
  ]
  assert list(settings.sweep("", base)) == [base]


# Contests, of contenders that do nothing.


def steady(seconds, first="warm"):
  def turn():
    time.sleep(seconds)
    return seconds

  return lambda: Entrant(first, turn, lambda: "over")


def dies(when):
  def turn():
    os.kill(os.getpid(), signal.SIGKILL)

  if when == "while it loads":
    turn()
  return lambda: Entrant("warm", turn)


def crowded(folder):
  """Has no room while another is here."""

  def prepare():
    if (pathlib.Path(folder) / "here").exists():
      (pathlib.Path(folder) / "here").unlink()
      raise RuntimeError("RESOURCE_EXHAUSTED: no room")
    return Entrant("warm", lambda: 1)

  return prepare


def slow():
  time.sleep(60)


@pytest.mark.long
def test_those_that_fail_leave_the_others_in_the_contest(tmp_path):
  (tmp_path / "here").touch()
  rounds = []
  outcome = contest.hold(
    [
      Contender("fast", steady, (0.01,)),
      Contender("steady", steady, (0.5,)),
      Contender("early", dies, ("while it loads",)),
      Contender("late", dies, ("in its turn",)),
      Contender("crowded", crowded, (str(tmp_path),)),
      Contender("slow", slow),
    ],
    3,
    ready_by=time.time() + 20,
    until=time.time() + 90,
    kept=lambda o: rounds.append(len(o.turns["fast"])),
  )
  assert outcome.first == dict.fromkeys(
    ("fast", "steady", "late", "crowded"), "warm"
  )
  assert outcome.ended["fast"] == outcome.ended["steady"] == "over"
  assert "SIGKILL" in outcome.failed["early"]
  assert "SIGKILL" in outcome.failed["late"]
  assert "longer than it was given" in outcome.failed["slow"]
  assert outcome.alone == ["crowded"] and len(outcome.turns["crowded"]) == 3
  assert [t.value for t in outcome.turns["fast"]] == [0.01] * 3
  median, least, most = outcome.ratio("fast", "steady")
  assert least <= median <= most and median > 1
  assert rounds == [1, 2, 3] * 2 or rounds[:3] == [1, 2, 3]


def test_rows_are_halved_until_they_fit():
  def attempt(rows):
    if rows > 3:
      raise MemoryError("OutOfMemoryError: CUDA out of memory")
    return rows

  assert contest.fitting(16, attempt) == (2, 2)
  with pytest.raises(MemoryError):
    contest.fitting(1, lambda rows: attempt(9))
  with pytest.raises(ZeroDivisionError):
    contest.fitting(4, lambda rows: 1 / 0)
  # Of a step's rows always a part.
  assert contest.fitting(5, lambda rows: rows, 12) == (4, 4)
  assert contest.fitting(12, attempt, 12) == (3, 3)


def given(out: pathlib.Path, **more):
  """What a part is told, and on disk what is measured on."""
  facts = {"source": "a", "devices": 1, "platform": "cpu", "size": "tiny"}
  results.write_json(out / results.FACTS, facts)
  base = settings.Settings(
    part="scoring",
    out=str(out),
    scratch="",
    size="tiny",
    variant=settings.Variant(),
    against=True,
    compiled=False,
    turns=2,
    shapes=(),
    again=False,
    crash="",
    start=0,
    deadline=time.time() + 60,
    end=0,
  )
  return dataclasses.replace(base, **more)


def test_results_of_other_versions_are_set_aside(tmp_path):
  told = given(tmp_path, part="device")
  store = results.Store(told)
  store.put("one", {"x": float("nan")})
  store.fail("two", "a reason")
  again = results.Store(told)
  assert math.isnan(again.results["one"]["x"])
  assert again.is_done("one") and again.is_done("two")
  assert results.collect(tmp_path)["parts"].keys() == {"device"}
  results.write_json(tmp_path / results.FACTS, {"source": "b"})
  made = results.collect(tmp_path)
  assert not made["parts"] and made["other"] == ["device"]
  assert "- device: its results are of another" in page.text(made)
  assert not results.Store(told).is_done("one")
  assert (tmp_path / "device.old").exists()


@pytest.mark.parametrize("text", ["null", "[]", "{}", '{"results": {}}', "{"])
def test_a_file_of_another_form_is_set_aside(tmp_path, text):
  told = given(tmp_path)
  (tmp_path / "scoring.json").write_text(text)
  (tmp_path / "more.json").write_text('{"results": {}}')
  assert results.collect(tmp_path)["other"] == ["scoring"]
  assert not results.Store(told).results
  assert (tmp_path / "scoring.old").read_text() == text


def side(**more):
  """A side of a race, as it is kept."""
  one = {"tokens_per_second": 10.0, "flops_per_second": 1e9, "mfu": 0.6}
  return one | {"seconds": [1.0], "rows": 4, "alone": False} | more


def test_what_is_no_number_is_shown_and_missed(tmp_path):
  nan, shape = float("nan"), "qwen1.5-1.8b"
  store = results.Store(given(tmp_path))
  race = {"ours": side(mfu=nan), "transformers": side(), "failed": {}}
  race |= {"ratio": (nan, nan, nan), "agree": {"nll_ours": nan}}
  store.put(shape, race)
  kinds = {"all": nan, "norm": 1.0}
  of = {f"nll_{k}": nan for k in ("most", "mean", "rms")}
  of |= {"gradients": kinds, "change": kinds}
  store = results.Store(given(tmp_path, part="correctness"))
  store.put("ours", {"float32": of, "bfloat16": of})
  made = results.collect(tmp_path)
  text = page.text(made)
  assert f"- {shape}: nll ours nan" in text and "all nan" in text
  states = {goal: rest for goal, *rest in page.goals(made)}
  assert states["scoring 1.8B: MFU ≥ 0.55"] == ["missed", "nan"]
  assert states["scoring 0.5B: MFU ≥ 0.45"] == ["not run", ""]


def test_our_side_that_crashes_is_reported(tmp_path, monkeypatch):
  monkeypatch.setattr(races.models, "ready", lambda *unused: "")
  told = given(tmp_path, crash="ours")
  store = results.Store(told)
  contenders = {"ours": (steady, 0.01), "transformers": (steady, 0.01)}
  race = races._Race(told, store, "tiny-a", time.time() + 60)
  race.hold(lambda *unused: (contenders, 1, 1, None), None)
  assert not store.results
  text = page.text(results.collect(tmp_path))
  assert "- scoring, tiny-a: RuntimeError: it was told to crash" in text


def test_the_page_has_a_race_without_our_side(tmp_path):
  store = results.Store(given(tmp_path))
  store.put("tiny-a", {"transformers": side(), "ratio": None})
  assert "| tiny-a | transformers |" in page.text(results.collect(tmp_path))


def test_what_is_published_has_a_file_for_each_kind_count_and_size(
  tmp_path, monkeypatch
):
  docs, out = tmp_path / "docs", tmp_path / "out"
  docs.mkdir()
  out.mkdir()
  index = (page._DOCS / "README.md").read_text()
  (docs / "README.md").write_text(index)
  monkeypatch.setattr(page, "_DOCS", docs)
  (out / "page.md").touch()
  facts = {"device_kind": "NVIDIA H100", "date": "2026-12-01"}
  for devices, size in ((1, "full"), (8, "full"), (1, "small")):
    made = {"facts": facts | {"devices": devices, "size": size}, "parts": {}}
    results.write_json(out / "result.json", made)
    page.publish(out)
  names = {path.stem for path in docs.glob("*.json")}
  assert names == {
    f"{n}-nvidia-h100-{s}"
    for n, s in (("1x", "full"), ("8x", "full"), ("1x", "small"))
  }
  text = (docs / "README.md").read_text()
  assert "[8 × NVIDIA H100](8x-nvidia-h100-full.md)" in text
  assert "Nothing was measured" not in text


def test_no_path_of_this_machine_is_public(monkeypatch):
  text = {"a": [f"{ROOT}/x.py", "/of/me/y", 1, "a/b"]}
  monkeypatch.setenv("HOME", "/of/me")
  assert results.public(text) == {"a": ["x.py", "~/y", 1, "a/b"]}
  monkeypatch.setenv("HOME", "/")
  assert results.public(text)["a"][1:] == ["/of/me/y", 1, "a/b"]
