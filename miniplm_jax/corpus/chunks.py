"""What a source consists of: chunks, and the records in them.

A chunk is read from start to end and becomes one shard of the corpus, so any
shard can be made again without the others, by any process.
"""

import abc
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from miniplm_jax.core import contents, files
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import formats, megatron
from miniplm_jax.corpus.formats import BrokenRecord, Fields


@dataclasses.dataclass(frozen=True)
class Document:
  """One text and the domain that it belongs to."""

  text: str
  domain: str  # the record's own, or that of its folder or file
  lacks_domain: bool = False  # the record has a field for it, left empty


@dataclasses.dataclass(frozen=True)
class PackedIds:
  """Ids that were made elsewhere: a row, or a document that is to be packed."""

  ids: np.ndarray  # int32; a row has 2 … max_length + 1
  domain: str
  # A row is taken as it is. A document may end with its eos, or without.
  is_row: bool = True


Record = Document | PackedIds | BrokenRecord


class Probe:
  """What tells some files from others before they are read.

  It is taken once for all chunks of them.
  """

  def __init__(
    self, paths: Sequence[epath.PathLike], domains: Sequence[str] = ()
  ):
    """Reads nothing yet; `domains` are those that no file's own name says."""
    self._paths, self._domains = tuple(paths), tuple(domains)

  @functools.cached_property
  def fingerprint(self) -> str:
    """The sha256 of what is known of the files and of their domains."""
    if not any(self._domains):
      return self.of_files
    return files.digest([self.of_files, self._domains])

  @functools.cached_property
  def of_files(self) -> str:
    """The sha256 without domains, as corpora of schema version 1 have it."""
    return contents.probe(self._paths)

  @functools.cached_property
  def identity(self) -> str:
    """What `identity_now` returned at first."""
    return self.identity_now()

  def identity_now(self) -> str:
    """Returns the sha256 of the files' identities, see `contents.identity`."""
    return files.digest([contents.identity(path) for path in self._paths])


