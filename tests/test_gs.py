"""gs:// against a storage emulator.

TensorFlow has Google's address built in and cannot take part; nothing here
reads gs:// through it.
"""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import fsspec.config
import gs_emulator
import pytest
import tiny_config
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from helpers import LIMIT, command, environment, write_corpus

from miniplm_jax import pipeline
from miniplm_jax.core import array_records, backup, claims, files, gs, manifest
from miniplm_jax.core.errors import UserError

_BUCKET = epath.Path(f"gs://{gs_emulator.BUCKET}")
_WORKDIR = _BUCKET / "run"
_TEXT = _BUCKET / "text"
# Where the chunks of the teacher's second checkpoint go.
_CHUNK = re.compile("teacher%2Fcheckpoints%2F8%2F.*process_0%2Fd")
_SETTINGS = ("--config.reference.train.steps=4", "--config.train.steps=4")
_TO_ROWS = ("tokenize", "teacher", "reference", "score", "select")
_ALL = (*_TO_ROWS, "train", "evaluate", "export", "report")


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
  """The emulator's gate; this process and its children are pointed at it."""
  with (
    gs_emulator.running() as (port, found),
    pytest.MonkeyPatch.context() as patch,
  ):
    patch.setenv("MINIPLM_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name, value in gs_emulator.environment(port).items():
      patch.setenv(name, value)
    # As core.gs asks, if another test did not import fsspec before it.
    patch.setitem(fsspec.config.conf, "gcs", {"use_listings_cache": False})
    yield found


def start(arguments: Sequence[str]) -> subprocess.Popen:
  """Starts a process of the emulator's users."""
  return subprocess.Popen(
    arguments,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(workdir, source, stages: Sequence[str]):
  """A run in this process, whose imports and compilations serve all."""
  config = tiny_config.get_config()
  config.workdir, config.corpus.source = str(workdir), str(source)
  config.reference.train.steps = config.train.steps = 4
  pipeline.run(config, "tiny_config.py", stages, force=False, dry_run=False)


def objects() -> dict[str, str]:
  """The generation of each object of the workdir."""
  found = gs.file_system().find(str(_WORKDIR), detail=True)
  return {name: facts["generation"] for name, facts in found.items()}


@pytest.fixture(scope="module")
def killed(gate, tmp_path_factory):
  """Kills a run on gs:// amid a checkpoint; the workdir of one on a disk."""
  local = tmp_path_factory.mktemp("local")
  write_corpus(local / "text.jsonl", 16)
  # In a folder of the folder that is read.
  gs.upload(local / "text.jsonl", _TEXT / "a" / "text.jsonl")
  process = start(command(_BUCKET, *_SETTINGS, source=_TEXT))

  def kill(method, address):
    if _CHUNK.search(address):
      process.kill()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(gate, "before", kill)
    run(local / "run", local / "text.jsonl", _TO_ROWS)
    said = process.communicate(timeout=LIMIT)
  assert process.returncode == -signal.SIGKILL, said
  return local / "run"


def test_a_killed_run_goes_on_and_ends_as_on_a_disk(killed, gate, capsys):
  half = [name for name in objects() if "teacher/checkpoints/8/" in name]
  assert half and not any(n.endswith("8/commit_success.txt") for n in half)
  run(_WORKDIR, _TEXT, _ALL)
  assert "restored checkpoint 4" in capsys.readouterr().out
  for name in (
    "teacher/hf/model.safetensors",
    "teacher/hf/tokenizer.json",
    "selection/miniplm/rows.npy",
  ):
    assert (_WORKDIR / name).read_bytes() == (killed / name).read_bytes(), name
  for name in ("metrics/events*", "hf/model.safetensors", "evaluation.json"):
    assert list((_WORKDIR / "students" / "miniplm").glob(name)), name
  assert "miniplm" in (_WORKDIR / "report.html").read_text()
  assert gate.conditional > 20  # claims and parts

  before = objects()
  assert not [name for name in before if "partial" in name]
  run(_WORKDIR, _TEXT, _ALL)
  out = capsys.readouterr().out
  assert out.count("skipped") == out.count("[") and objects() == before


def test_a_bucket_that_is_not_there_or_refuses_is_one_line(gate, monkeypatch):
  def refuse(method, address):
    found = re.search("/b/refuses([0-9]+)/", address)
    return int(found[1]) if found else None

  monkeypatch.setattr(gate, "before", refuse)
  wanted = {
    "nowhere": "there is no bucket nowhere",
    "refuses401": "401",
    "refuses403": "Forbidden",
  }
  started = {
    bucket: start(command(epath.Path(f"gs://{bucket}"), source=_TEXT))
    for bucket in wanted
  }
  for bucket, process in started.items():
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1 and not out, out + err
    (line,) = err.splitlines()
    assert line.startswith("error: ") and f", gs://{bucket}, " in line
    assert wanted[bucket] in line and "gcloud" in line


_LARGE = 60 << 20  # more than is sent at once
_REPLACING = f"""
import sys
from miniplm_jax.core import distributed, files, signals
signals.handle(distributed.leave)
with files.replacing(sys.argv[1]) as scratch:
  scratch.write_bytes(bytes({_LARGE}))
signals.raise_if_stopped()
"""


def test_an_upload_that_is_stopped_is_whole_or_absent(gate, monkeypatch):
  started = {
    number: start(
      [sys.executable, "-c", _REPLACING, f"{_BUCKET}/large{number}"]
    )
    for number in (signal.SIGKILL, signal.SIGTERM)
  }
  stopped = set()

  def stop(method, address):
    found = re.search("name=large([0-9]+)&.*upload_id=", address)
    if found and found[1] not in stopped:  # once: it may stop its own ending
      stopped.add(found[1])
      started[int(found[1])].send_signal(int(found[1]))

  monkeypatch.setattr(gate, "before", stop)
  for number, process in started.items():
    assert process.wait(100) != 0 and f"{number}" in stopped
    path = _BUCKET / f"large{number}"
    assert not path.exists() or path.stat().length == _LARGE


def test_one_of_many_claims_is_granted_and_pyarrow_reads_it(gate):
  from concurrent.futures import ThreadPoolExecutor

  import pyarrow.fs

  from miniplm_jax.core import files

  folder = files.store(_BUCKET / "claims")
  absent = folder.read("claim").result().stamp.generation

  def claim(worker):
    mine = folder.write("claim", b"%d" % worker, if_equal=absent).result()
    return bool(mine.generation)

  with ThreadPoolExecutor(8) as pool:
    granted = list(pool.map(claim, range(8)))
  assert sum(granted) == 1 and gate.refused >= 7
  system, path = pyarrow.fs.FileSystem.from_uri(
    f"gs://anonymous@{gs_emulator.BUCKET}/claims/claim"
  )
  with system.open_input_stream(path) as f:
    assert int(f.read()) == granted.index(True)


def disk_of(monkeypatch, folder, size: int):
  """A disk of so many bytes for the copies, with nothing else on it."""

  def usage(path):
    used = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return SimpleNamespace(total=size, free=size - used)

  monkeypatch.setenv("MINIPLM_CACHE", str(folder))
  monkeypatch.setattr(gs.shutil, "disk_usage", usage)


def copies(folder) -> set[str]:
  return {p.name for p in folder.rglob("object*") if p.is_file()}


def test_copies_go_when_they_are_not_in_use_and_others_files_stay(
  gate, monkeypatch, tmp_path
):
  disk_of(monkeypatch, tmp_path, 10_000)  # 9,000 may be used: 2 copies
  for i in range(4):
    (_BUCKET / f"object{i}").write_bytes(bytes([i]) * 4000)
  others = tmp_path / "gs" / "notes" / "7.txt"
  others.parent.mkdir(parents=True)
  others.write_text("mine")
  with gs.local(_BUCKET / "object0") as first:
    for i in (1, 2, 3, 1):
      with gs.local(_BUCKET / f"object{i}") as copy:
        assert copy.read_bytes() == bytes([i]) * 4000
        assert copies(tmp_path) == {"object0", f"object{i}"}
    with (
      gs.local(_BUCKET / "object2"),
      pytest.raises(gs.NoRoomError, match=r"4,000 bytes.*MINIPLM_CACHE"),
      gs.local(_BUCKET / "object3"),
    ):
      pass
    assert first.read_bytes() == bytes(4000)
  # Begun by a process that was killed, and by one that is still at it.
  dead, alive = (first.parents[2] / f"object{n}/1" for n in (8, 9))
  for folder in (dead, alive):
    folder.mkdir(parents=True)
    (folder / ".partial-1-1").write_bytes(bytes(1000))
    os.utime(folder / ".partial-1-1", (1, 1))
  with gs._locked(alive) as lock:
    lock(fcntl.LOCK_EX)
    with gs.local(_BUCKET / "object3"):
      assert not list(dead.glob(".partial*"))
      assert list(alive.glob(".partial*")) and others.read_text() == "mine"


def test_a_corpus_larger_than_the_disk_is_read(gate, monkeypatch, tmp_path):
  shards = range(5)
  for i in shards:
    local = tmp_path / "local"
    with contextlib.closing(ArrayRecordWriter(str(local), "group_size:1")) as w:
      for j in range(20):
        w.write(f"{i} {j}".encode() * 50)
    gs.upload(local, _BUCKET / f"objects{i}")
  size = local.stat().st_size
  disk_of(monkeypatch, tmp_path / "cache", 3 * size)
  readers = array_records.Readers(lambda i: _BUCKET / f"objects{i}")
  for i in (*shards, *shards):
    assert readers.read(i, [7]) == [f"{i} 7".encode() * 50]
    assert readers.read(i, [3, 1])[1] == f"{i} 1".encode() * 50
    assert len(copies(tmp_path / "cache")) <= 2


def test_workers_copy_an_object_once(gate, monkeypatch, tmp_path):
  from concurrent.futures import ThreadPoolExecutor

  disk_of(monkeypatch, tmp_path, 1 << 30)
  (_BUCKET / "once").write_bytes(bytes(1000))
  asked = []
  monkeypatch.setattr(
    gate, "before", lambda method, address: asked.append(address)
  )

  def size(unused):
    with gs.local(_BUCKET / "once") as copy:
      return copy.stat().st_size

  with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(size, range(8))) == [1000] * 8
  assert sum("alt=media" in address for address in asked) == 1


def test_the_sizes_of_many_files_are_few_requests(gate, monkeypatch):
  folder, sizes = _BUCKET / "sizes", {f"part-{i}": i + 1 for i in range(20)}
  sizes |= {"hf/model": 7, "hf/config": 8}
  for name, size in sizes.items():
    gs.file_system().pipe_file(f"{folder / name}", bytes(size))
  described = {name: {"bytes": size} for name, size in sizes.items()}
  made = manifest.Manifest(folder / "m", "score", {}, {}, files=described)
  asked = []
  monkeypatch.setattr(gate, "before", lambda *request: asked.append(request))
  made.check_sizes()
  assert len(asked) <= 2 * 2  # a listing of each folder, in pages
  for name, what in (("hf/no", "is missing"), ("part-3", "has 4 bytes")):
    made.files[name] = {"bytes": 3}
    with pytest.raises(UserError, match=f"{name} {what}"):
      made.check_sizes()
    del made.files[name]


def test_what_is_made_again_can_be_put_back(gate):
  """Object by object: also half of a folder."""
  out = _BUCKET / "former" / "out"

  def there():
    return {str(p.relative_to(out)): p.read_text() for p in files.objects(out)}

  names = ("manifest.json", "file", "8/state/file", "8/file", "8/.hidden")
  for name in names:
    files.write_bytes(out / name, name.encode())
  before = there()
  old = backup.Backup(out / names[0], out / "manifest.partial.json", (out,))
  old.set_aside()
  aside = {".manifest.json.old", ".file.old", ".8.old/state/file"}
  assert there().keys() == aside | {".8.old/file", ".8.old/.hidden"}
  for name in ("manifest.partial.json", "8/other"):
    files.write_bytes(out / name, b"new")
  old.put_back()
  assert there() == before
  for name in ("manifest.json", "8/file"):  # killed in between
    head, *tail = name.split("/")
    target = "/".join([f"{out}/.{head}.old", *tail])
    gs.file_system().mv(f"{out / name}", target)
  old.put_back()
  assert there() == before
  old.set_aside()
  files.write_bytes(out / "manifest.json", b"new")
  old.drop()
  assert there() == {"manifest.json": "new"}


def test_who_was_taken_over_in_a_bucket_writes_no_more(gate):
  folder = _BUCKET / "guarded"
  board = claims.Board(folder / ".claims", 9)
  assert board.claim("out")
  guard = board.guard("out", folder / "out")
  with files.guarded([guard]):
    files.write_bytes(folder / "out" / "file", b"mine")
    assert guard.holds and guard._asked
    guard.holds = 0
    board.release("out")
    for claimed in (False, True):
      with pytest.raises(UserError, match="another program has taken over"):
        files.write_bytes(folder / "out" / "file", b"late")
      assert claims.Board(folder / ".claims", 9).claim("out") != claimed
  assert (folder / "out" / "file").read_bytes() == b"mine"
