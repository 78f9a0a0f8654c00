"""Folders that several processes want, and what killed ones leave."""

import dataclasses
import errno
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
from etils import epath
from test_core import status, step

from miniplm_jax.core import backup, claims, code, files, manifest, owner
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.execute import execute
from miniplm_jax.core.log import Progress

ELSEWHERE = {"name": "far", "host": "far-boot-1", "pid": 7, "since": 0}


@pytest.fixture
def boards(tmp_path):
  """Two programs on one workdir."""
  folder = epath.Path(tmp_path / ".claims")
  with claims.Board(folder, 0.6) as one, claims.Board(folder, 0.6) as two:
    yield one, two


def dead_pid() -> int:
  process = subprocess.Popen(["true"])
  process.wait()
  return process.pid


def put(folder, name, content):
  path = folder / ".claims" / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def test_one_program_makes_a_folder_and_the_other_is_refused(tmp_path, boards):
  one, two = boards
  refusals = []

  def run(unused_inputs):
    for force in (False, True):
      with pytest.raises(UserError) as e:
        execute([step(tmp_path)], force, two)
      refusals.append(str(e.value))
    files.write_bytes(epath.Path(tmp_path / "out/file"), b"half")
    with pytest.raises(UserError, match="being made by"):  # also beside files
      execute([step(tmp_path)], True, two)
    assert (tmp_path / "out/file").read_bytes() == b"half"
    return {}

  execute([step(tmp_path, run=run)], board=one)
  for line in refusals:
    assert f"out is being made by {os.getpid()} on " in line
    assert " since 2" in line and "wait for that process" in line
  execute([step(tmp_path)], True, two)  # given back at the end
  assert not list((tmp_path / ".claims").rglob("*.json"))


def test_what_is_done_is_skipped_beside_a_claim(tmp_path, boards, capsys):
  execute([step(tmp_path)])
  put(tmp_path, "out/manifest.json", owner.this_process())
  execute([step(tmp_path)], board=boards[0])
  assert "skipped" in capsys.readouterr().out


def test_what_goes_meanwhile_is_not_made_without_a_claim(
  tmp_path, boards, monkeypatch
):
  """By a forced run, of another program, of what was just seen to be done."""
  execute([step(tmp_path)])
  read = manifest.read

  def removed(path):
    found = read(path)
    put(tmp_path, "out/manifest.json", owner.this_process())
    files.remove(epath.Path(tmp_path / "out"))
    return found

  reads = iter([read, removed])
  monkeypatch.setattr(manifest, "read", lambda path: next(reads, read)(path))
  with pytest.raises(UserError, match="out/file is missing"):
    execute([step(tmp_path)], board=boards[0])
  assert not (tmp_path / "out").exists()


def test_what_is_done_is_skipped_on_a_disk_that_can_only_be_read(
  tmp_path, monkeypatch, capsys
):
  def refuse(path, *unused, **what):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

  execute([step(tmp_path)])
  for name in ("unlink", "remove", "mkdir", "replace", "rename", "link"):
    monkeypatch.setattr(os, name, refuse)
  with claims.Board(epath.Path(tmp_path / ".claims"), 9) as board:
    execute([step(tmp_path)], board=board)
  assert "skipped" in capsys.readouterr().out
  with pytest.raises(OSError, match="Read-only"):
    execute([step(tmp_path)], force=True)


def test_nothing_is_removed_below_which_somebody_works(tmp_path, boards):
  """As logits below a selection, or the units of a table."""
  one, two = boards
  execute([step(tmp_path)])
  assert one.claim("out/file/below")
  with pytest.raises(UserError, match="out/file/below is being made by"):
    execute([step(tmp_path)], True, two)
  assert (tmp_path / "out/file").exists()
  one.release("out/file/below")
  execute([step(tmp_path)], True, two)


def test_nothing_is_removed_that_somebody_reads(tmp_path, boards):
  one, two = boards
  execute([step(tmp_path)], board=one)

  def run(unused_inputs):
    with pytest.raises(UserError, match="other is being made by"):
      execute([step(tmp_path)], True, two)
    return {}

  made = tmp_path / "out/manifest.json"
  reader = dataclasses.replace(
    step(tmp_path, run=run),
    manifest=epath.Path(tmp_path / "other/manifest.json"),
    inputs={"made": epath.Path(made)},
    outputs=(epath.Path(tmp_path / "other"),),
  )
  execute([reader], board=one)
  assert (tmp_path / "out/file").exists()
  execute([step(tmp_path)], True, two)


