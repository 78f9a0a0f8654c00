"""Documents from TensorFlow Datasets and Hugging Face datasets."""

import dataclasses
import functools
import hashlib
import importlib.util
import io
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import contents, errors, files, gs
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus.chunks import (
  BrokenRecord,
  Chunk,
  Document,
  Probe,
  cuts,
  parsing,
)
from miniplm_jax.corpus.documents import columns_read, document

TFDS, HF = "tfds:", "hf:"  # before a name
_OPEN = 4  # data sets that stay open


def is_tfds(path: epath.Path) -> bool:
  """Returns whether a folder is a prepared dataset of tensorflow_datasets."""
  return (path / "features.json").exists()


def is_saved(path: epath.Path) -> bool:
  """Returns whether a folder was written by `datasets.save_to_disk`."""
  # Others write a state.json, too.
  names = ("dataset_dict.json",), ("state.json", "dataset_info.json")
  return any(all((path / n).exists() for n in both) for both in names)


def is_named(source: str) -> bool:
  """Returns whether it is a name, and the data somewhere else."""
  return source.startswith((TFDS, HF))


def identity(source: str, split: str, at: str) -> str:
  """Returns the sha256 of what a name stands for; no data are fetched.

  `at` is the commit of the hub.
  """
  if source.startswith(TFDS):  # each version holds always the same
    return files.digest([_builder(source).info.full_name, split])
  return files.digest([source, split, at])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsChunk(Chunk):
  """A run of the shards of a split of TensorFlow Datasets."""

  source: str  # tfds:NAME or a prepared folder
  rows: str  # of the split, as tensorflow_datasets reads them
  first: int  # of these rows
  corpus: CorpusConfig

  def read(self) -> Iterator[Document | BrokenRecord]:
    """See `Chunk`."""
    source, builder = self.source, _prepared(self.source)
    tfds = library(source)
    if builder.info.file_format.value == "array_record":
      records = builder.as_data_source(split=self.rows)  # without TensorFlow
    else:
      # One file after the other: the order is that of the shards.
      config = tfds.ReadConfig(
        interleave_cycle_length=1, try_autocache=False, skip_prefetch=True
      )
      records = tfds.as_numpy(
        builder.as_dataset(
          split=self.rows, shuffle_files=False, read_config=config
        )
      )
    row = self.first
    with parsing(lambda: f"{source} after row {row}", "prepare it again"):
      for row, record in enumerate(records, self.first):
        where = f"{source} row {row}"
        yield document(record, self.corpus, builder.name, where)


def tfds_chunks(source: str, corpus: CorpusConfig) -> Iterator[TfdsChunk]:
  """Yields the chunks of a split of tfds:NAME or of a prepared folder."""
  builder, split = _prepared(source), corpus.split
  is_light = builder.info.file_format.value == "array_record"
  if not is_light and importlib.util.find_spec("tensorflow") is None:
    what = "TensorFlow, which reads TFRecord, is not installed"
    raise UserError(what, source, "install it, or write ArrayRecord")
  info = builder.info.splits.get(split)
  if info is None:
    raise _no_split(source, split, list(builder.info.splits))
  each = info.num_bytes / max(info.num_examples, 1)
  sizes = [n * each for n in info.shard_lengths]
  ends = [0, *itertools.accumulate(info.shard_lengths)]
  each_path = sorted(map(str, info.filepaths))
  for start, end, n_bytes in cuts(sizes, corpus.part_bytes):
    rows = f"{split}[{ends[start]}:{ends[end]}]"
    yield TfdsChunk(
      name=f"{_short(source)} {rows}",
      n_bytes=int(n_bytes),
      probe=Probe(each_path[start:end]),
      source=source,
      rows=rows,
      first=ends[start],
      corpus=corpus,
    )


def _state(source: str) -> tuple:
  """What tells a folder here from itself after others wrote into it."""
  if is_named(source) or not gs.is_local(source):
    return ()
  paths = filter(os.path.isfile, sorted(pathlib.Path(source).rglob("*")))
  return tuple((p, p.stat().st_ino, *contents.identity(p)) for p in paths)


def _kept_open(opened: Callable[..., Any]) -> Callable[..., Any]:
  """Keeps the last data sets open, while nobody writes into their folders."""
  known = functools.lru_cache(_OPEN)(lambda state, *names: opened(*names))
  return functools.wraps(opened)(lambda *names: known(_state(names[0]), *names))


@_kept_open
def _builder(source: str) -> Any:
  tfds = library(source)
  with _reading(source, "look at its name, or give a prepared folder"):
    if not source.startswith(TFDS):
      return tfds.builder_from_directory(source)
    return tfds.builder(source.removeprefix(TFDS))


def _prepared(source: str) -> Any:
  builder = _builder(source)
  if source.startswith(TFDS):
    with _reading(source, "look at the message, or give a prepared folder"):
      builder.download_and_prepare()  # unless it was
  return builder


