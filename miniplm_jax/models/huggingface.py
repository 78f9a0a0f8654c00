"""Models in and out of Hugging Face directories.

Reads what transformers writes and writes what
`transformers.AutoModelForCausalLM` loads.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from miniplm_jax.core import files
from miniplm_jax.core.errors import UserError
from miniplm_jax.models import config_json, hub, sharding, tensor_names
from miniplm_jax.models import decoder as decoder_lib
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.models.sharding import name_of
from miniplm_jax.models.tensor_names import STORED, Stored

INDEX = "model.safetensors.index.json"


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
  arch = hub.load_architecture(directory)
  found = {}
  for path in hub.weight_files(directory):
    with _open(path) as f:
      for name in f.keys():  # noqa: SIM118
        found[name] = path, tuple(f.get_slice(name).get_shape())
  abstract = decoder_lib.abstract(arch, dtype)
  _check(found, arch, abstract, directory)

  def place(path, leaf, where):
    stored = STORED[arch.family][name_of(path)]
    whole = tensor_names.shape_in_file(arch, stored, leaf.shape)

    def shard(index):  # what one device holds, read when it is asked for
      return _read(found, stored, index, leaf, whole)

    return jax.make_array_from_callback(leaf.shape, where, shard)

  return jax.tree_util.tree_map_with_path(
    place, abstract, sharding.shardings(abstract, mesh)
  )


def _open(path: epath.Path):
  from safetensors import SafetensorError, safe_open

  try:
    return safe_open(str(path), framework="numpy")
  except SafetensorError as e:
    raise UserError(
      f"the weights cannot be read ({e})", str(path), "fetch them again"
    ) from e


def _check(found, arch, abstract, directory):
  """Lists everything that is wrong with the tensors at once."""
  wanted = tensor_names.expected(arch, abstract)
  unexpected = found.keys() - wanted.keys()
  if arch.tie_word_embeddings:  # some files carry a copy
    unexpected.discard(STORED[arch.family]["head"].name)
  unexpected = [n for n in unexpected if not n.endswith(tensor_names.IGNORED)]
  problems = [f"missing {n}" for n in sorted(wanted.keys() - found.keys())]
  problems += [f"unexpected {n}" for n in sorted(unexpected)]
  for name in sorted(wanted.keys() & found.keys()):
    shape = found[name][1]
    if shape != wanted[name]:
      problems.append(f"{name} is {shape} and not {wanted[name]}")
  if problems:
    raise UserError(
      "; ".join(problems), str(directory), "the weights do not fit config.json"
    )


def _read(found, stored: Stored, index, leaf, whole) -> np.ndarray:
  """A slice of one parameter; of each tensor only what lies in it is read.

  Filled layer by layer, so that beside it only one tensor's slice exists.
  """
  ranges = [range(n)[s] for n, s in zip(leaf.shape, index)]
  out = np.zeros([len(r) for r in ranges], leaf.dtype)
  layers = ranges.pop(0) if stored.layered else [None]
  if stored.transposed:
    ranges.reverse()
  # Rows beyond the file's are padding of the vocabulary, and stay 0.
  size = whole[0] // stored.parts
  offset = stored.part * size
  start, stop = (min(at, size) for at in (ranges[0].start, ranges[0].stop))
  place = (
    slice(offset + start, offset + stop),
    *(slice(r.start, r.stop) for r in ranges[1:]),
  )
  for j, layer in enumerate(layers):
    name = stored.name.format(layer)
    # Opened anew each time: the pages of an open file stay mapped, and would
    # add up to the whole model.
    with _open(found[name][0]) as f:
      piece = f.get_slice(name)[place]
    piece = piece.T if stored.transposed else piece
    target = out[j] if stored.layered else out
    target[: len(piece)] = piece
  return out


def to_tensors(model: Decoder, names=None) -> dict[str, np.ndarray]:
  """The model's tensors under their file names, on the host.

  Args:
    model: a decoder, or gradients of one.
    names: which; by default all.
  """
  tensors, parts = {}, {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    stored = STORED[model.arch.family][name_of(path)]
    rows = tensor_names.shape_in_file(model.arch, stored, leaf.shape)[0]
    for i in range(leaf.shape[0] if stored.layered else 1):
      name = stored.name.format(i)
      if names is not None and name not in names:
        continue
      value = np.asarray(leaf[i] if stored.layered else leaf)
      value = value.T if stored.transposed else value
      if stored.parts > 1:
        parts[name, stored.part] = value
        value = [parts.get((name, p)) for p in range(stored.parts)]
        if any(v is None for v in value):
          continue
        value = np.concatenate(value)
      tensors[name] = np.ascontiguousarray(value[:rows])
  return tensors


def save(
  directory: epath.Path,
  model: Decoder,
  eos_id: int,
  extra: Mapping[str, bytes],
  max_shard_size: str = "5GB",
) -> dict[str, dict[str, Any]]:
  """Writes a directory that transformers loads.

  Args:
    directory: made if it is not there.
    model: a decoder; its weights are stored in the dtype that they have.
    eos_id: the end-of-document id, also bos and pad.
    extra: further files by name: tokenizer, model card.
    max_shard_size: weights beyond this are spread over several files.

  Returns:
    {file name: {"bytes", "sha256"}} for a manifest.
  """
  import huggingface_hub
  from safetensors.numpy import save_file

  dtype = model.embed[...].dtype
  directory.mkdir(parents=True, exist_ok=True)
  config = config_json.write(model.arch, eos_id, dtype.name)
  files.write_json(directory / "config.json", config)
  generation = {k: eos_id for k in ("bos_token_id", "pad_token_id")}
  generation["eos_token_id"] = [eos_id]
  files.write_json(directory / "generation_config.json", generation)
  for name, content in extra.items():
    files.write_bytes(directory / name, content)
  names = ["config.json", "generation_config.json", *extra]
  split = huggingface_hub.split_state_dict_into_shards_factory(
    tensor_names.expected(model.arch, model),
    get_storage_size=lambda shape: int(np.prod(shape)) * dtype.itemsize,
    filename_pattern="model{suffix}.safetensors",
    max_shard_size=max_shard_size,
  )
  for name, tensors in split.filename_to_tensors.items():
    with files.replacing(directory / name) as scratch:
      save_file(to_tensors(model, set(tensors)), scratch, {"format": "pt"})
    names.append(name)
  if split.is_sharded:
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    files.write_json(directory / INDEX, index)
    names.append(INDEX)
  return {name: files.describe(directory / name) for name in sorted(names)}


def weights_fingerprint(model: Decoder) -> str:
  """sha256 over all parameters by name, one at a time on the host."""
  total = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    total.update(f"{name_of(path)} {leaf.dtype} {leaf.shape}".encode())
    total.update(np.ascontiguousarray(leaf).view(np.uint8).data)
  return total.hexdigest()
