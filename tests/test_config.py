"""What a configuration may say: a rule for every field, and of several."""

import dataclasses
import json
import math
import operator
import types

import helpers
import numpy as np
import pytest
from absl import flags
from etils import epath
from helpers import CONFIG, ROOT, rules
from ml_collections import ConfigDict, config_dict

from miniplm_jax import config as config_lib
from miniplm_jax import pipeline
from miniplm_jax.config import flag_parsers, lookup
from miniplm_jax.core import errors, fields
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.criteria import CRITERIA
from miniplm_jax.models import architecture, config_json, hub
from miniplm_jax.models.architecture import PRESETS
from miniplm_jax.training import flops, optimizer
from miniplm_jax.trainings import Trainings

INF, NAN = math.inf, math.nan


def config(**changes) -> ConfigDict:
  """The defaults with a workdir, and with other values by dotted name."""
  found = config_lib.default().unlock()
  found.workdir = "run"
  found.update_from_flattened_dict(changes)
  return found


def refusal(**changes) -> str:
  with pytest.raises(UserError) as e:
    config_lib.from_dict(config(**changes), "here")
  return str(e.value)


def typed(**changes) -> config_lib.Config:
  """The config that steps are made of."""
  return config_lib.from_dict(config(**changes), "here")


RULES = dict(rules())


def valued(tree: ConfigDict, name="config"):
  """The dotted names of all fields and their values."""
  for key, value in tree.items():
    if isinstance(value, ConfigDict):
      yield from valued(value, f"{name}.{key}")
    else:
      yield f"{name}.{key}", value


def test_every_field_has_a_rule_that_its_default_keeps():
  defaults = dict(valued(config_lib.default()))
  # A shape's family decides which fields it has.
  families = {name for name in defaults if name.endswith(".family")}
  assert defaults.keys() - families == RULES.keys() and len(RULES) > 270
  for name, value in defaults.items():
    if name not in families and name != "config.workdir":
      assert RULES[name].first_bad(value) is None, name
  for name, rule in rules(architecture.Mamba, ""):
    value = getattr(architecture.Mamba(), name[1:])
    assert rule.first_bad(value) is None, name
  typed()


def test_no_field_takes_another_type_nothing_or_nan():
  for key, value in valued(config()):
    if key.endswith(".family"):
      continue
    field = RULES[key]
    for other in (
      None,
      [None],
      object(),
      b"x",
      {},
      NAN,
      INF,
      -INF,
      "\0",
      10**99,
    ):
      assert field.first_bad(other) is not None, (key, other)
    if isinstance(value, bool):
      assert field.first_bad(1)
    else:
      assert field.first_bad(True), key
    if isinstance(value, int):
      assert field.first_bad(2**63) and field.first_bad(float(value)), key


@pytest.mark.parametrize(
  ("name", "good", "bad"),
  [
    ("train.clip_norm", (0.0, 1e-6, 1.0), (-1.0, 1e-30, NAN, INF)),
    # In float32 the last is 0, and that of beta2 is 1.
    ("train.learning_rate", (1e-9, 1.0), (0.0, -1.0, 2.0, NAN, 1e-60)),
    ("train.beta2", (0.0, 0.95), (1.0, 1.5, -0.1, 1 - 1e-11)),
    ("train.epsilon", (1e-8,), (0.0, -1.0)),
    ("train.seed", (0, 2**32 - 1), (-1, 2**32)),  # JAX drops higher bits
    ("corpus.seed", (-1, 2**63 - 1), (2**63,)),
    ("corpus.part_bytes", (16, 2**62), (1, 15)),
    ("select.seed", (0, 2**63 - 1), (-1, 2**63)),
    ("score.int8_least_spearman", (0.5, 1), (1.5, NAN)),
    ("seqkd.prompt_share", (0.5, 1.0), (0.0, NAN)),
    ("run.data", (-1, 1, 8), (0, -2)),
    ("run.coordinator", ("", "auto", "a:1"), ("x", "x:", "x:y", "x:123456")),
    ("corpus.eos_token", ("</s>", "[EOS]"), ("", "a", "<|end")),
    ("teacher.name", ("a", "Qwen1.5-1.8B", "a_b@c+"), ("..", "", "-a", "a/b")),
    ("select.name", ("{method}-r0.3", "x"), ("../x", "{x}", "/x", "", ".x")),
    ("select.compare_with", ("", "x"), ("a/b", "..", "{method}")),
    ("teacher.revision", ("main", "refs/pr/1"), ("", "a b")),
    ("train.domain_weights", (("a=2",), ("a=1/3",)), (("a",), ("a=-1",))),
    ("select.quotas", (("a=0.1:",),), (("a=0.1",), ("a=1e-999999999:2",))),
    ("student.model.rope_type", ("llama3",), ("lama3", "")),
    ("export.max_shard_size", ("5GB",), ("5", "0GB", "-1GB")),
  ],
)
def test_a_field_takes_what_is_in_its_range(name, good, bad):
  field = RULES[f"config.{name}"]
  assert [v for v in good if field.first_bad(v)] == []
  assert [v for v in bad if not field.first_bad(v)] == []
  assert f"config.{name} is" in refusal(**{name: bad[0]})


