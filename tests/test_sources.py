"""Text as it comes: what is read of a source, and what a changed one does."""

import json

import pytest
from etils import epath

from miniplm_jax import config as config_lib
from miniplm_jax.core import files
from miniplm_jax.core import job as job_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus import stage, tokenizer

LINES = [f"Sentence {i} of a text. " * 8 for i in range(12)]


def write(path, texts, **more):
  """JSON lines with these texts."""
  path.parent.mkdir(parents=True, exist_ok=True)
  records = ({"text": text, **more} for text in texts)
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  found = tokenizer.train(LINES, 300, "<|endoftext|>")
  for name, content in found.to_files().items():
    (folder / name).write_bytes(content)
  return folder


class Run:
  """Stage tokenize of a source, in this process."""

  def __init__(self, folder, source, vocabulary):
    self.config = config_lib.default()
    c = self.config.corpus
    c.source, c.tokenizer = str(source), str(vocabulary)
    c.max_length, c.reference_share, c.heldout_share = 32, 0.0, 0.0
    self.config.run.tokenize_workers = 1
    self.folder = epath.Path(folder) / "run"

  def __call__(self, force=False):
    job_lib.execute(stage.jobs(self.config, Workdir(self.folder)), force)
    return json.loads((self.folder / "corpus/manifest.json").read_text())

  def status(self):
    (job,) = stage.jobs(self.config, Workdir(self.folder))
    return job_lib.status(job)

  def files(self):
    return {p.name: p.read_bytes() for p in files.below(self.folder)}


@pytest.mark.parametrize("change", ["broken", "more", "fewer", "other"])
def test_a_finished_corpus_outlives_its_source(tmp_path, vocabulary, change):
  texts = tmp_path / "texts"
  for i in range(2):
    write(texts / f"f{i}.jsonl", LINES[i::2])
  run = Run(tmp_path, texts, vocabulary)
  run()
  before = run.files()
  kept = (texts / "f1.jsonl").read_bytes()
  if change == "broken":
    (texts / "a_new.jsonl").write_text("{broken\n")
  elif change == "more":
    write(texts / "a_new.jsonl", LINES)
  elif change == "fewer":
    (texts / "f1.jsonl").unlink()
  else:
    write(texts / "f1.jsonl", LINES[:3])
  named = {"fewer": "gone from the source: f1.jsonl", "other": "f1.jsonl"}
  named = named.get(change, "new in the source: a_new.jsonl")
  assert "would be refused" in run.status() and named in run.status()
  with pytest.raises(UserError, match=named) as e:
    run()
  assert "--force" in str(e.value) and "inputs.source" in str(e.value)
  assert run.files() == before
  # The source as it was is nothing to do; another one is taken by force.
  (texts / "f1.jsonl").write_bytes(kept)
  (texts / "a_new.jsonl").unlink(missing_ok=True)
  run()
  assert run.files() == before
  write(texts / "a_new.jsonl", LINES)
  assert run(force=True)["counts"]["parts"] == 3
  assert not any("of-00002" in name for name in run.files())


def test_an_unfinished_corpus_keeps_its_shards_until_others_stand(
  tmp_path, vocabulary
):
  texts = tmp_path / "texts"
  for i in range(2):
    write(texts / f"f{i}.jsonl", LINES[i::2])
  bad = texts / "g.jsonl"
  bad.write_text("{broken\n")
  run = Run(tmp_path, texts, vocabulary)
  with pytest.raises(UserError, match=r"g\.jsonl line 1"):
    run()
  first = run.folder / "corpus/index-00000-of-00003.parquet"
  there = first.read_bytes()
  # A glob that misses a file for a moment, and then another error.
  (texts / "f1.jsonl").rename(tmp_path / "f1.jsonl")
  with pytest.raises(UserError, match=r"g\.jsonl line 1"):
    run()
  assert first.read_bytes() == there
  (tmp_path / "f1.jsonl").rename(texts / "f1.jsonl")
  write(bad, LINES[:1])
  assert run()["counts"]["parts"] == 3
  assert first.read_bytes() == there
  assert not any("of-00002" in name for name in run.files())
