"""What clouds do: gcp/tpu.sh neither ends while something may cost, nor takes
away what works."""

import signal
import subprocess
import time

import pytest
from clouds import ALL, Cloud, script

START = ["create", "scp", "install", "start"]
# Of several hosts; what HOST_0 and OTHERS say and how they end, the first time.
HOSTS = """#!/bin/bash
if [[ $1 == -c ]]; then echo 0.10.2; exit; fi
mkdir "$HOME/ran" 2>/dev/null || { sleep 0.2; exit; }
[[ $HOME == *0 ]] && do=$HOST_0 || do=$OTHERS
eval "$do"
"""
USER = 'echo "error: no rows, corpus, give some"; exit 1'
NEIGHBOR = 'echo "error: lost another process (gone), 1 of 4, look"; exit 1'
REBOOT = "kill -KILL -- -$(cat $HOME/miniplm/pid)"


@pytest.fixture
def cloud(tmp_path):
  made = Cloud(tmp_path)
  yield made
  made.end()


def started(cloud, *words, **environment):
  for command in ("create", "install", "run"):
    cloud(command, *words, **environment)
  return cloud.calls()


def watching(cloud, *words, **environment):
  """As a process, whose lines can be read; not for ever."""
  return subprocess.Popen(
    ["timeout", "90", *cloud.command(*words)],
    env={**cloud.environment, **environment},
    stdout=subprocess.PIPE,
    text=True,
  )


def until_ended(cloud):
  """Until no worker runs any more."""
  deadline = time.monotonic() + 120  # of a busy machine, too
  while not all(
    (disk / "miniplm" / "exit").exists()
    for disk in cloud.folder.glob("worker*")
  ):
    assert time.monotonic() < deadline
    time.sleep(0.05)


# --- Google, or the way to it ---


def test_not_knowing_the_state_leads_to_nothing(cloud):
  assert "UNKNOWN" in cloud("create", FAULTS="describe=3").stderr
  assert cloud.calls() == ["create"]
  before = started(cloud)
  done = cloud("watch", FAULTS="describe=9")
  assert "miniplm is UNKNOWN" in done.stderr
  assert "the run is done" in done.stdout
  assert cloud.calls() == before


@pytest.mark.parametrize(("faults", "asked"), [("created", 1), ("create=2", 3)])
def test_an_answer_that_is_lost_is_no_refusal(cloud, faults, asked):
  assert "is ACTIVE" in cloud("create", FAULTS=faults).stdout
  assert cloud.calls() == ["create"] * asked


def test_asking_ends_with_nothing_there(cloud):
  text = cloud("all", FAULTS="create=9", code=1).stderr
  assert text.startswith("error: gcloud failed: ERROR: (gcloud) UNAVAILABLE")
  assert cloud.calls() == ["create"] * 5 and cloud.state() == "NONE"


def test_a_request_that_fails_is_told(cloud):
  text = cloud("create", FAULTS="failed", code=1).stderr
  assert text.startswith("error: the request has FAILED, miniplm in us-east5-b")


def test_it_is_given_back_however_often_that_fails(cloud):
  out = cloud("all", FAULTS="delete=2").stdout
  assert cloud.calls() == [*ALL, "delete", "delete"]
  assert out.count("not deleted yet") == 2 and cloud.state() == "NONE"


def test_what_may_not_be_given_back_is_told(cloud):
  cloud("create")
  text = cloud("delete", FAULTS="keep", code=1).stderr
  assert text.startswith("error: not allowed: ")
  assert "miniplm, which still costs" in text


def test_results_that_are_not_copied_cost_nothing_more(cloud):
  text = cloud("all", FAULTS="rsync", code=1).stderr
  assert "error: the results were not copied, gs://my-bucket/" in text
  assert cloud.state() == "NONE"


# --- a TPU that is taken away ---


@pytest.mark.parametrize("faults", ["preempt", "preempt,suspending=3"])
def test_a_tpu_that_is_taken_away_is_replaced(cloud, faults):
  out = cloud("all", FAULTS=faults, RUN_SECONDS="0.5").stdout
  assert "the TPU is gone (SUSPENDED), 1 of 20" in out
  assert ("is SUSPENDING" in out) == ("suspending" in faults)
  first, second = cloud.runs()
  assert first == second  # the same command: it resumes from the bucket
  assert cloud.calls() == [*START, "delete", *ALL]


def test_one_that_is_gone_before_it_was_there_is_replaced(cloud):
  cloud("create", FAULTS="suspend_first")
  assert cloud.calls() == ["create", "delete", "create"]


def test_replacing_ends(cloud):
  text = cloud("all", "RESTARTS=0", FAULTS="preempt", code=1).stderr
  assert text.startswith("error: failed 1 times")
  assert cloud.calls().count("create") == 1
  assert cloud.state() == "NONE"


def test_a_worker_that_fails_as_its_neighbor_is_taken_away(cloud):
  out = cloud("all", FAULTS="suspend_late", RUN_EXIT="once").stdout
  assert "is gone (SUSPENDED)" in out and "the run is done" in out
  assert len(cloud.runs()) == 2


def test_one_that_somebody_deleted_is_not_asked_for_again(cloud):
  before = started(cloud, RUN_SECONDS="20")
  cloud("delete")
  text = cloud("watch", code=1).stderr
  assert text.startswith("error: somebody deleted the TPU, miniplm")
  assert cloud.calls() == [*before, "delete"]


# --- ssh ---


def test_an_ssh_that_drops_is_tried_again(cloud):
  out = cloud("all", FAULTS="ssh_drop")
  assert "try 1 of 5" in out.stderr
  assert cloud.calls() == [*ALL[:2], "install", *ALL[2:]]


