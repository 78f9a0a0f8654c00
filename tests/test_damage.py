"""What is on disk is what was written, or is refused by name."""

import pathlib
import shutil

import pytest
import tiny_config
from helpers import STEPS

from miniplm_jax import pipeline
from miniplm_jax.core.errors import UserError
from miniplm_jax.models import hub


def execute(folder, *stages, **settings):
  """Stages of the finished run, in this process."""
  config = tiny_config.get_config()
  config.train.steps = STEPS
  config.baselines = ("pretrain",)
  config.workdir = str(folder / "run")
  config.corpus.source = str(folder / "text.jsonl")
  config.update_from_flattened_dict(settings)
  pipeline.run(config, "test", stages, force=False, dry_run=False)


def flip(path: pathlib.Path, at: float = 0.6):
  """Another byte in the same place of a file; its size stays."""
  content = bytearray(path.read_bytes())
  content[int(len(content) * at)] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  ("damaged", "gone", "stage"),
  [
    ("teacher/hf/model.safetensors", "scores", "score"),
    ("reference/hf/tokenizer.json", "scores", "score"),
    ("corpus/index-00000-of-00001.parquet", "selection", "select"),
    ("corpus/tokenizer/tokenizer.json", "students/miniplm/hf", "export"),
    ("students/miniplm/hf/model.safetensors", "", "generate"),
  ],
)
def test_a_changed_byte_is_refused_by_name(copy, damaged, gone, stage):
  flip(copy / "run" / damaged)
  if gone:
    shutil.rmtree(copy / "run" / gone)
  with pytest.raises(UserError, match=pathlib.Path(damaged).name):
    execute(copy, stage, **{"generate.prompts": ("a",)})


def test_a_model_folder_is_known_by_its_whole_content(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  weights = tmp_path / "model.safetensors"
  weights.write_bytes(bytes(10**6))
  given = hub.Given(str(tmp_path), "")
  before, formerly = given(), given.former()
  flip(weights, 0.5)
  assert given() != before and given.former() == formerly
  flip(weights, 0.5)
  assert given() == before
  (tmp_path / "README.md").write_text("no part of the model")
  assert given() == before


def test_an_evaluation_is_of_the_weights_that_scored(copy):
  shutil.copytree(copy / "run/teacher/hf", copy / "given")
  given = {"teacher.path": str(copy / "given")}
  shutil.rmtree(copy / "run/scores/teacher")
  execute(copy, "score", **given)
  flip(copy / "given/model.safetensors")
  with pytest.raises(UserError, match="teacher was scored by weights"):
    execute(copy, "evaluate", **given)
