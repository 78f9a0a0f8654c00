"""Models in and out of Hugging Face directories.

Reads what transformers writes and writes what
`transformers.AutoModelForCausalLM` loads.
"""

import collections
import contextlib
import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from miniplm_jax.core import distributed, files, gs
from miniplm_jax.core.errors import UserError
from miniplm_jax.models import config_json, hub, sharding
from miniplm_jax.models import decoder as decoder_lib
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.decoder import FAMILIES, Decoder
from miniplm_jax.models.sharding import Parameter, name_of

INDEX = hub.INDEX
_ROWS = 4096  # of two tables that are compared at a time
_DTYPES = ("F32", "BF16", "F16", "F64")
# Tensors that some files carry and no reader needs.
_IGNORED = ("rotary_emb.inv_freq",)


class _Tensor(NamedTuple):
  """A tensor of a file."""

  path: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: str

  def read(self, place) -> np.ndarray:
    # Opened anew each time: the pages of an open file stay mapped, and would
    # add up to the whole model.
    with _opened(self.path) as f:
      return f.get_slice(self.name)[place]


def load(directory: epath.Path, mesh: Mesh, dtype: Any = jnp.float32):
  """Reads a `Decoder` onto the mesh, for each device only its shard.

  Args:
    directory: with config.json and model.safetensors, sharded or not, in
      float32, bfloat16 or float16.
    dtype: of the parameters in memory; what Mamba scans is float32 at least.

  Raises:
    UserError: naming every missing, unexpected and mis-shaped tensor.
  """
  with contextlib.ExitStack() as copies:
    paths = hub.weight_files(directory)
    paths = [copies.enter_context(gs.local(path)) for path in paths]
    model = decoder_lib.abstract(hub.load_architecture(directory), dtype)
    stored = _tensors_of(paths, model, directory)

    def place(path, leaf, where):
      parameter = _parameters(model)[name_of(path)]
      rows = _shape_in_file(model.arch, parameter, leaf.shape)[0]

      def shard(index):  # what one device holds, read when it is asked for
        return _read(stored, parameter, index, leaf, rows)

      return jax.make_array_from_callback(leaf.shape, where, shard)

    return jax.tree_util.tree_map_with_path(
      place, model, sharding.shardings(model, mesh)
    )


def _tensors_of(
  paths: Sequence[pathlib.Path], model: Decoder, directory: epath.Path
) -> dict[str, _Tensor]:
  """The tensors of files on this machine: those of the model and no others."""
  parameters, stored = _parameters(model), {}
  for path in paths:
    with _opened(path) as f:
      for name in f.keys():  # noqa: SIM118
        piece = f.get_slice(name)
        shape = tuple(piece.get_shape())
        if name in stored:
          raise UserError(
            f"{name} is in {stored[name].path.name} and in {path.name}",
            str(directory),
            "fetch the weights again",
          )
        stored[name] = _Tensor(path, name, shape, piece.get_dtype())
  # The model without a head may have been saved, whose names have no prefix.
  prefix = parameters["embed"].name.partition(".")[0] + "."
  if not any(name.startswith(prefix) for name in stored):
    stored = {
      name if name.startswith("lm_head.") else prefix + name: tensor
      for name, tensor in stored.items()
    }
  for name in _zeros(model.arch).keys() & stored.keys():
    if np.any(stored[name].read(slice(None))):
      raise UserError(
        f"{name} is not 0", str(directory), "use a model without that bias"
      )
    del stored[name]
  if model.arch.tie_word_embeddings:
    _tie(stored, parameters, directory)
  _check(stored, expected(model), directory)
  return stored


def _parameters(model: Decoder) -> Mapping[str, Parameter]:
  return FAMILIES[model.arch.family].PARAMETERS


def _zeros(arch: Architecture) -> dict[str, tuple[int, ...]]:
  """What a Llama with biases on queries, keys and values has in its file.

  There is no such model without biases on the output: those are 0.
  """
  if not getattr(arch, "qkv_bias", False):
    return {}
  name = "model.layers.{}.self_attn.o_proj.bias"
  layers = range(arch.num_hidden_layers)
  return {name.format(i): (arch.hidden_size,) for i in layers}


