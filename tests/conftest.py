"""Tests run on CPU, with rank promotion an error."""

import json
import pathlib
import shutil
import subprocess
import sys

import helpers  # isort: skip  (before JAX)

import filelock
import jax
import pytest

from miniplm_jax.core import log
from miniplm_jax.models import sharding

jax.config.update("jax_numpy_rank_promotion", "raise")
log.show()  # as the command line does


def pytest_addoption(parser):
  parser.addoption(
    "--rewrite_goldens",
    action="store_true",
    help="write tests/goldens/ anew instead of comparing; see the diff",
  )
  parser.addoption(
    "--all_slices",
    action="store_true",
    help="simulate more slices than CI does, of up to eight hosts",
  )
  parser.addoption(
    "--old_release",
    action="append",
    metavar="CHECKOUT",
    help="open workdirs that an older release makes; may be given again",
  )


# The slowest groups: they begin first, so that no worker is left with one at
# the end.
SLOW = (
  *("accelerator", "distributed", "slices", "eight_devices", "notebook"),
  *("minillm", "score", "training", "pipeline", "kd", "gs", "sparse_kd"),
  *("proxy", "gpu", "tpu", "plan"),
)


def group(item) -> str:
  """What is run by one worker of pytest-xdist: a file shares its fixtures."""
  if "eight_devices" in item.fixturenames:
    return "eight_devices"
  if item.path.stem == "test_sweeps":  # nothing is shared
    return item.name
  return item.path.stem.removeprefix("test_")


# First: pytest-xdist reads the marks in its own hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """The slow ones first; pytest-xdist keeps it by --no-loadscope-reorder."""
  for item in items:
    item.add_marker(pytest.mark.xdist_group(group(item)))

  def place(item):
    name = group(item)
    return SLOW.index(name) if name in SLOW else len(SLOW)

  items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node, ids):
  """Without its group a test has the fixtures of its module made anew."""
  if node.config.getvalue("dist") == "loadgroup":
    assert all("@" in name for name in ids), "pytest-xdist has lost the groups"


@pytest.fixture
def mesh():
  """The 1×1×1 mesh, in context."""
  found = sharding.make_mesh(1, 1, 1)
  with jax.set_mesh(found):
    yield found


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
  """An uninterrupted run of all stages with a baseline, for all to read."""
  base = tmp_path_factory.getbasetemp()
  folder = (base if worker_id == "master" else base.parent) / "finished"
  with filelock.FileLock(f"{folder}.lock"):  # of the workers one makes it
    if not (folder / "stdout").exists():
      shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
      folder.mkdir()
      helpers.write_corpus(folder / "text.jsonl")
      # With or without, the same: test_cli.py.
      env = helpers.without(folder / "none", helpers.TENSORFLOW)
      done = helpers.run_as_process(
        folder, "--config.baselines=pretrain", helpers.LONG, env=env
      )
      (folder / "stdout").write_text(done.stdout)
  return folder


@pytest.fixture(scope="session")
def eight_devices(tmp_path_factory):
  """Asks tests/eight_devices.py for what one of its names computes."""
  log = tmp_path_factory.mktemp("eight_devices") / "stderr"
  answers = {}
  with (
    log.open("w") as stderr,
    subprocess.Popen(
      [sys.executable, str(helpers.ROOT / "tests" / "eight_devices.py")],
      env=helpers.environment(devices=8),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=stderr,
      text=True,
    ) as process,
  ):

    def ask(name: str, *arguments: str | pathlib.Path):
      asked = [name, *map(str, arguments)]
      if str(asked) not in answers:
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
      while str(asked) not in answers:
        line = process.stdout.readline()
        assert line, log.read_text()[-4000:]
        answered, *answer = json.loads(line)
        answers[str(answered)] = answer
      value, error = answers[str(asked)]
      assert error is None, error
      return value

    yield ask
    process.stdin.close()


@pytest.fixture
def copy(finished, tmp_path):
  """A copy that a test may damage; its paths differ, its content not."""
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  return tmp_path


@pytest.fixture
def demo(finished, tmp_path_factory, monkeypatch):
  """The finished run as runs/demo of the working directory, always the same."""
  folder = tmp_path_factory.getbasetemp() / "demo"
  if not folder.exists():
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "demo").symlink_to(finished / "run")
  monkeypatch.chdir(folder)
  return folder / "runs" / "demo"
