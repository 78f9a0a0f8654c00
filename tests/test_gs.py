"""gs:// against a storage emulator.

TensorFlow has Google's address built in and cannot take part; nothing here
reads gs:// through it.
"""

import re
import signal
import subprocess

import fsspec.config
import gs_emulator
import pytest
import tiny_config
from etils import epath
from helpers import command, environment, write_corpus

from miniplm_jax import pipeline
from miniplm_jax.core import gs

_BUCKET = epath.Path(f"gs://{gs_emulator.BUCKET}")
_WORKDIR = _BUCKET / "run"
_TEXT = _BUCKET / "text"
# Where the chunks of the teacher's second checkpoint go.
_CHUNK = re.compile("teacher%2Fcheckpoints%2F8%2F.*process_0%2Fd")
_FEW = (
  "--config.reference.train.steps=4",
  "--config.train.steps=4",
)


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
  """The emulator's gate; this process and its children are pointed at it."""
  with (
    gs_emulator.running() as (port, found),
    pytest.MonkeyPatch.context() as patch,
  ):
    patch.setenv("MINIPLM_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name, value in gs_emulator.environment(port).items():
      patch.setenv(name, value)
    # As core.gs asks, if another test did not import fsspec before it.
    patch.setitem(fsspec.config.conf, "gcs", {"use_listings_cache": False})
    yield found


def run(workdir, source, *stages: str):
  """A run in this process, which has imported and compiled the most of it."""
  config = tiny_config.get_config()
  config.workdir, config.corpus.source = str(workdir), str(source)
  config.reference.train.steps = config.train.steps = 4
  pipeline.run(config, "tiny_config.py", stages, force=False, dry_run=False)


def objects() -> dict[str, str]:
  """The generation of each object of the workdir."""
  found = gs.file_system().find(str(_WORKDIR), detail=True)
  return {name: facts["generation"] for name, facts in found.items()}


@pytest.fixture(scope="module")
def killed(gate, tmp_path_factory):
  """A workdir on disk like that of a run that was killed in its checkpoint 8.
  """
  local = tmp_path_factory.mktemp("local")
  write_corpus(local / "text.jsonl", 16)
  # In a folder of the folder that is read.
  name = str(_TEXT / "a" / "text.jsonl")
  gs.file_system().put_file(str(local / "text.jsonl"), name)
  process = subprocess.Popen(
    command(_BUCKET, *_FEW, source=_TEXT),
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  gate.before = lambda method, address: _CHUNK.search(address) and (
    process.kill()
  )
  stages = "tokenize", "teacher", "reference", "score", "select"
  run(local / "run", local / "text.jsonl", *stages)
  said = process.communicate(timeout=300)[0]
  gate.before = lambda *unused: None
  assert process.returncode == -signal.SIGKILL, said
  return local / "run"


def test_a_killed_run_goes_on_and_ends_as_on_a_disk(killed, gate, capsys):
  half = [name for name in objects() if "teacher/checkpoints/8/" in name]
  assert half and not any(n.endswith("8/commit_success.txt") for n in half)
  run(_WORKDIR, _TEXT)
  assert "restored checkpoint 4" in capsys.readouterr().out
  for name in (
    "selection/miniplm/rows.npy",
    "teacher/hf/model.safetensors",
    "teacher/hf/tokenizer.json",
  ):
    assert (_WORKDIR / name).read_bytes() == (killed / name).read_bytes(), name
  assert "miniplm" in (_WORKDIR / "report.html").read_text()
  assert gate.conditional > 20  # claims, parts and manifests

  before = objects()
  assert not [name for name in before if "partial" in name]
  run(_WORKDIR, _TEXT)
  out = capsys.readouterr().out
  assert out.count("skipped") == out.count("[") and objects() == before
