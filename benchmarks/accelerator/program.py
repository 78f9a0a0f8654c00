"""Modules and the package's command line as processes that end with ours.

python -m benchmarks.accelerator.program PARENT MODULE ARGUMENT…
"""

import ctypes
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
from typing import Any

_ROOT = pathlib.Path(__file__).parents[2]
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def end_with_parent():
  """Ends this process when its parent ends, kill -9 included; on Linux."""
  if _LIBRARY:
    _LIBRARY.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans():
  """Makes what a process of ours leaves behind ours to wait for; on Linux."""
  if _LIBRARY:
    _LIBRARY.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def command(module: str, *arguments: str) -> list[str]:
  """What runs a module in a process that ends when this one does."""
  own = sys.executable, "-m", "benchmarks.accelerator.program"
  return [*own, str(os.getpid()), module, *arguments]


def texts(path: pathlib.Path) -> pathlib.Path:
  """JSON lines of the topics of pydoc: 0.5 MB in two domains."""
  from pydoc_data import topics

  with path.open("w") as f:
    for i, (_, text) in enumerate(sorted(topics.topics.items())):
      line = {"text": text, "domain": "odd" if i % 2 else "even"}
      f.write(json.dumps(line) + "\n")
  return path


def start(
  workdir: pathlib.Path,
  source: pathlib.Path | str,
  log: pathlib.Path,
  *arguments: str,
) -> subprocess.Popen:
  """A run of configs/demo.py.

  Args:
    workdir: of the run.
    source: of its corpus.
    log: gets what it says.
    *arguments: of the command line.
  """
  paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
  with log.open("ab") as out:
    return subprocess.Popen(
      command(
        "miniplm_jax.main",
        f"--config={_ROOT / 'configs' / 'demo.py'}",
        f"--config.workdir={workdir}",
        f"--config.corpus.source={source}",
        *arguments,
      ),
      stdout=out,
      stderr=out,
      stdin=subprocess.DEVNULL,
      env=os.environ
      | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
      },
    )


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of the student's training, evaluations left out."""
  path = workdir / "students" / "pretrain" / "metrics" / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return [line for line in lines if "train/loss" in line]


def stages(workdir: pathlib.Path) -> dict[str, float]:
  """Seconds of the jobs that are done, by folder."""
  found = {}
  for path in sorted(workdir.rglob("manifest.json")):
    content = json.loads(path.read_text())
    if "seconds" in content.get("details", {}):
      where = path.parent.relative_to(workdir)
      found[f"{content['stage']}: {where}"] = content["details"]["seconds"]
  return found


def main():
  """Runs the module, unless the parent has ended before."""
  end_with_parent()
  if os.getppid() == int(sys.argv[1]):
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
