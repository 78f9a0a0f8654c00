"""Documents from wherever they are: one list of parts for any source.

A part is read from start to end and becomes one shard of the corpus, so any
part can be made again without the others, by any process.
"""

import functools
import glob
import io
import json
import os
from collections.abc import Sequence

from etils import epath

from miniplm_jax.core import files, gs
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus.records import (
  Broken,
  Document,
  Fields,
  Packed,
  Part,
  Probe,
  document,
  pieces,
)

EMBEDDED = "embedded"  # the text that every installation carries
TFDS, HF = "tfds:", "hf:"  # before a name


def list_parts(
  source: str,
  fields: Fields,
  split: str = "train",
  part_bytes: int = 1 << 28,
) -> list[Part]:
  """The parts of a source.

  Args:
    source: a file, a folder or a glob; "tfds:NAME", "hf:ORG/NAME", a folder
      that either library saved; or "embedded".
    fields: of a record.
    split: of a source that has splits.
    part_bytes: larger files are cut, small texts put together.

  Raises:
    UserError: nothing matches, or a file of an unknown format.
  """
  if source == EMBEDDED:
    from miniplm_jax.corpus import embedded

    return embedded.list_parts()
  if not source:
    raise UserError(
      "no corpus is given", "config.corpus.source", "name a file or folder"
    )
  from miniplm_jax.corpus import datasets

  path = epath.Path(source)
  if source.startswith(TFDS) or datasets.is_tfds(path):
    return datasets.tfds_parts(source, fields, split, part_bytes)
  if source.startswith(HF) or datasets.is_saved(path):
    return datasets.hf_parts(source, fields, split, part_bytes)
  found = _match(path, source)
  if found[0].suffix in (".bin", ".idx"):
    return _megatron_parts(path, found)
  parts = []
  for file in found:
    if not file.name.endswith(_TEXT):
      parts += _record_parts(_name(path, file), file, fields, part_bytes)
  texts = [file for file in found if file.name.endswith(_TEXT)]
  return [*parts, *_text_parts(path, texts, part_bytes)]


def fingerprint(parts: Sequence[Part]) -> str:
  """Of a whole source."""
  return files.digest([[part.name, part.fingerprint()] for part in parts])


_JSON = tuple(
  stem + packed
  for stem in (".jsonl", ".json")
  for packed in ("", ".gz", ".zst")
)
_TEXT = (".txt", ".md")
_MEGATRON = (".bin", ".idx")
_ENDINGS = (*_JSON, ".parquet", *_TEXT, *_MEGATRON)


# Of a folder, what there is of the first of these: a data set may have a
# README beside it, and rows that were packed a list of their sources.
_KINDS = (_MEGATRON, (*_JSON[:3], ".parquet"), _JSON[3:], _TEXT)


def _in_folder(path: epath.Path) -> list[epath.Path]:
  """The files of a folder that are read, none of them hidden."""
  found = files.below(path)
  hidden = [
    any(part.startswith(".") for part in p.relative_to(path).parts)
    for p in found
  ]
  for endings in _KINDS:
    of_kind = [
      p
      for p, is_hidden in zip(found, hidden)
      if p.name.endswith(endings) and not is_hidden
    ]
    if of_kind:
      return of_kind
  return []


def _match(path: epath.Path, source: str) -> list[epath.Path]:
  """The files of a source, sorted."""
  if path.is_dir():
    found = _in_folder(path)
  elif path.exists():
    found = [path]
  elif gs.is_local(path):
    found = [epath.Path(p) for p in glob.glob(source, recursive=True)]
  else:
    found = list(path.parent.glob(path.name))
  known = f"{', '.join(_ENDINGS)}, a folder of them or a glob; {TFDS}NAME, "
  known += f"{HF}ORG/NAME or a folder saved by either library"
  if not found:
    raise UserError(
      "no file of documents is there",
      f"config.corpus.source={source}",
      f"give {known}",
    )
  for file in found:
    if not file.name.endswith(_ENDINGS):
      raise UserError("not a known format", str(file), f"give {known}")
  packed = [file.name.endswith(_MEGATRON) for file in found]
  if any(packed) and not all(packed):
    raise UserError(
      "packed rows (.bin, .idx) and text are mixed",
      f"config.corpus.source={source}",
      "keep them in different folders",
    )
  return sorted(found)


def _name(source: epath.Path, file: epath.Path) -> str:
  """A file's name below the source: a folder may be moved."""
  roots = (p for p in (source, *source.parents) if not glob.has_magic(str(p)))
  root = next(roots, source)
  if root in file.parents:
    return str(file.relative_to(root))
  return file.name


