import dataclasses
import errno
import gc
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import types

import gcsfs.retry
import google.auth.exceptions
import helpers
import pytest
import tiny_config
from etils import epath

from miniplm_jax import config as config_lib
from miniplm_jax.core import (
  backend,
  contents,
  distributed,
  errors,
  files,
  log,
  manifest,
  signals,
)
from miniplm_jax.core.decide import decide
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.core.execute import execute
from miniplm_jax.core.signals import Stopped
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.models import hub


def status(step, force=False):
  """What a dry run says."""
  return str(decide(step, force))


def step(folder, settings=None, run=None, inputs=None, **more):
  """A step of one file; flags of its policy may be given by name."""
  out = epath.Path(folder) / "out"
  flags = {f.name for f in dataclasses.fields(Policy)} & more.keys()
  more["policy"] = Policy(**{name: more.pop(name) for name in flags})

  def write(unused_inputs):
    files.write_bytes(out / "file", b"made")
    return {"files": {"file": files.describe(out / "file")}}

  return Step(
    stage="stage",
    manifest=out / "manifest.json",
    settings=settings or {"a": (1, 2)},
    inputs=inputs or {"text": lambda: "fingerprint"},
    outputs=(out / "file",),
    summary="a step",
    run=run or write,
    **more,
  )


def test_what_is_finished_stands_without_what_it_was_made_of(tmp_path, capsys):
  @dataclasses.dataclass
  class Given:
    path: str
    is_gone: bool = True

    def __call__(self):
      if self.is_gone:
        raise GoneError("no text here", self.path, "give one")
      return "abc"

  gone = Given("text.jsonl")
  execute([step(tmp_path, inputs={"text": Given("text.jsonl", False)})])
  without = step(tmp_path, inputs={"text": gone})
  # By another path it may be mistyped.
  other = step(tmp_path, inputs={"text": Given("test.jsonl")})
  assert "would be refused: no text here, test.jsonl" in status(other)
  capsys.readouterr()
  assert status(without) == "done"
  execute([without])
  told = "no text here: text.jsonl; what was made of it stands"
  assert told in capsys.readouterr().out
  with pytest.raises(GoneError):  # what it made before is there again
    execute([dataclasses.replace(without, run=lambda _: gone())], force=True)
  assert status(without) == "done"
  assert "settings.a" in status(dataclasses.replace(without, settings={"a": 1}))
  begun = dataclasses.replace(step(tmp_path / "new"), inputs={"text": gone})
  assert "would be refused: no text here" in status(begun)
  with pytest.raises(GoneError):
    execute([begun])


def test_nothing_is_removed_that_it_is_to_be_made_from(tmp_path):
  """By force: of a run that is begun, too, which nobody could put back."""
  snapshot = tmp_path / "out" / "file" / "hf-6"
  snapshot.mkdir(parents=True)
  (snapshot / "model.safetensors").write_bytes(b"days of training")
  begun = tmp_path / "out" / "manifest.partial.json"
  begun.write_text("{}")
  given = contents.Whole(list, str(snapshot))
  with pytest.raises(UserError, match="this text lies in the folder that is"):
    execute([step(tmp_path, inputs={"text": given})], force=True)
  assert os.listdir(snapshot) and begun.exists()


def test_nothing_is_replaced_before_all_of_a_stage_can_be_made(tmp_path):
  def refuse():
    raise UserError("another run's selection", "here", "select again")

  first = step(tmp_path / "a")
  execute([first])
  missing = epath.Path(tmp_path / "nowhere" / "manifest.json")
  for other in (
    step(tmp_path / "b", checks=(refuse,)),
    step(tmp_path / "b", inputs={"text": missing}),
  ):
    made = first.manifest.stat().mtime
    with pytest.raises(UserError, match=r"another run's|is not there"):
      execute([first, other], force=True)
    assert first.manifest.stat().mtime == made
  after = step(tmp_path / "b", inputs={"first": first.manifest})
  execute([first, after], force=True)  # one may make what the next reads