def test_an_interrupted_notebook_gives_back_and_goes_on(tmp_path, boards):
  """Without the command line's handlers, Ctrl-C is Python's own exception."""
  out, before = epath.Path(tmp_path) / "out", signal.getsignal(signal.SIGINT)

  def run(unused_inputs):
    files.write_bytes(out / "file", b"half")
    with Progress("stage", 2, "rows") as progress:
      os.kill(os.getpid(), signal.SIGINT)
      progress.update()

  with pytest.raises(KeyboardInterrupt):
    execute([step(tmp_path, run=run)], board=boards[0])
  assert signal.getsignal(signal.SIGINT) is before
  assert status(step(tmp_path)) == "would resume"
  execute([step(tmp_path)], board=boards[1])
  assert (out / "file").read_bytes() == b"made"


def test_programs_share_a_folder_that_is_for_several(tmp_path, boards):
  one, two = boards

  def run(unused_inputs):
    execute([step(tmp_path, is_shared=True)], board=two)
    with pytest.raises(UserError, match="being made by"):
      execute([step(tmp_path, is_shared=True)], True, two)
    return {}

  execute([step(tmp_path, is_shared=True, run=run)], board=one)
  assert manifest.read(tmp_path / "out/manifest.json").files == {}


@pytest.mark.parametrize(
  "who",
  [
    ELSEWHERE,
    "damaged",
    {"pid": "dead"},
    {"pid": "mine", "began": "another process of this number"},
  ],
)
def test_the_claim_of_a_killed_process_is_taken_over(
  tmp_path, boards, capsys, who
):
  is_here = "host" not in who and isinstance(who, dict)
  if is_here:
    pid = os.getpid() if who["pid"] == "mine" else dead_pid()
    who = owner.this_process() | who | {"pid": pid}
  put(tmp_path, "out/manifest.json", who)
  start = time.monotonic()
  execute([step(tmp_path)], board=boards[0])
  assert (time.monotonic() - start < 0.5) == is_here
  assert ("waiting up to" in capsys.readouterr().out) != is_here
  assert manifest.read(tmp_path / "out/manifest.json")


def test_a_killed_process_that_nobody_reaps_has_ended():
  """As in a container whose first process is a program."""
  process = subprocess.Popen(["sleep", "100"])
  who = owner.this_process() | {
    "pid": process.pid,
    "began": owner._began(process.pid),
  }
  assert not owner.is_dead(who)
  process.kill()
  os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
  assert owner.is_dead(who)
  process.wait()


def test_a_claim_is_as_patient_as_its_owner_asks(tmp_path):
  """Else a program with a shorter lease takes over one that lives."""
  now, far = time.monotonic(), ELSEWHERE | {"seconds": 9}
  board = claims.Board(epath.Path(tmp_path / ".claims"), 0.1)
  put(tmp_path, "a", far)
  put(tmp_path, "b", ELSEWHERE)
  assert not board.claim("a") and not board.claim("b")
  while time.monotonic() < now + 0.2:
    time.sleep(0.05)
  assert board.claim("b") and not board.claim("a")


def test_a_claim_of_another_machine_that_is_renewed_stands(tmp_path, boards):
  far = claims.Board(epath.Path(tmp_path / ".claims"), 0.3)
  far._me |= ELSEWHERE
  with far:
    assert far.claim("out/manifest.json")
    with pytest.raises(UserError, match="made by 7 on far since 19"):
      execute([step(tmp_path)], board=boards[0])