def test_a_number_of_numpy_is_pythons():
  rate, steps = np.logspace(-3, -2, 3)[1], np.int64(9000)
  train = config_lib.TrainConfig(learning_rate=rate, steps=steps)
  assert type(train.learning_rate) is float and type(train.steps) is int
  assert train.learning_rate == rate and train.steps == 9000
  for bad in (np.float64(2), np.array([1.0, 2.0]), np.bool_(True)):
    with pytest.raises(UserError, match="learning_rate"):
      config_lib.TrainConfig(learning_rate=bad)


def test_a_seed_beyond_its_range_would_be_another_seed():
  import jax

  data = [jax.random.key_data(jax.random.key(s)) for s in (1, 2**32 + 1)]
  np.testing.assert_array_equal(*data)


@pytest.mark.parametrize(
  ("changes", "name"),
  [
    ({"teacher.name": "reference"}, "reference.name"),
    ({"reference.name": "Teacher"}, "reference.name"),
    ({"reference.name": "teacher", "teacher.name": "big"}, "reference.name"),
    ({"proxy.name": "Reference", "reference.name": "r"}, "proxy.name"),
    ({"proxy.name": "teacher"}, "proxy.name"),
    ({"score.more": ("proxy=x",)}, "score.more"),
    ({"score.more": ("a=table:",)}, "score.more"),
    ({"compare.criteria": ("proxy",)}, "compare.criteria"),
    ({"score.more": ("a=x", "a=y")}, "score.more"),
    ({"baselines": ("pretrain",), "student.name": "x"}, "student.name"),
    ({"student.name": "x" * 95 + "{method}"}, "student.name"),
    ({"select.name": "x" * 95 + "{method}"}, "select.name"),
    ({"reference.name": "語" * 67}, "reference.name"),
    ({"baselines": ("pretrain",), "select.name": "x"}, "select.name"),
    ({"select.quotas": ("a=:0.5", "a=0.1:")}, "select.quotas"),
    ({"select.quotas": ("a=0.6:", "b=0.6:")}, "select.quotas"),
    ({"train.domain_weights": ("a=1", "a=2")}, "train.domain_weights"),
    ({"run.processes": 2, "run.process_id": 2}, "run.process_id"),
    ({"run.compilation_cache": "scores/x"}, "run.compilation_cache"),
    ({"corpus.reference_share": 0.6, "corpus.heldout_share": 0.5}, "corpus"),
    ({"select.rows": 5}, "select.ratio, rows"),
  ],
)
def test_fields_that_do_not_go_together(changes, name):
  assert f"config.{name}" in refusal(**changes)


def test_domains_may_differ_in_case_alone():
  both = "Code=1", "code=2"
  quotas = "Code=0.1:", "code=0.1:"
  config_lib.from_dict(
    config(**{"train.domain_weights": both, "select.quotas": quotas}), "here"
  )


