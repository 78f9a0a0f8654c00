"""How parameters lie on a mesh, and as tensors in a safetensors file.

Each family has a table of its own, `PARAMETERS`, beside its layers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec as P

from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.sharding import TABLE, name_of


class Parameter(NamedTuple):
  """How a parameter lies on a mesh and in a file, where layers are apart."""

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


# Tensors that some files carry and no reader needs.
IGNORED = ("rotary_emb.inv_freq",)


def prefixed(
  parameters: Mapping[str, Parameter], tensors: Mapping[str, Any]
) -> dict[str, Any]:
  """Tensors by their usual names, also if the model without head was saved."""
  prefix = parameters["embed"].name.partition(".")[0] + "."
  if any(name.startswith(prefix) for name in tensors):
    return dict(tensors)
  return {
    name if name.startswith("lm_head.") else prefix + name: tensor
    for name, tensor in tensors.items()
  }


def zeros(arch: Architecture) -> dict[str, tuple[int, ...]]:
  """What a Llama with biases on queries, keys and values has in its file.

  There is no such model without biases on the output: those are 0.
  """
  if not getattr(arch, "qkv_bias", False):
    return {}
  name = "model.layers.{}.self_attn.o_proj.bias"
  layers = range(arch.num_hidden_layers)
  return {name.format(i): (arch.hidden_size,) for i in layers}


def shape_in_file(
  arch: Architecture, parameter: Parameter, shape: tuple[int, ...]
) -> tuple[int, ...]:
  """The shape of one tensor in the file, from our parameter's shape."""
  if parameter.layered:
    shape = shape[1:]
  if parameter.transposed:
    shape = shape[::-1]
  rows = shape[0] * parameter.parts
  return (arch.vocab_size if parameter.vocabulary else rows, *shape[1:])


def expected(
  arch: Architecture, parameters: Mapping[str, Parameter], model: Any
) -> dict[str, tuple[int, ...]]:
  """Every tensor that a file of this shape holds, with its shape there.

  Args:
    arch: the shape.
    parameters: of its family.
    model: a `Decoder`, of arrays or ShapeDtypeStructs.
  """
  shapes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    parameter = parameters[name_of(path)]
    shape = shape_in_file(arch, parameter, leaf.shape)
    for i in range(leaf.shape[0] if parameter.layered else 1):
      shapes[parameter.name.format(i)] = shape
  return shapes
