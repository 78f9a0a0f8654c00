"""What a record says of a document: text, domain, numbers, id and split.

A row of the corpus has, of each number, the mean over its documents, weighted
by how many tokens of each stand in it. Of ids it has 64-bit hashes, so that
numbers can be joined later.
"""

import hashlib
import itertools
import json
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from etils import epy

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import fields
from miniplm_jax.corpus.chunks import BrokenRecord, Document, Record

with epy.lazy_imports():
  import pyarrow as pa

  from miniplm_jax.corpus import pack, store

# Of each row: its documents' ids, and how many tokens of each stand in it.
IDS, TOKENS = "document_ids", "document_tokens"
NO_ID = 0  # a document without one
_MOST = float(np.finfo(np.float32).max)


def prefixes(dotted: str) -> list[str]:
  """Returns a and a.b of a.b.c."""
  return list(itertools.accumulate(dotted.split(".")[:-1], "{}.{}".format))


def columns_read(corpus: CorpusConfig) -> set[str]:
  """Names of columns that what is read of a record may stand in."""
  return {name for d in corpus.read_paths for name in (d, *prefixes(d))}


def document(
  record: Any, corpus: CorpusConfig, default: str, where: str
) -> Document | BrokenRecord:
  """Returns the document of a record.

  Texts may be bytes, and its domain missing: then it has the default. A number
  that is missing is NaN.
  """
  own_id = ""

  def broken(what: str, hint: str = "mend the record") -> BrokenRecord:
    return BrokenRecord(what, where, hint, own_id)

  try:
    fields_of = [path and _field(record, path) for path in corpus.own_paths]
    numbers_of = [_field(record, path) for path in corpus.field_paths]
    text, domain, its_id, split = (
      v.decode() if isinstance(v, bytes) else v for v in fields_of
    )
    its_id = "" if its_id is None else str(its_id)
    for value in (its_id, text, domain):
      if isinstance(value, str):
        value.encode()
    own_id = its_id
  except UnicodeError as e:
    return broken(f"text or domain is not valid Unicode ({e})")
  except (ValueError, RecursionError) as e:
    return broken(f"a record in a string cannot be read as JSON ({e})")
  if not isinstance(text, str):
    hint = "name the field with --config.corpus.text_field, or mend the record"
    names = record if text is None and isinstance(record, dict) else ()
    others = f"; the fields are {', '.join(names)[:80]}" * bool(names)
    return broken(f"no text in field {corpus.text_field!r}{others}", hint)
  if domain is not None and not isinstance(domain, str):
    what = f"the domain in field {corpus.domain_field!r} is no text but "
    hint = "name the field with --config.corpus.domain_field, or give '' to "
    return broken(f"{what}{domain!r}", f"{hint}name domains after files")
  split = "" if split is None else split
  if not (isinstance(split, str) and split in ("", *store.SPLITS)):
    what = f"field {corpus.split_field!r} is no split but {fields.shown(split)}"
    return broken(what, f"give one of {', '.join(store.SPLITS)}, or none")
  for path, value in zip(corpus.field_paths, numbers_of):
    if not (value is None or _is_number(value)):
      what = f"field {path!r} is no number of 32 bits but {fields.shown(value)}"
      return broken(what, "mend the record, or carry another field")
  values = (math.nan if v is None else float(v) for v in numbers_of)
  lacks_domain = bool(corpus.domain_field) and not domain
  domain, values = domain or default, tuple(values)
  return Document(text, domain, lacks_domain, own_id, values, split)


def _field(record: Any, dotted: str) -> Any:
  """What stands there, in maps of any kind; names may have dots, too."""
  record = _mapping(record)
  if dotted in record:
    return record[dotted]
  for name in prefixes(dotted):
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


def _is_number(value: Any) -> bool:
  """Whether float32 can hold it, if only as NaN."""
  try:
    is_one = isinstance(value, numbers.Number | np.bool_)
    return is_one and not abs(float(value)) > _MOST
  except OverflowError:
    return False


def id_hash(doc_id: str) -> int:
  """The 64-bit hash of a document's id."""
  digest = hashlib.blake2b(doc_id.encode(), digest_size=8).digest()
  return int.from_bytes(digest, "little") if doc_id else NO_ID


def names(settings: Mapping[str, Any]) -> tuple[str, ...]:
  """The names of the numbers that a corpus has, by its manifest's settings."""
  return tuple(fields.field_of(text)[0] for text in settings.get("fields", ()))


def schema(fields: Sequence[str], has_ids: bool) -> dict[str, Any]:
  """The columns that an index has for them, with their Arrow types."""
  ids = {IDS: pa.list_(pa.uint64()), TOKENS: pa.list_(pa.int32())}
  return dict.fromkeys(fields, pa.float32()) | (ids if has_ids else {})


class Carried(NamedTuple):
  """What a row has of one of its documents."""

  ordinal: int  # of the document, in its chunk
  numbers: Sequence[float] = ()  # of `corpus.fields`; () are all missing
  doc_id: str = ""
  split: str = ""

  @classmethod
  def of(cls, ordinal: int, record: Record) -> Self:
    """Of files of text, and of ids that were made elsewhere, nothing else."""
    if isinstance(record, Document):
      return cls(ordinal, record.numbers, record.doc_id, record.split)
    return cls(ordinal)

  def lacks(self, fields: Sequence[str], has_ids: bool) -> list[str]:
    """What it does not have, of what was asked for."""
    values = itertools.zip_longest(fields, self.numbers, fillvalue=math.nan)
    lacking = [name for name, value in values if math.isnan(value)]
    return lacking + ["an id"] * (has_ids and not self.doc_id)


def columns(
  row: "pack.PackedRow", fields: Sequence[str], has_ids: bool
) -> dict[str, Any]:
  """The columns of `schema` of a row whose documents are `Carried`."""
  spans = [span for span in zip(row.documents, row.tokens) if span[1]]
  tokens, one = [n for _, n in spans], np.zeros(len(spans), np.int64)
  found = {}
  for i, name in enumerate(fields):
    values = [d.numbers[i] if d.numbers else math.nan for d, _ in spans]
    found[name] = mean_by_row(np.array(values), tokens, one, 1)[0]
  if has_ids:
    found |= {IDS: [id_hash(d.doc_id) for d, _ in spans], TOKENS: tokens}
  return found


def mean_by_row(
  values: np.ndarray, tokens: Iterable[int], row: np.ndarray, rows: int
) -> np.ndarray:
  """float32 [rows]: the mean of each row's spans, weighted by tokens.

  Args:
    values: float [spans]; NaN does not count.
    tokens: int [spans], of each span.
    row: int [spans], the row of each, below `rows`.
    rows: how many there are; one without a value is NaN.
  """
  is_there = ~np.isnan(values)
  weight = np.asarray(tokens, np.float64)[is_there]
  total, weights = (
    np.bincount(row[is_there], w, rows)
    for w in (weight * values[is_there], weight)
  )
  with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
    return (total / weights).astype(np.float32)
