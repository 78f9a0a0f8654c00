"""Stage score_documents, and `nll`, beside lm_eval's own model."""

import hashlib
import json
import math
import pathlib
import re
import shutil
from pydoc_data import topics

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from helpers import lm_eval_model, refused, run
from test_huggingface import TRANSFORMER, new, saved

from miniplm_jax import cli
from miniplm_jax.core import log
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus import tokenizer
from miniplm_jax.evaluation import documents, texts
from miniplm_jax.models import huggingface

SIZE = 16  # inputs of a window
EOS = "<|endoftext|>"
LONG = [topics.topics[name][:400] for name in sorted(topics.topics)[:6]]
UNSCORED = {
  "empty": ("", "it is empty"),
  "number": (7, "no text in field 'text'"),
  "special": (EOS * 2, "it has only special tokens"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A random model of 300 ids, with a tokenizer of its own."""
  encoder = tokenizer.train(LONG, 290, EOS)
  folder = tmp_path_factory.mktemp("model")
  return saved(folder, extra=encoder.to_files())


@pytest.fixture(scope="module")
def theirs(model):
  return lm_eval_model(model, 64, SIZE)


@pytest.fixture
def source(tmp_path):
  """Long documents, some with ids, and records that cannot be scored."""
  records = [{"text": text, "domain": "long"} for text in LONG]
  records[1]["id"], records[2]["id"] = 12, "two"
  for name, (text, _) in UNSCORED.items():
    records.insert(3, {"id": name, "text": text})
  lines = [json.dumps(record) for record in records] + ["{broken"]
  (tmp_path / "text.jsonl").write_text("\n".join(lines))
  return tmp_path


def score(folder: pathlib.Path, model, *more: str):
  return run(
    folder,
    "--stages=score_documents",
    f"--config.score.more=tiny={model}",
    "--config.documents.models=tiny",
    f"--config.documents.max_length={SIZE}",
    "--config.documents.part_bytes=600",
    "--config.corpus.domain_field=domain",
    "--config.corpus.id_field=id",
    *more,
  )


def parts(folder):
  made = sorted((folder / "run/document_scores/tiny").glob("*.parquet"))
  return {path.name: path.read_bytes() for path in made}


@pytest.mark.parity
@pytest.mark.parametrize("overlap", [0, 12])
def test_documents_have_the_log_likelihoods_of_lm_eval(
  source, model, theirs, overlap
):
  """The windows of its own model; with overlap those of a context_len."""
  from lm_eval import utils

  score(source, model, f"--config.documents.overlap={overlap / SIZE}")
  folder = source / "run" / "document_scores" / "tiny"
  table = pq.read_table(sorted(folder.glob("*.parquet")))
  assert table.schema.remove_metadata() == documents.SCHEMA
  rows = table.to_pylist()
  scored = [row for row in rows if row["reason"] is None]
  for row, text in zip(scored, LONG, strict=True):
    ids = theirs.tok_encode(text)
    assert len(ids) > 4 * SIZE
    cut = utils.get_rolling_token_windows(
      ids, theirs.prefix_token_id, SIZE, overlap + 1
    )
    cut = [(None, *utils.make_disjoint_window(pair)) for pair in cut]
    answers = theirs._loglikelihood_tokens(cut, disable_tqdm=True)
    nll = -sum(log_p for log_p, _ in answers)
    assert row["nll_sum"] == pytest.approx(nll, abs=1e-3)
    assert row["n_tokens"] == len(ids)
    assert row["n_bytes"] == len(text.encode())
    bits = nll / math.log(2) / len(text.encode())
    assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert row["corpus_id"] == "long"
  hashed = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in LONG]
  ids = [f"sha256:{digest}" for digest in hashed]
  ids[1:3] = "12", "two"
  assert [row["doc_id"] for row in scored] == ids
  unscored = {r["doc_id"]: r["reason"] for r in rows if r["reason"]}
  place, why = unscored.popitem()
  assert place == "text.jsonl#9" and "cannot be read as JSON" in why
  assert unscored == {name: why for name, (_, why) in UNSCORED.items()}
  lost = [row for row in rows if row["reason"]]
  for name in ("nll_sum", "n_tokens", "bits_per_byte"):
    assert {row[name] for row in lost} == {None}
  manifest = json.loads((folder / "manifest.json").read_text())
  counts = manifest["counts"]
  assert (counts["documents"], counts["scored"]) == (len(rows), len(LONG))
  total = math.fsum(row["nll_sum"] for row in scored)
  assert counts["nll_sum"] == pytest.approx(total)
  # The same texts from Python.
  import miniplm_jax as mp

  answers = mp.nll(str(model), LONG, max_length=SIZE, overlap=overlap / SIZE)
  np.testing.assert_allclose(
    [one.nll_sum for one in answers],
    [row["nll_sum"] for row in scored],
    atol=1e-3,
  )


@pytest.mark.parity
def test_the_console_script_prints_what_lm_eval_computes(
  model, theirs, tmp_path, capsys, monkeypatch
):
  given = {"a.txt": LONG[0][:20], "b.txt": LONG[1][:24]}
  names = [str(tmp_path / name) for name in given]
  for name, text in zip(names, given.values()):
    pathlib.Path(name).write_text(text)
  monkeypatch.setattr(log.LOGGER, "handlers", [])  # as in a process of its own
  cli.nll([str(model), *names])
  head, *lines = capsys.readouterr().out.splitlines()
  assert head.split("\t") == [
    *texts.TextScore._fields[:3],
    "bits_per_byte",
    "text",
  ]
  for line, name, text in zip(lines, names, given.values(), strict=True):
    ids = theirs.tok_encode(text)
    pair = (None, [theirs.prefix_token_id], ids)
    ((log_p, _),) = theirs._loglikelihood_tokens([pair], disable_tqdm=True)
    nll, *counts, bits, said = line.split("\t")
    assert float(nll) == pytest.approx(-log_p, abs=0.02)
    assert list(map(int, counts)) == [len(ids), len(text.encode())]
    per_byte = -log_p / math.log(2) / len(text.encode())
    assert float(bits) == pytest.approx(per_byte, abs=1e-3)
    assert said == name
  pathlib.Path(names[0]).write_bytes(b"\xff")
  with pytest.raises(UserError, match=f"no UTF-8 .*, {names[0]}, "):
    cli.nll([str(model), *names])


def test_what_was_killed_goes_on_to_the_same_bytes(
  source, model, monkeypatch, tmp_path_factory
):
  whole = tmp_path_factory.mktemp("whole")
  (whole / "text.jsonl").write_bytes((source / "text.jsonl").read_bytes())
  score(whole, model)
  assert len(parts(whole)) > 3
  calls, call = [], texts.TextScorer.__call__

  def killed(self, given):
    calls.append(given)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return call(self, given)

  with monkeypatch.context() as patched:
    patched.setattr(texts.TextScorer, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
      score(source, model)
  assert len(parts(source)) == 2
  first = source / "run/document_scores/tiny/part-000000.parquet"
  first.write_bytes(first.read_bytes()[:-100])  # as a broken disk leaves it
  calls.clear()
  monkeypatch.setattr(
    texts.TextScorer,
    "__call__",
    lambda self, given: calls.append(given) or call(self, given),
  )
  score(source, model)
  assert parts(source) == parts(whole)
  assert len(calls) == len(parts(whole)) - 1
  assert "skipped, nothing has changed" in score(source, model).stdout


def test_what_cannot_be_meant_is_refused_in_a_line(source, model, tmp_path):
  def told(*flags, own=f"--config.score.more=tiny={model}"):
    return refused(source, "--stages=score_documents", own, *flags)

  assert "no language model other" in told("--config.documents.models=other")
  of_scores = "--config.reference.scores=x.npy"
  chosen = "--config.documents.models=reference"
  assert "no language model reference" in told(chosen, of_scores)
  assert "add teacher to --stages" in told("--config.documents.models=teacher")
  chosen = "--config.documents.models=tiny"
  assert "config.documents.overlap is 1.0" in told(
    chosen, "--config.documents.overlap=1.0"
  )
  score(source, model)
  domain = "--config.corpus.domain_field=domain"
  assert 'settings.id_field is "id" there' in told(chosen, domain)
  # Nothing is there afterwards, so a mended command goes on.
  elsewhere = f"--config.workdir={source / 'other'}"
  field = "--config.corpus.text_field=body"
  assert "no text in field 'body'" in told(chosen, elsewhere, field)
  chosen = "--config.documents.models=tiny,nix"
  more = f"--config.score.more=('tiny={model}','nix={tmp_path / 'nix'}')"
  assert "no model directory here" in told(chosen, elsewhere, own=more)
  assert not list((source / "other").rglob("*.parquet"))
  (source / "none.jsonl").write_text("")
  none = f"--config.corpus.source={source / 'none.jsonl'}"
  chosen = "--config.documents.models=tiny"
  assert "there is no document" in told(chosen, elsewhere, none)
  nan = jax.tree.map(lambda x: x * jnp.nan, new(TRANSFORMER))
  tokens = tokenizer.load(epath.Path(model), EOS).to_files()
  huggingface.save(epath.Path(tmp_path / "nan"), nan, 7, tokens)
  more = f"--config.score.more=('nan={tmp_path / 'nan'}',)"
  chosen = "--config.documents.models=nan"
  assert "the weights hold NaN" in told(chosen, elsewhere, more)


def test_a_line_warns_of_a_model_that_may_know_the_documents(model, tmp_path):
  def warned(*flags):
    said = score(tmp_path, folder, *flags, "--force").stdout
    return re.findall(r"warning: tiny was trained on rows of (.*?):", said)

  lines = [json.dumps({"text": text}) for text in LONG]
  (tmp_path / "text.jsonl").write_text("\n".join(lines))
  folder = tmp_path / "given"
  shutil.copytree(model, folder)
  assert not warned()
  (folder / "trained_rows.json").write_text("{}")
  assert warned() == ["a corpus"]
  # As a reference that was trained here.
  fields = "--config.corpus.domain_field=domain", "--config.corpus.id_field=id"
  tokens = f"--config.corpus.tokenizer={model}"
  run(tmp_path, "--stages=tokenize", tokens, *fields)
  home = tmp_path / "run" / "reference"
  folder = shutil.copytree(model, home / "hf")
  manifest = json.loads((tmp_path / "run/corpus/manifest.json").read_text())
  of = {"corpus": manifest["fingerprint"]}
  path = epath.Path(home / "manifest.json")
  Manifest(path, "reference", {}, of, weights="0").write()
  assert warned(tokens) == ["a corpus of this very source"]
