"""Stands in for gcloud: keeps a cloud in the folder $CLOUD, records its calls.

Workers are folders in which `tpu-vm ssh --command` is run by bash. Failures
are asked for by $FAULTS: quota, logged_out, no_bucket, not_offered, preempt,
suspend_first, suspend_late, failed, ssh_drop. The last ones happen once.
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
FAULTS = os.environ.get("FAULTS", "").split(",")


def once(fault: str) -> bool:
  mark = CLOUD / f"had_{fault}"
  if fault not in FAULTS or mark.exists():
    return False
  mark.touch()
  return True


def fail(text: str, code: int = 1):
  print(f"ERROR: (gcloud) {text}", file=sys.stderr)
  sys.exit(code)


def flag(name: str) -> str:
  found = [a for a in sys.argv if a.startswith(f"--{name}=")]
  return found[0].split("=", 1)[1] if found else ""


def workers(wanted: str):
  size = int((CLOUD / "accelerator").read_text().rsplit("-", 1)[1])
  number = 1 if size <= 8 else size // 4
  return [
    CLOUD / f"worker{i}" for i in range(number) if wanted in ("all", str(i))
  ]


def end_workers():
  for disk in CLOUD.glob("worker*"):
    if (pid := disk / "miniplm" / "pid").exists():
      with contextlib.suppress(ProcessLookupError):
        os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(disk)


def queued_resources(verb: str):
  state = CLOUD / "state"
  if verb == "create":
    if "quota" in FAULTS:
      fail("RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPreemptible' exceeded.")
    state.write_text("WAITING_FOR_RESOURCES")
    (CLOUD / "accelerator").write_text(flag("accelerator-type"))
  elif not state.exists():
    fail("NOT_FOUND: Resource was not found.")
  elif verb == "delete":
    end_workers()
    state.unlink()
  else:
    print(state.read_text())
    if state.read_text() == "WAITING_FOR_RESOURCES":
      if once("suspend_first"):
        state.write_text("SUSPENDED")
      elif "failed" in FAULTS:
        state.write_text("FAILED")
      else:
        state.write_text("ACTIVE")
        for disk in workers("all"):
          disk.mkdir()


def ssh():
  command = flag("command")
  if "status" in command and once("preempt"):
    end_workers()
    (CLOUD / "state").write_text("SUSPENDED")
  if (CLOUD / "state").read_text() != "ACTIVE":
    fail("the TPU is not ready", 255)
  if "install" in command and once("ssh_drop"):
    fail("ssh: connection reset", 255)
  for disk in workers(flag("worker")):
    path = f"{CLOUD}/bin:{os.environ['PATH']}"
    done = subprocess.run(
      ["bash", "-c", command],
      cwd=disk,
      env={**os.environ, "HOME": str(disk), "PATH": path},
    )
    if done.returncode:
      sys.exit(done.returncode)
  exits = [disk / "miniplm" / "exit" for disk in workers("all")]
  if any(e.exists() for e in exits) and once("suspend_late"):
    (CLOUD / "state").write_text("SUSPENDED")  # seen by the next question


def scp():
  source, target = sys.argv[6], sys.argv[7]
  if ":" in source:
    (disk,) = workers(flag("worker"))
    source = disk / source.split(":")[1]
    shutil.copytree(source, pathlib.Path(target) / source.name)
    return
  for disk in workers(flag("worker")):
    folder = disk / target.split(":")[1]
    shutil.copytree(source, folder / pathlib.Path(source).name)


def main():
  words = sys.argv[1:]
  with open(CLOUD / "calls", "a") as f:
    f.write(json.dumps(words) + "\n")
  if words[:2] == ["auth", "list"]:
    print("" if "logged_out" in FAULTS else "me@example.org")
  elif words[:2] == ["storage", "ls"]:
    if "no_bucket" in FAULTS:
      fail("gs://bucket not found: 404.")
  elif words[:2] == ["storage", "rsync"]:
    shutil.copytree(CLOUD / "bucket", words[-1], dirs_exist_ok=True)
  elif words[2] == "accelerator-types":
    print("v5p-8" if "not_offered" in FAULTS else "v6e-8\nv6e-16\nv5p-8")
  elif words[2] == "queued-resources":
    queued_resources(words[3])
  elif words[2:4] == ["tpu-vm", "ssh"]:
    ssh()
  elif words[2:4] == ["tpu-vm", "scp"]:
    scp()
  else:
    fail(f"no such command {words}")


main()
