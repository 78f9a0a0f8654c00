"""Hugging Face model directories, local or of the hub, before any weight.

Never pickle, never remote code.
"""

import dataclasses
import json
import re
from typing import Any

from etils import epath

from miniplm_jax.core import contents, files, gs
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.models import architecture, config_json
from miniplm_jax.models.architecture import Architecture

# The paper's teachers: their shape is known without the hub.
_KNOWN = {
  "Qwen/Qwen1.5-1.8B": "qwen1.5-1.8b",
  "Qwen/Qwen1.5-4B": "qwen1.5-4b",
}
INDEX = "model.safetensors.index.json"
# Beside the index: what it names is opened.
_WEIGHTS = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)


def resolve(
  path: str, revision: str | None = None, weights: bool = True
) -> epath.Path:
  """A directory with the model: `path` itself, or a hub id's snapshot.

  The hub's own settings hold: HF_HOME, HF_TOKEN, and HF_HUB_OFFLINE=1, which
  takes what was downloaded before. Config and tokenizer are fetched, and
  `weights` if they are asked for. The revision is a branch, tag or commit.

  Raises:
    UserError: no such directory, and the hub does not have it either.
  """
  local = epath.Path(path).expanduser()
  if local.exists():
    return local
  if not may_be_hub_id(path):
    raise GoneError(
      "no model directory here", path, "give a directory or a hub id"
    )
  import huggingface_hub

  try:
    folder = huggingface_hub.snapshot_download(
      path,
      revision=revision,
      allow_patterns=["*.json", "*.txt"] + ["*.safetensors"] * weights,
    )
  except Exception as e:
    raise UserError(
      f"neither a directory nor to be had from the hub ({type(e).__name__})",
      f"{path}, revision {revision or 'main'}",
      "check the name, the revision and the network, or download it and give "
      "the directory",
    ) from e
  return epath.Path(folder)


def is_known(path: str) -> bool:
  """Whether a given model's shape is known without the hub."""
  return path in _KNOWN or epath.Path(path).expanduser().exists()


def may_be_hub_id(path: str) -> bool:
  """Whether a path that is no directory reads like a name of the hub."""
  is_path = path.startswith((".", "/", "~")) or "://" in path
  return not is_path and path.count("/") < 2


@dataclasses.dataclass(frozen=True)
class Given:
  """A model that is given by path or hub id, as an input of a step."""

  path: str  # the directory or hub id
  revision: str  # branch, tag or commit of a hub id

  @property
  def directory(self) -> epath.Path:
    """Where it lies, if it is no hub id."""
    return epath.Path(self.path).expanduser()

  @property
  def is_folder(self) -> bool:
    """Whether it is a directory, and no hub id."""
    return self.directory.is_dir()

  def __call__(self) -> str:
    """The fingerprint: of what is read of it, seconds for some GB of weights.

    Of a hub id nothing is known before it is fetched but its revision.
    """
    if not self.is_folder and may_be_hub_id(self.path):
      return files.digest([self.path, self.revision])
    return self._read(resolve(self.path))

  def check(self) -> list[str]:
    """Raises UserError if it is no model; opens no weights, asks no hub."""
    if self.is_folder or not may_be_hub_id(self.path):
      directory = resolve(self.path)
      load_architecture(directory)
      weight_files(directory)
    return []

  def _read(self, directory: epath.Path) -> str:
    # Not of what else config.json says, such as a version of transformers.
    shape = load_architecture(directory).fingerprint
    weights = [files.sha256(gs.copied(p)) for p in weight_files(directory)]
    return files.digest([shape, weights])

  def former(self) -> tuple[str, ...]:
    """Returns earlier versions': of whole files, and of the ends of each."""
    if not self.is_folder:
      return ()
    directory = self.directory
    others = (directory / name for name in ("config.json", INDEX))
    existing = [path for path in others if path.exists()]
    paths = sorted(existing + weight_files(directory))
    whole = [[path.name, files.sha256(gs.copied(path))] for path in paths]
    return files.digest(whole), contents.probe(paths)


