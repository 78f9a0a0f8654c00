"""The Colab notebook: from start to end, and as it is shown."""

import json
import subprocess
import sys

import nbformat
import transformers
from helpers import ROOT, environment

from miniplm_jax.corpus import embedded, tokenizer

NOTEBOOK = ROOT / "notebooks" / "miniplm_tpu_demo.ipynb"
VOCABULARY = 512


def said(page):
  """All text that the cells put out."""
  outputs = [o for c in page.cells for o in c.get("outputs", ())]
  assert not [o for o in outputs if o.output_type == "error"]
  assert not [o for o in outputs if o.get("name") == "stderr"]
  return "".join(o.text for o in outputs if o.output_type == "stream")


def pictures(page):
  outputs = [o for c in page.cells for o in c.get("outputs", ())]
  return [o for o in outputs if "image/png" in o.get("data", {})]


def test_it_runs_from_start_to_end(tmp_path):
  teacher = tmp_path / "teacher"
  config = transformers.Qwen2Config(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
  )
  transformers.Qwen2ForCausalLM(config).save_pretrained(teacher)
  texts = [d.text for d, _ in zip(embedded.list_parts()[0].read(), range(20))]
  tokenizer.save(tokenizer.train(texts, VOCABULARY, "<|endoftext|>"), teacher)
  out = tmp_path / "out.ipynb"
  settings = {
    "TEACHER": "./teacher",
    "VOCABULARY": VOCABULARY,
    "CHARACTERS": 60_000,
    "STEPS": 20,
  }
  subprocess.run(
    [
      *(sys.executable, "-m", "notebooks.execute"),
      *(f"--set={name}={value}" for name, value in settings.items()),
      *(f"--link=teacher={teacher}", f"--out={out}"),
    ],
    cwd=ROOT,
    env=environment(),
    check=True,
  )
  page = nbformat.read(out, as_version=4)
  text = said(page)
  assert "1 × cpu, computing in float32" in text
  assert "completed step: 20" in text
  for name in ("miniplm ", "pretrain "):
    (line,) = (s for s in text.splitlines() if s.startswith(name))
    assert 0 < float(line.split()[1]) < 7
  assert "model.safetensors" in text
  assert text.count("--- prompt") == 2
  assert len(pictures(page)) == 2
  source = [c.source for c in page.cells]
  stored = nbformat.read(NOTEBOOK, as_version=4)
  differs = [a != b.source for a, b in zip(source, stored.cells, strict=True)]
  assert sum(differs) == 1  # the cell of the parameters


def test_it_reads_well_as_it_is_stored():
  page = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(page)
  text = said(page)
  assert "Σ nll of every row of D under teacher ./SmolLM2-135M" in text
  assert len(pictures(page)) == 2
  assert NOTEBOOK.stat().st_size < 1e6
  for place in ("/tmp", "/home", "/root", "/work", "Traceback", "Warning"):
    assert place not in json.dumps(page), place
