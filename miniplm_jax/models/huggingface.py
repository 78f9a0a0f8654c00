"""Hugging Face directories in and out: config.json and safetensors.

Loads a local directory or a hub id; writes what
`transformers.AutoModelForCausalLM` loads. Never pickle, never remote code.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from miniplm_jax.core import files
from miniplm_jax.core.errors import UserError
from miniplm_jax.models import architecture, sharding
from miniplm_jax.models import decoder as decoder_lib
from miniplm_jax.models.decoder import Decoder

# Our name: (name in the file, whether the matrix is stored transposed).
_TOP = {
  "embed": ("model.embed_tokens.weight", False),
  "final_norm": ("model.norm.weight", False),
  "head": ("lm_head.weight", False),
}
_LAYER = {
  "input_norm": ("input_layernorm.weight", False),
  "q_proj": ("self_attn.q_proj.weight", True),
  "k_proj": ("self_attn.k_proj.weight", True),
  "v_proj": ("self_attn.v_proj.weight", True),
  "q_bias": ("self_attn.q_proj.bias", False),
  "k_bias": ("self_attn.k_proj.bias", False),
  "v_bias": ("self_attn.v_proj.bias", False),
  "q_norm": ("self_attn.q_norm.weight", False),
  "k_norm": ("self_attn.k_norm.weight", False),
  "o_proj": ("self_attn.o_proj.weight", True),
  "post_attention_norm": ("post_attention_layernorm.weight", False),
  "gate_proj": ("mlp.gate_proj.weight", True),
  "up_proj": ("mlp.up_proj.weight", True),
  "down_proj": ("mlp.down_proj.weight", True),
}


def resolve(path: str, revision: str | None = None) -> epath.Path:
  """A directory with the model: `path` itself, or a hub id's snapshot.

  Raises:
    UserError: no such directory, and the hub does not have it either.
  """
  local = epath.Path(path)
  if local.exists():
    return local
  if path.startswith((".", "/", "~")) or "://" in path or path.count("/") > 1:
    raise UserError(
      "no model directory here", path, "give a directory or a hub id"
    )
  import huggingface_hub

  try:
    found = huggingface_hub.snapshot_download(
      path,
      revision=revision,
      allow_patterns=["*.json", "*.safetensors", "*.txt"],
    )
  except Exception as e:
    raise UserError(
      f"neither a directory nor to be had from the hub ({type(e).__name__})",
      path,
      "check the name and the network, or download it and give the directory",
    ) from e
  return epath.Path(found)


def load_architecture(directory: epath.Path) -> architecture.Architecture:
  """The shape that a directory's config.json describes."""
  path = directory / "config.json"
  if not path.exists():
    raise UserError(
      "no config.json", str(directory), "give a Hugging Face model directory"
    )
  return architecture.from_hugging_face(_json(path), str(path))


