"""Models in and out of Hugging Face directories.

Reads what transformers writes and writes what
`transformers.AutoModelForCausalLM` loads.
"""

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
from miniplm_jax.models import parameters as parameters_lib
from miniplm_jax.models.decoder import FAMILIES, Decoder
from miniplm_jax.models.parameters import Parameter
from miniplm_jax.models.sharding import name_of

INDEX = hub.INDEX
_ROWS = 4096  # of two tables that are compared at a time
_DTYPES = ("F32", "BF16", "F16", "F64")


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
  """Reads a model onto the mesh, for each device only its shard.

  Args:
    directory: with config.json and model.safetensors, sharded or not, in
      float32, bfloat16 or float16.
    mesh: where to put it.
    dtype: of the parameters in memory; what Mamba scans is float32 at least.

  Returns:
    A `Decoder`.

  Raises:
    UserError: naming every missing, unexpected and mis-shaped tensor.
  """
  with contextlib.ExitStack() as copies:
    paths = hub.weight_files(directory)
    paths = [copies.enter_context(gs.local(path)) for path in paths]
    return _load(directory, paths, mesh, dtype)


def _load(directory, paths: Sequence[pathlib.Path], mesh: Mesh, dtype: Any):
  """Reads a model from files on this machine; see `load`."""
  arch = hub.load_architecture(directory)
  parameters = FAMILIES[arch.family].PARAMETERS
  stored = {}
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
  stored = parameters_lib.prefixed(parameters, stored)
  for name in parameters_lib.zeros(arch).keys() & stored.keys():
    if np.any(stored[name].read(slice(None))):
      raise UserError(
        f"{name} is not 0", str(directory), "use a model without that bias"
      )
    del stored[name]
  if arch.tie_word_embeddings:
    _tie(stored, parameters, directory)
  abstract = decoder_lib.abstract(arch, dtype)
  _check(stored, arch, abstract, directory)

  def place(path, leaf, where):
    parameter = parameters[name_of(path)]
    whole = parameters_lib.shape_in_file(arch, parameter, leaf.shape)

    def shard(index):  # what one device holds, read when it is asked for
      return _read(stored, parameter, index, leaf, whole)

    return jax.make_array_from_callback(leaf.shape, where, shard)

  return jax.tree_util.tree_map_with_path(
    place, abstract, sharding.shardings(abstract, mesh)
  )


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


def _check(stored, arch, abstract, directory):
  """Lists everything that is wrong with the tensors at once."""
  expected = parameters_lib.expected(
    arch, FAMILIES[arch.family].PARAMETERS, abstract
  )
  unexpected = [
    n
    for n in stored.keys() - expected.keys()
    if not n.endswith(parameters_lib.IGNORED)
  ]
  problems = [f"missing {n}" for n in sorted(expected.keys() - stored.keys())]
  problems += [f"unexpected {n}" for n in sorted(unexpected)]
  for name in sorted(expected.keys() & stored.keys()):
    shape, dtype = stored[name].shape, stored[name].dtype
    if shape != expected[name]:
      problems.append(f"{name} is {shape} and not {expected[name]}")
    if dtype not in _DTYPES:
      problems.append(f"{name} is {dtype}, a quantized model's")
  if problems:
    raise UserError(
      "; ".join(problems), str(directory), "the weights do not fit config.json"
    )


def _read(stored, parameter: Parameter, index, leaf, whole) -> np.ndarray:
  """A slice of one parameter; of each tensor only what lies in it is read.

  Filled layer by layer, so that beside it only one tensor's slice exists.
  """
  ranges = [range(n)[s] for n, s in zip(leaf.shape, index)]
  out = np.zeros([len(r) for r in ranges], leaf.dtype)
  layers = ranges.pop(0) if parameter.layered else [None]
  if parameter.transposed:
    ranges.reverse()
  # Rows beyond the file's are padding of the vocabulary, and stay 0.
  size = whole[0] // parameter.parts
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
  """The model's tensors under their file names, on the host.

  Args:
    model: a decoder, or gradients of one.
    names: which; by default all.
    dtype: of the tensors; by default that of each parameter.
  """
  parameters = FAMILIES[model.arch.family].PARAMETERS
  tensors, parts = {}, {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(model):
    parameter = parameters[name_of(path)]
    rows = parameters_lib.shape_in_file(model.arch, parameter, leaf.shape)[0]
    for i in range(leaf.shape[0] if parameter.layered else 1):
      name = parameter.name.format(i)
      if names is not None and name not in names:
        continue
      value = _on_host(leaf[i] if parameter.layered else leaf)
      value = value.T if parameter.transposed else value
      if parameter.parts > 1:
        parts[name, parameter.part] = value
        value = [parts.get((name, p)) for p in range(parameter.parts)]
        if any(v is None for v in value):
          continue
        value = np.concatenate(value)
        for p in range(parameter.parts):
          del parts[name, p]
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
    directory: made if it is not there.
    model: a decoder.
    eos_id: the end-of-document id, also pad.
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
  zeros = parameters_lib.zeros(model.arch) if as_llama else {}
  split = huggingface_hub.split_state_dict_into_shards_factory(
    parameters_lib.expected(
      model.arch, FAMILIES[model.arch.family].PARAMETERS, model
    )
    | zeros,
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

  Args:
    model: whose.
    dtype: as if it had been loaded in this one; None is as it is.
  """
  total = hashlib.sha256()
  like = decoder_lib.abstract(model.arch, dtype) if dtype else model
  leaves = jax.tree_util.tree_leaves_with_path(model)
  for (path, leaf), target in zip(leaves, jax.tree.leaves(like)):
    total.update(f"{name_of(path)} {target.dtype} {leaf.shape}".encode())
    # Not on a device, which may take the smallest numbers for 0.
    leaf = _on_host(leaf).astype(target.dtype, copy=False)
    leaf = np.ascontiguousarray(leaf)
    total.update(leaf.view(np.uint8).data)
  return total.hexdigest()


def _on_host(x) -> np.ndarray:
  """The whole array; all processes that hold a part of it take part."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)