def test_what_is_not_set_is_said():
  found = config()
  found.train.steps = config_dict.required_placeholder(int)
  with pytest.raises(UserError, match=r"train\.steps is not set"):
    config_lib.from_dict(found, "here")
  found = config()
  found.train.steps = None
  with pytest.raises(UserError, match=r"train\.steps is None"):
    config_lib.from_dict(found, "here")


def test_no_name_leads_out_of_its_folder(tmp_path):
  workdir = Workdir(pipeline.epath.Path(tmp_path))
  for folder in (workdir.scores, workdir.selection, workdir.student):
    assert tmp_path in folder("a-b.c").parents
    for name in (
      "..",
      "",
      ".",
      "a/b",
      "/a",
      "../..",
      "-a",
      "~",
      "a\n",
      "x" * 101,
    ):
      with pytest.raises(UserError, match="the name"):
        folder(name)


def test_no_job_touches_what_is_not_in_the_workdir(tmp_path):
  root = pipeline.epath.Path(tmp_path / "run")
  for output in (root, root / "scores" / "..", root / ".." / "x", tmp_path):
    step = types.SimpleNamespace(manifest=root / "x" / "y", outputs=(output,))
    with pytest.raises(UserError, match="not in the workdir"):
      pipeline._refuse_outside([step], Workdir(root))
  step.outputs = root / "x", root / "report.html"
  pipeline._refuse_outside([step], Workdir(root))


@pytest.mark.parametrize(
  ("methods", "wanted"),
  [
    ("difficulty", {"reference"}),
    ("teacher_preference", {"teacher"}),
    ("teacher_preference pretrain", {"teacher"}),
    ("difficulty teacher_preference", {"teacher", "reference"}),
    ("difficulty proxy", {"teacher", "reference"}),
    ("miniplm", {"teacher", "reference"}),
    ("pretrain", {"teacher", "reference"}),  # none is read: for later
  ],
)
def test_d_is_scored_by_the_models_that_a_method_reads(methods, wanted):
  method, *baselines = methods.split()
  found = typed(method=method, baselines=tuple(baselines))
  workdir = Workdir(pipeline.epath.Path("run"))
  steps = pipeline.Stages(found, workdir).steps

  assert {step.name for step in steps("score")} == wanted
  read = {name for step in steps("select") for name in step.inputs}
  roles = {"teacher", "reference"}
  assert read & roles <= wanted
  (train, *_) = steps("train")
  models = {step.name for step in steps("evaluate")} - {*methods.split()}
  assert models == wanted and "selection" in train.inputs
  names = found.names_of(method)
  spent = Trainings(found, workdir).spent_before(names, {})
  assert {role for role in roles if f"scoring by {role}" in spent} == (
    roles & set(CRITERIA[names.definition].reads)
  )


def test_what_came_before_is_that_of_the_scores_that_chose(tmp_path):
  """Their table is the selection's, whatever the config names now."""
  found = typed(**{"method": "difficulty", "reference.path": "given"})
  workdir = Workdir(epath.Path(tmp_path))

  def table(name, spent):
    path = workdir.scores(name) / "manifest.json"
    details = {flops.OFFLINE: {"scoring": spent}}
    made = Manifest(path, "score", {}, {}, weights=name, details=details)
    made.write()
    return made

  chose = table("before", 5.0)
  table("reference", 7.0)
  path = workdir.selection("difficulty") / "manifest.json"
  scores, prints = {"reference": "before"}, {"reference": chose.fingerprint}
  Manifest(path, "select", {"scores": scores}, prints).write()
  names = found.names_of("difficulty")
  assert Trainings(found, workdir).spent_before(names, {}) == {"scoring": 5.0}
  dataclasses.replace(chose, weights="made again").write()
  spent = Trainings(found, workdir).spent_before(names, {})
  assert spent == {"scoring by reference": None}


@pytest.mark.parametrize(
  ("share", "total", "wanted"),
  [(0.29, 100, 29), (0.57, 100, 57), (0.58, 100, 58), (0.5, 7, 3), (1, 9, 9)],
)
def test_a_share_is_the_number_that_was_written(share, total, wanted):
  assert fields.of(share, total) == wanted


