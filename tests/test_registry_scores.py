"""benchmarks/registry_scores.py: stopped, killed, gone on with, published."""

import json
import pathlib
import signal
import subprocess
import sys
import time
import types
from pydoc_data import topics

from helpers import ROOT, environment  # isort: skip  (before JAX)

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from absl import flags
from absl.testing import flagsaver
from etils import epath
from flax import nnx

from benchmarks import registry_card, registry_scores
from miniplm_jax.config import ScoreConfig
from miniplm_jax.core import manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import tokenizer
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import huggingface, sharding
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.scoring import worker
from miniplm_jax.scoring.scorer import Scorer

EOS = "<|endoftext|>"
DOMAINS = {"large": 30, "middle": 9, "small": 3}  # documents


def write_model(directory: pathlib.Path, texts: list[str], seed: int = 0):
  found = tokenizer.train(texts, 300, EOS)
  arch = Transformer(
    vocab_size=512,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    initializer_range=0.3,
  )
  model = Decoder(arch, nnx.Rngs(seed))
  path = epath.Path(directory)
  huggingface.save(path, model, found.eos_id, found.to_files())


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """A corpus of three domains and a model, both tiny."""
  folder = tmp_path_factory.mktemp("given")
  (folder / "corpus").mkdir()
  texts = [topics.topics[name][:1500] for name in sorted(topics.topics)]
  for domain, count in DOMAINS.items():
    lines = [
      json.dumps({"text": texts.pop(), "domain": domain}) for _ in range(count)
    ]
    path = folder / "corpus" / f"{domain}.jsonl"
    path.write_text("\n".join(lines) + "\n")
  write_model(folder / "model", texts[:20])
  return folder


def options(given, folder, **more):
  return {
    "corpus": str(given / "corpus"),
    "model": str(given / "model"),
    "workdir": str(folder / "run"),
    "out": str(folder / "out"),
    "lengths": "24,48",
    "part_tokens": "768",
  } | more


