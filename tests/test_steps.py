"""What steps say of themselves: what decides whether a workdir is known again.

The golden holds, of some configs, each step's settings, inputs and outputs.
Another setting there refuses every workdir that was made before it. After a
change that is meant: pytest tests/test_steps.py --rewrite_goldens
"""

import json
import pathlib

import pytest
import tiny_config
from etils import epath

from miniplm_jax import config as config_lib
from miniplm_jax import pipeline
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.methods import METHODS

GOLDEN = pathlib.Path(__file__).parent / "goldens" / "steps.json"
KINDS = "is_view", "is_measure", "is_host_only", "is_shared", "grows"
PLAIN = "plain"
CONFIGS = {
  PLAIN: {},
  "mamba": {},
  "all methods": {"baselines": tuple(m for m in METHODS if m != "miniplm")},
  "own tokenizer": {"student.tokenizer": "tokens", "student.eos_token": "</s>"},
  "proxy": {
    "method": "proxy",
    "score.share": 0.9,
    "proxy.from_reference": True,
  },
  "int8": {"score.int8_teacher": True, "score.more": ("other=model",)},
  "compare": {"compare.criteria": ("easy=-teacher",), "compare.seeds": (7,)},
  "given": {"teacher.path": "model", "reference.scores": "scores.parquet"},
  "options": {
    "select.temperature": 1.0,
    "select.quotas": ("b=0.1:", "a=:0.5"),
    "select.max_copies": 1,
    "select.evaluation_sets": ("x.jsonl",),
    "select.compare_with": "other",
    "evaluation.tasks": ("piqa", "miniplm"),
    "evaluation.documents": 3,
    "materialize.format": "megatron",
    "kd.dtype": "bfloat16",
    "train.domain_weights": ("odd=2",),
    "evaluate.ignore_domains": ("odd",),
    "student.init": "model",
    "equal_flops": False,
    "run.export_every": 2,
  },
}


def said(step) -> dict[str, object]:
  """What a manifest would say of a step, and what is done about it."""
  inputs = {
    name: str(source) if isinstance(source, epath.Path) else "by content"
    for name, source in step.inputs.items()
  }
  return {
    "stage": step.stage,
    "settings": dict(step.settings),
    "inputs": inputs,
    "outputs": list(map(str, step.outputs)),
    "kind": [name for name in KINDS if getattr(step.policy, name)],
    "idle": step.idle,
    "layout": step.layout,
    "rechecks": step.rechecks,
  }


def all_steps(name: str) -> dict[str, object]:
  """By manifest; of a stage that refuses to, what it says."""
  config = tiny_config.get_config(*["mamba"] * (name == "mamba")).unlock()
  config.workdir, config.corpus.source = "run", "text.jsonl"
  config.update_from_flattened_dict(CONFIGS[name])
  stages = pipeline.Stages(
    config_lib.from_dict(config, "here"), Workdir(epath.Path("run"))
  )
  found = {}
  for stage in config_lib.STAGES + config_lib.ON_REQUEST:
    try:
      found |= {str(s.manifest): said(s) for s in stages.steps(stage)}
    except UserError as e:
      found[stage] = str(e)
  return json.loads(json.dumps(found))


def new_in(name: str, plain: dict[str, object]) -> dict[str, object]:
  """What is other than in the plain config; null is no step."""
  found = all_steps(name)
  return {
    key: found.get(key)
    for key in plain | found
    if found.get(key) != plain.get(key)
  }


def test_what_jobs_say_of_themselves(request, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  plain = all_steps(PLAIN)
  found = {name: new_in(name, plain) for name in CONFIGS if name != PLAIN}
  found[PLAIN] = plain
  if request.config.getoption("rewrite_goldens"):
    GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
  golden = json.loads(GOLDEN.read_text())
  assert found.keys() == golden.keys()
  for name, steps in golden.items():
    assert found[name].keys() == steps.keys(), name
    for key, step in steps.items():
      assert found[name][key] == step, f"{name}: {key}"


@pytest.mark.parametrize("name", ["train.weight_decay", "select.seed"])
def test_another_setting_is_seen(tmp_path, monkeypatch, name):
  """The golden is no tautology: one setting changes what a step says."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(CONFIGS, "other", {name: 3})
  assert new_in("other", all_steps(PLAIN))
