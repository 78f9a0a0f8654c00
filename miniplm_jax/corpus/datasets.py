"""Documents from TensorFlow Datasets and Hugging Face datasets."""

import functools
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from miniplm_jax.core import contents, files, gs
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import formats
from miniplm_jax.corpus.readers import HF, TFDS
from miniplm_jax.corpus.records import (
  Broken,
  Document,
  Fields,
  Part,
  Probe,
  document,
  pieces,
)

_OPEN = 4  # data sets that stay open


def is_tfds(path: epath.Path) -> bool:
  """Whether a folder is a prepared dataset of tensorflow_datasets."""
  return (path / "features.json").exists()


def is_saved(path: epath.Path) -> bool:
  """Whether a folder was written by `datasets.save_to_disk`."""
  # Others write a state.json, too.
  names = ("dataset_dict.json",), ("state.json", "dataset_info.json")
  return any(all((path / n).exists() for n in both) for both in names)


def is_named(source: str) -> bool:
  """Whether it is a name, and the data somewhere else."""
  return source.startswith((TFDS, HF))


def identity(source: str, split: str, at: str) -> str:
  """sha256 of what a name stands for; of the data nothing is fetched.

  Args:
    source: tfds:NAME, whose versions hold always the same, or hf:ORG/NAME.
    split: that is read.
    at: the commit of the hub.
  """
  if source.startswith(TFDS):
    return files.digest([_builder(source).info.full_name, split])
  return files.digest([source, split, at])


def tfds_parts(
  source: str, fields: Fields, split: str, part_bytes: int
) -> list[Part]:
  """Runs of a split's shards; source is tfds:NAME or a prepared folder."""
  builder = _prepared(source)
  info = builder.info.splits.get(split)
  if info is None:
    raise _no_split(source, split, list(builder.info.splits))
  lengths = info.shard_lengths
  each = info.num_bytes / max(info.num_examples, 1)
  paths, first, found = sorted(map(str, info.filepaths)), 0, []
  for start, end, n_bytes in pieces([n * each for n in lengths], part_bytes):
    rows = sum(lengths[start:end])
    read = f"{split}[{first}:{first + rows}]"
    found.append(
      Part(
        name=f"{_short(source)} {read}",
        read=functools.partial(_read_tfds, source, first, read, fields),
        n_bytes=int(n_bytes),
        fingerprint=Probe(paths[start:end]),
        content=functools.partial(contents.of, paths[start:end]),
      )
    )
    first += rows
  return found


def _state(source: str) -> list[tuple]:
  """What tells a folder here from itself after others wrote into it."""
  if is_named(source) or not gs.is_local(source):
    return []
  paths = filter(os.path.isfile, sorted(pathlib.Path(source).rglob("*")))
  return [
    (path, path.stat().st_ino, *contents.identity(path)) for path in paths
  ]


def _builder(source: str) -> Any:
  return _known_builder(source, *_state(source))


@functools.lru_cache(_OPEN)
def _known_builder(source: str, *unused_state) -> Any:
  import tensorflow_datasets as tfds

  with _reading(source, "look at its name, or give a prepared folder"):
    if not source.startswith(TFDS):
      return tfds.builder_from_directory(source)
    return tfds.builder(source.removeprefix(TFDS))


def _prepared(source: str) -> Any:
  if source.startswith(TFDS):
    _prepare(source)
  return _builder(source)


@functools.cache
def _prepare(source: str):
  with _reading(source, "look at the message, or give a prepared folder"):
    _builder(source).download_and_prepare()


def _read_tfds(
  source: str, first: int, read: str, fields: Fields
) -> Iterator[Document | Broken]:
  import tensorflow_datasets as tfds

  builder = _prepared(source)
  if builder.info.file_format.value == "array_record":
    records = builder.as_data_source(split=read)  # without TensorFlow
  else:
    # One file after the other: the order is that of the shards.
    config = tfds.ReadConfig(
      interleave_cycle_length=1, try_autocache=False, skip_prefetch=True
    )
    records = tfds.as_numpy(
      builder.as_dataset(split=read, shuffle_files=False, read_config=config)
    )
  row = first
  with formats.parsing(lambda: f"{source} after row {row}", "prepare it again"):
    for row, record in enumerate(records, first):
      yield document(record, fields, builder.name, f"{source} row {row}")