def run(given, folder, **more):
  """In this process; what it does on the command line but for its end."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  parsed = options(given, folder, **more)
  with flagsaver.as_parsed(**parsed):
    registry_scores._run()


def published(folder):
  found = pq.read_table(folder / "out" / "registry_scores.parquet")
  facts = json.loads(found.schema.metadata[b"registry_scores"])
  return {n: found[n].to_numpy() for n in found.column_names}, facts


def parts(folder, length):
  return sorted((folder / f"run/{length}/scores/teacher").glob("*.parquet"))


def test_killed_and_gone_on_with_it_is_what_the_scorer_says(
  given, tmp_path, capsys
):
  run(given, tmp_path, minutes="0")
  assert "nothing is scored yet" in capsys.readouterr().out
  assert not (tmp_path / "out").exists()

  flagged = [f"--{k}={v}" for k, v in options(given, tmp_path).items()]
  process = subprocess.Popen(
    [sys.executable, "-m", "benchmarks.registry_scores", *flagged],
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  until = time.monotonic() + 240
  while len(parts(tmp_path, 24)) < len(DOMAINS):
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.wait()
  before = {p: p.stat().st_mtime_ns for p in parts(tmp_path, 24)}

  run(given, tmp_path, minutes="0")
  found, facts = published(tmp_path)
  # A prefix has every domain, the smallest too.
  assert set(found["domain"]) == set(DOMAINS)
  rows = facts["lengths"]["24"]["rows"]
  assert len(found["row_id"]) < sum(rows.values())
  assert "the rest takes" in capsys.readouterr().out

  run(given, tmp_path)
  found, facts = published(tmp_path)
  assert all(p.stat().st_mtime_ns == t for p, t in before.items())
  assert facts["dtype"] == "float32" and facts["device"] == "cpu"
  assert facts["lengths"]["48"]["self_check"]["rows"] == 64
  mesh = sharding.make_mesh(1, 1, 1)
  model = huggingface.load(epath.Path(given / "model"), mesh)
  for length in (24, 48):
    directory = epath.Path(tmp_path / f"run/{length}/corpus")
    corpus = Corpus(manifest.require(directory / "manifest.json"))
    here = {n: v[found["length"] == length] for n, v in found.items()}
    np.testing.assert_array_equal(here["row_id"], np.arange(len(corpus)))
    np.testing.assert_array_equal(here["domain"], corpus.domains())
    hashed = corpus.index["hash"].to_numpy()
    np.testing.assert_array_equal(here["row_hash"], hashed >> 32)
    read = corpus.read(here["row_id"])
    np.testing.assert_array_equal(
      here["document"], [row.documents[0] for row in read]
    )
    how = ScoreConfig(dtype="float32", lengths=(), batch_tokens=960)
    scorer = Scorer(how, {"m": model}, corpus, mesh)
    sums, n_tokens, _ = scorer(here["row_id"].astype(int))
    np.testing.assert_array_equal(here["n_tokens"], n_tokens)
    np.testing.assert_allclose(here["nll_sum"], sums["m"], rtol=1e-5)
    compiling = scorer.compiling  # is known, and once over
    scorer(here["row_id"].astype(int))
    assert scorer.compiling == compiling > 0
  card = (tmp_path / "out" / "registry_scores.md").read_text()
  assert card.count("100.00%") == 2 * (len(DOMAINS) + 1)
  assert str(tmp_path) not in card + json.dumps(facts)

  # Less than is published does not replace it; another dtype is refused.
  other = {"lengths": "24"}
  with pytest.raises(UserError, match="rows of 48 are published"):
    run(given, tmp_path, **other)
  with pytest.raises(UserError, match=r"dtype is .float32. there"):
    run(given, tmp_path, dtype="bfloat16")


def test_it_ends_before_a_part_that_would_end_too_late(
  given, tmp_path, monkeypatch
):
  now, taken = [0.0], []

  class Slow(Scorer):
    """Each part takes ten minutes."""

    def __call__(self, row_ids, *arguments):
      now[0] += 600
      taken.append(len(row_ids))
      return super().__call__(row_ids, *arguments)

  clock = types.SimpleNamespace(monotonic=lambda: now[0], time_ns=time.time_ns)
  monkeypatch.setattr(worker, "time", clock)
  monkeypatch.setattr(registry_scores, "time", clock)
  monkeypatch.setattr(registry_scores, "Scorer", Slow)
  run(given, tmp_path, minutes="45", lengths="24")
  assert len(taken) == len(parts(tmp_path, 24)) == 4  # not a fifth, until 50
  found, _ = published(tmp_path)
  assert len(found["row_id"]) == sum(taken)


def test_every_prefix_has_the_domains_in_their_shares(given, tmp_path):
  run(given, tmp_path, minutes="0", lengths="24", part_tokens="48")
  directory = epath.Path(tmp_path / "run/24/corpus")
  corpus = Corpus(manifest.require(directory / "manifest.json"))
  found = registry_scores.units.units_of(corpus, 2)
  order = registry_scores.in_fair_order(found, corpus)
  assert sorted(u.name for u in order) == [u.name for u in found]
  assert [u.name for u in order] != [u.name for u in found]
  domains = corpus.domains(np.array([u.first for u in order]))
  for n in range(len(DOMAINS), len(order) + 1):
    for domain in DOMAINS:
      all_of_it = np.sum(domains == domain)
      assert abs(np.sum(domains[:n] == domain) - all_of_it * n / len(order)) < 3


def test_what_cannot_be_is_one_line(given, tmp_path):
  with pytest.raises(UserError, match="no file of documents"):
    run(given, tmp_path, corpus=str(tmp_path / "none"))
  with pytest.raises(UserError, match="no model directory"):
    run(given, tmp_path, model="./none")
  with pytest.raises(UserError, match="--lengths"):
    run(given, tmp_path, lengths="long")
  run(given, tmp_path, minutes="0", lengths="24")
  write_model(tmp_path / "model", ["another text, other merges"] * 3)
  with pytest.raises(UserError, match=r"inputs\.tokenizer is"):
    run(given, tmp_path, lengths="24", model=str(tmp_path / "model"))


def test_errors_are_between_blocks():
  rng = np.random.default_rng(0)
  tokens = rng.integers(50, 100, 6000)
  block = np.repeat(np.arange(600), 10)
  # Each block has its own level, so its ten rows are worth one.
  nll = tokens * (3 + np.repeat(rng.normal(size=600), 10))
  found, error = registry_card.mean(nll, tokens, block)
  assert found == pytest.approx(nll.sum() / tokens.sum())
  assert error == pytest.approx(600**-0.5, rel=0.1)
  ids = np.array([0, 1, 2, 3, 7, 8, 9, 10])
  domains = np.array(list("aaaaabbb"))
  np.testing.assert_array_equal(
    registry_card.blocks(ids, domains, 3), [1, 1, 1, 2, 3, 4, 4, 4]
  )


def test_scores_made_elsewhere_are_compared(given, tmp_path, monkeypatch):
  run(given, tmp_path, lengths="24")
  path = tmp_path / "out" / "registry_scores.parquet"
  old = pq.read_table(path)
  facts = json.loads(old.schema.metadata[b"registry_scores"])
  about = facts | {"device": "another"}
  (found,) = registry_card.compare(path, old, about)
  assert (found["rows"], found["max"]) == (old.num_rows, 0)
  assert registry_card.compare(path, old, facts) == []
  with pytest.raises(UserError, match="other weights"):
    registry_card.compare(path, old, about | {"weights": "others"})
  monkeypatch.setattr(jax, "__version__", "9")
  run(given, tmp_path, lengths="24")
  card = (tmp_path / "out" / "registry_scores.md").read_text()
  assert f"{old.num_rows:,} rows were published before" in card