class GivenTokenizer(Given):
  """The tokenizer.json of such a model, as an input of a step."""

  @property
  def is_folder(self) -> bool:
    """Whether it is a directory with a tokenizer, and no hub id."""
    return (self.directory / "tokenizer.json").exists()

  def _read(self, directory: epath.Path) -> str:
    if not self.is_folder:
      hint = "give one with a fast tokenizer"
      raise GoneError("no tokenizer.json", str(directory), hint)
    return files.sha256(directory / "tokenizer.json")

  def check(self) -> list[str]:
    """Raises UserError if there is none; asks no hub."""
    if self.directory.exists() or not may_be_hub_id(self.path):
      self._read(resolve(self.path))
    return []

  def former(self) -> tuple[str, ...]:
    """None: it was always this."""
    return ()


def read_json(path: epath.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    UserError: it is not JSON.
  """
  try:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
      raise ValueError("a list or a bare value")
  except (ValueError, RecursionError) as e:
    raise UserError(
      f"this is not a JSON object ({e})", str(path), "fetch it again"
    ) from e
  return content


def load_architecture(directory: epath.Path) -> Architecture:
  """The shape that a directory's config.json describes."""
  path = directory / "config.json"
  if not path.exists():
    hint = "give a Hugging Face model directory"
    raise GoneError("no config.json", str(directory), hint)
  return config_json.read(read_json(path), str(path))


def shape_of(path: str, revision: str | None = None) -> Architecture:
  """The shape of a given model; of a hub id no weight is fetched.

  Raises:
    UserError: no such directory or hub id.
  """
  if path in _KNOWN and not epath.Path(path).exists():
    return architecture.SHAPES[_KNOWN[path]]
  return load_architecture(resolve(path, revision, weights=False))


def weight_files(directory: epath.Path) -> list[epath.Path]:
  """The safetensors files of a model directory.

  Raises:
    UserError: there are none, or one that the index names is missing.
  """
  index = directory / INDEX
  names = ["model.safetensors"]
  if index.exists() and not (directory / names[0]).exists():
    names = _indexed(index)
  missing = [n for n in names if not (directory / n).is_file()]
  if not missing:
    return [directory / name for name in names]
  if list(directory.glob("*.safetensors")):
    hint = "fetch it again"
  elif list(directory.glob("pytorch_model*")):  # of a hub id, the index alone
    hint = (
      "pytorch_model.bin is a pickle, which is never opened; convert it where "
      "you trust it: AutoModelForCausalLM.from_pretrained(folder)"
      ".save_pretrained(new_folder)"
    )
  else:
    hint = (
      "give a directory or hub id with safetensors weights; a pickle .bin is "
      "never opened"
    )
  raise GoneError(f"no {', '.join(missing)}", str(directory), hint)


def _indexed(index: epath.Path) -> list[str]:
  """The files that an index names; they lie beside it.

  Raises:
    UserError: it names none, or something else than such files.
  """
  named = read_json(index).get("weight_map")
  names = list(named.values()) if isinstance(named, dict) else []
  for name in names or [None]:
    if not (isinstance(name, str) and _WEIGHTS.fullmatch(name)):
      raise UserError(
        f"weight_map names {name!r} where a safetensors file of this folder "
        "should stand",
        str(index),
        "fetch it again",
      )
  return sorted(set(names))


def token_ids(directory: epath.Path) -> int:
  """How many ids a directory's tokenizer.json has."""
  body = read_json(directory / "tokenizer.json")
  vocabulary = body["model"]["vocab"]
  known = vocabulary.values() if isinstance(vocabulary, dict) else ()
  added = (token["id"] for token in body.get("added_tokens") or ())
  return max(len(vocabulary) - 1, *known, *added) + 1


def eos_ids(directory: epath.Path) -> tuple[int, ...]:
  """The ids that end a text, by generation_config.json or config.json."""
  for name in ("generation_config.json", "config.json"):
    path = directory / name
    value = read_json(path).get("eos_token_id") if path.exists() else None
    if value is not None:
      ids = tuple(value) if isinstance(value, list) else (value,)
      if not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(
          f"eos_token_id is {value!r}", str(path), "give an id, or a list"
        )
      return ids
  return ()
