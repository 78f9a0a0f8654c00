"""The command line, with the device order of a real slice.

  SLICE=v5e:4x4 python tests/on_a_slice.py --config=… …

Simulated devices come host by host; those of a slice follow its torus. So that
a run of several processes is like one on a pod, every mesh has its devices
moved to where libtpu has them (tests/goldens/device_orders.json). Without
SLICE it is `miniplm_jax.main`. Where FAILS is the process's id, the first
result that it fetches is an error of JAX: no memory.
"""

import json
import os
import pathlib
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from miniplm_jax import main
from miniplm_jax.core import distributed, signals
from miniplm_jax.models import placement, sharding

_ORDERS = pathlib.Path(__file__).parent / "goldens" / "device_orders.json"


def ordered(mesh: Mesh, name: str) -> Mesh:
  """The mesh with its devices where those of the slice are."""
  sizes = "x".join(str(size) for size in mesh.devices.shape)
  order = json.loads(_ORDERS.read_text())[f"{name} {sizes}"]
  devices = sorted(mesh.devices.flat, key=lambda d: (d.process_index, d.id))
  moved = np.array(devices)[order].reshape(mesh.devices.shape)
  return Mesh(moved, mesh.axis_names, axis_types=mesh.axis_types)


def full(*unused):
  """What a device without room says."""
  raise jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Attempting to allocate 3.00G. There are 1.00G free."
  )


if __name__ == "__main__":
  signals.handle(distributed.leave)
  if name := os.environ.get("SLICE"):
    made = sharding.make_mesh
    sharding.make_mesh = lambda *sizes: ordered(made(*sizes), name)
  if f"--config.run.process_id={os.environ.get('FAILS')}" in sys.argv:
    placement.fetch = full
  distributed.finish(main.main(sys.argv))
