"""A run that is small enough to be made many times, on real text."""

import contextlib
import io
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pydoc_data import topics

from miniplm_jax.core import distributed, manifest, signals

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "tiny_config.py"
# Seconds of any process. On two free cores the longest takes 214; a machine may
# be slow, or busy.
LIMIT = 900
STEPS = 100  # of the student in the fixture `finished`: enough to be killed in
LONG = f"--config.train.steps={STEPS}"
# Metrics of the wall clock: two runs of the same steps differ in them.
OF_THE_CLOCK = ("train/tokens_per_second", "train/mfu", "train/goodput")


def write_corpus(path: pathlib.Path, documents: int = 40):
  """JSON lines of pydoc's topics, in two domains."""
  with path.open("w") as f:
    for i, name in enumerate(sorted(topics.topics)[:documents]):
      record = {
        "text": topics.topics[name][:4000],
        "meta": {"set": "even" if i % 2 else "odd"},
      }
      f.write(json.dumps(record) + "\n")


def command(
  folder: pathlib.Path,
  *arguments: str,
  config: pathlib.Path | str = CONFIG,
  source: pathlib.Path | None = None,
) -> list[str]:
  """The command line of a tiny run in `folder`/run."""
  return [
    sys.executable,
    "-m",
    "miniplm_jax.main",
    f"--config={config}",
    f"--config.workdir={folder / 'run'}",
    f"--config.corpus.source={source or folder / 'text.jsonl'}",
    *arguments,
  ]


# One compilation for all tests and their processes: 38 s → 16 s a run. Before
# JAX is imported. A developer may keep a folder from session to session.
_CACHE = tempfile.TemporaryDirectory(prefix="miniplm_jax_compiled_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"
# Half the time of a compilation, and the same HLO but for the CPU's own code.
# `make test-all` runs what compares bits of different programs once more with
# all optimizations.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@contextlib.contextmanager
def signals_handled(leave=distributed.leave):
  """Signals ask for a stop, as in main, during the body alone."""
  before = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
  signals.handle(leave)
  try:
    yield
  finally:
    signals.release()
    for number, handler in before:
      signal.signal(number, handler)


def environment(devices: int = 1) -> dict[str, str]:
  """So many devices, whatever the session has."""
  flags = f"--xla_force_host_platform_device_count={devices}"
  return os.environ | {"XLA_FLAGS": flags if devices > 1 else ""}


# What comes with the extra seqio, which the base install has not.
TENSORFLOW = ("seqio", "tensorflow", "tensorflow_datasets", "tensorflow_text")


def without(folder: pathlib.Path, modules: Sequence[str]) -> dict[str, str]:
  """The environment of processes that cannot import these; uses `folder`."""
  folder.mkdir(exist_ok=True)
  for name in modules:
    (folder / f"{name}.py").write_text("raise ImportError('not for this test')")
  others = os.environ.get("PYTHONPATH")
  return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), others)))}


def run(
  folder: pathlib.Path, *arguments: str, **places: pathlib.Path
) -> subprocess.CompletedProcess:
  """Runs the command line to its end, in this process."""
  from absl import flags

  from miniplm_jax import main

  argv = command(folder, *arguments, **places)[2:]
  with (
    contextlib.redirect_stdout(io.StringIO()) as stdout,
    contextlib.redirect_stderr(io.StringIO()) as stderr,
  ):
    main.run(argv, flags.FlagValues())
  return subprocess.CompletedProcess(
    argv, 0, stdout.getvalue(), stderr.getvalue()
  )


