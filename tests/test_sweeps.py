"""The scripts that are run by hand, with fewer tries: all find nothing."""

import subprocess
import sys

import pytest
from helpers import ROOT, environment

SWEEPS = (
  ("kill_workers.py", "--kills=12"),
  ("sweeps/config_values.py",),
  ("sweeps/damage.py", "--count=60"),
  (
    *("sweeps/kills.py", "--kills=2", "--signals=2", "--pairs=2"),
    *("--disks=2", "--rlimit"),
  ),
)


@pytest.mark.long
@pytest.mark.parametrize("script", SWEEPS, ids=lambda script: script[0])
def test_a_sweep_finds_nothing(script):
  name, *arguments = script
  paths = f"{ROOT}:{ROOT / 'tests'}"
  done = subprocess.run(
    [sys.executable, str(ROOT / "tests" / name), *arguments],
    # Each compares runs of the same programs.
    env=environment()
    | {"PYTHONPATH": paths, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
    timeout=1500,
  )
  assert done.returncode == 0, done.stdout[-4000:]
