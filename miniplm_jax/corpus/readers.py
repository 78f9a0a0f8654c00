"""Documents from files: JSON lines (.gz, .zst) and Parquet.

A source is a list of parts; a part is read from start to end and becomes one
shard of the corpus, so any part can be made again without the others.
"""

import dataclasses
import glob
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.errors import UserError

EMBEDDED = "embedded"  # the text that every installation carries


@dataclasses.dataclass(frozen=True)
class Document:
  """One text and the domain that it belongs to."""

  text: str
  domain: str


@dataclasses.dataclass(frozen=True)
class Part:
  """Documents that become one shard of the corpus, in reading order."""

  name: str
  read: Callable[[], Iterator[Document]]


def list_parts(
  source: str, text_field: str, domain_field: str
) -> tuple[list[Part], Callable[[], str]]:
  """The parts of a source, and how to fingerprint it.

  Args:
    source: "embedded", or a file, a directory or a glob; .jsonl, .json,
      .parquet, and the first two with .gz or .zst.
    text_field: name of the text, a dotted path.
    domain_field: name of the domain, a dotted path; a document without it,
      or every document if it is "", is named after its file.

  Raises:
    UserError: nothing matches, or a file of an unknown format.
  """
  if source == EMBEDDED:
    from miniplm_jax.corpus import embedded

    return embedded.list_parts()
  paths = _match(source)
  parts = []
  for path in paths:
    fields = text_field, domain_field, path.name.split(".")[0]
    if path.suffix == ".parquet":
      read = _bind(_read_parquet, path, fields)
    else:
      read = _bind(_read_json_lines, path, fields)
    parts.append(Part(str(path), read))
  return parts, lambda: files.probe(paths)


def _bind(function, path, fields):
  return lambda: function(path, *fields)


_ENDINGS = tuple(
  stem + packed
  for stem in (".jsonl", ".json")
  for packed in ("", ".gz", ".zst")
)


def _match(source: str) -> list[epath.Path]:
  path = epath.Path(source)
  if not source:
    raise UserError(
      "no corpus is given", "config.corpus.source", "name a file or folder"
    )
  if path.is_dir():
    found = [p for p in path.iterdir() if p.is_file()]
    found = [p for p in found if p.name.endswith((*_ENDINGS, ".parquet"))]
  elif path.exists():
    found = [path]
  elif files.is_local(path):
    found = [epath.Path(p) for p in glob.glob(source, recursive=True)]
  else:
    found = list(path.parent.glob(path.name))
  if not found:
    raise UserError(
      "no file of documents is there",
      f"config.corpus.source={source}",
      "give a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file, a folder of "
      "them or a glob",
    )
  for file in found:
    if not file.name.endswith((*_ENDINGS, ".parquet")):
      raise UserError(
        "not a known format",
        str(file),
        f"give one of {', '.join(_ENDINGS)}, .parquet",
      )
  return sorted(found)


def _read_json_lines(path, text_field, domain_field, default):
  # Arrow decompresses; imported here for a quick --help.
  import pyarrow as pa

  number = 0
  try:
    with path.open("rb") as raw:
      stream = pa.PythonFile(raw, mode="r")
      if packing := {".gz": "gzip", ".zst": "zstd"}.get(path.suffix):
        stream = pa.CompressedInputStream(stream, packing)
      # Bytes: text mode would end lines at more than \n, and decode ahead.
      for number, line in enumerate(io.BufferedReader(stream), 1):
        if line.strip():
          where = f"{path} line {number}"
          record = json.loads(line)
          yield _document(record, text_field, domain_field, default, where)
  except (ValueError, RecursionError) as e:
    raise UserError(
      f"this line cannot be read as JSON ({e})",
      f"{path} line {number}",
      "mend or remove the line",
    ) from e


def _read_parquet(path, text_field, domain_field, default):
  import pyarrow as pa
  import pyarrow.parquet as pq

  row = 0
  try:
    with path.open("rb") as f:
      for batch in pq.ParquetFile(f).iter_batches(1024):
        for record in batch.to_pylist():
          where = f"{path} row {row}"
          yield _document(record, text_field, domain_field, default, where)
          row += 1
  except (pa.ArrowException, UnicodeDecodeError) as e:
    raise UserError(
      f"this file cannot be read as Parquet ({e})",
      f"{path} near row {row}",
      "write it again",
    ) from e


def _document(record, text_field, domain_field, default, where) -> Document:
  text = _field(record, text_field)
  if not isinstance(text, str):
    raise UserError(
      f"no text in field {text_field!r}",
      where,
      "name the field with --config.corpus.text_field, or mend the record",
    )
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise UserError(
      f"the text is not valid Unicode ({e})", where, "mend the record"
    ) from e
  domain = _field(record, domain_field) if domain_field else None
  if domain is not None and not isinstance(domain, str):
    raise UserError(
      f"the domain in field {domain_field!r} is no text but {domain!r}",
      where,
      "name the field with --config.corpus.domain_field, or give '' to name "
      "domains after files",
    )
  return Document(text, domain or default)


def _field(record: Any, dotted: str) -> Any:
  for name in dotted.split("."):
    record = record.get(name) if isinstance(record, dict) else None
  return record