def _shape_in_file(
  arch: Architecture, parameter: Parameter, shape: tuple[int, ...]
) -> tuple[int, ...]:
  """The shape of one tensor in the file, from our parameter's shape."""
  if parameter.layered:
    shape = shape[1:]
  if parameter.transposed:
    shape = shape[::-1]
  rows = shape[0] * parameter.parts
  return (arch.vocab_size if parameter.vocabulary else rows, *shape[1:])


def expected(model: Decoder) -> dict[str, tuple[int, ...]]:
  """Every tensor that a model's file holds, with its shape there.

  The model is of arrays or ShapeDtypeStructs.
  """
  shapes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    parameter = _parameters(model)[name_of(path)]
    shape = _shape_in_file(model.arch, parameter, leaf.shape)
    for i in range(leaf.shape[0] if parameter.layered else 1):
      shapes[parameter.name.format(i)] = shape
  return shapes


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(str(path), framework="numpy") as f:
      yield f
  except SafetensorError as e:
    raise UserError(
      f"the weights cannot be read ({e})", str(path), "fetch them again"
    ) from e


def _tie(stored, parameters, directory):
  """Leaves one of a tied embedding and the head that a file may carry too.

  Raises:
    UserError: they differ. transformers would use both.
  """
  embed, head = parameters["embed"].name, parameters["head"].name
  if head not in stored:
    return
  copy = stored.pop(head)
  own = stored.setdefault(embed, copy)
  if own is copy:
    return
  rows = own.shape[0]
  places = [
    (slice(start, min(start + _ROWS, rows)), slice(None))
    for start in range(0, rows, _ROWS)
  ]
  if own.shape != copy.shape or not all(
    np.array_equal(own.read(place), copy.read(place)) for place in places
  ):
    raise UserError(
      f"tie_word_embeddings is set, but {head} differs from {embed}",
      str(directory),
      "set tie_word_embeddings to false in config.json",
    )


def _check(stored, shapes: Mapping[str, tuple[int, ...]], directory):
  """Lists everything that is wrong with the tensors at once."""
  unexpected = [
    n for n in stored.keys() - shapes.keys() if not n.endswith(_IGNORED)
  ]
  problems = [f"missing {n}" for n in sorted(shapes.keys() - stored.keys())]
  problems += [f"unexpected {n}" for n in sorted(unexpected)]
  for name in sorted(shapes.keys() & stored.keys()):
    shape, dtype = stored[name].shape, stored[name].dtype
    if shape != shapes[name]:
      problems.append(f"{name} is {shape} and not {shapes[name]}")
    if dtype not in _DTYPES:
      problems.append(f"{name} is {dtype}, a quantized model's")
  if problems:
    raise UserError(
      "; ".join(problems), str(directory), "the weights do not fit config.json"
    )


def _read(stored, parameter: Parameter, index, leaf, rows: int) -> np.ndarray:
  """A slice of a parameter whose tensors have so many rows in a file.

  Of each tensor only what lies in it is read.
  Filled layer by layer, so that beside it only one tensor's slice exists.
  """
  ranges = [range(n)[s] for n, s in zip(leaf.shape, index)]
  out = np.zeros([len(r) for r in ranges], leaf.dtype)
  layers = ranges.pop(0) if parameter.layered else [None]
  if parameter.transposed:
    ranges.reverse()
  # Rows beyond the file's are padding of the vocabulary, and stay 0.
  size = rows // parameter.parts
  offset = parameter.part * size
  start, stop = (min(at, size) for at in (ranges[0].start, ranges[0].stop))
  if start == stop:
    return out
  place = (
    slice(offset + start, offset + stop),
    *(slice(r.start, r.stop) for r in ranges[1:]),
  )
  for j, layer in enumerate(layers):
    piece = stored[parameter.name.format(layer)].read(place)
    piece = piece.T if parameter.transposed else piece
    target = out[j] if parameter.layered else out
    target[: len(piece)] = piece
  return out