def test_a_tilde_is_the_home_folder_wherever_a_path_is_named(monkeypatch):
  monkeypatch.setenv("HOME", "/people/me")
  given = {
    "workdir": "~/run",
    "corpus.source": "~/a/*.jsonl",
    "corpus.tokenizer": "~/t",
    "teacher.path": "~/teacher",
    "teacher.scores": "~",
    "score.more": ("a=~/b", "c=org/name", "d=table:~/d", "e=ngram:~/e"),
    "select.evaluation_sets": ("~/x", "/y"),
    "evaluation.task_data": "~/tasks",
    "run.compilation_cache": "~/kept",
    "generate.prompts": ("~/no path",),
  }
  for name, value in given.items():
    found = operator.attrgetter(name)(typed(**given))
    written = str(value).replace("~", "/people/me")
    assert str(found) == (str(value) if "prompts" in name else written)


def test_only_paths_ask_for_a_bucket():
  given = {
    "generate.prompts": ("gs://prompt/y", "copy to: gs://x/y"),
    "run.beam": "--temp_location=gs://beam/x",
    "corpus.source": "gs://one/a/*",
    "corpus.tokenizer": "gs://one/t",
    "score.more": ("a=table:gs://two/x",),
  }
  assert pipeline.buckets(typed(**given)) == ["gs://one", "gs://two"]


def of_command_line(path, body: str, argument: str = "") -> str:
  """What main says of a config file with this body."""
  from absl import flags
  from ml_collections import config_flags

  path.write_text(f"import sys\ndef get_config():\n  {body}\n")
  argv = ["main", f"--config={path}{argument}"]
  values = flags.FlagValues()
  with pytest.raises((Exception, SystemExit)) as e:
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(argv)
  return str(errors.of_command_line(e.value, argv))


@pytest.mark.parametrize(
  "body",
  ["sys.exit()", "sys.exit(3)", "{}['nothing']", "int('x')", "None.x", "1 +"],
)
def test_what_a_config_file_raises_is_said_with_its_line(tmp_path, body):
  path = tmp_path / "mine.py"
  assert f"{path}:3" in of_command_line(path, body)


def test_a_refusal_by_a_config_file_is_as_it_stands(tmp_path):
  body = "from miniplm_jax.models import hub; hub.shape_of('/no/teacher', '')"
  said = of_command_line(tmp_path / "mine.py", body)
  assert said.startswith("no model directory here, /no/teacher, give")
  assert said.endswith("or a hub id")


def test_an_argument_that_a_config_does_not_take_is_one_line(tmp_path):
  said = of_command_line(tmp_path / "mine.py", "return {}", ":500m")
  assert "takes 0 positional arguments but 1 was given, flags or" in said
  assert "Traceback" not in said


def test_help_is_no_error():
  assert errors.of_command_line(SystemExit(1), ["main", "--help"]) is None


def test_every_config_of_the_repository_can_be_meant():
  for path in [*(ROOT / "configs").glob("*.py"), CONFIG]:
    space = {}
    exec(path.read_text(), space)
    found = space["get_config"]()
    found.workdir = found.workdir or "run"
    config_lib.from_dict(found, str(path))


def test_a_laptop_has_the_vocabulary_of_its_teacher(tmp_path, monkeypatch):
  shape = architecture.Transformer(vocab_size=300)
  fields = config_json.write(shape, 0, "float32")
  (tmp_path / "config.json").write_text(json.dumps(fields))
  found = lookup.load(f"laptop:{tmp_path}")
  assert found.teacher.path == found.corpus.tokenizer == str(tmp_path)
  assert found.student.model.vocab_size == 300
  assert found.reference.model.vocab_size == 300
  # Of its own it is known: --help asks no hub.
  monkeypatch.setattr(hub, "shape_of", None)
  (code,) = helpers.documented("laptop.md", "Say it once")
  found = helpers.execute(code)["get_config"]()
  assert found.student.model.vocab_size == 49_152
  config_lib.from_dict(found, "docs/laptop.md")


