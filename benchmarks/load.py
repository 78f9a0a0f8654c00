"""Peak host memory and time of loading a sharded checkpoint onto 8 devices.

  python -m benchmarks.load [--preset=qwen1.5-1.8b] [--fsdp=8]

Writes random bfloat16 weights of the preset's shape into a temporary folder,
in files of 1 GB, and reads them in a process with 8 simulated CPU devices.
Their memory is host memory here, so the local shards are the whole model;
what counts is the peak beyond them, as a multiple of the largest tensor. It
is given for all resident memory, and without the pages of the files, which
the kernel takes back when memory is short.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from absl import app, flags

_PRESET = flags.DEFINE_string("preset", "qwen1.5-1.8b", "Of the architecture.")
_FSDP = flags.DEFINE_integer("fsdp", 8, "Shards of the weights.")
_READ = flags.DEFINE_string("read", None, "Used by the process that reads.")


def _write(folder: str) -> tuple[int, int]:
  """Random weights; returns the bytes of the largest tensor and of all."""
  import jax.numpy as jnp
  import numpy as np
  from etils import epath
  from flax import nnx

  from miniplm_jax.models import architecture, decoder, huggingface

  arch = architecture.SHAPES[_PRESET.value]
  model = decoder.Decoder(arch, nnx.Rngs(0), jnp.bfloat16)
  huggingface.save(epath.Path(folder), model, 0, {}, jnp.bfloat16, "1GB")
  shapes = huggingface.expected(model).values()
  sizes = [2 * int(np.prod(shape)) for shape in shapes]
  return max(sizes), sum(sizes)


def _memory() -> dict[str, int]:
  """Bytes of this process, by kind."""
  status = pathlib.Path("/proc/self/status").read_text()
  lines = dict(line.split(":", 1) for line in status.splitlines())
  return {
    k: int(lines[k].split()[0]) << 10 for k in ("RssAnon", "RssFile", "VmRSS")
  }


def _read():
  """Loads and prints the peaks, in bytes over what stood before."""
  import jax
  import jax.numpy as jnp
  from etils import epath

  from miniplm_jax.models import huggingface, sharding

  mesh = sharding.make_mesh(1, _FSDP.value, -1)
  jnp.zeros(8).block_until_ready()
  before, peak, done = _memory(), _memory(), threading.Event()

  def watch():
    while not done.wait(0.005):
      for kind, value in _memory().items():
        peak[kind] = max(peak[kind], value)

  watcher = threading.Thread(target=watch)
  watcher.start()
  start = time.monotonic()
  model = huggingface.load(epath.Path(_READ.value), mesh, jnp.bfloat16)
  jax.block_until_ready(model)
  seconds = time.monotonic() - start
  done.set()
  watcher.join()
  shards = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(model)
    for shard in leaf.addressable_shards
  )
  figures = {k: peak[k] - before[k] for k in peak}
  print(json.dumps({"seconds": seconds, "shards": shards} | figures))


def main(argv):
  """Writes, reads in another process, prints."""
  del argv
  if _READ.value:
    _read()
    return
  with tempfile.TemporaryDirectory() as folder:
    largest, total = _write(folder)
    print(
      f"{_PRESET.value}: {total / 1e9:.2f} GB, largest {largest / 1e6:.0f} MB"
    )
    done = subprocess.run(
      [
        sys.executable,
        "-m",
        "benchmarks.load",
        f"--read={folder}",
        f"--fsdp={_FSDP.value}",
      ],
      env=os.environ
      | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
      },
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
  found = json.loads(done.stdout.splitlines()[-1])
  print(
    f"{found['seconds']:.1f} s; local shards {found['shards'] / 1e9:.2f} GB; "
    f"peak RSS {found['VmRSS'] / 1e9:.2f} GB"
  )
  for kind, words in (("VmRSS", "all"), ("RssAnon", "without file pages")):
    beyond = found[kind] - found["shards"]
    print(
      f"peak beyond the shards, {words}: {beyond / 1e6:.0f} MB = "
      f"{beyond / largest:.2f} × the largest tensor"
    )


if __name__ == "__main__":
  app.run(main)