def test_a_folder_that_is_gone_is_no_hub_id(tmp_path, monkeypatch):
  """NAME/NAME may be either, so it is noted which it was."""
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / "models" / "t"
  folder.mkdir(parents=True)
  (folder / "tokenizer.json").write_text("{}")
  given = hub.GivenTokenizer("models/t", "main")
  one = step(tmp_path, inputs={"tokenizer": given})
  execute([one])
  folder.rename(tmp_path / "moved")
  assert status(one) == "done"
  other = hub.GivenTokenizer("models/u", "main")  # of the hub, perhaps
  assert "inputs.tokenizer is" in status(
    step(tmp_path, inputs={"tokenizer": other})
  )


def test_a_file_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / "file"
  files.write_bytes(path, b"old")
  with pytest.raises(ZeroDivisionError), files.replacing(path) as scratch:
    scratch.write_bytes(b"half of the n")
    raise ZeroDivisionError
  assert path.read_bytes() == b"old"
  assert os.listdir(tmp_path) == ["file"]


def test_a_probe_sees_names_sizes_and_both_ends(tmp_path):
  path = epath.Path(tmp_path / "file")
  seen = set()
  for content in (b"a" * 200_000, b"b" + b"a" * 199_999, b"a" * 200_001):
    path.write_bytes(content)
    seen.add(contents.probe([path]))
  path.write_bytes(b"a" * 199_999 + b"b")
  seen.add(contents.probe([path]))
  assert len(seen) == 4
  assert contents.probe([path]) in seen


def test_a_difference_is_named_by_its_field():
  old = {"train": {"steps": 1, "seed": 2}, "x": 1}
  new = {"train": {"steps": 1, "seed": 3}, "x": 1}
  assert manifest.first_difference(old, old) is None
  found = manifest.first_difference(old, new)
  assert found == "train.seed is 2 there and 3 here"
  fields = [f"name{i}=meta.name{i}" for i in range(9)]
  found = manifest.first_difference(fields, [*fields[:-1], "other=x"], "fields")
  there, here = found.split(" there and ")
  assert '"name8=meta.name8"]' in there and '"other=x"] here' in here


def done(step, force=False):
  execute([step], force)
  return manifest.require(step.manifest)


def test_a_job_is_done_once_and_refused_when_it_changes(tmp_path, capsys):
  assert status(step(tmp_path)).startswith("would run")
  first = done(step(tmp_path))
  assert status(step(tmp_path)) == "done"
  again = done(step(tmp_path, settings={"a": [1, 2]}))
  assert again.fingerprint == first.fingerprint
  assert "skipped" in capsys.readouterr().out
  changed = step(tmp_path, settings={"a": (1, 3)})
  assert "refused" in status(changed)
  with pytest.raises(UserError, match=r"settings\.a is"):
    execute([changed])
  assert done(changed, force=True).settings == {"a": [1, 3]}
  (tmp_path / "out" / "file").unlink()
  with pytest.raises(UserError, match=r"out/file is missing"):
    execute([changed])


def test_nothing_is_begun_if_a_later_one_will_be_refused(tmp_path):
  execute([step(tmp_path / "b", {"rows": 1})])
  both = [step(tmp_path / name, {"rows": 2}) for name in "ab"]
  with pytest.raises(UserError, match=r"settings\.rows is 1 there and 2 here"):
    execute(both)
  assert not (tmp_path / "a").exists()
  execute(both, force=True)
  assert (tmp_path / "a").exists()


def test_a_view_is_made_again_when_what_it_shows_changes(tmp_path):
  execute([step(tmp_path, is_view=True)])
  changed = step(tmp_path, settings={"a": 3}, is_view=True)
  assert status(changed) == "would run again"
  assert done(changed).settings == {"a": 3}


