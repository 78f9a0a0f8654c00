"""gcp/tpu.sh against a stand-in for gcloud; the workers are folders here."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
import yaml
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
# One of several fails, and the others wait for it.
ONE_FAILS = """#!/bin/bash
if [[ $1 == -c ]]; then echo 0.10.2; exit; fi
[[ $HOME == *0 ]] || exec sleep 50
echo "error: no rows, corpus, give some"
exit 1
"""
# The Python here, which builds the wheel.
PIP = """#!/bin/bash
while [[ $1 != --wheel-dir ]]; do shift; done
touch "$2/miniplm_jax-0-py3-none-any.whl"
"""


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
      **os.environ,
      "CLOUD": str(self.folder),
      "PATH": f"{folder}/path:{os.environ['PATH']}",
      "TMPDIR": str(folder),
    }

  def __call__(self, command, *words, code=0, **environment):
    done = subprocess.run(
      [ROOT / "gcp" / "tpu.sh", command, *self.words, *words],
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


@pytest.fixture
def cloud(tmp_path):
  made = Cloud(tmp_path)
  yield made
  if (made.folder / "state").exists():
    made("delete")  # ends what still runs


ALL = ["create", "scp", "install", "start", "rsync", "delete"]


def test_all_goes_from_nothing_to_results_once(cloud):
  out = cloud("all").stdout
  assert "asked for miniplm" in out and "the run is done" in out
  assert cloud.calls() == ALL
  assert (cloud.results / "report.html").exists()
  (run,) = cloud.runs()
  assert "--config.workdir=gs://my-bucket/runs/500m" in run
  assert "--config.corpus.source=gs://my-bucket/pile/*.jsonl.zst" in run
  assert "coordinator" not in run
  assert "finished already" in cloud("all").stdout
  assert cloud.calls() == ALL  # nothing was asked for again


def test_a_tpu_is_measured_before_any_job(cloud):
  out = cloud("measure").stdout
  assert "costs until delete" in out
  assert cloud.calls() == ["create", "scp", "install", "scp"]
  assert (cloud.results / "accelerator" / "page.md").exists()
  (run,) = cloud.runs()
  assert run.startswith("-m benchmarks.accelerator --minutes=20 --out=")
  said = cloud("measure", "ACCELERATOR=v6e-16", code=1).stderr
  assert "error: several hosts are not measured, ACCELERATOR=v6e-16" in said


def test_each_step_says_that_it_is_done(cloud):
  cloud("create")
  cloud("install")
  cloud("run", RUN_SECONDS="20")
  before = cloud.calls()
  assert "miniplm is ACTIVE" in cloud("create").stdout
  assert "installed already" in cloud("install").stdout
  assert "runs already" in cloud("run").stdout
  assert cloud.calls() == [*before, "start"]
  assert len(cloud.runs()) == 1
  cloud("delete")
  assert "there is no miniplm" in cloud("delete").stdout


def test_a_tpu_that_is_taken_away_is_replaced(cloud):
  out = cloud("all", FAULTS="preempt", RUN_SECONDS="0.5").stdout
  assert "the TPU is gone" in out and "1 of 20" in out
  first, second = cloud.runs()
  assert first == second  # the same command: it resumes from the bucket
  start = ["create", "scp", "install", "start"]
  assert cloud.calls() == [*start, "delete", *ALL]


def test_one_that_is_gone_before_it_was_there_is_replaced(cloud):
  cloud("create", FAULTS="suspend_first")
  assert cloud.calls() == ["create", "delete", "create"]


def test_replacing_ends(cloud):
  text = cloud("all", "RESTARTS=0", FAULTS="preempt", code=1).stderr
  assert text.startswith("error: lost 1 TPUs")
  assert cloud.calls().count("create") == 1


def test_a_request_that_fails_is_told(cloud):
  text = cloud("create", FAULTS="failed", code=1).stderr
  assert text.startswith("error: the request has FAILED, miniplm in us-east5-b")


def test_an_ssh_that_drops_is_tried_again(cloud):
  out = cloud("all", FAULTS="ssh_drop")
  assert "try 1 of 5" in out.stderr
  assert cloud.calls() == [*ALL[:2], "install", *ALL[2:]]


def test_an_error_of_the_user_stops_it(cloud):
  done = cloud("all", RUN_EXIT="1", code=1)
  first, second = done.stderr.splitlines()
  assert first == "error: no rows, corpus, give some"
  assert second.startswith("error: the run ended with 1, miniplm, ")
  assert cloud.calls() == ["create", "scp", "install", "start"]


def test_those_that_wait_for_one_that_failed_are_stopped(cloud):
  script(cloud.folder / "bin" / "fake_python", ONE_FAILS)
  text = cloud("all", "ACCELERATOR=v6e-16", "STAGES=score", code=1).stderr
  assert text.startswith("error: no rows, corpus, give some\nerror: the run")
  ends = [p.read_text() for p in cloud.folder.glob("worker*/miniplm/exit")]
  assert sorted(ends) == ["1\n", *["143\n"] * 3]


def test_a_stopped_run_goes_on_elsewhere(cloud):
  cloud("create")
  cloud("install")
  cloud("run", RUN_SECONDS="0", RUN_EXIT="143")
  time.sleep(0.3)
  assert "is gone (143)" in cloud("watch").stdout
  assert len(cloud.runs()) == 2


def test_a_worker_that_fails_as_its_neighbour_is_taken_away(cloud):
  out = cloud("all", FAULTS="suspend_late", RUN_EXIT="once").stdout
  assert "is gone (SUSPENDED)" in out and "the run is done" in out
  assert len(cloud.runs()) == 2


def test_logs_follow_until_the_end(cloud):
  cloud("create")
  cloud("install")
  cloud("run", RUN_SECONDS="0.5")
  assert "train step 1" in cloud("logs").stdout


def test_several_hosts_run_any_stage_as_one_program(cloud):
  cloud("all", "ACCELERATOR=v6e-16", "STAGES=score,seqkd")
  runs = cloud.runs()
  assert len(runs) == 4
  wanted = "--config.run.coordinator=auto --stages=score,seqkd"
  assert all(wanted in r for r in runs)


@pytest.mark.parametrize(
  ("words", "faults", "said"),
  [
    ([], "logged_out", "nobody is logged in"),
    ([], "no_bucket", "the bucket cannot be reached"),
    ([], "not_offered", "v6e-8 is not offered"),
    ([], "quota", "no quota: "),
    (["CONFIG=configs/none.py"], "", "no such file, CONFIG=configs/none.py"),
    (["WORKDIR=runs/here"], "", "the VM's disk goes with the VM"),
    (["CAPACITY=cheap"], "", "no such capacity"),
    (["ACCELERATOR=h100-8"], "", "unknown accelerator h100-8"),
    (["TYPO=1"], "", "no such setting TYPO"),
    (["JOB=none.env"], "", "no settings"),
  ],
)
def test_what_is_wrong_is_told_before_it_costs(cloud, words, faults, said):
  text = cloud("all", *words, FAULTS=faults, code=1).stderr
  assert text.startswith(f"error: {said}") and text.count("\n") == 1
  assert not (cloud.folder / "state").exists()


def test_dry_run_prints_all_and_calls_nothing(cloud, tmp_path):
  shutil.rmtree(tmp_path / "path")
  script(tmp_path / "path" / "gcloud", f"#!/bin/sh\ntouch {tmp_path}/called\n")
  out = cloud("all", "--dry_run").stdout
  assert not (tmp_path / "called").exists()
  assert not cloud.results.exists()
  assert "<" not in out
  words = ["auth list", "storage ls", "accelerator-types", "resources create"]
  words += ["pip wheel", "tpu-vm scp"]
  words += [rf"on_worker.sh\ {w}" for w in ("install", "start", "status")]
  words += ["storage rsync", "resources delete"]
  places = [out.index(w) for w in words]
  assert places == sorted(places)
  # What is printed can be pasted: bash takes it word for word.
  subprocess.run(["bash", "-n"], input=out, text=True, check=True)
  out = cloud("tokenize", "--dry_run").stdout
  assert "--stages=tokenize" in out and "runner=DataflowRunner" in out


def test_the_wheel_is_built_without_downloads(tmp_path):
  made = Cloud(tmp_path)
  made.words += [f"PYTHON={sys.executable}"]
  made("create")
  made("install")
  (wheel,) = (made.folder / "worker0/miniplm/ship").glob("*.whl")
  assert wheel.stat().st_size > 100_000
  made("delete")


def test_jobset_is_what_kubernetes_takes():
  job = yaml.safe_load((ROOT / "gcp" / "jobset.yaml").read_text())
  assert job["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert job["kind"] == "JobSet" and job["spec"]["failurePolicy"]
  (slices,) = job["spec"]["replicatedJobs"]
  spec = slices["template"]["spec"]
  assert spec["parallelism"] == spec["completions"] == 4
  assert spec["backoffLimit"] == 0
  pod = spec["template"]["spec"]
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
  (container,) = pod["containers"]
  chips = container["resources"]
  assert chips["limits"] == chips["requests"] == {"google.com/tpu": 4}
  assert "--config.run.coordinator=auto" in container["command"]


# Beside the interpreter, or wherever else it is.
_PATH = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
SHELLCHECK = shutil.which("shellcheck", path=_PATH)


@pytest.mark.skipif(not SHELLCHECK, reason="no shellcheck")
def test_shellcheck_finds_nothing():
  files = sorted((ROOT / "gcp").glob("*.sh"))
  subprocess.run([SHELLCHECK, "-x", *files], check=True, cwd=ROOT)


def test_what_is_written_twice_is_the_same():
  """Bash and Docker cannot ask the package, the lock and the Makefile."""
  worker, image, lock, make = (
    (ROOT / name).read_text()
    for name in (
      "gcp/on_worker.sh",
      "gcp/Dockerfile",
      "requirements-lock.txt",
      "Makefile",
    )
  )
  (uv,) = re.findall(r"UV_VERSION=(\S+)", worker)
  assert f"uv=={uv}\n" in make
  (jax,) = re.findall(r"jax\[tpu\]==([\d.]+)", image)
  assert re.search(rf"^jax=={re.escape(jax)}( ;|$)", lock, re.MULTILINE)


def test_scripts_can_be_read_in_one_sitting():
  for path in (ROOT / "gcp").glob("*.sh"):
    lines = path.read_text().splitlines()
    assert len(lines) <= 400 and max(map(len, lines)) <= 80, path
