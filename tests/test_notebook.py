"""The notebook runs from start to end, without a hub; the stored one is fit."""

import re
import subprocess
import sys

import jax
import nbformat
import numpy as np
import pytest
from etils import epath
from flax import nnx
from helpers import LIMIT, ROOT, environment, write_corpus

from miniplm_jax.config import CorpusConfig
from miniplm_jax.corpus import sources, tokenizer
from miniplm_jax.models import decoder, huggingface, sharding
from miniplm_jax.models.architecture import Transformer

NOTEBOOK = ROOT / "notebooks" / "miniplm_tpu_demo.ipynb"
VOCABULARY = 512


def write_teacher(folder):
  """A random Llama with a tokenizer of its own, as the hub would have it."""
  (folder / "texts").mkdir()
  write_corpus(folder / "texts" / "a.jsonl")
  corpus = CorpusConfig(source=f"{folder}/texts")
  (part,) = sources.list_chunks(corpus)
  texts = (document.text for document in part.read())
  made = tokenizer.train(texts, VOCABULARY, "<|endoftext|>")
  arch = Transformer(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    qkv_bias=False,
  )
  teacher = folder / "teacher"
  model = decoder.Decoder(arch, nnx.Rngs(0), np.float32)
  huggingface.save(epath.Path(teacher), model, made.eos_id, made.to_files())
  return teacher


def execute(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "notebooks.execute", *map(str, arguments)],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
    timeout=LIMIT,
  )


def outputs(path):
  """Every output of a notebook."""
  cells = nbformat.read(path, as_version=4).cells
  return [o for c in cells if c.cell_type == "code" for o in c.outputs]


def text_of(found):
  """What was printed, one string."""
  return "".join(o.text for o in found if o.output_type == "stream")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
  """The folder of a run, and the notebook that it stored."""
  folder = tmp_path_factory.mktemp("notebook")
  steps = 12
  values = {
    "TEACHER": write_teacher(folder),
    "VOCABULARY": VOCABULARY,
    "CHARACTERS": 40_000,
    "STEPS": steps,
  }
  done = execute(
    *(f"--set={name}={value}" for name, value in values.items()),
    f"--out={folder / 'out.ipynb'}",
    f"--folder={folder / 'work'}",
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return folder


@pytest.mark.long
def test_every_cell_ran(executed):
  found = outputs(executed / "out.ipynb")
  assert not [o for o in found if o.output_type == "error"]
  assert not [o for o in found if o.get("name") == "stderr"]
  said = text_of(found)
  assert "platform cpu" in said
  assert "Computing in float32" in said
  for stage in "tokenize", "reference", "score", "select", "train", "evaluate":
    assert f"\n[{stage}] done in " in said
  assert "completed step: 12," in said
  assert said.count("--- prompt ") == 2
  pictures = [o for o in found if "image/png" in o.get("data", {})]
  assert len(pictures) == 2


@pytest.mark.long
def test_what_it_shows_is_what_was_made(executed):
  work = executed / "work"
  said = text_of(outputs(executed / "out.ipynb"))
  shown = said.partition("Highest scores")[2].partition("## ")[0]
  scores = [float(s) for s in re.findall(r"^ *([+-]\d+\.\d{3})  ", shown, re.M)]
  assert len(scores) == 10
  assert scores == sorted(scores, reverse=True)
  run = work / "runs" / "colab"
  assert len(np.load(run / "selection" / "miniplm" / "rows.npy"))
  with jax.set_mesh(mesh := sharding.make_mesh(1, 1, 1)):
    student = run / "students" / "miniplm" / "hf"
    model = huggingface.load(epath.Path(student), mesh)
  assert model.arch.vocab_size == VOCABULARY
  (table,) = [
    o.data["text/markdown"]
    for o in outputs(executed / "out.ipynb")
    if "text/markdown" in o.get("data", {})
  ]
  assert table.splitlines()[2].startswith("| all | ")
  for line in table.splitlines()[2:]:
    ours, theirs, difference = map(float, line.split("|")[2:5])
    assert ours - theirs == pytest.approx(difference, abs=2e-3)


@pytest.mark.long
def test_cells_are_stored_as_they_were(executed):
  """Whatever was changed for a run, and wherever it ran."""
  before, after = (
    nbformat.read(path, as_version=4)
    for path in (NOTEBOOK, executed / "out.ipynb")
  )
  assert [c.source for c in before.cells] == [c.source for c in after.cells]
  assert str(executed) not in (executed / "out.ipynb").read_text()
  said = text_of(outputs(executed / "out.ipynb"))
  assert "TEACHER = 'teacher'" in said


@pytest.mark.parametrize(
  "arguments, error",
  [
    (["--set=STEP=3"], "no parameter STEP"),
    (["--set=STEPS"], "there is no ="),
    (["--set=REPOSITORY=nowhere"], "a cell failed"),
  ],
)
def test_errors_are_one_line(tmp_path, arguments, error):
  done = execute(*arguments, f"--out={tmp_path / 'out.ipynb'}")
  assert done.returncode == 1
  (line,) = [s for s in done.stderr.splitlines() if s.startswith("error: ")]
  assert error in line
  assert not (tmp_path / "out.ipynb").exists()


def test_the_stored_notebook_is_fit_to_be_read():
  assert NOTEBOOK.stat().st_size < 1_000_000
  found = outputs(NOTEBOOK)
  cells = nbformat.read(NOTEBOOK, as_version=4).cells
  counts = [c.execution_count for c in cells if c.cell_type == "code"]
  assert counts == list(range(1, len(counts) + 1))  # one run, in order
  assert all(o.output_type != "error" for o in found)
  assert sum("image/png" in o.get("data", {}) for o in found) == 2
  said = text_of(found)
  assert "[train] done in " in said
  for unwanted in ("Traceback", "Warning", "WARNING", "\r", "\x1b"):
    assert unwanted not in said
  # No path of the machine that it ran on.
  assert not re.search(r"(?<![\w.:/])/(tmp|home|root|work|usr|var)/", said)
