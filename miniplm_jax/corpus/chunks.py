"""What a source consists of: chunks, and the records in them.

A chunk is read from start to end and becomes one shard of the corpus, so any
shard can be made again without the others, by any process.
"""

import abc
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from miniplm_jax.core import contents, errors, files
from miniplm_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class BrokenRecord:
  """A record that cannot be used; the fields are those of a `UserError`."""

  what: str
  where: str
  hint: str
  doc_id: str = ""  # as of a `Document`

  def to_json(self) -> dict[str, str]:
    """Returns it as shards and samples on disk have it."""
    return {"what": self.what, "where": self.where, "todo": self.hint}


@dataclasses.dataclass(frozen=True)
class Document:
  """One text and the domain that it belongs to."""

  text: str
  domain: str  # the record's own, or that of its folder or file
  lacks_domain: bool = False  # the record has a field for it, left empty
  doc_id: str = ""  # what the record calls it, if that was asked for
  numbers: tuple[float, ...] = ()  # of `corpus.fields`; NaN is none
  split: str = ""  # one of `store.SPLITS`, if the record says it


@dataclasses.dataclass(frozen=True)
class TokenizedRecord:
  """Ids that were made elsewhere: a row, or a document that is to be packed."""

  ids: np.ndarray  # int32; a row has 2 … max_length + 1
  domain: str
  # A row is taken as it is. A document may end with its eos, or without.
  is_row: bool = True


Record = Document | TokenizedRecord | BrokenRecord
# For what others wrote.
parsing = functools.partial(errors.parsing, what="this cannot be read")


class Probe:
  """What tells some files from others before they are read.

  It is taken once for all chunks of them. A data set of which its name says all
  has no files that anybody could touch.
  """

  def __init__(
    self,
    paths: Sequence[epath.PathLike] = (),
    domains: Sequence[str] = (),
    name: str = "",
  ):
    """Reads nothing yet; `domains` are those that no file's own name says."""
    self.paths, self._domains, self._name = tuple(paths), tuple(domains), name

  @functools.cached_property
  def fingerprint(self) -> str:
    """The sha256 of what is known of the files and of their domains."""
    if not any(self._domains):
      return self.of_files
    return files.digest([self.of_files, self._domains])

  @functools.cached_property
  def of_files(self) -> str:
    """The sha256 without domains, as corpora of schema version 1 have it."""
    return self._name or contents.probe(self.paths)

  @functools.cached_property
  def identity(self) -> str:
    """What `identity_now` returned at first."""
    return self.identity_now()

  def identity_now(self) -> str:
    """Returns the sha256 of the files' identities, see `contents.identity`."""
    if self._name:
      return ""
    return files.digest([contents.identity(path) for path in self.paths])


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
    """Yields its records in order; UserError if a file cannot be read."""

  def content(self) -> str:
    """Returns `contents.of` all that is read; "" if the fingerprint says it."""
    return contents.of(self.probe.paths) if self.probe.paths else ""

  @property
  def short_name(self) -> str:
    """Its name in sources' fingerprints, and in shards of earlier versions."""
    return self.name


class Reading:
  """A chunk's records, and what they were read from."""

  content: str = ""  # the chunk's; known when all records were taken
  identity: str = ""  # the probe's, of before

  def __init__(self, chunk: Chunk):
    """Reads nothing yet."""
    self._chunk = chunk

  def __iter__(self) -> Iterator[Record]:
    """Yields the records; UserError if the chunk has changed meanwhile."""
    probe = self._chunk.probe
    self.identity = probe.identity_now()
    yield from self._chunk.read()
    # The bytes are in memory still: a hundredth of the time of tokenizing.
    self.content = self._chunk.content()
    if probe.identity_now() != self.identity:
      raise UserError(
        "this has changed while it was read",
        self._chunk.name,
        "run it again when nobody writes to it: it goes on",
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextChunk(Chunk):
  """Plain texts, each of them one document."""

  domains: tuple[str, ...]  # of each file of the probe

  def read(self) -> Iterator[Document | BrokenRecord]:
    """See `Chunk`."""
    for path, domain in zip(self.probe.paths, self.domains, strict=True):
      try:
        yield Document(path.read_bytes().decode("utf-8-sig"), domain)
      except UnicodeDecodeError as e:
        what = f"this text is not UTF-8 ({e})"
        yield BrokenRecord(what, str(path), "convert it")


def cuts(sizes: Sequence[int], least: int) -> list[tuple[int, int, int]]:
  """Returns (first, end, size) of runs of at least that size, but the last."""
  runs, start, total = [], 0, 0
  for i, size in enumerate(sizes):
    total += size
    if total >= least or i == len(sizes) - 1:
      runs.append((start, i + 1, total))
      start, total = i + 1, 0
  return runs