def to_tensors(
  model: Decoder, names=None, dtype: Any = None
) -> dict[str, np.ndarray]:
  """The tensors of a decoder, or of its gradients, as files name them.

  On the host. Without names, all; without a dtype, each in its own.
  """
  parts = collections.defaultdict(list)
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    parameter = _parameters(model)[name_of(path)]
    for i in range(leaf.shape[0] if parameter.layered else 1):
      parts[parameter.name.format(i)].append((parameter, leaf, i))
  tensors = {}
  for name, places in parts.items():
    if names is not None and name not in names:
      continue
    values = []
    for parameter, leaf, i in sorted(places, key=lambda x: x[0].part):
      value = _on_host(leaf[i] if parameter.layered else leaf)
      values.append(value.T if parameter.transposed else value)
    value = np.concatenate(values) if len(values) > 1 else values[0]
    rows = _shape_in_file(model.arch, parameter, leaf.shape)[0]
    tensors[name] = np.ascontiguousarray(value[:rows], dtype)
  return tensors


def save(
  directory: epath.Path,
  model: Decoder,
  eos_id: int,
  extra: Mapping[str, bytes],
  dtype: Any = jnp.float32,
  max_shard_size: str = "5GB",
  bos_id: int | None = None,
  as_llama: bool = False,
) -> dict[str, dict[str, Any]]:
  """Writes a directory that transformers loads.

  All processes that hold a part of the model call it; the first one writes.

  Args:
    eos_id: also what pads.
    extra: further files by name: tokenizer, model card.
    dtype: of the stored weights.
    max_shard_size: weights beyond this are spread over several files.
    bos_id: what every row starts with; None is eos.
    as_llama: whether a Qwen2 becomes a Llama with the same biases, because
      transformers would read its tokenizer as Qwen's.

  Returns:
    {file name: {"bytes", "sha256"}} for a manifest; nothing in processes
    other than the first.
  """
  import huggingface_hub
  from safetensors.numpy import save_file

  dtype = jnp.dtype(dtype)
  config = config_json.write(model.arch, eos_id, dtype.name, bos_id, as_llama)
  generation = {k: config[k] for k in ("bos_token_id", "pad_token_id")}
  generation["eos_token_id"] = [eos_id]
  names = ["config.json", "generation_config.json", *extra]
  if distributed.is_first():
    directory.mkdir(parents=True, exist_ok=True)
    files.write_json(directory / "config.json", config)
    files.write_json(directory / "generation_config.json", generation)
    for name, content in extra.items():
      files.write_bytes(directory / name, content)
  zeros = _zeros(model.arch) if as_llama else {}
  split = huggingface_hub.split_state_dict_into_shards_factory(
    expected(model) | zeros,
    get_storage_size=lambda shape: int(np.prod(shape)) * dtype.itemsize,
    filename_pattern="model{suffix}.safetensors",
    max_shard_size=max_shard_size,
  )
  for name, tensors in split.filename_to_tensors.items():
    shard = to_tensors(model, set(tensors), dtype)
    shard |= {n: np.zeros(zeros[n], dtype) for n in tensors if n in zeros}
    if distributed.is_first():
      with files.replacing(directory / name) as scratch:
        save_file(shard, scratch, {"format": "pt"})
    names.append(name)
  if split.is_sharded:
    names.append(INDEX)
  if not distributed.is_first():
    return {}
  if split.is_sharded:
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    files.write_json(directory / INDEX, index)
  return {name: files.describe(directory / name) for name in sorted(names)}


def is_whole(directory: epath.Path) -> bool:
  """Whether `save` came to its end here: the last file is there."""
  return any((directory / n).exists() for n in ("model.safetensors", INDEX))


def weights_fingerprint(model: Decoder, dtype: Any = None) -> str:
  """sha256 over all parameters by name, one at a time on the host.

  With a dtype, as if the model had been loaded in this one.
  """
  total = hashlib.sha256()
  like = decoder_lib.abstract(model.arch, dtype) if dtype else model
  leaves = jax.tree_util.tree_leaves_with_path(model)
  for (path, leaf), target in zip(leaves, jax.tree.leaves(like)):
    total.update(f"{name_of(path)} {target.dtype} {leaf.shape}".encode())
    # Not on a device, which may take the smallest numbers for 0.
    leaf = np.ascontiguousarray(_on_host(leaf), target.dtype)
    total.update(leaf.view(np.uint8).data)
  return total.hexdigest()


def _on_host(x) -> np.ndarray:
  """The whole array; all processes that hold a part of it take part."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)
