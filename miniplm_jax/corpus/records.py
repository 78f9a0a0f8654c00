"""What a source consists of: parts, and the records in them."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from miniplm_jax.core import contents, files
from miniplm_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Document:
  """One text and the domain that it belongs to.

  Attributes:
    text: of it.
    domain: its own, or its folder's or file's.
    lacks_domain: there was a field for one, and nothing in it.
  """

  text: str
  domain: str
  lacks_domain: bool = False


@dataclasses.dataclass(frozen=True)
class Packed:
  """Ids that were made elsewhere: a row, or a document that is to be packed.

  Attributes:
    ids: int32; of a row [2 … max_length + 1].
    domain: that they belong to.
    is_row: taken as it is; else one document, with or without its eos.
  """

  ids: np.ndarray
  domain: str
  is_row: bool = True


@dataclasses.dataclass(frozen=True)
class Broken:
  """A record that cannot be used."""

  what: str
  where: str
  hint: str

  @property
  def error(self) -> UserError:
    """As an error."""
    return UserError(self.what, self.where, self.hint)


@dataclasses.dataclass(frozen=True)
class Part:
  """What becomes one shard of the corpus, in reading order.

  Attributes:
    name: of its file below the source, with its range.
    read: yields its records; can be pickled.
    n_bytes: of input, to tell the progress; 0 if it is not known.
    fingerprint: of its files, without reading them whole.
    content: of all that is read of them, as `contents.of` gives it; "" if the
      fingerprint says as much.
    short_name: that sources' fingerprints have, and shards of earlier
      versions; "" is the name.
  """

  name: str
  read: Callable[[], Iterator[Document | Packed | Broken]]
  n_bytes: int
  fingerprint: Callable[[], str]
  content: Callable[[], str] = str
  short_name: str = ""

  @property
  def identity(self) -> str:
    """Of its files, see `contents`, as they are when first asked for."""
    return getattr(self.fingerprint, "identity", "")

  def noted(self, into: dict[str, Any]) -> Iterator[Any]:
    """Its records; at their end notes the content that they were read from.

    Raises:
      UserError: it has changed meanwhile.
    """
    now = getattr(self.fingerprint, "now", str)
    before = now()
    yield from self.read()
    # The bytes are in memory still: a hundredth of the time of tokenizing.
    into |= {"content": self.content(), "identity": before}
    if now() != before:
      raise UserError(
        "this has changed while it was read",
        self.name,
        "run it again when nobody writes to it: it goes on",
      )


@dataclasses.dataclass(frozen=True)
class Fields:
  """Where a record has its text and its domain: dotted paths.

  A document without a domain, or every one if `domain` is "", has that of its
  folder or file.
  """

  text: str = "text"
  domain: str = "domain"


class Probe:
  """Fingerprint of some files, taken once, also for several parts of them."""

  def __init__(
    self, paths: Sequence[epath.PathLike], domains: Sequence[str] = ()
  ):
    """Domains are those that the files' own names do not say."""
    self._paths, self._domains = tuple(paths), tuple(domains)

  def __call__(self) -> str:
    """sha256 of what is known of the files and of their domains."""
    if not any(self._domains):
      return self.of_files
    return files.digest([self.of_files, self._domains])

  @functools.cached_property
  def of_files(self) -> str:
    """As `contents.probe`: what corpora of schema version 1 have."""
    return contents.probe(self._paths)

  @functools.cached_property
  def identity(self) -> str:
    """As `now`, taken once."""
    return self.now()

  def now(self) -> str:
    """sha256 of the files' identities."""
    return files.digest([contents.identity(path) for path in self._paths])


def pieces(sizes: Sequence[int], most: int) -> list[tuple[int, int, int]]:
  """(first, end, size) of runs that are at least `most` large, or one item."""
  cuts, start, total = [], 0, 0
  for i, size in enumerate(sizes):
    total += size
    if total >= most or i == len(sizes) - 1:
      cuts.append((start, i + 1, total))
      start, total = i + 1, 0
  return cuts


def document(
  record: Any, fields: Fields, default: str, where: str
) -> Document | Broken:
  """The document of a record; texts may be bytes, domains may be missing."""
  domain = None
  try:
    text = _field(record, fields.text)
    if fields.domain:
      domain = _field(record, fields.domain)
  except (ValueError, RecursionError) as e:
    what = f"a record in a string cannot be read as JSON ({e})"
    return Broken(what, where, "mend the record")
  try:
    text, domain = (
      v.decode() if isinstance(v, bytes) else v for v in (text, domain)
    )
    for value in (text, domain):
      if isinstance(value, str):
        value.encode()
  except UnicodeError as e:
    what = f"text or domain is not valid Unicode ({e})"
    return Broken(what, where, "mend the record")
  if not isinstance(text, str):
    return Broken(
      f"no text in field {fields.text!r}",
      where,
      "name the field with --config.corpus.text_field, or mend the record",
    )
  if domain is not None and not isinstance(domain, str):
    return Broken(
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
  for name in prefixes(dotted):
    found = _field(record.get(name), dotted[len(name) + 1 :])
    if found is not None:
      return found
  return None


def prefixes(dotted: str) -> list[str]:
  """a, a.b of a.b.c."""
  return list(itertools.accumulate(dotted.split(".")[:-1], "{}.{}".format))


def _mapping(value: Any) -> dict[Any, Any]:
  """A record within a record; Arrow's maps are pairs, others write JSON."""
  if isinstance(value, (str, bytes)) and value.lstrip()[:1] in ("{", b"{"):
    value = json.loads(value)
  if isinstance(value, list) and all(
    isinstance(pair, tuple) and len(pair) == 2 for pair in value
  ):
    value = dict(value)
  return value if isinstance(value, dict) else {}
