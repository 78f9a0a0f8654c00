"""gcp/tpu.sh against a stand-in for gcloud; the workers are folders here."""

import importlib
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from clouds import ALL, Cloud, script
from helpers import ROOT


@pytest.fixture
def cloud(tmp_path):
  made = Cloud(tmp_path)
  yield made
  made.end()


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


def test_several_slices_run_as_one_program(cloud):
  cloud("all", "SLICES=2")
  assert len(cloud.runs()) == 2
  assert all("--config.run.coordinator=auto" in r for r in cloud.runs())
  (made,) = cloud.said("create")
  assert {"--node-count=2", "--node-prefix=miniplm"} < set(made)
  assert all("--node=all" in words for words in cloud.said("ssh"))


def test_disks_and_addresses_are_asked_for(cloud):
  disk = "--data-disk=source=projects/p/zones/z/disks/d,mode=read-only"
  cloud("all", "ADDRESS=iap", f"REQUEST={disk} --labels='of=a b'")
  (made,) = cloud.said("create")
  assert {disk, "--labels=of=a b", "--internal-ips"} < set(made)
  words = cloud.said("ssh") + cloud.said("scp")
  assert all("--tunnel-through-iap" in w for w in words)
  out = cloud("all", "--dry_run", "ADDRESS=internal").stdout
  assert out.count(" --internal-ips ") == 1
  assert out.count(" --internal-ip ") == out.count("tpu-vm")


@pytest.mark.parametrize("held", ["other", "ours", "none"])
def test_an_agent_with_other_keys_is_told_before_it_costs(
  cloud, tmp_path, held
):
  (tmp_path / ".ssh").mkdir()
  (tmp_path / ".ssh" / "google_compute_engine.pub").touch()
  script(tmp_path / "path" / "ssh-keygen", "#!/bin/sh\necho 3072 SHA256:ours")
  ends = "exit 1" if held == "none" else f"echo 256 SHA256:{held} me"
  script(tmp_path / "path" / "ssh-add", f"#!/bin/sh\n{ends}")
  home, is_other = {"HOME": str(tmp_path)}, held == "other"
  cloud("check", **home)  # one host: gcloud asks for no agent
  done = cloud("check", "ACCELERATOR=v6e-16", code=is_other, **home)
  told = "error: ssh-agent holds only other keys, "
  assert done.stderr.startswith(told) == is_other


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
    (["SLICES=0"], "", "no number, SLICES=0"),
    (["ADDRESS=home"], "", "no such address, ADDRESS=home"),
    (["ARGS='a"], "", "bash cannot read it"),
    (["PYTHON=none"], "", "no Python to build the wheel, PYTHON=none"),
    (["REQUEST=--swift"], "", "gcloud failed: ERROR: (gcloud) unrecognized"),
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


def test_jobset_agrees_with_itself_and_with_the_package():
  job = yaml.safe_load((ROOT / "gcp" / "jobset.yaml").read_text())
  (slices,) = job["spec"]["replicatedJobs"]
  spec = slices["template"]["spec"]
  pod = spec["template"]["spec"]
  (container,) = pod["containers"]
  limits = container["resources"]["limits"]
  assert limits == container["resources"]["requests"]
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  chips = math.prod(map(int, topology.split("x")))
  assert spec["parallelism"] * limits["google.com/tpu"] == chips
  assert spec["completions"] == spec["parallelism"]
  # The command runs the script of the image, with flags that the config has.
  copied = re.findall(r"^COPY (.*) \S+$", image(), re.MULTILINE)
  bash, run, verb, *flags = container["command"]
  assert bash == "bash" and f"gcp/{run}" in " ".join(copied).split()
  assert f"\n{verb}() {{" in (ROOT / "gcp" / run).read_text()
  given = dict(f.removeprefix("--").split("=", 1) for f in flags)
  name = given.pop("config").removesuffix(".py").replace("/", ".")
  config = importlib.import_module(name).get_config()
  assert set(given.pop("stages").split(",")) <= set(config.stages)
  for field in given:
    place, *parts = field.split(".")
    assert place == "config"
    node = config
    for part in parts:
      node = node[part]  # KeyError: no such field


def test_jobset_fails_for_an_error_of_the_user_only():
  job = yaml.safe_load((ROOT / "gcp" / "jobset.yaml").read_text())
  (rule,) = job["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  (slices,) = job["spec"]["replicatedJobs"]
  spec = slices["template"]["spec"]
  pod = spec["template"]["spec"]
  assert pod["restartPolicy"] == "Never"  # a podFailurePolicy wants it
  taken, failed = spec["podFailurePolicy"]["rules"]
  assert taken["action"] == "Count" and "onPodConditions" in taken
  assert failed["action"] == "FailJob"
  codes = failed["onExitCodes"]
  assert codes["containerName"] == pod["containers"][0]["name"]
  # Not 75, of a lost neighbor, nor 143, of SIGTERM.
  assert (codes["operator"], codes["values"]) == ("In", [1, 137])


POD = """#!/bin/bash
echo "$*, on $JAX_PLATFORMS"
echo "$SAID" >&2
exit "$ENDS"
"""


@pytest.mark.parametrize(
  ("said", "ends", "code"),
  [
    ("error: no rows, corpus, give some", 1, 1),
    ("error: lost another process (gone), process 1 of 4, see logs", 1, 75),
    ("UNKNOWN: TPU initialization failed: Device or resource busy", 1, 75),
    ("error: [Errno 16] Device or resource busy: '/mnt', here, umount", 1, 1),
    ("fine", 0, 0),
    ("stopped by SIGTERM; goes on without --force", 143, 143),
  ],
)
def test_a_pod_says_whether_another_start_helps(tmp_path, said, ends, code):
  script(tmp_path / "bin" / "python", POD)
  env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  done = subprocess.run(
    ["bash", ROOT / "gcp" / "on_worker.sh", "pod", "--stages=score"],
    env={
      **env,
      "SAID": said,
      "ENDS": str(ends),
      "HOME": str(tmp_path),
      "PATH": f"{tmp_path}/bin:{env['PATH']}",
    },
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == code
  first, second = done.stdout.splitlines()
  assert first == "-m miniplm_jax.main --stages=score, on tpu,cpu"
  assert second == said


def image() -> str:
  return (ROOT / "gcp" / "Dockerfile").read_text()


# Beside the interpreter, or wherever else it is.
_PATH = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
SHELLCHECK = shutil.which("shellcheck", path=_PATH)


@pytest.mark.skipif(not SHELLCHECK, reason="no shellcheck")
def test_shellcheck_finds_nothing():
  files = sorted((ROOT / "gcp").glob("*.sh"))
  subprocess.run([SHELLCHECK, "-x", *files], check=True, cwd=ROOT)


def test_what_is_written_twice_is_the_same():
  """Bash and Docker cannot ask the package, the lock and the Makefile."""
  worker, lock, make = (
    (ROOT / name).read_text()
    for name in ("gcp/on_worker.sh", "requirements-lock.txt", "Makefile")
  )
  (uv,) = re.findall(r"UV_VERSION=(\S+)", worker)
  assert f"uv=={uv}\n" in make
  (jax,) = re.findall(r"jax\[tpu\]==([\d.]+)", image())
  assert re.search(rf"^jax=={re.escape(jax)}( ;|$)", lock, re.MULTILINE)


def test_scripts_can_be_read_in_one_sitting():
  for path in (ROOT / "gcp").glob("*.sh"):
    lines = path.read_text().splitlines()
    assert len(lines) <= 400 and max(map(len, lines)) <= 80, path
