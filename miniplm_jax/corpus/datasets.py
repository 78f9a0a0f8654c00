"""Documents from TensorFlow Datasets and Hugging Face datasets."""

import functools
from collections.abc import Iterator
from typing import Any

from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.errors import UserError
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


def is_tfds(path: epath.Path) -> bool:
  """Whether a folder is a prepared dataset of tensorflow_datasets."""
  return (path / "features.json").exists()


def is_saved(path: epath.Path) -> bool:
  """Whether a folder was written by `datasets.save_to_disk`."""
  names = "dataset_dict.json", "state.json"
  return any((path / name).exists() for name in names)


def tfds_parts(
  source: str, fields: Fields, split: str, part_bytes: int
) -> list[Part]:
  """Runs of a split's shards; source is tfds:NAME or a prepared folder."""
  builder = _builder(source)
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
      )
    )
    first += rows
  return found


@functools.cache
def _builder(source: str) -> Any:
  import tensorflow_datasets as tfds

  try:
    if not source.startswith(TFDS):
      return tfds.builder_from_directory(source)
    found = tfds.builder(source.removeprefix(TFDS))
    found.download_and_prepare()
  except (ValueError, OSError, tfds.core.DatasetNotFoundError) as e:
    raise UserError(
      f"this dataset cannot be prepared ({_first_line(e)})",
      f"config.corpus.source={source}",
      "look at its name, or give the folder of a prepared dataset",
    ) from e
  return found


def _read_tfds(
  source: str, first: int, read: str, fields: Fields
) -> Iterator[Document | Broken]:
  import tensorflow_datasets as tfds

  builder = _builder(source)
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
  for i, record in enumerate(records):
    where = f"{source} row {first + i}"
    yield document(record, fields, builder.name, where)


def hf_parts(
  source: str, fields: Fields, split: str, part_bytes: int
) -> list[Part]:
  """Runs of rows; source is hf:ORG/NAME[/CONFIG] or a saved folder."""
  rows = _dataset(source, split)
  each = max(rows.data.nbytes // max(len(rows), 1), 1)
  most = max(part_bytes // each, 1)
  return [
    Part(
      name=f"{_short(source)} {split}[{start}:{start + most}]",
      read=functools.partial(_read_hf, source, split, start, most, fields),
      n_bytes=min(most, len(rows) - start) * each,
      fingerprint=functools.partial(_fingerprint_of_rows, source, split),
    )
    for start in range(0, max(len(rows), 1), most)
  ]


def _fingerprint_of_rows(source: str, split: str) -> str:
  if not source.startswith(HF):
    found = _dataset(source, split).cache_files
    return files.probe([file["filename"] for file in found])
  return files.digest([source, split])  # the hub's revision is not known


@functools.cache
def _dataset(source: str, split: str) -> Any:
  try:
    import datasets
  except ImportError as e:
    raise UserError(
      "Hugging Face datasets are read with the library `datasets`",
      f"config.corpus.source={source}",
      "pip install datasets",
    ) from e
  try:
    if source.startswith(HF):
      org, name, *config = f"{source.removeprefix(HF)}/".split("/")
      path = f"{org}/{name}".rstrip("/")  # old names have no organisation
      found = datasets.load_dataset(path, *filter(None, config))
    else:
      found = datasets.load_from_disk(source)
  except (ValueError, OSError, LookupError, RuntimeError) as e:
    raise UserError(
      f"this dataset cannot be read ({_first_line(e)})",
      f"config.corpus.source={source}",
      "give hf:ORG/NAME, hf:ORG/NAME/CONFIG or a folder of save_to_disk",
    ) from e
  if not isinstance(found, datasets.DatasetDict):
    return found
  if split not in found:
    raise _no_split(source, split, list(found))
  return found[split]


def _read_hf(
  source: str, split: str, start: int, most: int, fields: Fields
) -> Iterator[Document | Broken]:
  rows = _dataset(source, split)
  default = epath.Path(source).name.removeprefix(HF)
  for i in range(start, min(start + most, len(rows))):
    yield document(rows[i], fields, default, f"{source} row {i}")


def _short(source: str) -> str:
  """A name, or a folder's: it may be moved."""
  return source if ":" in source else epath.Path(source).name


def _first_line(e: Exception) -> str:
  return next(iter(str(e).splitlines()), type(e).__name__)


def _no_split(source: str, split: str, splits: list[str]) -> UserError:
  return UserError(
    f"there is no split {split!r}",
    f"config.corpus.source={source}",
    f"set --config.corpus.split to one of {', '.join(splits)}",
  )
