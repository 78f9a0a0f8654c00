r"""Every mesh of every slice: which are made, and which hosts a shard spans.

  TPU_LIBRARY_PATH=…/libtpu.so python -m benchmarks.meshes --write

prints docs/meshes.md, of slices of up to 64 chips that are not here; no program
is compiled. With --write it writes that page, and the device orders that the
tests give to simulated hosts (tests/goldens/device_orders.json).
"""

import json
import pathlib

from absl import app, flags

from miniplm_jax.core.errors import UserError
from miniplm_jax.forecast import topology
from miniplm_jax.models import sharding

_WRITE = flags.DEFINE_bool("write", False, "Write the page and the orders.")
_ROOT = pathlib.Path(__file__).parents[1]
PAGE = _ROOT / "docs" / "meshes.md"
ORDERS = _ROOT / "tests" / "goldens" / "device_orders.json"

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8")
_DEEP = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")
SLICES = (
  *(f"{name}:{sides}" for name in ("v5e", "v6e") for sides in _FLAT),
  *(f"{name}:{sides}" for name in ("v4", "v5p") for sides in _DEEP),
  "2*v5e:2x2",
  "2*v5e:4x4",
  "2*v6e:4x4",
  "2*v4:2x2x2",
  "2*v5p:2x2x4",
)
# Those whose order the tests give to simulated hosts.
SIMULATED = (
  "v5e:4x4",
  "v5e:4x8",
  "v6e:4x4",
  "v4:2x2x2",
  "v5p:2x2x4",
  "2*v5e:4x4",
)


def splits(chips: int) -> list[tuple[int, int, int]]:
  """All (data, fsdp, tensor) of so many chips."""
  each = [n for n in range(1, chips + 1) if chips % n == 0]
  return [
    (chips // fsdp // tensor, fsdp, tensor)
    for tensor in each
    for fsdp in each
    if chips // tensor % fsdp == 0
  ]


def meshes(name: str) -> dict[tuple[int, int, int], list[int] | str]:
  """Device numbers of each mesh, in its order; why there is none.

  Devices are numbered host by host, as `jax.devices()` lists them.
  """
  devices = topology.devices(name)
  number = {device: i for i, device in enumerate(devices)}
  found = {}
  for sizes in splits(len(devices) // sharding.slices(devices)):
    try:
      mesh = sharding.make_mesh(*sizes, devices)
      found[sizes] = [number[d] for d in mesh.devices.flat]
    except UserError as e:
      found[sizes] = str(e)
  return found


def row(name: str, found) -> str:
  """A line of the page."""
  devices = topology.devices(name)
  host = [d.process_index for d in devices]
  spans, made, in_order = [], 0, 0
  for sizes, order in found.items():
    if isinstance(order, str):
      continue
    made += 1
    hosts = [host[i] for i in order]
    in_order += hosts == sorted(hosts)
    shards = zip(*[iter(hosts)] * sizes[2])
    if any(len(set(shard)) > 1 for shard in shards):
      spans.append(sizes[2])
  told = f"{len(spans)}, from tensor={min(spans)}" if spans else "0"
  cells = name, len(devices), len(set(host)), len(found), made, in_order, told
  return f"| {' | '.join(map(str, cells))} |"


def page(found) -> str:
  """docs/meshes.md."""
  total = sum(map(len, found.values()))
  lines = [
    "# The meshes of a slice",
    "",
    "By `python -m benchmarks.meshes --write`, which asks libtpu for the",
    "devices of each slice and JAX for each mesh of them; nothing is compiled.",
    f"{total} splits (data, fsdp, tensor) of slices of up to 64 chips. Sizes",
    "are those of one slice: each of several has a copy of the weights.",
    "",
    "“In host order” counts the meshes whose devices, in their order, are",
    "those of the first host, then those of the second, and so on; the",
    "placement of rows relied on it up to November 2026. “Span hosts” counts",
    "those in which one shard of the batch lies on several hosts, which then",
    "read the same rows.",
    "",
    "| slice | chips | hosts | splits | made | in host order | span hosts |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    *(row(name, each) for name, each in found.items()),
  ]
  refused = [
    f"- {name} {sizes}: {why}"
    for name, each in found.items()
    for sizes, why in each.items()
    if isinstance(why, str)
  ]
  return "\n".join([*lines, *([""] if refused else []), *refused]) + "\n"


def orders(found) -> str:
  """tests/goldens/device_orders.json, by slice and sizes of the whole mesh."""
  lines = []
  for name in SIMULATED:
    for (data, fsdp, tensor), order in found[name].items():
      data *= topology.count(name)
      lines.append(f'  "{name} {data}x{fsdp}x{tensor}": {json.dumps(order)}')
  return "{\n" + ",\n".join(lines) + "\n}\n"


def main(argv):
  """Prints the page, and writes it with the orders if told to."""
  del argv
  found = {name: meshes(name) for name in SLICES}
  text = page(found)
  print(text)
  if _WRITE.value:
    PAGE.write_text(text)
    ORDERS.write_text(orders(found))


if __name__ == "__main__":
  app.run(main)