def test_a_measurement_follows_what_it_measures_alone(tmp_path):
  """As an evaluation after a forced training with other settings."""
  first = step(tmp_path, is_measure=True)
  execute([first])
  other = {"text": lambda: "of another model"}
  again = dataclasses.replace(first, inputs=other)
  assert status(again) == "would run again"
  assert done(again).inputs == {"text": "of another model"}
  changed = dataclasses.replace(again, settings={"a": (1, 3)})
  with pytest.raises(UserError, match=r"settings\.a is"):
    execute([changed])
  assert done(again).inputs == {"text": "of another model"}


@pytest.mark.parametrize(
  "names, words",
  [
    ((), "would run"),
    (("other",), "would run"),
    (("file",), "would be refused: there are files, but no manifest"),
    (("manifest.partial.json",), "would run"),
    (("manifest.partial.json", "file"), "would resume"),
    (("manifest.json", "manifest.partial.json"), "done"),
    ((".manifest.json.old",), "done"),
    ((".manifest.json.old", "manifest.partial.json"), "would run"),
  ],
)
def test_a_dry_run_says_what_is_done(tmp_path, capsys, names, words):
  """Whatever a kill left; and what is refused changes nothing."""
  made, other = step(tmp_path / "made"), step(tmp_path)
  execute([made])
  (tmp_path / "out").mkdir()
  for name in names:
    path = tmp_path / "out" / name
    content = b"manifest" in name.encode() and made.manifest.read_bytes()
    path.write_bytes(content or b"made")
  if names == (".manifest.json.old",):
    (tmp_path / "out" / ".file.old").write_bytes(b"made")
  elif "manifest.json" in names:
    (tmp_path / "out" / "file").write_bytes(b"made")
  before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
  assert status(other).startswith(words)
  assert status(other, force=True) == "would be redone"
  capsys.readouterr()
  if "refused" in words:
    with pytest.raises(UserError, match="no manifest that says"):
      execute([other])
    assert before == {p: p.read_bytes() for p in before}
    return
  execute([other])
  said = capsys.readouterr().out
  assert ("skipped" in said) == (words == "done")
  assert ("resuming" in said) == (words == "would resume")
  assert status(other) == "done"
  assert (tmp_path / "out" / "file").read_bytes() == b"made"


def test_what_cannot_be_read_replaces_nothing(tmp_path):
  """Of a remake that was finished, its manifest was damaged."""
  one = step(tmp_path, is_view=True)
  execute([one])
  one.backup.set_aside()
  one.manifest.write_text("{")
  with pytest.raises(UserError, match="not a manifest that this version"):
    execute([one])
  assert one.backup.exists()


def test_what_failed_before_it_made_anything_leaves_nothing(tmp_path):
  def fail(unused_inputs):
    raise UserError("no", "here", "do")

  with pytest.raises(UserError, match="no, here, do"):
    execute([step(tmp_path, run=fail)])
  assert not list((tmp_path / "out").iterdir())
  execute([step(tmp_path, settings={"a": 4})])


def test_a_manifest_that_cannot_be_read_is_named(tmp_path):
  execute([step(tmp_path)])
  path = tmp_path / "out" / "manifest.json"
  body = json.loads(path.read_text())
  for text in ("{", "[]", "{}", json.dumps(body | {"schema_version": 99})):
    path.write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
      execute([step(tmp_path)])
  execute([step(tmp_path)], force=True)


def test_whatever_changes_in_a_manifest_is_refused(tmp_path):
  loss = {"details": {"loss": 1.25}, "counts": {"rows": 7}}
  execute([step(tmp_path, run=lambda unused_inputs: loss)])
  path = tmp_path / "out" / "manifest.json"
  text = path.read_text()
  assert manifest.read(path).details["loss"] == 1.25
  for old, new in (("1.25", "1.35"), (": 7", ": 8"), ('"a"', '"b"')):
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"manifest that this version.*changed"):
      manifest.read(path)