def library(where: str) -> Any:
  """Returns TensorFlow Datasets; UserError says where it is missed."""
  what = "TensorFlow Datasets is not installed"
  hint = "pip install tensorflow-datasets importlib-resources"
  return errors.library("tensorflow_datasets", what, where, hint)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubChunk(Chunk):
  """A file of a data set of the hub, or a run of its rows if it is kept here.

  The fingerprint says its commit, and so its content.
  """

  source: str  # hf:ORG/NAME, with the commit
  split: str
  start: int  # row or file
  end: int
  corpus: CorpusConfig

  def read(self) -> Iterator[Document | BrokenRecord]:
    """See `Chunk`."""
    rows = _dataset(self.source, self.split)
    domain, row, of = _domain(self.source), self.start, ""
    hint = "write it again"
    if self.source.startswith(HF):
      hint = "run it again: it goes on with what is missing"
    # Of others not even what they hold need be decoded.
    columns = columns_read(self.corpus)
    columns = [name for name in rows.column_names or () if name in columns]
    with parsing(lambda: f"{self.source} after row {row}{of}", hint):
      if columns:
        rows = rows.select_columns(columns)
      if hasattr(rows, "data"):
        row_ids = range(self.start, min(self.end, len(rows)))
        records = ((i, rows[i]) for i in row_ids)
      else:
        of = f" of file {self.start}"
        shard = rows.shard(num_shards=rows.num_shards, index=self.start)
        records = enumerate(shard)
      for row, record in records:
        where = f"{self.source} row {row}{of}"
        yield document(record, self.corpus, domain, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedChunk(HubChunk):
  """A run of the rows of a folder that `datasets.save_to_disk` wrote."""

  def content(self) -> str:
    """See `Chunk`."""
    import pyarrow as pa

    rows = _dataset(self.source, self.split).with_format("arrow")
    table = rows[self.start : min(self.end, len(rows))].combine_chunks()
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


def hf_chunks(source: str, corpus: CorpusConfig, at: str) -> list[HubChunk]:
  """Returns the chunks of hf:ORG/NAME[/CONFIG][@REVISION] or a saved folder.

  Of the hub the files of the split are streamed, a chunk each; offline, what
  the library has kept is taken by runs of rows, as of a folder. Of the hub's
  commits the one `at`, or today's.
  """
  named, at, split = source, at or commit(source), corpus.split
  is_of_hub = source.startswith(HF)
  if is_of_hub:
    # Every process reads the same commit, whenever it begins.
    path, config, revision = _of_hub(source)
    source = HF + "/".join([path, *config])
    source += f"@{at or revision}" if at or revision else ""
  rows = _dataset(source, split)
  if is_of_hub:
    kind, probe = HubChunk, Probe(name=identity(named, split, at))
  else:
    paths = [file["filename"] for file in rows.cache_files]
    kind, probe = SavedChunk, Probe(paths, (_domain(source),))
  if hasattr(rows, "num_shards") and not hasattr(rows, "data"):
    n = rows.num_shards
    info = (rows.info.splits or {}).get(split)
    n_bytes = ((info and info.num_bytes) or 0) // max(n, 1)
    runs = [(f" file {i} of {n}", i, i + 1, n_bytes) for i in range(n)]
  else:
    each = max(rows.data.nbytes // max(len(rows), 1), 1)
    most = max(corpus.part_bytes // each, 1)
    runs = [
      (f"[{s}:{s + most}]", s, s + most, min(most, len(rows) - s) * each)
      for s in range(0, max(len(rows), 1), most)
    ]
  return [
    kind(
      name=f"{_short(named)} {split}{its_range}",
      n_bytes=n_bytes,
      probe=probe,
      source=source,
      split=split,
      start=start,
      end=end,
      corpus=corpus,
    )
    for its_range, start, end, n_bytes in runs
  ]


def _domain(source: str) -> str:
  name = source.removeprefix(HF).partition("@")[0]
  return epath.Path(name).name


@functools.cache
def commit(source: str) -> str:
  """Returns the commit of the hub of a source; "" offline, or of others.

  Raises:
    UserError: the hub has no such data set or revision, or does not answer.
  """
  if not source.startswith(HF):
    return ""
  import huggingface_hub
  from huggingface_hub import errors as of_hub

  path, _, revision = _of_hub(source)
  if re.fullmatch("[0-9a-f]{40}", revision or ""):
    return revision
  missing = (
    of_hub.RepositoryNotFoundError,
    of_hub.RevisionNotFoundError,
    of_hub.HFValidationError,
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
  what = "Hugging Face datasets are read with the library `datasets`"
  where = f"config.corpus.source={source}"
  return errors.library("datasets", what, where, "pip install datasets")


@_kept_open
def _dataset(source: str, split: str) -> Any:
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
    saved = datasets.load_from_disk(source).with_format(None)
  if not isinstance(saved, datasets.DatasetDict):
    return saved
  if split not in saved:
    raise _no_split(source, split, list(saved))
  return saved[split]


def _reading(source: str, hint: str):
  return parsing(lambda: f"config.corpus.source={source}", hint)


def _short(source: str) -> str:
  """A name, or a folder's: it may be moved."""
  return source if ":" in source else epath.Path(source).name


def _no_split(source: str, split: str, splits: list[str]) -> UserError:
  return UserError(
    f"there is no split {split!r}",
    f"config.corpus.source={source}",
    f"set --config.corpus.split to one of {', '.join(splits)}",
  )
