"""The mesh, and which axis of which parameter lies along which of its axes.

Axes: `data` replicates the weights and splits the batch, `fsdp` splits both,
`tensor` splits heads, FFN and vocabulary. One CPU device is a 1×1×1 mesh, so
the code that runs there is the code that runs on a pod.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from miniplm_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the mesh axes that the batch is split over
BY_TOKEN = P(BATCH, None)  # arrays of tokens, [B, T, …]
TABLE = P("tensor", "fsdp")  # an embedding or a head, VD


class Parameter(NamedTuple):
  """How a parameter lies on a mesh and in a file, where layers are apart.

  Each family has a table of its own, `PARAMETERS`, beside its layers.
  """

  spec: P  # over the mesh, with the leading L of layers
  name: str  # of the tensor, with {} for the layer if there is one for each
  transposed: bool = False  # PyTorch's linear layers are [out, in], ours not
  part: int = 0  # which of `parts` along the tensor's first axis
  parts: int = 1  # of equal size
  vocabulary: bool = False  # rows are ids; our padding of them is not stored

  @property
  def layered(self) -> bool:
    """Whether there is a tensor for each layer."""
    return "{}" in self.name


def table(name: str) -> Parameter:
  """An embedding or a head, VD."""
  return Parameter(TABLE, name, vocabulary=True)


# How each parameter lies on the mesh, by name; see `declare`.
_SPECS: dict[str, P] = {}


def declare(specs: Mapping[str, P]):
  """Says how parameters lie on a mesh, in the file whose module has them.

  By attribute name, over all modules: one name is split one way. Layer
  parameters are stacked over L, which is never split: the layer scan slices
  it.
  """
  for name, spec in specs.items():
    if _SPECS.setdefault(name, spec) != spec:
      raise ValueError(f"{name} is split as {_SPECS[name]}, not as {spec}")


def make_mesh(
  data: int,
  fsdp: int,
  tensor: int,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh over all devices; one axis may be -1, "what is left".

  Sizes are those of a TPU slice. Of several, each has a copy of the weights
  more: their gradients alone cross the network between them. Without devices,
  of those that JAX has.

  Raises:
    UserError: the sizes do not multiply to the number of devices, or the
      torus has no such mesh.
  """
  sizes = [data, fsdp, tensor]
  devices = jax.devices() if devices is None else devices
  count = len(devices) // (parts := slices(devices))
  if sizes.count(-1) == 1:
    rest = math.prod(s for s in sizes if s != -1)
    sizes[sizes.index(-1)] = count // rest
  if min(sizes) < 1 or math.prod(sizes) != count:
    raise UserError(
      f"mesh data={data} fsdp={fsdp} tensor={tensor} does not cover "
      f"{count} devices" + f" of each of {parts} slices" * (parts > 1),
      "config.run",
      "let the sizes multiply to the number of devices, or give one as -1",
    )
  try:
    # An axis of the mesh may be a part of one of the torus, as the factors of
    # 4 × 4 × 4 often are: without that JAX refuses them.
    if parts > 1:
      ordered = mesh_utils.create_hybrid_device_mesh(
        sizes, (parts, 1, 1), devices, allow_split_physical_axes=True
      )
    else:
      ordered = mesh_utils.create_device_mesh(
        sizes, devices, allow_split_physical_axes=True
      )
  except (NotImplementedError, ValueError, AssertionError) as e:
    raise UserError(
      f"JAX makes no mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} "
      f"of these {len(devices)} devices ({e})",
      "config.run",
      "choose other sizes: fsdp=-1, with data=1 and tensor=1, fits any slice",
    ) from e
  return Mesh(ordered, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_of(run) -> Mesh:
  """The mesh of a config's section `run`, see `make_mesh`."""
  return make_mesh(run.data, run.fsdp, run.tensor)


def reordered(mesh: Mesh) -> Mesh:
  """In reverse order: results that are the same on both depend on none."""
  reversed_ = mesh.devices[::-1, ::-1, ::-1]
  return Mesh(reversed_, mesh.axis_names, axis_types=mesh.axis_types)


def without_fsdp(mesh: Mesh) -> Mesh:
  """The mesh with whole weights on each shard of the batch.

  These are on the same devices as before.
  """
  devices = mesh.devices.reshape(-1, 1, mesh.shape["tensor"])
  return Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)