def test_a_manifest_of_schema_1_is_checked_by_its_fingerprint(tmp_path):
  execute([step(tmp_path)])
  path = tmp_path / "out" / "manifest.json"
  body = json.loads(path.read_text()) | {"schema_version": 1}
  del body["checksum"]
  path.write_text(json.dumps(body))
  assert manifest.read(path).settings == body["settings"]
  execute([step(tmp_path)])  # and skipped
  for change in ({"settings": {"a": 9}}, {"counts": []}, {"inputs": None}):
    path.write_text(json.dumps(body | change))
    with pytest.raises(UserError, match="not a manifest that this version"):
      manifest.read(path)


def test_a_setting_without_effect_may_change(tmp_path):
  said = {"a": 1, "seed": 3}
  execute([step(tmp_path, settings=said, idle=("seed",))])
  made = manifest.read(tmp_path / "out" / "manifest.json")
  assert made.settings == said
  one = step(tmp_path, settings={"a": 1, "seed": 4}, idle=("seed",))
  assert status(one) == "done"
  execute([one], force=True)  # to what was made of it, it is the same
  again = manifest.read(tmp_path / "out" / "manifest.json")
  assert again.settings["seed"] == 4 and again.fingerprint == made.fingerprint
  for other in (
    step(tmp_path, settings={"a": 2, "seed": 3}, idle=("seed",)),
    step(tmp_path, settings={"a": 1, "seed": 3}),
  ):
    with pytest.raises(UserError, match=r"is 4 there|is 1 there"):
      execute([other])


def test_a_file_that_is_read_whole_is_the_one_that_was_written(tmp_path):
  path = tmp_path / "data"
  path.write_bytes(b"content")
  made = manifest.Manifest(
    tmp_path / "manifest.json",
    "s",
    {},
    {},
    files={"data": files.describe(path)},
  )
  with made.reading("data") as read:
    assert read.read_bytes() == b"content"
  path.write_bytes(b"c0ntent")
  with pytest.raises(UserError, match=r"data is not the file.*--stages=s"):
    made.check_content()
  path.unlink()
  with pytest.raises(UserError, match="data is missing"):
    made.check_content()


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_waits_until_a_loop_asks(number, code):
  def in_the_garbage_collector(phase, unused_info):
    if phase == "stop":
      gc.callbacks.remove(in_the_garbage_collector)
      os.kill(os.getpid(), number)

  with helpers.signals_handled():
    gc.callbacks.append(in_the_garbage_collector)
    gc.collect()  # what is raised in there is dropped
    with pytest.raises(Stopped) as e, log.Progress("x", 2, "rows") as bar:
      bar.update()
    assert e.value.exit_code == code
  with helpers.signals_handled():
    reached = False
    with pytest.raises(Stopped), signals.deferred():
      os.kill(os.getpid(), number)
      distributed.agree(lambda: None)  # not where something would be lost
      reached = signals.stop_requested() == number
    assert reached


@pytest.mark.parametrize(
  ("error", "line"),
  [
    (OSError(28, "No space left on device"), "No space left on device, f, mak"),
    (OSError(2, "No such file", "other"), "No such file, other, check that"),
    (
      OSError("cannot write: No space left on device"),
      "cannot write: No space",
    ),
  ],
)
def test_an_error_of_the_disk_names_the_file(error, line):
  with pytest.raises(OSError) as e, errors.naming("f"):
    raise error
  assert errors.one_line(e.value).startswith(line)
  assert "None" not in str(e.value)


@pytest.mark.parametrize("words", ["Too many open files", "x is corrupt"])
def test_a_limit_is_not_taken_for_damage(words):
  with pytest.raises(Exception) as e, errors.parsing("f", "restore it"):
    raise RuntimeError(f"open f: {words}")
  line = errors.one_line(distributed.explained(e.value))
  assert ("ulimit" in line) != ("damaged" in line and "restore it" in line)
  assert ("ulimit" in line) == (words[0] == "T")