@pytest.mark.parametrize("is_given_back", [False, True])
@pytest.mark.parametrize("is_noticed", [False, True])
def test_who_was_taken_over_does_not_finish(
  tmp_path, boards, is_given_back, is_noticed
):
  """As a process that was stopped, and goes on when another has finished."""
  one = boards[0]

  def run(unused_inputs):
    theirs = owner.this_process() | {"name": "theirs"}
    put(tmp_path, "out/manifest.json", theirs)
    (tmp_path / "out/file").write_bytes(b"theirs")
    if is_noticed:  # by the thread that renews
      one._held.clear()
    if is_given_back:
      (tmp_path / ".claims/out/manifest.json").unlink()
    return {}

  with pytest.raises(UserError, match="another program has taken over"):
    execute([step(tmp_path, run=run)], board=one)
  assert not (tmp_path / "out/manifest.json").exists()
  assert (tmp_path / "out/file").read_bytes() == b"theirs"
  assert (tmp_path / "out/manifest.partial.json").exists()
  taken = tmp_path / ".claims/out/manifest.json"
  assert taken.exists() != is_given_back


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize(
  "change",
  [
    lambda file: files.write_bytes(file, b"ours"),
    lambda file: files.write_json(file, {}),
    lambda file: claims.publish(file.parent / "new", b"ours"),
    lambda file: files.move(file, file.parent / "new"),
    lambda file: files.remove(file),
    lambda file: backup.clear([file.parent]),
  ],
)
def test_who_was_taken_over_changes_nothing(
  tmp_path, boards, change, is_shared
):
  """As a process that was suspended while a forced run removed its claim."""

  def run(unused_inputs):
    file = epath.Path(tmp_path / "out/file")
    files.write_bytes(file, b"mine")  # until then it may
    for claim in (tmp_path / ".claims/out").iterdir():
      claim.unlink()
    file.write_bytes(b"theirs")
    change(file)

  with pytest.raises(UserError, match="another program has taken over"):
    execute([step(tmp_path, run=run, is_shared=is_shared)], board=boards[0])
  assert (tmp_path / "out/file").read_bytes() == b"theirs"
  assert not (tmp_path / "out/new").exists()
  files.remove(epath.Path(tmp_path / "out"))  # who has no claim is not asked


def test_a_child_asks_for_the_claim_of_its_parent(tmp_path, boards):
  boards[0].claim("out")
  what = epath.Path(tmp_path / "out")
  guard = pickle.loads(pickle.dumps(boards[0].guard("out", what)))
  guard()
  put(tmp_path, "out", owner.this_process() | {"worker": "another"})
  with pytest.raises(UserError, match="what that one makes stands"):
    guard()


