"""A cloud in a folder for tests of gcp/tpu.sh; see standin_gcloud.py."""

import json
import os
import pathlib
import subprocess
import sys

from helpers import ROOT

# What the workers' own uv and Python do: the run writes its arguments and a
# report, and ends as $RUN_EXIT says.
UV = """#!/bin/bash
[[ $1 == venv ]] || exit 0
mkdir -p "$4/bin"
cp "$CLOUD/bin/fake_python" "$4/bin/python"
"""
PYTHON = """#!/bin/bash
if [[ $1 == -c ]]; then echo 0.10.2; exit; fi
echo "$*" >>"$CLOUD/runs"
if [[ $2 == benchmarks.accelerator ]]; then
  out=${@: -1}
  [[ -d benchmarks ]] && mkdir -p "${out#--out=}"
  exec touch "${out#--out=}/page.md"
fi
echo "train step 1"
sleep "${RUN_SECONDS:-0.1}"
[[ ${RUN_EXIT:-0} == 0 ]] || echo "error: no rows, corpus, give some"
echo report >"$CLOUD/bucket/report.html"
[[ $RUN_EXIT != once ]] || exit $(($(wc -l <"$CLOUD/runs") == 1))
exit "${RUN_EXIT:-0}"
"""
# The Python here, which builds the wheel.
PIP = """#!/bin/bash
while [[ $1 != --wheel-dir ]]; do shift; done
touch "$2/miniplm_jax-0-py3-none-any.whl"
"""


ALL = ["create", "scp", "install", "start", "rsync", "delete"]


def script(path: pathlib.Path, text: str):
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


class Cloud:
  """A cloud in a folder, and gcp/tpu.sh that works on it."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder / "cloud"
    (self.folder / "bucket").mkdir(parents=True)
    script(self.folder / "bin" / "uv", UV)
    script(self.folder / "bin" / "fake_python", PYTHON)
    script(folder / "python", PIP)
    standin = ROOT / "tests" / "standin_gcloud.py"
    gcloud = f'#!/bin/sh\nexec "{sys.executable}" -S -E "{standin}" "$@"\n'
    script(folder / "path" / "gcloud", gcloud)
    self.results = folder / "results"
    self.words = [
      f"JOB={ROOT}/gcp/job.env.example",
      f"PYTHON={folder}/python",
      f"RESULTS={self.results}",
      "POLL=0.1",
    ]
    self.environment = {
      **{k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"},
      "CLOUD": str(self.folder),
      "PATH": f"{folder}/path:{os.environ['PATH']}",
      "TMPDIR": str(folder),
    }

  def command(self, command, *words):
    return [ROOT / "gcp" / "tpu.sh", command, *self.words, *words]

  def __call__(self, command, *words, code=0, **environment):
    done = subprocess.run(
      self.command(command, *words),
      capture_output=True,
      text=True,
      timeout=60,
      env={**self.environment, **environment},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done

  def calls(self):
    """Verb of each call, without questions and repetitions."""
    if not (self.folder / "calls").exists():
      return []
    found = []
    for line in (self.folder / "calls").read_text().splitlines():
      words = json.loads(line)
      if "on_worker.sh" in (text := " ".join(words)):
        verb = text.split("on_worker.sh ")[1].split()[0]
      else:
        verb = words[1] if words[0] == "storage" else words[3]
      if verb in ("create", "scp", "install", "start", "rsync", "delete"):
        found.append(verb)
    return found

  def runs(self):
    return (self.folder / "runs").read_text().splitlines()

  def said(self, verb):
    """The words of each call of `compute tpus GROUP VERB`."""
    lines = (self.folder / "calls").read_text().splitlines()
    return [w for w in map(json.loads, lines) if w[3:4] == [verb]]

  def state(self):
    """What is there, and costs."""
    path = self.folder / "state"
    return path.read_text() if path.exists() else "NONE"

  def end(self):
    """Ends what still runs."""
    if self.state() != "NONE":
      self("delete")