def _json(path: epath.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise UserError(
      f"this is not JSON ({e})", str(path), "fetch it again"
    ) from e


def load(directory: epath.Path, mesh: Mesh, dtype: Any = jnp.float32):
  """Reads a model onto the mesh, for each device only its shard.

  Args:
    directory: with config.json and model.safetensors, sharded or not, in
      float32, bfloat16 or float16.
    mesh: where to put it.
    dtype: of the parameters in memory.

  Returns:
    A `Decoder`.

  Raises:
    UserError: naming every missing, unexpected and mis-shaped tensor.
  """
  arch = load_architecture(directory)
  paths = weight_files(directory)
  handles = [_open(path) for path in paths]
  found = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
  if arch.tie_word_embeddings:
    # Some files carry a copy of the tied embedding.
    found.pop(_TOP["head"][0], None)
  abstract = decoder_lib.abstract(arch, dtype)
  wanted = _file_names(abstract)
  problems = [f"missing {n}" for n in sorted(wanted.keys() - found.keys())]
  problems += [f"unexpected {n}" for n in sorted(found.keys() - wanted.keys())]
  for name in sorted(wanted.keys() & found.keys()):
    shape = tuple(found[name].get_slice(name).get_shape())
    if shape != wanted[name]:
      problems.append(f"{name} is {shape} and not {wanted[name]}")
  if problems:
    raise UserError(
      "; ".join(problems), str(directory), "the weights do not fit config.json"
    )

  def place(path, leaf, where):
    def shard(index):  # what one device holds, read when it is asked for
      return _read(found, path[-2].name, index, leaf.shape).astype(dtype)

    return jax.make_array_from_callback(leaf.shape, where, shard)

  return jax.tree_util.tree_map_with_path(
    place, abstract, sharding.shardings(abstract, mesh)
  )


def _read(found, name: str, index, shape) -> np.ndarray:
  """A slice of one parameter; of each tensor only what lies in it is read."""
  if name in _TOP:
    file_name = _TOP[name][0]
    return found[file_name].get_slice(file_name)[index]
  suffix, transposed = _LAYER[name]
  layers, *rest = index
  pieces = []
  for i in range(shape[0])[layers]:
    file_name = f"model.layers.{i}.{suffix}"
    piece = found[file_name].get_slice(file_name)
    piece = piece[tuple(reversed(rest) if transposed else rest)]
    pieces.append(piece.T if transposed else piece)
  return np.stack(pieces)


def _open(path: epath.Path):
  from safetensors import SafetensorError, safe_open

  try:
    return safe_open(str(path), framework="numpy")
  except SafetensorError as e:
    raise UserError(
      f"the weights cannot be read ({e})", str(path), "fetch them again"
    ) from e


def _file_names(abstract: Decoder) -> dict[str, tuple[int, ...]]:
  """Every tensor that the file must hold, with its shape there."""
  names = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
    name = path[-2].name
    if name in _TOP:
      names[_TOP[name][0]] = leaf.shape
      continue
    suffix, transposed = _LAYER[name]
    shape = leaf.shape[:0:-1] if transposed else leaf.shape[1:]
    for i in range(leaf.shape[0]):
      names[f"model.layers.{i}.{suffix}"] = shape
  return names


def to_tensors(model: Decoder) -> dict[str, np.ndarray]:
  """The model's tensors under their file names, on the host."""
  tensors = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    name, value = path[-2].name, np.asarray(leaf)
    if name in _TOP:
      tensors[_TOP[name][0]] = value
      continue
    suffix, transposed = _LAYER[name]
    for i, layer in enumerate(value):
      layer = layer.T if transposed else layer
      tensors[f"model.layers.{i}.{suffix}"] = np.ascontiguousarray(layer)
  return tensors


def save(
  directory: epath.Path,
  model: Decoder,
  eos_id: int,
  extra: Mapping[str, bytes],
) -> dict[str, dict[str, Any]]:
  """Writes a directory that transformers loads.

  Args:
    directory: made if it is not there.
    model: a float32 decoder.
    eos_id: the end-of-document id, also bos and pad.
    extra: further files by name: tokenizer, model card.

  Returns:
    {file name: {"bytes", "sha256"}} for a manifest.
  """
  from safetensors.numpy import save as to_bytes

  directory.mkdir(parents=True, exist_ok=True)
  config = architecture.to_hugging_face(model.arch, eos_id)
  files.write_json(directory / "config.json", config)
  generation = {k: eos_id for k in ("bos_token_id", "pad_token_id")}
  generation["eos_token_id"] = [eos_id]
  files.write_json(directory / "generation_config.json", generation)
  for name, content in extra.items():
    files.write_bytes(directory / name, content)
  files.write_bytes(
    directory / "model.safetensors",
    to_bytes(to_tensors(model), {"format": "pt"}),
  )
  names = ["config.json", "generation_config.json", "model.safetensors", *extra]
  return {name: files.describe(directory / name) for name in sorted(names)}


def weight_files(directory: epath.Path) -> list[epath.Path]:
  """The safetensors files of a model directory.

  Raises:
    UserError: there are none, or one that the index names is missing.
  """
  index = directory / "model.safetensors.index.json"
  if index.exists():
    names = sorted(set(_json(index)["weight_map"].values()))
    paths = [directory / name for name in names]
  else:
    paths = [directory / "model.safetensors"]
  for path in paths:
    if not path.exists():
      raise UserError(
        f"no {path.name}",
        str(directory),
        "give a directory with safetensors weights; convert a pickle .bin "
        "with transformers' save_pretrained first",
      )
  return paths


def weights_fingerprint(model: Decoder) -> str:
  """sha256 over all parameters by name, one at a time on the host."""
  total = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    total.update(f"{path[-2].name} {leaf.dtype} {leaf.shape}".encode())
    total.update(np.asarray(leaf).tobytes())
  return total.hexdigest()
