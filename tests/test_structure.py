"""The tree is the pipeline: rules about the code itself."""

import ast
import collections
import graphlib
import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from helpers import CONFIG, ROOT, environment, write_corpus
from ml_collections import ConfigDict

from miniplm_jax import config as config_lib
from miniplm_jax import pipeline
from miniplm_jax.core.errors import UserError

PACKAGE = ROOT / "miniplm_jax"
# From the ground up; `config` and its rules are no folders.
ORDER = (
  "core",
  "criteria",
  "methods",
  "small_config",
  "models",
  "config",
  "corpus",
  "training",
  "scoring",
  "selection",
  "distillation",
  "evaluation",
  "hf_export",
  "report",
  "forecast",
  "trainings",
  "staged",
  "stages",
  "dry_run",
  "pipeline",
  "api",
  "main",
  "cli",
  # Names of folders that scripts know.
  "evaluate",
  "select",
)


def of_the_module(node: ast.AST):
  """The nodes that are run when a module is imported, as `ast.walk`."""
  yield node
  for child in ast.iter_child_nodes(node):
    if not isinstance(child, (ast.FunctionDef, ast.Lambda)):
      yield from of_the_module(child)


def imports(path: pathlib.Path, walk=ast.walk):
  for node in walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      continue
    yield from (n.split(".")[1:] for n in names if n.startswith("miniplm_jax."))


def test_no_module_imports_a_later_stage():
  seen = 0
  for path in PACKAGE.rglob("*.py"):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
      continue
    for names in imports(path):
      seen += 1
      assert ORDER.index(names[0]) <= ORDER.index(own), (path, names)
  assert seen > 50


def files():
  """The files of the package by their dotted names, as tuples."""
  found = {}
  for path in PACKAGE.rglob("*.py"):
    names = path.relative_to(PACKAGE).with_suffix("").parts
    found[names[:-1] if names[-1] == "__init__" else names] = path
  return found


def graph(walk):
  """For each file, by its dotted name, those that it imports."""
  known = files()
  found = {name: set() for name in known}
  for own, path in known.items():
    for names in imports(path, walk):
      while tuple(names) not in known:
        names = names[:-1]  # what the module has, as `Decoder`
      found[own].add(tuple(names))
    found[own] -= {own, ()}
  return found


def test_no_file_needs_one_that_needs_it():
  """Be it in a function."""
  graphlib.TopologicalSorter(graph(ast.walk)).prepare()


def test_modules_are_imported_at_the_top():
  """In functions are heavy libraries; own modules in step files are lazy."""
  both, top = graph(ast.walk), graph(of_the_module)
  assert sum(len(both[name] - top[name]) for name in both) <= 10


# They compose steps; what one of those makes is an input of the next.
COMPOSERS = "pipeline", "dry_run", "stages", "staged", "trainings", "api"


def test_a_step_is_no_library_of_another_folder():
  """What two of them need is in a module that is no step."""
  found = {
    (own, other)
    for own, others in graph(ast.walk).items()
    for other in others
    if other[-1].endswith("step") and other != ("core", "step")
    if own[0] not in COMPOSERS and own[0] != other[0]
  }
  # The table of the tasks' figures knows their files.
  found -= {(("report", "tasks_report_step"), ("evaluation", "tasks_step"))}
  assert not found


def test_nobody_else_gets_the_whole_config():
  found = {
    names
    for names, path in files().items()
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.arg) and node.annotation
    if {"Config", "ConfigDict"} & set(re.findall(r"\w+", ast.unparse(node)))
  }
  assert {names[0] for names in found} <= {
    *COMPOSERS,
    *("config", "small_config"),  # what a config is made with
  }


def test_files_can_be_read_in_one_sitting():
  assert len((PACKAGE / "main.py").read_text().splitlines()) <= 60
  for path in PACKAGE.rglob("*.py"):
    assert len(path.read_text().splitlines()) <= 400, path