def slices(devices: Iterable[jax.Device]) -> int:
  """How many TPU slices the devices are of; other devices are of one."""
  tpus = (d for d in devices if d.platform == "tpu")
  return len({getattr(d, "slice_index", 0) for d in tpus}) or 1


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits rows over `data` and `fsdp`."""
  return NamedSharding(mesh, P(BATCH))


def batch_shards(mesh: Mesh) -> int:
  """The number of shards that a batch is split into."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def axis_size(axis: str) -> int:
  """Size of an axis of the mesh in context."""
  return jax.sharding.get_abstract_mesh().shape[axis]


def total(x, axes):
  """Sum over mesh axes; nothing is compiled for a single device."""
  return x if jax.lax.axis_size(axes) == 1 else jax.lax.psum(x, axes)


def platform() -> str:
  """The platform of the mesh in context, which may be only compiled for."""
  return jax.sharding.get_abstract_mesh().abstract_device.platform


def _axes(entry) -> tuple[str, ...]:
  """The mesh axes of one dimension of a PartitionSpec."""
  return entry if isinstance(entry, tuple) else (entry,) if entry else ()


def name_of(path) -> str:
  """A parameter's name from its path in a pytree of modules."""
  # (…, 'layers', 'q_proj', 'value'): the leaf is the Variable's value, or
  # qvalue or scale of that if it is quantized.
  names = [str(getattr(k, "name", getattr(k, "key", k))) for k in path]
  while len(names) > 1 and names[-1] in ("value", "qvalue", "scale"):
    names.pop()
  return names[-1]


def _where_split(spec, shape) -> P:
  """The spec, save where a dimension is 1: of a scale, all rows share it."""
  return P(*(None if size == 1 else axes for size, axes in zip(shape, spec)))


def shardings(tree: Any, mesh: Mesh) -> Any:
  """NamedShardings of a decoder, its gradients or an optimizer's state.

  Of arrays or ShapeDtypeStructs.

  Raises:
    UserError: a dimension does not divide evenly.
    KeyError: a parameter was not declared.
  """

  def one(path, leaf):
    if leaf.ndim == 0:  # step counts
      return NamedSharding(mesh, P())
    name = name_of(path)
    spec = _where_split(_SPECS[name], leaf.shape)
    for size, axes in zip(leaf.shape, spec):
      axes = _axes(axes)
      parts = math.prod(mesh.shape[axis] for axis in axes)
      if size % parts:
        product = " × ".join(axes)
        raise UserError(
          f"{name} of shape {leaf.shape} does not split over {product} = "
          f"{parts}",
          f"config.run, {product}",
          f"let {product} divide {size}",
        )
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, tree)


def gather_fsdp(layer: Any) -> Any:
  """Undoes the `fsdp` split of one layer's weights, inside the layer scan.

  Left to itself the partitioner contracts over the split dimension with
  hundreds of collective-permutes; predicted for v5e:4x4, that is 741
  against 188 ms for a scoring step. An explicit gather of the weights in
  compute dtype is one all-gather each.
  """

  def one(path, leaf):
    # One layer of the stack: the leading L has been sliced away.
    spec = _where_split(_SPECS[name_of(path)][1:], leaf.shape)
    kept = ["tensor" if "tensor" in _axes(axes) else None for axes in spec]
    return jax.lax.with_sharding_constraint(leaf, P(*kept))

  return jax.tree_util.tree_map_with_path(one, layer)