@pytest.mark.parametrize(
  ("name", "parameters", "rates"),
  [
    ("mamba_130m", 140_458_752, {1: 2e-7, 10_000: 2e-3, 100_000: 1e-5}),
    ("llama_212m", 211_766_016, {1: 3e-7, 2000: 6e-4, 100_000: 6e-5}),
    ("200m", 203_437_824, {1: 3e-7, 2000: 6e-4, 51_000: 3.3e-4}),
  ],
)
def test_students_of_the_paper_have_its_schedules(name, parameters, rates):
  space = {}
  exec((ROOT / "configs" / f"{name}.py").read_text(), space)
  found = space["get_config"]()
  fields = dict(found.student.model)
  arch = architecture.FAMILIES[fields.pop("family")](**fields)
  assert arch.parameters() == parameters
  schedule = optimizer.learning_rate_schedule(found.train)
  for step, rate in rates.items():
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-4)
  mamba = arch.family == "mamba"
  decay = found.train.weight_decay, found.train.beta2
  assert decay == ((0.1, 0.95) if mamba else (0.01, 0.98))


def test_no_clip_norm_clips_nothing():
  import jax.numpy as jnp

  train = config().train
  train.warmup_steps = 0
  grads = {"w": jnp.array([3.0, -4.0])}

  def updates(clip_norm):
    train.clip_norm = clip_norm
    adamw = optimizer.make(train)
    return adamw.update(grads, adamw.init(grads), grads)[0]["w"]

  np.testing.assert_array_equal(updates(0.0), updates(1e6))
  assert np.sign(updates(0.0)).tolist() == [-1, 1]


def overridden(*arguments):
  """The demo's config with these flags, as the command line reads them."""
  from ml_collections import config_flags

  flag_parsers.register()
  values = flags.FlagValues()
  argv = ["main", "--config=configs/demo.py", *arguments]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  values(argv)
  return values.config


@pytest.mark.parametrize(
  ("argument", "name", "value"),
  [
    ("", "baselines", ()),
    ("pretrain,proxy", "baselines", ("pretrain", "proxy")),
    ("pretrain", "baselines", ("pretrain",)),
    ("('pretrain',)", "baselines", ("pretrain",)),
    ("code=2,mail=0.5", "train.domain_weights", ("code=2", "mail=0.5")),
    ("512,640", "score.lengths", (512, 640)),
    ("Once, upon a time", "generate.prompts", ("Once, upon a time",)),
    ("1,2 or more", "generate.prompts", ("1,2 or more",)),
    (
      "mean_diff,b=teacher - reference,c=z(teacher, by=domain),d=max(a,(b)),e",
      "compare.criteria",
      (
        *("mean_diff", "b=teacher - reference", "c=z(teacher, by=domain)"),
        *("d=max(a,(b))", "e"),
      ),
    ),
    (
      "b=field('x') + random()",
      "compare.criteria",
      ("b=field('x') + random()",),
    ),
    ("mean_diff, difficulty", "compare.criteria", ("mean_diff, difficulty",)),
    ("('a,b',)", "generate.prompts", ("a,b",)),
  ],
)
def test_a_list_needs_no_python(monkeypatch, argument, name, value):
  monkeypatch.chdir(ROOT)
  found = overridden(f"--config.{name}={argument}")
  for key in name.split("."):
    found = found[key]
  assert found == value


def test_a_shape_is_given_by_its_name(monkeypatch):
  monkeypatch.chdir(ROOT)
  shape = "--config.student.model="
  found = overridden(f"{shape}mamba-130m")
  assert dict(found.student.model) == PRESETS["mamba-130m"]
  found = overridden(f"{shape}qwen-500m", f"{shape[:-1]}.vocab_size=512")
  assert dict(found.student.model) == PRESETS["qwen-500m"] | {"vocab_size": 512}
  with pytest.raises(flags.IllegalFlagValueError, match="mean qwen-45m or "):
    overridden(f"{shape}qwen-5m")


def test_a_stage_by_its_earlier_name_is_refused_with_the_new_one():
  error = refusal(stages=("tokenize", "analyse"))
  assert error == "config.stages is 'analyse', here, it is called analyze now"