def test_only_reports_render():
  """What makes a student draws nothing and writes no page."""
  for path in PACKAGE.rglob("*.py"):
    if path.relative_to(PACKAGE).parts[0] not in ("report",):
      assert not re.search(
        r"\.html|^ *(from|import) (jinja2|matplotlib)", path.read_text(), re.M
      ), path


def test_only_one_place_imports_orbax():
  found = [p for p in PACKAGE.rglob("*.py") if "orbax" in p.read_text()]
  assert [p.name for p in found if "import orbax" in p.read_text()] == [
    "checkpoints.py"
  ]


def python(code: str) -> str:
  return subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=True,
    env=environment(),
  ).stdout


def test_training_and_scoring_do_not_import_tensorflow_or_torch():
  modules = (
    "training.loop, miniplm_jax.scoring.scorer, miniplm_jax.report.selection"
  )
  heavy = "{'tensorflow', 'torch', 'transformers', 'seqio'}"
  assert "set()" in python(
    f"import sys, miniplm_jax.{modules}; print({heavy} & set(sys.modules))"
  )


SLOW_TO_IMPORT = {
  *("apache_beam", "datasets", "flax", "grain", "jax", "lm_eval", "optax"),
  *("orbax", "pandas", "pyarrow", "scipy", "seqio", "tensorflow", "torch"),
  *("tokenizers", "transformers"),
}


@pytest.mark.parametrize("flag", ["--help", "--dry_run"])
def test_help_and_dry_run_answer_at_once(tmp_path, flag):
  """They wait for no library that takes seconds, on whatever machine."""
  done = subprocess.run(
    [
      *(sys.executable, "-X", "importtime", "-m", "miniplm_jax.main"),
      f"--config={ROOT}/configs/demo.py",
      f"--config.workdir={tmp_path}",
      flag,
    ],
    capture_output=True,
    text=True,
    check=True,
    # It has other characters to say.
    env=environment() | {"PYTHONIOENCODING": "ascii"},
  )
  # import time: self [us] | cumulative | package
  lines = done.stderr.splitlines()
  imported = {line.rpartition("|")[2].strip() for line in lines}
  assert "miniplm_jax.pipeline" in imported
  assert not imported & SLOW_TO_IMPORT, imported & SLOW_TO_IMPORT
  assert ("--stages" if flag == "--help" else "tokenize") in done.stdout
  assert not list(tmp_path.iterdir())


def leaves(config, prefix=()):
  for name in config:
    if isinstance(config[name], ConfigDict):
      yield from leaves(config[name], (*prefix, name))
    else:
      yield (*prefix, name)


LOGITS = "sparse_kd", "token_selection"


def load():
  space = {}
  exec(CONFIG.read_text(), space)
  config = space["get_config"]()
  config.stages += config_lib.ON_REQUEST
  config.evaluation.tasks = ("arc_easy",)
  config.score.more = ("generic=ngram:train",)
  config.compare.criteria = ("easy=-teacher",)
  few = "proxy", "minillm", "seqkd", "vanilla_kd", "staged"
  config.baselines = (*few, *LOGITS)
  return config


def _inputs(step):
  return {k: str(v() if callable(v) else v) for k, v in step.inputs.items()}


def plan(config, folder):
  """Everything that the runner compares, or the refusal."""
  config.workdir = config.workdir or str(folder / "run")
  for section in (config.corpus, config.conditional):
    section.source = section.source or str(folder / "text.jsonl")
  try:
    workdir = pipeline.Workdir(pipeline.epath.Path(config.workdir))
    stages = pipeline.Stages(config_lib.from_dict(config, "here"), workdir)
    return [
      (
        str(j.manifest),
        dict(j.settings),
        _inputs(j),
      )
      for stage in config.stages
      for j in stages.steps(stage)
    ]
  except UserError as e:
    return str(e)


