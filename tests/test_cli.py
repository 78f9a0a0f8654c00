"""The console script, configs by name, and the wheel that carries both."""

import ast
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from absl import flags
from helpers import ROOT, environment

import miniplm_jax as mp
from miniplm_jax import cli, main, pipeline
from miniplm_jax import config as config_lib
from miniplm_jax.config import lookup
from miniplm_jax.core.errors import UserError

EVERY_STAGE = config_lib.STAGES + config_lib.ON_REQUEST + config_lib.LOOKS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """In a folder without configs/."""
  monkeypatch.chdir(tmp_path)


def test_a_command_is_a_stage_or_run():
  assert cli.arguments(["run", "--config=demo"]) == ["--config=demo"]
  for stage in EVERY_STAGE:
    assert cli.arguments([stage, "--force"]) == ["--force", f"--stages={stage}"]
    assert re.search(rf"\b{stage}\b", cli.HELP)
  words = "no command skore, command line, see miniplm --help"
  with pytest.raises(UserError, match=words):
    cli.arguments(["skore", "--config=demo"])


def test_help_imports_nothing_that_takes_time():
  code = "from miniplm_jax import cli; cli.main(); import sys; " + (
    "print({m.partition('.')[0] for m in sys.modules})"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, "--help"],
    capture_output=True,
    text=True,
    check=True,
    env=environment(),
  )
  said, _, modules = done.stdout.strip().rpartition("\n")
  assert said == cli.HELP.strip()
  heavy = {"absl", "jax", "ml_collections", "numpy", "tensorflow"}
  assert "miniplm_jax" in modules and not heavy & ast.literal_eval(modules)


@pytest.mark.parametrize(
  "name", ["demo", "demo.py", "configs/demo.py", "./configs/demo", "demo:all"]
)
def test_a_config_is_found_by_name_from_anywhere(tmp_path, name):
  (tmp_path / "demo").mkdir()  # no file
  path, _, argument = lookup.located(name).partition(":")
  assert pathlib.Path(path).samefile(ROOT / "configs" / "demo.py")
  assert argument == name[5:] * (":" in name)
  assert lookup.arguments(["main", "--config", name, "--force"]) == [
    *("main", "--config", lookup.located(name), "--force")
  ]


def test_a_file_that_is_there_wins(tmp_path):
  for name in ("demo.py", "configs/demo.py"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("def get_config(word=''):\n  return ['mine', word]\n")
    assert lookup.located(f"{name}:x") == f"{name}:x"
    assert lookup.load(f"{name}:x") == ["mine", "x"]
  assert lookup.load("demo").workdir == "runs/demo"


@pytest.mark.parametrize("name", ["nope", "configs/nope.py", "x/demo.py", ""])
def test_a_config_that_is_nowhere_is_one_line(name):
  words = f"no config file {re.escape(name)}, here or in the package, give its "
  with pytest.raises(UserError, match=f"{words}path, or one of 1_2b, .*demo"):
    main.run(["miniplm", f"--config={name}"], flags.FlagValues())


def test_the_library_takes_a_name(monkeypatch):
  given = []
  monkeypatch.setattr(pipeline, "run", lambda *a, **k: given.extend(a[:2]))
  monkeypatch.setattr("miniplm_jax.api.steps.Run", lambda folder: None)
  mp.run("demo:all")
  assert given[0].workdir == "runs/demo" and "proxy" in given[0].baselines
  assert given[1] == "demo:all"


@pytest.mark.long
def test_the_wheel_runs_from_an_empty_folder(tmp_path):
  source, target = tmp_path / "source", tmp_path / "target"
  source.mkdir()
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  for name in ("miniplm_jax", "configs"):
    shutil.copytree(ROOT / name, source / name, symlinks=True)
  pip = [sys.executable, "-m", "pip", "--quiet"]
  wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
  subprocess.run([*pip, *wheel], check=True)
  (wheel,) = tmp_path.glob("*.whl")
  install = ["install", "--no-deps", "--target", target, wheel]
  subprocess.run([*pip, *install], check=True)
  carried = {path.name for path in (target / "miniplm_jax/configs").glob("*")}
  assert carried - {"__pycache__"} == {
    path.name for path in (ROOT / "configs").glob("*.py")
  }

  def miniplm(*arguments: str):
    done = subprocess.run(
      [target / "bin" / "miniplm", *arguments],
      capture_output=True,
      text=True,
      env=environment() | {"PYTHONPATH": str(target)},
      check=False,
    )
    return done.returncode, done.stdout, done.stderr.strip()

  code, said, _ = miniplm("run", "--config=demo", "--dry_run")
  assert code == 0
  assert said.startswith(f"{target}/miniplm_jax/configs/demo.py in runs/demo:")
  assert "select" in said
  code, said, _ = miniplm("score", "--config", "configs/500m.py", "--dry_run")
  assert code == 0
  assert "score" in said and "select" not in said
  assert miniplm("skore") == (
    *(1, "", "error: no command skore, command line, see miniplm --help"),
  )
