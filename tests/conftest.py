"""Tests run on CPU, with rank promotion an error."""

import shutil

from helpers import LONG, run, write_corpus  # isort: skip  (before JAX)

import jax
import pytest

from miniplm_jax.models import sharding

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
  parser.addoption(
    "--rewrite_goldens",
    action="store_true",
    help="write tests/goldens/ anew instead of comparing; see the diff",
  )


@pytest.fixture
def mesh():
  """The 1×1×1 mesh, in context."""
  found = sharding.make_mesh(1, 1, 1)
  with jax.set_mesh(found):
    yield found


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """An uninterrupted run of all stages with a baseline."""
  folder = tmp_path_factory.mktemp("finished")
  write_corpus(folder / "text.jsonl")
  done = run(folder, "--config.baselines=('pretrain',)", LONG)
  (folder / "stdout").write_text(done.stdout)
  return folder


@pytest.fixture
def copy(finished, tmp_path):
  """A copy that a test may damage; its paths differ, its content not."""
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  return tmp_path


@pytest.fixture
def demo(finished, monkeypatch):
  """The finished run as runs/demo of the working directory."""
  folder = finished.parent / "demo"
  if not folder.exists():
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "demo").symlink_to(finished / "run")
  monkeypatch.chdir(folder)
  return folder / "runs" / "demo"