# Read where a step runs, not where it is planned.
_AT_RUN_TIME = (
  ("teacher", "revision"),
  ("reference", "revision"),
  ("corpus", "tokenizer_revision"),
  ("student", "tokenizer_revision"),
  ("student", "init_revision"),
  # How documents are fetched, not which.
  ("evaluation", "offline"),
  # They decide whether int8 weights will do, not what comes out.
  ("score", "int8_rows"),
  ("score", "int8_least_spearman"),
  ("score", "int8_least_agreement"),
)
# Read by config.py, by subscript, or written to config.json as a whole.
_NO_ATTRIBUTE = ("method", "baselines", "max_position_embeddings")


def attributes_read():
  """The owners of each attribute in the package, without its configs.

  `c.rows` after `c = config.score` is read as that of `score`, and so is
  `self._score.rows`.
  """
  found = collections.defaultdict(set)
  for path in PACKAGE.rglob("*.py"):
    if path.parent.name == "config":
      continue
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = collections.defaultdict(set)
    for node in nodes:
      if isinstance(node, ast.Assign):
        targets, value = node.targets[0], node.value
        both = isinstance(targets, ast.Tuple) and isinstance(value, ast.Tuple)
        pairs = zip(targets.elts, value.elts) if both else [(targets, value)]
      else:
        continue
      for target, value in pairs:
        if isinstance(target, ast.Name) and isinstance(value, ast.Attribute):
          names[target.id].add(value.attr)
    for node in nodes:
      if isinstance(node, ast.Attribute):
        owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
        found[node.attr] |= names[owner] | {owner.strip("_")}
  return found


def test_every_field_is_live(tmp_path):
  """Code reads it, and another value changes a step or is refused.

  Fields of `run` say how, not what, and those of `generate`, `verify` and
  `plan` only what is printed: no step depends on them, so code has to read
  them as that section's.
  """
  write_corpus(tmp_path / "text.jsonl", 2)
  (tmp_path / "other" / "arc_easy").mkdir(parents=True)
  before = plan(load(), tmp_path)
  assert isinstance(before, list)
  sections_of = attributes_read()
  for path in leaves(load()):
    config, without = load(), before
    *folders, name = path
    if name == "columns":  # what no formula reads is not looked at
      config.select.definition = 'field("x")'
      without = plan(config, tmp_path)
    section = config
    for folder in folders:
      section = section[folder]
    old = section[name]
    if isinstance(old, bool):
      section[name] = not old
    elif isinstance(old, tuple):
      section[name] = ("pretrain",) if name == "baselines" else (*old[:1],)
      others = {
        "lengths": (3,),
        "ignore_domains": ("x",),
        "more": ("x=y",),
        "models": ("teacher",),
        "criteria": ("sum_diff",),
        "quotas": ("odd=:0.5",),
        "at": (2,),
        "domain_weights": ("odd=2",),
        "evaluation_sets": ("x",),
        "exclude_sets": ("x",),
        "fields": ("x",),
        "columns": ("x=y",),
        "tasks": ("piqa",),
      }
      section[name] = others.get(name, section[name])
    elif isinstance(old, str):
      section[name] = str(tmp_path / "other")
    else:
      section[name] = old + 1
    if name not in _NO_ATTRIBUTE:
      assert name in sections_of, path
    changes_steps = folders not in (["run"], ["generate"], ["verify"], ["plan"])
    if changes_steps and path not in _AT_RUN_TIME:
      assert plan(config, tmp_path) != without, path
    elif folders[-1] not in ("teacher", "reference"):  # config[role]
      assert folders[-1] in sections_of[name], path


def test_former_names_of_modules_are_known():
  """Scripts of users import them, one by one."""
  for former, module, name in (
    ("evaluate.harness", "evaluation.harness", "main"),
    ("evaluate.lm", "evaluation.lm", "DirectoryLM"),
    ("select.tasks", "selection.tasks", "register"),
  ):
    old, new = (
      importlib.import_module(f"miniplm_jax.{path}")
      for path in (former, module)
    )
    assert getattr(old, name) is getattr(new, name)
  import miniplm_jax

  assert callable(miniplm_jax.evaluate) and callable(miniplm_jax.select)
