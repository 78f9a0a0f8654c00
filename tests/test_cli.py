"""The console script, configs by name, and the wheel that carries both."""

import ast
import importlib
import itertools
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import helpers
import pytest
from absl import flags
from helpers import ROOT, environment
from packaging.requirements import Requirement

import miniplm_jax as mp
from miniplm_jax import cli, main, pipeline
from miniplm_jax import config as config_lib
from miniplm_jax.config import CorpusConfig, lookup
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import sources
from miniplm_jax.selection import materialize_writers

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
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
  assert cli.arguments(["score", "-h"]) == ["--help", "--stages=score"]
  for word, hint in (
    *(("tokenise", "did you mean tokenize?"), ("runn", "did you mean run?")),
    ("xyz", "see miniplm --help"),
  ):
    with pytest.raises(UserError) as e:
      cli.arguments([word, "--config=demo"])
    assert str(e.value) == f"no command {word}, command line, {hint}"


def miniplm(*words: str) -> tuple[int, str, str]:
  """The console script's exit status and what it prints."""
  code = "import sys; from miniplm_jax import cli; cli.main()"
  done = subprocess.run(
    [sys.executable, "-c", code, *words],
    capture_output=True,
    text=True,
    env=environment(),
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


def test_the_script_speaks_of_itself():
  assert miniplm("--version") == (0, f"miniplm_jax {mp.__version__}\n", "")
  for words in ["nll", "--help"], ["nll", "-h"], []:
    assert miniplm(*words) == (0, cli.HELP, "")
  code, said, _ = miniplm("train", "-h")
  assert code == 0 and said.startswith("miniplm run --config=")
  assert "--[no]dry_run" in said


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


@pytest.mark.parametrize("name", ["nope", "configs/nope.py", "x/nope.py", ""])
def test_a_config_that_is_nowhere_is_one_line(name):
  words = f"no config file {re.escape(name)}, here or in the package, give its "
  with pytest.raises(UserError, match=f"{words}path, or one of 1_2b, .*demo"):
    main.run(["miniplm", f"--config={name}"], flags.FlagValues())
  with pytest.raises(UserError, match=r"file dmeo, .*, did you mean demo\?"):
    lookup.located("dmeo")


def test_a_field_that_is_none_is_told_as_it_was_typed(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from miniplm_jax import config\ndef get_config():\n"
    "  c = config.default()\n  c.train.stepz = 3\n  return c\n"
  )
  for argument, words in (
    (f"--config={path}", r'Key "stepz" does not .*"steps".*mine.py:4, mend'),
    (
      "--config.train.stepz=3",
      r"^config has no field train.stepz, --config.train.stepz=3, did you mean "
      "train.steps ",
    ),
    ("--config.ratio=3", "did you mean select.ratio or token_selection.ratio?"),
    ("--config.xyz=3", "--config.xyz=3, all are in miniplm_jax/config"),
  ):
    with pytest.raises(UserError, match=words) as e:
      given = (
        [argument] if "=3" not in argument else ["--config=demo", argument]
      )
      main.run(["miniplm", *given], flags.FlagValues())
    assert "\\" not in str(e.value)


@pytest.mark.parametrize(
  ("flag", "what", "hint"),
  [
    ("train.steps=x", "train.steps is 'x'", "give a whole number in [1, 2^31)"),
    ("train.steps=0", "train.steps is 0", "give a whole number in [1, 2^31)"),
    ("method=minplm", "method is 'minplm'", "did you mean miniplm or"),
    ("baselines=proxi,pretrain", "baselines is 'proxi'", "did you mean proxy?"),
    ("student.model=qwen-50m", "student.model is", "did you mean qwen-500m or"),
    ("student.model=x", "student.model is 'x'", "give a dict, or a shape of"),
    ("train=5", "train is '5'", "give a dict"),
    (
      "student.model.head_dim=7",
      "student.model: hidden",
      "change num_attentio",
    ),
  ],
)
def test_a_flag_is_blamed_for_its_value(flag, what, hint):
  """And not the config file."""
  argv = ["miniplm", "--config=demo", f"--config.{flag}", "--dry_run"]
  with pytest.raises(UserError) as e:
    main.run(argv, flags.FlagValues())
  assert e.value.what.startswith(f"config.{what}")
  assert e.value.where == f"--config.{flag}"
  assert e.value.hint.startswith(hint)


def test_what_a_flag_does_not_say_is_the_files():
  argv = ["miniplm", "--config=demo", "--config.select.rows=3", "--dry_run"]
  with pytest.raises(UserError, match=r"rows=3, give one, and 0") as e:
    main.run(argv, flags.FlagValues())
  assert e.value.what == "config.select.ratio, rows, tokens is (0.31, 3, 0)"
  argv[2] = "--config.corpus.split_field="  # and that is not said wrongly
  argv.append("--config.compare.criteria=miniplm=teacher")
  with pytest.raises(UserError, match=r"compare\.oracle is 'oracle'") as e:
    main.run(argv, flags.FlagValues())
  assert e.value.where.endswith("demo.py")


def test_the_warm_up_follows_the_steps(monkeypatch):
  given = []
  monkeypatch.setattr(
    pipeline, "run", lambda config, *_, **__: given.append(config)
  )
  for own in [], ["steps=50"], ["steps=50", "warmup_steps=7"]:
    for each in own, own[::-1]:
      argv = [
        "miniplm",
        "--config=demo",
        *(f"--config.train.{a}" for a in each),
      ]
      main.run(argv, flags.FlagValues())
  configs = [config_lib.from_dict(config, "here") for config in given]
  assert [c.train.warmup_steps for c in configs] == [25, 25, 5, 5, 7, 7]
  assert {c.reference.train.warmup_steps for c in configs} == {60}


def test_the_library_takes_a_name(monkeypatch):
  given = []
  monkeypatch.setattr(pipeline, "run", lambda *a, **k: given.extend(a[:2]))
  monkeypatch.setattr("miniplm_jax.api.steps.Run", lambda folder: None)
  mp.run("demo:all")
  assert given[0].workdir == "runs/demo" and "proxy" in given[0].baselines
  assert given[1] == "demo:all"


def test_what_is_said_to_be_installed_can_be():
  """Extras that the project has, requirements as they stand there."""
  extras = PROJECT["optional-dependencies"]
  listed = [*PROJECT["dependencies"], *itertools.chain(*extras.values())]
  needs = list(map(Requirement, listed))
  pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("gcp/*.md")]
  code = [*ROOT.glob("miniplm_jax/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
  pages = [page for page in pages if page.name != "LOG.md"]
  seen = 0
  for page in pages + code:
    text = page.read_text()
    assert not re.search(r"miniplm[-_]jax\[", text), page  # on no index
    for names in re.findall(r"(?:\.|\.whl)\[([\w,]+)\]'", text):
      assert set(names.split(",")) <= extras.keys(), page
      seen += 1
    if page not in code:
      continue
    for said in re.findall(r"\"pip install ([^\",]*)", text):
      for wanted in map(Requirement, said.replace("'", "").split()):
        same = [need for need in needs if need.name == wanted.name]
        assert same, (page, said)
        for version in (
          s.version for s in wanted.specifier if s.operator == "=="
        ):
          assert all(version in need.specifier for need in same), (page, said)
        seen += 1
  assert seen > 8


def test_tensorflow_is_asked_for_where_it_is_needed(tmp_path, monkeypatch):
  for name in helpers.TENSORFLOW:
    monkeypatch.setitem(sys.modules, name, None)
  for name in "tasks", "converter", "source", "with_seqio":
    monkeypatch.delitem(sys.modules, f"miniplm_jax.selection.{name}", False)
  words = r"Tasks need seqio .*, pip install seqio 'sentencepiece<0.2.3' imp"
  with pytest.raises(UserError, match=words):
    importlib.import_module("miniplm_jax.selection.tasks")
  words = "TensorFlow Datasets is not .*, tfds:mnist, pip install tensorflow-da"
  with pytest.raises(UserError, match=words):
    list(sources.list_chunks(CorpusConfig(source="tfds:mnist")))
  words = "TensorFlow Datasets is not .*, config.materialize.format=tfds, pip"
  with pytest.raises(UserError, match=words):
    materialize_writers.FORMATS["tfds"](tmp_path, [1], None)


def test_the_whole_run_needs_no_tensorflow(finished):
  """The run that many tests read was made where it cannot be imported."""
  said = subprocess.run(
    [sys.executable, "-c", "import tensorflow"],
    capture_output=True,
    text=True,
    env=environment() | helpers.without(finished / "none", helpers.TENSORFLOW),
    check=False,
  )
  assert "ImportError: not for this test" in said.stderr
  assert (finished / "none" / "seqio.py").exists()
  assert (finished / "run" / "report.html").exists()


def test_make_alone_is_help():
  text = (ROOT / "Makefile").read_text()
  (targets,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", text, re.M)
  inner = {"help", "python312", "interpreter"}
  done = subprocess.run(
    ["make", "-C", ROOT, "--no-print-directory"],
    capture_output=True,
    text=True,
    check=True,
  )
  named = set(re.findall(r"make ([\w-]+)", done.stdout))
  assert named == {*targets.replace("\\", " ").split()} - inner


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
    *(1, "", "error: no command skore, command line, did you mean score?"),
  )