def test_a_tpu_that_never_answers_is_replaced(cloud):
  out = cloud("all", FAULTS="dead").stdout
  assert "the TPU is gone (it does not answer), 1 of 20" in out
  assert cloud.calls() == [*START, "delete", *ALL]


def test_a_fault_of_ours_is_not_the_tpus(cloud):
  """ssh-agent lost the key while the run goes on."""
  words = ["ACCELERATOR=v6e-16"]
  before = started(cloud, *words, RUN_SECONDS="50")
  process = watching(cloud, "watch", *words, FAULTS="agent")
  silent = 0
  for line in process.stdout:
    silent += "does not answer: ERROR: (gcloud) SSH Key is not" in line
    if silent == 20:  # more than a dead TPU is given
      break
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert silent == 20
  assert cloud.calls() == before and cloud.state() == "ACTIVE"


# --- the run ---


def test_an_error_of_the_user_ends_it_with_nothing_at_cost(cloud):
  done = cloud("all", RUN_EXIT="1", code=1)
  first, second = done.stderr.splitlines()
  assert first == "error: no rows, corpus, give some"
  assert second.startswith("error: the run ended with 1, miniplm, see ")
  assert cloud.calls() == [*START, "delete"] and cloud.state() == "NONE"
  assert "train step 1" in (cloud.results / "log").read_text()


def test_single_steps_leave_the_tpu_for_the_next(cloud):
  before = started(cloud, RUN_EXIT="1")
  text = cloud("watch", code=1).stderr
  assert "the TPU costs until delete" in text
  assert cloud.calls() == before and cloud.state() == "ACTIVE"


@pytest.mark.parametrize("host_0", [USER, NEIGHBOR])
def test_the_one_that_fails_by_itself_is_heard(cloud, host_0):
  """Others wait for it, or only miss it."""
  script(cloud.folder / "bin" / "fake_python", HOSTS)
  hosts = {"HOST_0": host_0, "OTHERS": "[[ $HOME == *3 ]] || exec sleep 50; "}
  hosts["OTHERS"] += USER if host_0 == NEIGHBOR else NEIGHBOR
  text = cloud("all", "ACCELERATOR=v6e-16", code=1, **hosts).stderr
  assert "error: no rows, corpus, give some\nerror: the run ended" in text
  assert cloud.state() == "NONE"


def test_those_that_wait_for_one_that_failed_are_stopped(cloud):
  script(cloud.folder / "bin" / "fake_python", HOSTS)
  words = ["ACCELERATOR=v6e-16"]
  started(cloud, *words, HOST_0=USER, OTHERS="exec sleep 50")
  cloud("watch", *words, code=1)
  ends = [p.read_text() for p in cloud.folder.glob("worker*/miniplm/exit")]
  assert sorted(ends) == ["1\n", *["143\n"] * 3]


def test_a_host_that_restarts_is_not_the_users_error(cloud):
  script(cloud.folder / "bin" / "fake_python", HOSTS)
  hosts = {"HOST_0": REBOOT, "OTHERS": NEIGHBOR}
  out = cloud("all", "ACCELERATOR=v6e-16", **hosts).stdout
  assert "the run is started again (lost), 1 of 20" in out
  assert cloud.calls() == [*START, "start", "rsync", "delete"]


@pytest.mark.parametrize("capacity", ["reserved", "on_demand", "spot"])
def test_what_is_still_there_is_not_given_back(cloud, capacity):
  """The device was held, for instance; spot too was not taken away."""
  held = "echo UNKNOWN: TPU initialization failed: Device or resource busy;"
  script(cloud.folder / "bin" / "fake_python", HOSTS)
  ends = {"reserved": "exit 143", "spot": REBOOT, "on_demand": f"{held} exit 1"}
  out = cloud("all", f"CAPACITY={capacity}", HOST_0=ends[capacity]).stdout
  word = {"reserved": "143", "spot": "lost", "on_demand": "75"}[capacity]
  assert f"the run is started again ({word}), 1 of 20" in out
  assert cloud.calls() == [*START, "start", "rsync", "delete"]


def test_a_device_that_stays_held_is_replaced(cloud):
  text = "TPU initialization failed: open(/dev/vfio/0): Device or resource busy"
  held = HOSTS.replace("mkdir", "true || mkdir")
  script(cloud.folder / "bin" / "fake_python", held)
  hosts = {"HOST_0": f"echo '{text}'; exit 1"}
  out = cloud("all", "RESTARTS=4", code=1, **hosts).stdout
  assert out.count("the run is started again (75)") == 3 + 1
  assert cloud.calls().count("create") == 2 and cloud.state() == "NONE"


def test_a_run_that_somebody_stopped_is_not_started_again(cloud):
  before = started(cloud, RUN_SECONDS="20")
  cloud("stop")
  until_ended(cloud)
  text = cloud("watch", code=1).stderr
  assert text.startswith("error: somebody stopped the run, miniplm, ")
  assert cloud.calls() == before and cloud.state() == "ACTIVE"
  assert "started" in cloud("run").stdout
  assert "the run is done" in cloud("watch").stdout


def test_without_a_tpu_jax_takes_nothing_else(cloud):
  script(
    cloud.folder / "bin" / "fake_python",
    HOSTS.replace("mkdir", 'echo "$JAX_PLATFORMS" >"$CLOUD/platforms"; mkdir'),
  )
  cloud("all", HOST_0="exit 0")
  assert (cloud.folder / "platforms").read_text() == "tpu,cpu\n"


def test_a_signal_leaves_what_works(cloud):
  """Whoever ends `all` does not end the job."""
  process = watching(cloud, "all", RUN_SECONDS="50")
  assert any(" runs" in line for line in process.stdout)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 130
  assert cloud.calls() == START and cloud.state() == "ACTIVE"