def hf_parts(
  source: str, fields: Fields, split: str, part_bytes: int, at: str = ""
) -> list[Part]:
  """Parts of hf:ORG/NAME[/CONFIG][@REVISION], at a commit, or a saved folder.

  Of the hub the files of the split are streamed, a part each; offline, what
  the library has kept is taken by runs of rows, as of a folder.
  """
  named, domain, at = source, _domain(source), at or commit(source)
  if source.startswith(HF):
    # Every process reads the same commit, whenever it begins.
    path, config, revision = _of_hub(source)
    source = HF + "/".join([path, *config])
    source += f"@{at or revision}" if at or revision else ""
  rows = _dataset(source, split)
  if source.startswith(HF):
    fingerprint = functools.partial(str, identity(named, split, at))
    content = None
  else:
    paths = [file["filename"] for file in rows.cache_files]
    fingerprint, content = Probe(paths, (domain,)), _saved_content
  if hasattr(rows, "num_shards") and not hasattr(rows, "data"):
    n = rows.num_shards
    info = (rows.info.splits or {}).get(split)
    n_bytes = ((info and info.num_bytes) or 0) // max(n, 1)
    cuts = [(i, i + 1, n_bytes) for i in range(n)]
    names = [f" file {i} of {n}" for i in range(n)]
  else:
    each = max(rows.data.nbytes // max(len(rows), 1), 1)
    most = max(part_bytes // each, 1)
    starts = range(0, max(len(rows), 1), most)
    cuts = [(s, s + most, min(most, len(rows) - s) * each) for s in starts]
    names = [f"[{start}:{end}]" for start, end, _ in cuts]
  return [
    Part(
      name=f"{_short(named)} {split}{name}",
      read=functools.partial(_read_hf, source, split, start, end, fields),
      n_bytes=n_bytes,
      fingerprint=fingerprint,
      content=functools.partial(content, source, split, start, end)
      if content
      else str,
    )
    for name, (start, end, n_bytes) in zip(names, cuts)
  ]


def _domain(source: str) -> str:
  name = source.removeprefix(HF).partition("@")[0]
  return epath.Path(name).name


@functools.cache
def commit(source: str) -> str:
  """The commit of the hub that a source stands for; "" offline, or of others.

  Raises:
    UserError: the hub has no such data set or revision, or does not answer.
  """
  if not source.startswith(HF):
    return ""
  import huggingface_hub
  from huggingface_hub import errors

  path, _, revision = _of_hub(source)
  if re.fullmatch("[0-9a-f]{40}", revision or ""):
    return revision
  missing = (
    errors.RepositoryNotFoundError,
    errors.RevisionNotFoundError,
    errors.HFValidationError,
  )
  try:
    api = huggingface_hub.HfApi()
    return api.dataset_info(path, revision=revision, timeout=30).sha
  except Exception as e:
    is_missing = isinstance(e, missing)
    if not is_missing and _library(source).config.HF_HUB_OFFLINE:
      return ""  # what was kept is read
    with _reading(source, _NAMES if is_missing else _AGAIN):
      raise ValueError(f"{type(e).__name__}: {e}") from e


_AGAIN = "run it again when the hub answers, or name hf:ORG/NAME@COMMIT"
_NAMES = "give hf:ORG/NAME[/CONFIG][@REVISION] or a folder of save_to_disk"


def _of_hub(source: str) -> tuple[str, list[str], str | None]:
  """(id, [configuration] or [], revision) of hf:ORG/NAME/CONFIG@REVISION."""
  name, _, revision = source.removeprefix(HF).partition("@")
  org, name, *config = f"{name}/".split("/")
  path = f"{org}/{name}".rstrip("/")  # old names have no organization
  return path, list(filter(None, config)), revision or None


def _library(source: str) -> Any:
  try:
    import datasets
  except ImportError as e:
    raise UserError(
      "Hugging Face datasets are read with the library `datasets`",
      f"config.corpus.source={source}",
      "pip install datasets",
    ) from e
  return datasets


def _dataset(source: str, split: str) -> Any:
  return _known_dataset(source, split, *_state(source))


@functools.lru_cache(_OPEN)
def _known_dataset(source: str, split: str, *unused_state) -> Any:
  datasets = _library(source)
  with _reading(source, f"set --config.corpus.split, or {_NAMES}"):
    if source.startswith(HF):
      path, config, revision = _of_hub(source)
      return datasets.load_dataset(
        path,
        *config,
        split=split,
        revision=commit(source) or revision,
        # Else all splits are fetched, and kept a second time.
        streaming=not datasets.config.HF_HUB_OFFLINE,
      )
    # A format may be of some columns only.
    found = datasets.load_from_disk(source).with_format(None)
  if not isinstance(found, datasets.DatasetDict):
    return found
  if split not in found:
    raise _no_split(source, split, list(found))
  return found[split]


def _read_hf(
  source: str, split: str, start: int, end: int, fields: Fields
) -> Iterator[Document | Broken]:
  """The rows [start, end), or those of the files."""
  rows, domain, row, of = _dataset(source, split), _domain(source), start, ""
  hint = "write it again"
  if source.startswith(HF):
    hint = "run it again: it goes on with what is missing"
  # Of others not even what they hold need be decoded.
  names = [n for n in rows.column_names or () if n in formats.names(fields)]
  with formats.parsing(lambda: f"{source} after row {row}{of}", hint):
    if names:
      rows = rows.select_columns(names)
    if hasattr(rows, "data"):
      records = ((i, rows[i]) for i in range(start, min(end, len(rows))))
    else:
      of = f" of file {start}"
      shard = rows.shard(num_shards=rows.num_shards, index=start)
      records = enumerate(shard)
    for row, record in records:
      yield document(record, fields, domain, f"{source} row {row}{of}")


def _saved_content(source: str, split: str, start: int, end: int) -> str:
  """A digest of the rows [start, end) of a saved folder."""
  import pyarrow as pa

  rows = _dataset(source, split).with_format("arrow")
  table = rows[start : min(end, len(rows))].combine_chunks()
  sink = _Hashing()
  with pa.ipc.new_stream(pa.PythonFile(sink, "w"), table.schema) as writer:
    writer.write_table(table)
  return f"rows {sink.total.hexdigest()}"


class _Hashing(io.RawIOBase):
  """A file that nothing is kept of but its sha256."""

  def __init__(self):
    self.total = hashlib.sha256()

  def writable(self) -> bool:
    return True

  def write(self, content) -> int:
    self.total.update(content)
    return len(content)


def _reading(source: str, hint: str):
  return formats.parsing(lambda: f"config.corpus.source={source}", hint)


def _short(source: str) -> str:
  """A name, or a folder's: it may be moved."""
  return source if ":" in source else epath.Path(source).name


def _no_split(source: str, split: str, splits: list[str]) -> UserError:
  return UserError(
    f"there is no split {split!r}",
    f"config.corpus.source={source}",
    f"set --config.corpus.split to one of {', '.join(splits)}",
  )