def run_as_process(
  folder: pathlib.Path,
  *arguments: str,
  code: int = 0,
  devices: int = 1,
  env: Mapping[str, str] | None = None,
  **places: pathlib.Path,
) -> subprocess.CompletedProcess:
  """Runs it in a process of its own and checks the exit status."""
  done = subprocess.run(
    command(folder, *arguments, **places),
    capture_output=True,
    text=True,
    env=environment(devices) | (env or {}),
    check=False,
    timeout=LIMIT,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done


def together(
  folder: pathlib.Path,
  *arguments: str,
  processes: int = 2,
  devices: int = 4,
  slice_name: str = "",
  own: Sequence[Sequence[str]] = (),
) -> list[subprocess.Popen]:
  """Starts several processes as one program.

  Args:
    folder: of the run.
    *arguments: of the command line.
    processes: how many.
    devices: of each.
    slice_name: whose order of devices the meshes have; "" is host by host.
    own: further arguments of each.
  """
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  python, _, _, *given = command(folder, *arguments)
  return [
    subprocess.Popen(
      [
        python,
        str(ROOT / "tests" / "on_a_slice.py"),
        *given,
        f"--config.run.coordinator=127.0.0.1:{port}",
        f"--config.run.processes={processes}",
        f"--config.run.process_id={i}",
        *(own[i] if own else ()),
      ],
      env=environment(devices) | {"SLICE": slice_name},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(processes)
  ]


def ended(processes: list[subprocess.Popen], code: int | None) -> list[str]:
  """What each said until it ended, with this exit status if not None."""
  try:
    said = [process.communicate(timeout=LIMIT)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()  # that it does not run beside the tests that follow
  if code is not None:
    assert [p.returncode for p in processes] == [code] * len(said), said
  return said


def refused(
  folder: pathlib.Path, *arguments: str, **places: pathlib.Path
) -> str:
  """Runs the command line in this process; returns its one line of error."""
  from miniplm_jax.core import distributed, errors

  try:
    done = run(folder, *arguments, **places)
  except Exception as e:
    if shown := distributed.explained(e):
      return f"error: {errors.one_line(shown)}"
    raise
  raise AssertionError(f"it was not refused: {done.stdout}")


def refused_as_process(
  folder: pathlib.Path, *arguments: str, **places: pathlib.Path
) -> str:
  """As `refused`, with exit status 1 and the line alone at the end."""
  done = run_as_process(folder, *arguments, code=1, **places)
  lines = [line for line in done.stderr.splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith("error: ")]
  assert len(errors) == 1, done.stderr
  assert "Traceback" not in done.stderr
  assert lines[-1] == errors[0]
  return errors[0]


def weights(folder: pathlib.Path, student: str = "miniplm") -> bytes:
  """The exported weights of a finished run."""
  path = folder / "run" / "students" / student / "hf" / "model.safetensors"
  return path.read_bytes()


def rows(folder: pathlib.Path, selection: str = "miniplm") -> bytes:
  """The kept rows of a finished run."""
  return (folder / "run" / "selection" / selection / "rows.npy").read_bytes()


def documented(page: str, heading: str, language: str = "python") -> list[str]:
  """The fenced blocks under a heading of docs/`page`, up to the next one."""
  text = (ROOT / "docs" / page).read_text()
  (section,) = re.findall(
    rf"^##+ {re.escape(heading)}\n(.*?)(?=^##+ |\Z)", text, re.M | re.S
  )
  return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def execute(code: str) -> dict:
  """Runs a block; returns its variables."""
  space = {}
  exec(code, space)
  return space


@contextlib.contextmanager
def edited(path: pathlib.Path):
  """A manifest's fields; what is changed is written as a stage would."""
  body = json.loads(path.read_text())
  yield body
  for name in ("schema_version", "fingerprint", "checksum"):
    del body[name]
  manifest.Manifest(path, **body).write()


def typed(config, where: str = "here"):
  """The config that steps are made of, in a workdir that nothing is in."""
  from miniplm_jax import config as config_lib

  if not config.workdir:
    config = config.copy_and_resolve_references()
    config.workdir = "run"
  return config_lib.from_dict(config, where)


def rules(kind=None, name: str = "config"):
  """The dotted name and the rule of each field of the config or a section."""
  from miniplm_jax import config as config_lib
  from miniplm_jax.core import fields

  kind = kind or config_lib.Config
  for key, rule in fields.rules_of(kind).items():
    yield f"{name}.{key}", rule
  for key, part in fields.sections_of(kind).items():
    yield from rules(part, f"{name}.{key}")


def steps_of(stage, config):
  """The steps of a stage in the config's workdir."""
  from miniplm_jax import pipeline

  config = typed(config)
  workdir = pipeline.Workdir(pipeline.epath.Path(config.workdir))
  return pipeline.Stages(config, workdir).steps(stage)


def lm_eval_model(directory, batch_size: int, max_length: int):
  """The harness's own model of a directory, in float32 but for its softmax."""
  import pytest  # processes of tests import this module, too

  pytest.importorskip("torch", reason="needs the parity extra")
  huggingface = pytest.importorskip(
    "lm_eval.models.huggingface", reason="needs the eval extra"
  )
  return huggingface.HFLM(
    str(directory),
    dtype="float32",
    device="cpu",
    batch_size=batch_size,
    max_length=max_length,
    softmax_dtype="float64",
  )