class NamedProbe(Probe):
  """The probe of what its name alone tells, with no file to look at."""

  def __init__(self, fingerprint: str):
    """Takes the fingerprint of what the name stands for."""
    super().__init__(())
    self.fingerprint = self.of_files = fingerprint
    self.identity = ""

  def identity_now(self) -> str:
    """Returns "": there is nothing that anybody could touch."""
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk(abc.ABC):
  """A piece of a source, which becomes one shard of the corpus.

  It goes to other processes, so its fields can be pickled.
  """

  name: str  # of its file below the source, with its range
  n_bytes: int  # of input, to tell the progress; 0 if nobody knows
  probe: Probe  # of its files

  @abc.abstractmethod
  def read(self) -> Iterator[Record]:
    """Yields its records in the order of the source."""

  def content(self) -> str:
    """Returns a digest of all that `read` reads, see `contents.of`.

    It is "" if the fingerprint says as much.
    """
    return ""

  @property
  def short_name(self) -> str:
    """Its name in sources' fingerprints, and in shards of earlier versions."""
    return self.name

  def noted(self, into: dict[str, Any]) -> Iterator[Record]:
    """Yields its records; at their end notes the content they were read from.

    Raises:
      UserError: it has changed meanwhile.
    """
    before = self.probe.identity_now()
    yield from self.read()
    # The bytes are in memory still: a hundredth of the time of tokenizing.
    into |= {"content": self.content(), "identity": before}
    if self.probe.identity_now() != before:
      raise UserError(
        "this has changed while it was read",
        self.name,
        "run it again when nobody writes to it: it goes on",
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordChunk(Chunk):
  """A range of a file of records, in what its format counts."""

  path: epath.Path
  start: int
  end: int  # the first that is not in it
  fields: Fields
  domain: str  # of a record that has none

  def _documents(
    self, placed: Iterable[formats.Placed]
  ) -> Iterator[Document | BrokenRecord]:
    for where, record in placed:
      yield document(record, self.fields, self.domain, where)


class JsonChunk(RecordChunk):
  """The lines that begin in a range of a file's bytes, or its whole array."""

  cuts = staticmethod(formats.json_cuts)

  def read(self) -> Iterator[Document | BrokenRecord]:
    """See `Chunk` and `formats.read_json`."""
    placed = formats.read_json(self.path, self.start, self.end)
    return self._documents(placed)

  def content(self) -> str:
    """See `Chunk`."""
    return formats.json_content(self.path, self.start, self.end)


class ParquetChunk(RecordChunk):
  """A run of a Parquet file's row groups."""

  cuts = staticmethod(formats.parquet_cuts)

  def read(self) -> Iterator[Document | BrokenRecord]:
    """See `Chunk` and `formats.read_parquet`."""
    groups = self.path, self.start, self.end, self.fields
    return self._documents(formats.read_parquet(*groups))

  def content(self) -> str:
    """See `Chunk`."""
    groups = self.path, self.start, self.end, self.fields
    return formats.parquet_content(*groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextChunk(Chunk):
  """Plain texts, each of them one document."""

  paths: tuple[epath.Path, ...]
  domains: tuple[str, ...]  # of each text

  def read(self) -> Iterator[Document | BrokenRecord]:
    """See `Chunk`."""
    for path, domain in zip(self.paths, self.domains, strict=True):
      try:
        yield Document(path.read_bytes().decode("utf-8-sig"), domain)
      except UnicodeDecodeError as e:
        what = f"this text is not UTF-8 ({e})"
        yield BrokenRecord(what, str(path), "convert it")

  def content(self) -> str:
    """See `Chunk`."""
    return contents.of(self.paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MegatronChunk(Chunk):
  """A pair of .bin and .idx: rows, or documents if its index has them."""

  prefix: str  # of both files, without .bin and .idx
  domain: str

  @property
  def short_name(self) -> str:
    """See `Chunk`."""
    return f"{epath.Path(self.prefix).name}.bin"

  def read(self) -> Iterator[PackedIds]:
    """See `Chunk`.

    Raises:
      UserError: a file is damaged.
    """
    with formats.parsing(lambda: self.prefix, "fetch it again"):
      rows = megatron.IndexedFile(self.prefix)
      if rows.documents is None:
        for i in range(len(rows)):
          yield PackedIds(rows[i], self.domain)
        return
      for first, end in itertools.pairwise(rows.documents.tolist()):
        ids = [np.zeros(0, np.int32), *(rows[i] for i in range(first, end))]
        yield PackedIds(np.concatenate(ids), self.domain, is_row=False)

  def content(self) -> str:
    """See `Chunk`."""
    return contents.of([f"{self.prefix}.bin", f"{self.prefix}.idx"])


def document(
  record: Any, fields: Fields, default: str, where: str
) -> Document | BrokenRecord:
  """Returns the document of a record.

  Args:
    record: what a format holds; texts may be bytes, domains may be missing. One
      that is broken already stays so.
    fields: where its text and domain are.
    default: its domain if it has none.
    where: it is from, for an error.
  """
  if isinstance(record, BrokenRecord):
    return record
  domain = None
  try:
    text = _field(record, fields.text)
    if fields.domain:
      domain = _field(record, fields.domain)
  except (ValueError, RecursionError) as e:
    what = f"a record in a string cannot be read as JSON ({e})"
    return BrokenRecord(what, where, "mend the record")
  try:
    text, domain = (
      v.decode() if isinstance(v, bytes) else v for v in (text, domain)
    )
    for value in (text, domain):
      if isinstance(value, str):
        value.encode()
  except UnicodeError as e:
    what = f"text or domain is not valid Unicode ({e})"
    return BrokenRecord(what, where, "mend the record")
  if not isinstance(text, str):
    return BrokenRecord(
      f"no text in field {fields.text!r}",
      where,
      "name the field with --config.corpus.text_field, or mend the record",
    )
  if domain is not None and not isinstance(domain, str):
    return BrokenRecord(
      f"the domain in field {fields.domain!r} is no text but {domain!r}",
      where,
      "name the field with --config.corpus.domain_field, or give '' to name "
      "domains after files",
    )
  lacks_domain = bool(fields.domain) and not domain
  return Document(text, domain or default, lacks_domain)


def _field(record: Any, dotted: str) -> Any:
  """What stands there, in maps of any kind; names may have dots, too."""
  record = _mapping(record)
  if dotted in record:
    return record[dotted]
  for name in formats.prefixes(dotted):
    value = _field(record.get(name), dotted[len(name) + 1 :])
    if value is not None:
      return value
  return None


def _mapping(value: Any) -> dict[Any, Any]:
  """A record within a record; Arrow's maps are pairs, others write JSON."""
  if isinstance(value, (str, bytes)) and value.lstrip()[:1] in ("{", b"{"):
    value = json.loads(value)
  if isinstance(value, list) and all(
    isinstance(pair, tuple) and len(pair) == 2 for pair in value
  ):
    value = dict(value)
  return value if isinstance(value, dict) else {}