def test_a_job_does_not_begin_after_a_signal(tmp_path):
  with helpers.signals_handled():
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
      execute([step(tmp_path)])
  assert not list(tmp_path.iterdir())


def test_a_call_without_end_is_left_at_the_deadline(monkeypatch, capfd):
  monkeypatch.setattr(signals, "_SAME", 0.1)
  monkeypatch.setattr(signals, "_PATIENCE", 0.2)
  left = queue.Queue()
  with helpers.signals_handled(lambda *how: left.put(how)):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # by a wrapper: the same wish
    status, line = left.get(timeout=5)
    assert (status, line[:18]) == (143, "stopped by SIGTERM")
  # What would be lost is waited for, unless somebody insists.
  with (
    helpers.signals_handled(lambda *how: left.put(how)),
    pytest.raises(Stopped),
    signals.deferred(),
  ):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(queue.Empty):
      left.get(timeout=1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert left.get(timeout=5)[0] == 130
  assert (
    "SIGINT: ends soon and keeps what is finished" in capfd.readouterr().err
  )


def test_in_a_library_call_the_first_interrupt_waits():
  handler = signal.getsignal(signal.SIGINT)
  assert handler is signal.default_int_handler
  asked = None
  with pytest.raises(KeyboardInterrupt), signals.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    asked = signals.stop_requested()
    raise Stopped(asked)
  assert asked == signal.SIGINT
  assert signals.stop_requested() is None  # the next call is not stopped
  with pytest.raises(KeyboardInterrupt), signals.deferred():
    os.kill(os.getpid(), signal.SIGINT)  # nothing acts on it
  with pytest.raises(KeyboardInterrupt), signals.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    pytest.fail("the second does not wait")
  assert signal.getsignal(signal.SIGINT) is handler
  # The caller's own, and that of another thread's process, stay.
  own = lambda *unused: None  # noqa: E731
  signal.signal(signal.SIGINT, own)
  try:
    with signals.deferred():
      assert signal.getsignal(signal.SIGINT) is own
  finally:
    signal.signal(signal.SIGINT, handler)
  said = []

  def elsewhere():
    with signals.deferred():
      said.append(signal.getsignal(signal.SIGINT))

  thread = threading.Thread(target=elsewhere)
  thread.start()
  thread.join()
  assert said == [handler]


def test_a_signal_at_the_very_end_is_not_lost():
  with helpers.signals_handled():
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.release() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
  ("error", "words"),
  [
    (OSError(errno.ENOSPC, "No space left on device", "x"), "make room"),
    (RuntimeError("cannot write x: No space left on device"), "make room"),
    (RuntimeError("open x: Too many open files"), "ulimit -n"),
    (ValueError("read x: Input/output error"), "check that it can be used"),
    (MemoryError(), "out of memory"),
    (TimeoutError(), "TimeoutError"),
    (gcsfs.retry.HttpError({"code": 503, "message": "x"}), "network"),
    (google.auth.exceptions.RefreshError("expired"), "log in again"),
    (ValueError("UNAUTHENTICATED: Error reading gs://b/x"), "log in again"),
    (RuntimeError("Unable to initialize backend 'tpu': x"), "'tpu'"),
    (ValueError("a bug of ours"), None),
  ],
)
def test_what_comes_from_outside_is_one_line(error, words):
  shown = distributed.explained(error)
  assert (shown and words in errors.one_line(shown)) if words else not shown
  around = RuntimeError("a library's words")
  around.__cause__ = error
  assert bool(distributed.explained(around)) == bool(words)