def test_a_claim_in_a_bucket_is_not_asked_for_at_every_file(
  tmp_path, monkeypatch
):
  now = [0.0, 100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  monkeypatch.setattr(time, "time", lambda: now[1])
  claim = epath.Path(tmp_path / "claim")
  claim.write_text(json.dumps({"worker": "me"}))
  guard = claims.Guard(claim, "me", claim, holds=6)
  guard()
  claim.unlink()
  guard()
  for now[:] in ([7, 101], [1, 107], [1, 99]):  # asleep, or set back
    with pytest.raises(UserError, match="taken over"):
      guard()


def test_each_process_has_a_scratch_file_of_its_own(tmp_path):
  """The last one stands, whole; none takes another's away."""
  path = tmp_path / "file"
  code = (
    "import sys; from miniplm_jax.core import files\n"
    "with files.replacing(sys.argv[1]) as scratch:\n"
    "  scratch.write_bytes(b'theirs')\n"
    "  print(flush=True); sys.stdin.read()"
  )
  other = subprocess.Popen(
    [sys.executable, "-c", code, str(path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  other.stdout.readline()
  with files.replacing(path) as scratch:
    scratch.write_bytes(b"half of ours")
    other.communicate()
    assert other.returncode == 0 and path.read_bytes() == b"theirs"
    scratch.write_bytes(b"ours")
  assert path.read_bytes() == b"ours"
  assert os.listdir(tmp_path) == ["file"]


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
  here, pid = owner.machine(), dead_pid()
  out = tmp_path / "out"
  out.mkdir()
  gone = [f".file.x.{here}-{pid}.partial", ".old.parquet.partial"]
  kept = [f".other.{here}-{os.getpid()}.partial", ".file.far-1.partial"]
  for name in gone + kept:
    (out / name).write_bytes(b"x")
  os.utime(out / gone[1], (0, 0))
  execute([step(tmp_path)])
  assert {p.name for p in out.iterdir()} == {"manifest.json", "file", *kept}


def test_folders_that_cannot_be_fsynced(tmp_path, monkeypatch):
  def fsync(handle, real=os.fsync):
    if os.path.isdir(f"/proc/self/fd/{handle}"):
      raise OSError(22, "Invalid argument")
    real(handle)

  monkeypatch.setattr(os, "fsync", fsync)
  monkeypatch.setattr(os, "link", lambda *_: fsync(os.open(tmp_path, 0)))
  path = epath.Path(tmp_path / "a")
  assert claims.publish(path, b"1") and not claims.publish(path, b"2")
  files.write_bytes(path.parent / "b", b"3")
  assert path.read_bytes() == b"1"
  assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_claims_where_there_are_no_locks(tmp_path, monkeypatch):
  def flock(*unused):
    raise OSError(38, "Function not implemented")

  opened, real = [], files.store
  monkeypatch.setattr(fcntl, "flock", flock)
  monkeypatch.setattr(
    files, "store", lambda *how: opened.append(how[1:]) or real(*how)
  )
  one, two = (claims.Board(epath.Path(tmp_path), 9) for _ in range(2))
  assert one.claim("a") and not two.claim("a")
  assert opened == [(), (), ("lockfile",)]
  one.release("a")
  assert two.claim("a")


def test_who_finishes_leaves_no_claim_that_is_void(tmp_path):
  """One by one: a folder that goes is an error to those who write into it."""
  one, two = (claims.Board(epath.Path(tmp_path), 9) for _ in range(2))
  assert one.claim("done") and one.claim("other")
  (tmp_path / "dead").write_text(
    json.dumps(owner.this_process() | {"pid": dead_pid()})
  )
  two.clear({"done"})
  assert os.listdir(tmp_path) == ["other"]
  one.release("done")
  assert one.claim("done")


@pytest.fixture
def module(tmp_path, monkeypatch):
  """Writes a package of two modules; returns what rewrites a text in them."""
  package = tmp_path / "miniplm_jax"
  (package / "corpus").mkdir(parents=True)
  (package / "core").mkdir()
  monkeypatch.setattr(code, "_PACKAGE", package)
  texts = {
    "corpus/a.py": '"""Words."""\nfrom miniplm_jax.corpus import b\n'
    "from miniplm_jax.core import c\nx = b.y + 1  # why\n"
    'if x > 9:\n  raise UserError("words")\n',
    "corpus/b.py": "y = 1\n",
    "core/c.py": "z = 1\n",
  }

  def write(old="", new=""):
    code.fingerprint.cache_clear()
    for name, text in texts.items():
      (package / name).write_text(text.replace(old, new) if old else text)

  write()
  yield write
  code.fingerprint.cache_clear()


def begin(folder, version):
  """A step that fails when half of it is done."""

  def fail(unused_inputs):
    files.write_bytes(epath.Path(folder) / "out/file", b"half")
    raise UserError("no", "here", "do")

  with pytest.raises(UserError, match="no, here, do"):
    execute([step(folder, run=fail, code=version)])


def test_what_another_version_of_the_code_began_is_refused(tmp_path, module):
  version = code.Version(("corpus/a.py",), ("numpy",))
  begin(tmp_path, version)
  for old in ("Words", "why", "words", "z = 1", " + 1  #"):  # decides nothing
    module(old, f"{old} " if old == " + 1  #" else f"{old}2")
    assert status(step(tmp_path, code=version)) == "would resume"
  module("y = 1", "y = 2")  # what is imported decides
  assert "would be refused: code" in status(step(tmp_path, code=version))
  with pytest.raises(UserError, match=r"began this.*any_code=True"):
    execute([step(tmp_path, code=version)])
  allowed = dataclasses.replace(version, any_code=True)
  execute([step(tmp_path, code=allowed)])
  made = manifest.read(tmp_path / "out/manifest.json")
  assert len(made.details["code"]) == 2  # both are named
  module("y = 1", "y = 3")  # what is done is done
  assert status(step(tmp_path, code=version)) == "done"


def test_a_finished_folder_does_not_grow_by_another_version(tmp_path, module):
  version = code.Version(("corpus/a.py",))
  first = {"code": version, "rechecks": ("text",), "grows": True}
  execute([step(tmp_path, **first)])
  grown = dataclasses.replace(
    step(tmp_path, **first), inputs={"text": lambda: "more"}
  )
  assert status(grown).startswith("would go on")
  module("x = b.y + 1", "x = b.y - 1")
  with pytest.raises(UserError, match="began this"):
    execute([grown])
  module()
  execute([grown])
  assert manifest.read(tmp_path / "out/manifest.json").inputs["text"] == "more"
