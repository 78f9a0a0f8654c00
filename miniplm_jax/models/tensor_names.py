"""Which tensor of a safetensors file is which of our parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.sharding import name_of


class Stored(NamedTuple):
  """How one parameter lies in the file, or one layer of it.

  Attributes:
    name: with {} for the layer, if there is a tensor for each.
    transposed: PyTorch's linear layers are [out, in], ours [in, out].
    part: which of `parts` along the tensor's first axis.
    parts: of equal size.
    vocabulary: its rows are ids, and our padding of them is not stored.
  """

  name: str
  transposed: bool = False
  part: int = 0
  parts: int = 1
  vocabulary: bool = False

  @property
  def layered(self) -> bool:
    """Whether there is a tensor for each layer."""
    return "{}" in self.name


def _table(name: str) -> Stored:
  return Stored(name, vocabulary=True)


def _weight(name: str) -> Stored:
  return Stored(f"model.layers.{{}}.{name}.weight", transposed=True)


def _vector(name: str) -> Stored:
  return Stored(f"model.layers.{{}}.{name}")


def _mixer(name: str, *details) -> Stored:
  return Stored(f"backbone.layers.{{}}.mixer.{name}", *details)


_TRANSFORMER = {
  "embed": _table("model.embed_tokens.weight"),
  "final_norm": Stored("model.norm.weight"),
  "head": _table("lm_head.weight"),
  "input_norm": _vector("input_layernorm.weight"),
  "q_proj": _weight("self_attn.q_proj"),
  "k_proj": _weight("self_attn.k_proj"),
  "v_proj": _weight("self_attn.v_proj"),
  "q_bias": _vector("self_attn.q_proj.bias"),
  "k_bias": _vector("self_attn.k_proj.bias"),
  "v_bias": _vector("self_attn.v_proj.bias"),
  "q_norm": _vector("self_attn.q_norm.weight"),
  "k_norm": _vector("self_attn.k_norm.weight"),
  "o_proj": _weight("self_attn.o_proj"),
  "post_attention_norm": _vector("post_attention_layernorm.weight"),
  "gate_proj": _weight("mlp.gate_proj"),
  "up_proj": _weight("mlp.up_proj"),
  "down_proj": _weight("mlp.down_proj"),
}
_MAMBA = {
  "embed": _table("backbone.embeddings.weight"),
  "final_norm": Stored("backbone.norm_f.weight"),
  "head": _table("lm_head.weight"),
  "norm": Stored("backbone.layers.{}.norm.weight"),
  "in_proj": _mixer("in_proj.weight", True, 0, 2),
  "gate_proj": _mixer("in_proj.weight", True, 1, 2),
  "conv": _mixer("conv1d.weight"),
  "conv_bias": _mixer("conv1d.bias"),
  "x_proj": _mixer("x_proj.weight", True),
  "dt_proj": _mixer("dt_proj.weight", True),
  "dt_bias": _mixer("dt_proj.bias"),
  "a_log": _mixer("A_log"),
  "skip": _mixer("D"),
  "out_proj": _mixer("out_proj.weight", True),
}
STORED = {"transformer": _TRANSFORMER, "mamba": _MAMBA}

# Tensors that some files carry and no reader needs.
IGNORED = ("rotary_emb.inv_freq",)


def prefixed(arch: Architecture, found: Mapping[str, Any]) -> dict[str, Any]:
  """Tensors by their usual names, also if the model without head was saved."""
  prefix = "backbone." if arch.family == "mamba" else "model."
  if any(name.startswith(prefix) for name in found):
    return dict(found)
  return {
    name if name.startswith("lm_head.") else prefix + name: tensor
    for name, tensor in found.items()
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
  arch: Architecture, stored: Stored, shape: tuple[int, ...]
) -> tuple[int, ...]:
  """The shape of one tensor in the file, from our parameter's shape."""
  if stored.layered:
    shape = shape[1:]
  if stored.transposed:
    shape = shape[::-1]
  rows = arch.vocab_size if stored.vocabulary else shape[0] * stored.parts
  return (rows, *shape[1:])


def expected(arch: Architecture, model: Any) -> dict[str, tuple[int, ...]]:
  """Every tensor that a file of this shape holds, with its shape there.

  Args:
    arch: the shape.
    model: a `Decoder`, of arrays or ShapeDtypeStructs.
  """
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    stored = STORED[arch.family][name_of(path)]
    shape = shape_in_file(arch, stored, leaf.shape)
    for i in range(leaf.shape[0] if stored.layered else 1):
      found[stored.name.format(i)] = shape
  return found