def test_a_library_writes_nothing_and_a_program_everything(capfd, tmp_path):
  """And each line goes where standard output is by then, once."""
  code = """if True:
    import sys
    from miniplm_jax.core import log
    log.log("stage", "nobody asked for it")
    log.warn("stage", "at 100 %")
    if sys.argv[1:]:
      log.show()
      log.show()
      log.log("stage", "≥ 50 % of {x}")
      log.plain("| a |")
      log.warn("stage", "at 100 %")
  """
  for arguments in ([], ["show"]):
    subprocess.run(
      [sys.executable, "-c", code, *arguments],
      check=True,
      env=helpers.environment() | {"PYTHONIOENCODING": "utf-8"},
    )
    shown = capfd.readouterr()
    assert shown.err == "[stage] warning: at 100 %\n"
    assert shown.out == "".join(
      ["[stage] ≥ 50 % of {x}\n| a |\n[stage] warning: at 100 %\n"][
        : len(arguments)
      ]
    )


@pytest.fixture
def clock(monkeypatch):
  """The seconds that `log` sees, in a list of one."""
  now = [1e6]
  fake = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(log, "time", fake)
  return now


def test_the_pace_is_told_without_what_was_compiled(capsys, clock):
  """A run of two lengths: 900 s to compile, then a second a batch."""
  unit = 16
  with log.Progress("stage", 100 * unit, "rows", every=10.0) as bar:
    for batch in range(100):
      compiling = {0: 600.0, 50: 300.0}.get(batch, 0.0)
      clock[0] += compiling + 1
      bar.update(unit, apart=compiling)
      said = capsys.readouterr().out
      if batch == 0:  # of which nobody can tell how much was the batch
        assert said == "[stage] 16/1,600 rows\n"
      elif said:
        assert f"{16 * batch + 16:,}/1,600 rows, 16 rows/s, " in said
        assert said.endswith(f", {log.duration(99 - batch)} left\n")


def test_too_little_tells_nothing(capsys, clock):
  with log.Progress("stage", 1000, "bytes", every=10.0) as bar:
    bar.update(0)
    clock[0] += 10
    bar.update(0)
    clock[0] += 9
    bar.update(1)
    clock[0] += 1
    bar.update(1, "a note")
    clock[0] += 10
    bar.update(98, "a note")
  assert capsys.readouterr().out.splitlines() == [
    "[stage] 0/1,000 bytes",
    "[stage] 2/1,000 bytes, a note",  # one second says little
    "[stage] 100/1,000 bytes, 9 bytes/s, 1 min 40 s left, a note",
  ]


def test_what_was_done_before_says_nothing_of_the_pace(capsys, clock):
  with log.Progress("stage", 1e7, "bytes", done=5e6, every=1.0) as bar:
    for _ in range(2):
      clock[0] += 10
      bar.update(1e6)
  (_, line) = capsys.readouterr().out.splitlines()
  assert line.endswith(" bytes, 0.1M bytes/s, 30.0 s left")


@pytest.mark.parametrize("is_read", [True, False])
def test_a_reader_that_has_enough_ends_it_quietly(is_read):
  code = "from miniplm_jax.core import distributed\n"
  code += "distributed.fail(BrokenPipeError(32, 'Broken pipe'), False)"
  read, write = os.pipe()
  if not is_read:
    os.close(read)
  done = subprocess.run(
    [sys.executable, "-c", code],
    stdout=write,
    stderr=subprocess.PIPE,
    check=False,
  )
  assert (done.returncode, done.stderr) == (
    (1, b"error: Broken pipe, a file, check that it can be used\n")
    if is_read
    else (141, b"")
  )


