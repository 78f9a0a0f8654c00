"""TPU slices that are not here, as devices to compile for.

libtpu describes a slice without having one: programs compile for its devices
as they would on it, and cannot run.
"""

import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from miniplm_jax.core.errors import UserError
from miniplm_jax.models import sharding

_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}  # by generation
# How many of it, its generation, its sides; the last two may be anything.
_NAME = re.compile(r"(?:(\d+)\*)?([^:]*):?(.*)", re.DOTALL)
# Chips of a host where nothing is said; a smaller slice has to say so.
_HOST_CHIPS = 4

_ENVIRONMENT = {
  # Without it a second process that loads libtpu is aborted.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  # No look-ups of what machine this is; the values mean nothing here.
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
}


def is_installed() -> bool:
  """Whether there is a libtpu, as a package or in TPU_LIBRARY_PATH."""
  path = os.environ.get("TPU_LIBRARY_PATH", "")
  return os.path.exists(path) or importlib.util.find_spec("libtpu") is not None


def prepare():
  """Lets libtpu compile beside JAX on CPU; call it before JAX has devices.

  Raises:
    UserError: libtpu is not installed.
  """
  if not is_installed():
    raise UserError(
      "libtpu is not installed, so nothing compiles for TPU",
      "in this Python environment",
      "pip install 'jax[tpu]', or name libtpu.so in TPU_LIBRARY_PATH",
    )
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  if not jax.config.jax_platforms:
    jax.config.update("jax_platforms", "cpu")


def devices(name: str) -> list[jax.Device]:
  """The devices of a slice, or of several, one per chip.

  Args:
    name: generation and chips along each side, after how many there are of it
      if there are several: "v5e:4x4", "v5p:2x2x2", "2*v5e:4x4".

  Raises:
    UserError: there is no such slice, or libtpu is not installed.
  """
  prepare()
  count, generation, shape = _NAME.fullmatch(name).groups()
  sides = [int(n) for n in re.findall(r"\d+", shape)]
  if (
    generation not in _DIMENSIONS
    or shape != "x".join(map(str, sides))
    or len(sides) != _DIMENSIONS[generation]
    or count == "0"
  ):
    raise UserError(
      f"{name!r} is no TPU slice",
      "in a topology's name",
      f"give one of {', '.join(_DIMENSIONS)} and its sides, as in v5e:4x4, "
      "v5p:2x2x2 or, of two slices, 2*v5e:4x4",
    )
  options = {}
  if generation == "v4":  # it has two cores a chip: one device of both
    options["chip_config_name"] = "megacore"
  if math.prod(sides) < _HOST_CHIPS:
    options["chips_per_host_bounds"] = (*sides, 1, 1)[:3]
  if count:
    options["num_slices"] = int(count)
  one = f"{generation}:{shape}"
  try:
    described = topologies.get_topology_desc(one, "tpu", **options)
  except jax.errors.JaxRuntimeError as e:
    raise UserError(
      f"libtpu does not know {name}: {e}",
      "in a topology's name",
      "take a size that is sold, as v5e:4x4 or v5p:2x2x2",
    ) from e
  return list(described.devices)


def count(name: str) -> int:
  """How many slices a name means."""
  return int(_NAME.fullmatch(name)[1] or 1)


def mesh(name: str, data: int, fsdp: int, tensor: int) -> Mesh:
  """A mesh over all chips; one axis may be -1, "what is left" of a slice."""
  return sharding.make_mesh(data, fsdp, tensor, devices(name))
