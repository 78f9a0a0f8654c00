"""Stands in for gcloud: keeps a cloud in the folder $CLOUD, records its calls.

Workers are folders in which `tpu-vm ssh --command` is run by bash. Commands
and flags are those of Google's reference; others are refused as there. What
goes wrong is asked for by $FAULTS, words with commas between:

  always: quota, logged_out, no_bucket, not_offered, failed, keep (delete is
    not allowed)
  once, or N times as in describe=3: describe, create (nothing was asked for),
    created (the answer was lost), delete, preempt, suspend_first,
    suspend_late, suspending (questions until it is suspended, and can be
    deleted), ssh_drop, rsync
  agent: ssh to several hosts is refused; dead: no ssh once a run was started,
    until the TPU is replaced
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["CLOUD"])
FAULTS = {
  name: int(times or 1)
  for name, _, times in (
    word.partition("=") for word in os.environ.get("FAULTS", "").split(",")
  )
}
STATE = CLOUD / "state"
WIDE = {"project", "quiet", "format", "filter", "verbosity"}
PLACE = {"zone", "worker", "internal-ip", "ssh-key-file"}
NODES = {*PLACE, "node", "tunnel-through-iap", "batch-size"}
FLAGS = {
  "auth list": set(),
  "storage ls": {"buckets", "recursive"},
  "storage rsync": {"recursive", "exclude"},
  "compute tpus accelerator-types list": {"zone"},
  "compute tpus queued-resources create": {
    *("zone", "runtime-version", "accelerator-type", "topology", "type"),
    *("node-id", "node-count", "node-prefix", "async", "boot-disk"),
    *("data-disk", "description", "guaranteed", "internal-ips", "labels"),
    *("metadata", "metadata-from-file", "network", "range", "reserved"),
    *("scopes", "service-account", "shielded-secure-boot", "spot"),
    *("subnetwork", "tags", "valid-after-duration", "valid-until-duration"),
  },
  "compute tpus queued-resources describe": {"zone"},
  "compute tpus queued-resources delete": {"zone", "force", "async"},
  "compute tpus tpu-vm ssh": PLACE | {"command"},
  "compute tpus tpu-vm scp": PLACE | {"recurse", "compress"},
  "compute tpus queued-resources ssh": NODES | {"command"},
  "compute tpus queued-resources scp": NODES | {"recurse", "compress"},
}


def due(fault: str) -> bool:
  """Whether it is to happen now; counts."""
  count = CLOUD / f"had_{fault}"
  had = len(count.read_text()) if count.exists() else 0
  if had >= FAULTS.get(fault, 0):
    return False
  count.write_text("x" * (had + 1))
  return True


def fail(text: str, code: int = 1):
  print(f"ERROR: (gcloud) {text}", file=sys.stderr)
  sys.exit(code)


def parse(words: list[str]):
  """The command, its other words and its flags."""
  names = [w for w in words if not w.startswith("-")]
  depth = 4 if names[0] == "compute" else 2
  command, names = " ".join(names[:depth]), names[depth:]
  if command not in FLAGS:
    fail(f"Invalid choice: {command}", 2)
  given = [w.removeprefix("--").partition("=") for w in words if w[0] == "-"]
  flags = {name: value for name, _, value in given}
  if strange := flags.keys() - FLAGS[command] - WIDE:
    fail(f"unrecognized arguments: --{' --'.join(strange)}", 2)
  return command, names, flags


def workers(wanted: str, node: str = "0"):
  kind, slices = (CLOUD / "accelerator").read_text().split()
  size = int(kind.rsplit("-", 1)[1])
  number = 1 if size <= 8 else size // 4
  return [
    CLOUD / f"worker{n * number + i}"
    for n in range(int(slices))
    for i in range(number)
    if wanted in ("all", str(i)) and node in ("all", str(n))
  ]


def end_workers():
  for disk in CLOUD.glob("worker*"):
    if (pid := disk / "miniplm" / "pid").exists():
      with contextlib.suppress(ProcessLookupError):
        os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(disk)


def create(names, flags):
  if "quota" in FAULTS:
    fail("RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPreemptible' exceeded.")
  if due("create"):
    fail("UNAVAILABLE: The service is currently unavailable.")
  if STATE.exists():
    fail("ALREADY_EXISTS: Resource already exists.", 1)
  if ("node-id" in flags) == ("node-count" in flags):
    fail("Exactly one of (--node-id | --node-count) must be specified.", 2)
  if not {"zone", "runtime-version", "accelerator-type"} <= flags.keys():
    fail("argument --zone --runtime-version: Must be specified.", 2)
  STATE.write_text("WAITING_FOR_RESOURCES")
  kind, slices = flags["accelerator-type"], flags.get("node-count", "1")
  (CLOUD / "accelerator").write_text(f"{kind} {slices}")
  if due("created"):
    fail("UNAVAILABLE: Connection reset by peer.")


def describe(names, flags):
  if due("describe"):
    fail("There was a problem refreshing your current auth tokens: timed out")
  if not STATE.exists():
    fail("NOT_FOUND: Resource was not found.")
  now = STATE.read_text()
  print(now)
  if now == "SUSPENDING" and not due("suspending"):
    STATE.write_text("SUSPENDED")
  if now == "WAITING_FOR_RESOURCES":
    if due("suspend_first"):
      STATE.write_text("SUSPENDED")
    elif "failed" in FAULTS:
      STATE.write_text("FAILED")
    else:
      STATE.write_text("ACTIVE")
      for disk in workers("all", "all"):
        disk.mkdir()


def delete(names, flags):
  if not STATE.exists():
    fail("NOT_FOUND: Resource was not found.")
  if "keep" in FAULTS:
    fail("PERMISSION_DENIED: Permission 'tpu.nodes.delete' denied.")
  if STATE.read_text() == "SUSPENDING":
    fail("FAILED_PRECONDITION: cannot be deleted in state SUSPENDING.")
  if due("delete"):
    fail("INTERNAL: An internal error has occurred.")
  end_workers()
  STATE.unlink()
  (CLOUD / "is_dead").unlink(missing_ok=True)


def reach(flags):
  """The workers that ssh or scp goes to."""
  disks = workers(flags["worker"], flags.get("node", "0"))
  if STATE.read_text() != "ACTIVE":
    fail("This TPU has state PREEMPTED, so it cannot be used anymore.")
  if "agent" in FAULTS and len(disks) > 1:
    fail("SSH Key is not present in the SSH agent.")
  if (CLOUD / "is_dead").exists():
    fail("ssh: connect to host 192.0.2.1 port 22: Connection timed out", 255)
  return disks


def ssh(names, flags):
  command = flags["command"]
  # A run has begun: what is taken away before is "suspend_first".
  has_begun = (CLOUD / "runs").exists()
  if "status" in command and has_begun and due("preempt"):
    end_workers()
    STATE.write_text("SUSPENDING" if "suspending" in FAULTS else "SUSPENDED")
  disks = reach(flags)
  if "install" in command and due("ssh_drop"):
    fail("ssh: connection reset", 255)
  path = f"{CLOUD}/bin:{os.environ['PATH']}"
  codes = [
    subprocess.run(
      ["bash", "-c", command],
      cwd=disk,
      env={**os.environ, "HOME": str(disk), "PATH": path},
    ).returncode
    for disk in disks
  ]
  exits = [disk / "miniplm" / "exit" for disk in workers("all", "all")]
  if any(e.exists() for e in exits) and due("suspend_late"):
    STATE.write_text("SUSPENDED")  # seen by the next question
  if "on_worker.sh start" in command and due("dead"):
    (CLOUD / "is_dead").touch()
  sys.exit(max(codes))


def scp(names, flags):
  source, target = names
  if ":" in source:
    (disk,) = reach(flags)
    source = disk / source.split(":")[1]
    shutil.copytree(source, pathlib.Path(target) / source.name)
    return
  for disk in reach(flags):
    folder = disk / target.split(":")[1]
    shutil.copytree(source, folder / pathlib.Path(source).name)


def main():
  with open(CLOUD / "calls", "a") as f:
    f.write(json.dumps(sys.argv[1:]) + "\n")
  command, names, flags = parse(sys.argv[1:])
  if command == "auth list":
    print("" if "logged_out" in FAULTS else "me@example.org")
  elif command == "storage ls":
    if "no_bucket" in FAULTS:
      fail("gs://bucket not found: 404.")
  elif command == "storage rsync":
    if due("rsync"):
      fail("HTTPError 503: Service Unavailable")
    shutil.copytree(CLOUD / "bucket", names[-1], dirs_exist_ok=True)
  elif command.endswith("accelerator-types list"):
    print("v5p-8" if "not_offered" in FAULTS else "v6e-8\nv6e-16\nv5p-8")
  else:
    {f.__name__: f for f in (create, describe, delete, ssh, scp)}[
      command.rsplit(" ", 1)[1]
    ](names, flags)


main()