def test_jax_is_told_where_programs_are_kept(tmp_path, monkeypatch):
  """Below the workdir, by kind of CPU; what the user has set stays."""
  told = []
  config = types.SimpleNamespace(update=lambda *words: told.append(words))
  monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(config=config))
  monkeypatch.delenv(backend.CACHE)
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
  backend.prepare("", epath.Path(tmp_path), False)
  assert backend.CACHE not in os.environ
  monkeypatch.chdir(tmp_path)
  for _ in range(2):
    backend.prepare("compiled", epath.Path("run"), True)
    said = os.environ["XLA_FLAGS"].split()
    assert said[0] == "--xla_cpu_enable_fast_math=false"
    assert said[1:] == ["--xla_gpu_deterministic_ops=true"]
  folder = epath.Path(os.environ[backend.CACHE])
  assert folder.parent == epath.Path(tmp_path / "run" / "compiled")
  backend.prepare("elsewhere", epath.Path("run"), False)
  assert os.environ[backend.CACHE] == os.fspath(folder)
  # A config file may have imported JAX, which reads its environment then.
  assert set(told) == {("jax_compilation_cache_dir", os.fspath(folder))}
  monkeypatch.delenv(backend.CACHE)
  backend.prepare("/kept", epath.Path("run"), False)
  assert os.environ[backend.CACHE] == f"/kept/{folder.name}"
  monkeypatch.delenv(backend.CACHE)
  backend.prepare("gs://bucket/kept", epath.Path("run"), False)
  assert os.environ[backend.CACHE] == f"gs://bucket/kept/{folder.name}"


def test_a_damaged_compiled_program_is_not_run(tmp_path, capsys, monkeypatch):
  entries = [tmp_path / f"jit_{name}-cache" for name in "ab"]
  for path in entries:
    path.write_bytes(b"instructions of " + path.name.encode())
  monkeypatch.setenv(backend.CACHE, str(tmp_path))
  backend.note()
  entries[0].write_bytes(entries[0].read_bytes().replace(b"i", b"j", 1))
  (tmp_path / "jit_c-cache").write_bytes(b"new")
  backend.note()
  assert str(entries[0]) in capsys.readouterr().out
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    *("jit_b-cache", "jit_c-cache", backend.HASHES)
  ]
  (tmp_path / backend.HASHES).write_bytes(b"{")
  backend.note()
  backend.note()
  assert set(json.loads((tmp_path / backend.HASHES).read_text())) == {
    *("jit_b-cache", "jit_c-cache")
  }
  assert not capsys.readouterr().out


@pytest.mark.parametrize(
  "field, value",
  [
    ("workdir", "s3://bucket/x"),
    ("workdir", "gs:/bucket/x"),
    ("workdir", "/some/run[1]"),
    ("workdir", "a\\b"),
    ("run.compilation_cache", "x/../corpus"),
    ("run.compilation_cache", "/some/dir/corpus/jax"),
    ("run.compilation_cache", "corpus"),
  ],
)
def test_a_folder_that_cannot_be_meant_is_refused(field, value):
  config = tiny_config.get_config()
  config.workdir, config.corpus.source = "/some/dir", "text"
  config_lib.from_dict(config, "here")
  config.run.compilation_cache = "/some/cache/corpus"
  config_lib.from_dict(config, "here")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=f"config.{field} is"):
    config_lib.from_dict(config, "here")


def test_whoever_may_read_other_files_may_read_all(tmp_path):
  """safetensors writes for the owner alone."""
  (tmp_path / "other").touch()
  with files.replacing(tmp_path / "file") as scratch:
    scratch.unlink()
    scratch.touch(0o600)
  modes = {path.stat().st_mode for path in tmp_path.iterdir()}
  assert len(modes) == 1


def test_files_that_are_read_whole_are_known_by_all_they_hold(tmp_path):
  """Work of versions that saw their ends only stays, as it was."""
  path = tmp_path / "file"
  path.write_bytes(bytes(200_000))
  given = contents.Whole(lambda: [path])
  step = Step(
    "one", epath.Path(tmp_path / "made.json"), {}, {"x": given}, (), "", dict
  )
  old, new = manifest.Manifest(step.manifest, "one", {}, {}), step.expected()
  before = dataclasses.replace(old, inputs={"x": given.former()[0]})
  assert step.difference(before, new) is None
  assert step.difference(new, new) is None
  path.write_bytes(bytes(100_000) + b"1" + bytes(99_999))
  assert "inputs.x" in step.difference(new, step.expected())
  assert step.difference(before, step.expected()) is None
