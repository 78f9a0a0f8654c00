"""Tests run on CPU, with rank promotion an error."""

import pathlib
import shutil

from helpers import LONG, run_as_process, write_corpus  # isort: skip  (before JAX)

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


# The slowest files, minutes each: they begin first, so that no worker is left
# with one at the end.
SLOW = (
  "slices",
  "hosts",
  "minillm",
  "score",
  "pipeline",
  "training",
  "multidevice",
)
SLOW += ("accelerator", "kd", "gs", "notebook")


def pytest_collection_modifyitems(items):
  """The slow files first; pytest-xdist keeps it by --no-loadscope-reorder."""

  def place(item):
    name = pathlib.Path(item.fspath).stem.removeprefix("test_")
    return SLOW.index(name) if name in SLOW else len(SLOW)

  items.sort(key=place)


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
      write_corpus(folder / "text.jsonl")
      done = run_as_process(folder, "--config.baselines=pretrain", LONG)
      (folder / "stdout").write_text(done.stdout)
  return folder


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
