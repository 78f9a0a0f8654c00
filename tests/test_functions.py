"""What stages do is a function of typed values, for a notebook."""

import json

import pytest
from etils import epath

from miniplm_jax.config import (
  DocumentsConfig,
  GenerateConfig,
  RunConfig,
  ScoreConfig,
  VerifyConfig,
)
from miniplm_jax.core import execute, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.evaluation import generate, heldout, texts
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.scoring import score_step

# As tests/tiny_config.py has it.
SCORE = ScoreConfig(
  dtype="float32", rows_per_part=64, batch_tokens=256, lengths=(16,)
)


def test_a_table_is_that_of_the_command_line(finished, tmp_path):
  run, workdir = finished / "run", Workdir(epath.Path(tmp_path))
  path, table = str(run / "teacher/hf"), workdir.scores("p")
  scoring = score_step.Scoring(
    SCORE,
    VerifyConfig(),
    epath.Path(run / "corpus/manifest.json"),
    [ModelRef("p", path, table=table)],
    workdir,
    RunConfig(),
    alpha=0.5,
  )
  execute.execute(scoring.steps())
  theirs = sorted((run / "scores/teacher").glob("*.parquet"))
  ours = sorted(table.glob("*.parquet"))
  assert [p.name for p in ours] == [p.name for p in theirs]
  assert [p.read_bytes() for p in ours] == [p.read_bytes() for p in theirs]
  made = json.loads((table / "manifest.json").read_text())
  assert made["details"]["self_check"]["rows"]


def test_losses_are_those_of_the_command_line(finished, mesh):
  run = finished / "run"
  corpus = Corpus(manifest.require(epath.Path(run / "corpus/manifest.json")))
  model = ModelRef("p", str(run / "teacher/hf")).load(corpus, mesh, "float32")
  measured = heldout.measure(
    model, corpus, corpus.heldout_rows(0), mesh, SCORE, dtype="float32"
  )
  path = epath.Path(run / "scores/teacher/evaluation.json")
  assert measured.losses == heldout.losses(manifest.require(path))


def test_texts_are_scored_and_continued(finished, mesh):
  folder = epath.Path(finished / "run/students/miniplm/hf")
  model = texts.TextModel.load(folder, mesh, "float32")
  rows = texts.RowScorer(model, 16_384)
  score = texts.TextScorer(model, DocumentsConfig(), rows)
  short, long = score(["Some words.", "Some words. And more."])
  assert 0 < short.nll_sum < long.nll_sum and short.n_bytes == 11
  options = GenerateConfig(max_new_tokens=5, samples=2, temperature=0.0)
  (same,), _ = generate.continue_prompts(model, ["Some words"], options)
  assert len(same) == 2 and same[0] == same[1]
  assert same[0].prompt == "Some words" and 1 <= same[0].n_tokens <= 5
  long = GenerateConfig(max_new_tokens=1 << 20)
  with pytest.raises(UserError, match="do not fit"):
    generate.continue_prompts(model, ["Some"], long)
