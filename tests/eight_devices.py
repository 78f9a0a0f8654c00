r"""What eight simulated devices compute, each by its name.

  echo '["kd"]' | XLA_FLAGS=--xla_force_host_platform_device_count=8 \
  JAX_PLATFORMS=cpu PYTHONPATH=. python tests/eight_devices.py

JAX fixes the number of devices when it starts, so they have a process of their
own: one for all of them, for which the fixture of this name asks. Of each line
of JSON, a name and its arguments, a line comes back: what was asked, what it
computes, and the traceback that it ended with.
"""

import json
import sys
import traceback

import jax
import multidevice
import multidevice_generation
import multidevice_int8
import multidevice_kd
import multidevice_minillm
import multidevice_resume
import test_sparse_kd

PARTS = {
  "meshes": multidevice.main,
  "heads": multidevice.heads,
  "generation": multidevice_generation.main,
  "int8": multidevice_int8.main,
  "kd": multidevice_kd.main,
  "minillm": multidevice_minillm.main,
  "resume": multidevice_resume.main,
  "sparse_kd": test_sparse_kd.main,
}


def main():
  for line in sys.stdin:
    name, *arguments = asked = json.loads(line)
    value = error = None
    try:
      value = PARTS[name](*arguments)
    except Exception:
      error = traceback.format_exc()
    print(json.dumps([asked, value, error]), flush=True)
    jax.clear_caches()


if __name__ == "__main__":
  main()