def _record_parts(name: str, file: epath.Path, fields: Fields, part_bytes: int):
  """A file's parts: what can be cut is cut into pieces of so many bytes."""
  default, size = file.name.split(".")[0], file.stat().length
  probe = Probe((file,))
  if file.suffix == ".parquet":
    read, cuts = _read_parquet, _row_groups(file, part_bytes)
  elif file.suffix in (".gz", ".zst"):
    read, cuts = _read_json_lines, [(0, size, size)]
  else:
    read, starts = _read_json_lines, range(0, max(size, 1), part_bytes)
    ends = [min(s + part_bytes, size) for s in starts]
    cuts = [(s, e, e - s) for s, e in zip(starts, ends)]
  for start, end, n_bytes in cuts:
    yield Part(
      name=name if len(cuts) == 1 else f"{name} [{start}:{end}]",
      read=functools.partial(read, file, start, end, fields, default),
      n_bytes=n_bytes,
      fingerprint=probe,
    )


def _row_groups(file: epath.Path, part_bytes: int):
  """(first group, end, bytes) of pieces of a Parquet file."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    with file.open("rb") as f:
      found = pq.ParquetFile(f).metadata
      sizes = [
        found.row_group(i).total_byte_size for i in range(found.num_row_groups)
      ]
  except (pa.ArrowException, OSError) as e:
    raise _not_parquet(file, e) from e
  return pieces(sizes, part_bytes) or [(0, 0, 0)]


def _text_parts(root: epath.Path, texts: list[epath.Path], part_bytes: int):
  """Plain texts, each one document, many of them in a part."""
  if not root.is_dir():
    root = root.parent
  cuts = pieces([file.stat().length for file in texts], part_bytes)
  for start, end, n_bytes in cuts:
    here = texts[start:end]
    yield Part(
      name=f"{_name(root, here[0])} to {_name(root, here[-1])}",
      read=functools.partial(_read_texts, root, here),
      n_bytes=n_bytes,
      fingerprint=Probe(here),
    )


def _read_texts(root: epath.Path, texts: list[epath.Path]):
  """Domain: the folder below `root` that a file lies in, else its own."""
  for file in texts:
    below = file.relative_to(root).parts if root in file.parents else ()
    domain = below[0] if len(below) > 1 else file.parent.name
    try:
      yield Document(file.read_bytes().decode(), domain)
    except UnicodeDecodeError as e:
      yield Broken(f"this text is not UTF-8 ({e})", str(file), "convert it")


def _megatron_parts(source: epath.Path, found: list[epath.Path]):
  """Rows that were packed elsewhere: data_0.bin and .idx, and so on."""
  from miniplm_jax.corpus import megatron

  if source.is_dir():
    prefixes = megatron.shards(source)
  else:
    stems = {os.fspath(file.with_suffix("")) for file in found}
    in_order = sorted(stems, key=lambda s: (len(s), s))  # 2 before 10
    prefixes = [p for stem in in_order for p in megatron.shards(stem)]
  return [
    Part(
      name=f"{epath.Path(prefix).name}.bin",
      read=functools.partial(_read_megatron, prefix),
      n_bytes=epath.Path(f"{prefix}.bin").stat().length,
      fingerprint=Probe((f"{prefix}.bin", f"{prefix}.idx")),
    )
    for prefix in prefixes
  ]


def _read_megatron(prefix):
  from miniplm_jax.corpus import megatron

  rows = megatron.IndexedFile(prefix)
  for i in range(len(rows)):
    yield Packed(rows[i], epath.Path(prefix).parent.name)


def _read_json_lines(path, start, end, fields, default):
  """The lines that begin in [start, end) of the file."""
  # Arrow decompresses; imported here for a quick --help.
  import pyarrow as pa

  after = f" after byte {start}" if start else ""
  number = 0
  try:
    with path.open("rb") as raw:
      stream, packing = raw, {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
      if packing:
        stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), packing)
        stream, end = io.BufferedReader(stream), float("inf")
      elif start:
        stream.seek(start - 1)
        start += len(stream.readline()) - 1  # the rest of a line before
      # Bytes: text mode would end lines at more than \n, and decode ahead.
      while start < end and (line := stream.readline()):
        start += len(line)
        number += 1
        if line.strip():
          where = f"{path} line {number}{after}"
          yield _parse(line, fields, default, where)
  except (OSError, EOFError, pa.ArrowException) as e:
    raise UserError(
      f"this file cannot be read ({e})",
      f"{path} after line {number}{after}",
      "fetch it again",
    ) from e


def _parse(line: bytes, fields, default, where) -> Document | Broken:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as e:
    what = f"this line cannot be read as JSON ({e})"
    return Broken(what, where, "mend or remove the line")
  return document(record, fields, default, where)


def _read_parquet(path, start, end, fields, default):
  """The row groups start … end − 1."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    with path.open("rb") as f:
      file = pq.ParquetFile(f)
      row = sum(file.metadata.row_group(i).num_rows for i in range(start))
      names = {name.split(".")[0] for name in (fields.text, fields.domain)}
      columns = [n for n in file.schema_arrow.names if n in names]
      groups = range(start, end)
      for batch in file.iter_batches(1024, row_groups=groups, columns=columns):
        for record in batch.to_pylist():
          yield document(record, fields, default, f"{path} row {row}")
          row += 1
  except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
    raise _not_parquet(path, e) from e


def _not_parquet(path, e) -> UserError:
  return UserError(
    f"this file cannot be read as Parquet ({e})", str(path), "write it again"
  )
