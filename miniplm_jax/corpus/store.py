"""The packed corpus on disk: ArrayRecord shards and a columnar index.

`instances-*` hold the rows; `index-*.parquet` holds what can be known of a
row without reading it. A row's id is its position in the whole corpus.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import msgpack
import numpy as np
from etils import epath

from miniplm_jax.core import distributed, errors, fields, files
from miniplm_jax.core.array_records import Readers
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log, warn
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import CONVERTED, GENERATED, TARGET
from miniplm_jax.corpus import columns, tokenizer
from miniplm_jax.corpus.tokenizer import Tokenizer

# What a row is for. Disjoint by construction: see `split_of`.
SPLITS = ("train", "reference", "heldout", "teacher")

# group_size 1: random access reads one row; larger groups are 10× slower.
_WRITER_OPTIONS = "group_size:1,zstd:1"

FILE = "file"  # in an index: size and sha256 of its rows' file
_AT_A_TIME = 65_536  # rows of the index that are held as Python objects
_BATCH = 512  # rows that are read at a time

# Columns of the index and their Arrow types.
_INDEX = {
  "domain": "string",
  "split": "string",
  "n_tokens": "int32",
  "n_bytes": "int32",
  "hash": "uint64",
}


@dataclasses.dataclass(frozen=True)
class StoredRow:
  """One packed row, as written."""

  ids: np.ndarray  # int32 [2 … max_length + 1]
  domain: str  # a row never mixes domains
  split: str  # one of `SPLITS`
  part: int  # number of its shard
  documents: tuple[int, ...]  # ordinals of its documents in that shard's chunk
  offset: int  # tokens of the first document that stand before this row
  # UTF-8 bytes of the text whose tokens are scored: of targets whose input is
  # no eos, without eos.
  n_bytes: int
  hash: int  # of the ids; equal rows have equal ones
  # In a converted or generated corpus, the rows of the one that it was made
  # from that it has text of.
  source_rows: tuple[int, ...] = ()
  has_own_split: bool = False  # its documents say it, see corpus.split_field
  # Further columns of the index, see `documents.schema`; not in the record.
  more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def n_tokens(self) -> int:
    """The number of its ids."""
    return len(self.ids)

  def to_bytes(self) -> bytes:
    """Returns the record: a msgpack map, ids as little-endian int32."""
    ids = np.ascontiguousarray(self.ids, "<i4").tobytes()
    body = vars(self) | {"ids": ids}
    del body["more"]
    rare = "source_rows", "has_own_split"
    body = {k: v for k, v in body.items() if k not in rare or v}
    return msgpack.packb(body)

  @classmethod
  def from_bytes(cls, record: bytes) -> "StoredRow":
    """Reads what `to_bytes` wrote."""
    body = msgpack.unpackb(record, use_list=False)
    ids = np.frombuffer(body.pop("ids"), "<i4")
    return cls(ids=ids, **body)


def hash_of(ids: np.ndarray, seed: int) -> int:
  """Returns a seeded 64-bit hash of a row's ids."""
  key = seed.to_bytes(8, "little", signed=True)
  content = np.ascontiguousarray(ids, "<i4").tobytes()
  value = hashlib.blake2b(content, digest_size=8, key=key).digest()
  return int.from_bytes(value, "big")


def scored_bytes(ids: np.ndarray, eos_id: int, byte_lengths: np.ndarray) -> int:
  """Returns the UTF-8 bytes of targets whose input is no eos."""
  return int(byte_lengths[ids[1:][ids[:-1] != eos_id]].sum())


def split_of(hashed: int, shares: Sequence[tuple[str, float]]) -> str:
  """Returns the split of a row by the hash of its content.

  Equal rows go to the same split, so the reference never trains on a copy
  of a row that is scored. Of all splits but "train", which takes the rest,
  there is a (split, share).
  """
  point = hashed / 2**64
  for split, share in shares:
    if point < share:
      return split
    point -= share
  return "train"


def shard_names(number: int, shards: int) -> tuple[str, str]:
  """Returns the file names of a shard's rows and of their index."""
  tail = f"{number:05d}-of-{shards:05d}"
  return f"instances-{tail}.array_record", f"index-{tail}.parquet"


def write_shard(
  directory: epath.Path,
  names: tuple[str, str],
  rows: Iterable[StoredRow],
  counts: Mapping[str, int],
  details: Mapping[str, Any] | None = None,
  row_ids: Sequence[int] | None = None,
  more: Mapping[str, Any] | None = None,
):
  """Writes one shard; its index is renamed last and so marks it whole.

  Args:
    names: of the rows' file and of the index's, from `shard_names`.
    counts: what was counted; read when `rows` is exhausted, like `details`.
    details: what else to know of the shard, JSON.
    row_ids: for the index; without, from 0, until `merge` numbers all shards.
    more: further columns of the index, by name, and their Arrow types.
  """
  import pyarrow as pa
  from array_record.python.array_record_module import ArrayRecordWriter

  records, index = names
  schema, tables = pa.schema(_INDEX | (more or {})), []
  values_of = {name: [] for name in schema.names}

  def flush():
    tables.append(pa.table(values_of, schema=schema))
    for values in values_of.values():
      values.clear()

  with files.replacing(directory / records) as scratch:
    writer = ArrayRecordWriter(str(scratch), _WRITER_OPTIONS)
    for row in rows:
      distributed.raise_if_stopped()
      writer.write(row.to_bytes())
      of_row = vars(row) | row.more | {"n_tokens": row.n_tokens}
      for name, values in values_of.items():
        values.append(of_row[name])
      if len(values_of["hash"]) == _AT_A_TIME:  # Python's objects are large
        flush()
    writer.close()
    # Here it is on a disk of this machine; a corpus on gs:// would have to be
    # fetched for its manifest.
    written = files.describe(scratch)
  flush()
  table = pa.concat_tables(tables)
  if row_ids is None:
    row_ids = np.arange(len(table))
  table = columns.numbered(table, row_ids)
  facts = {"counts": counts, "details": details or {}, FILE: written}
  facts[columns.DIGEST] = columns.digest(table, facts)
  table = table.replace_schema_metadata(
    {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
  )
  columns.write(directory / index, table)


def has(directory: epath.Path, names: tuple[str, str], made_by=None) -> bool:
  """Returns whether both files of a shard are there, as long as written.

  An index that is damaged, or was not `made_by` this, is refused.
  """
  records, index = (directory / name for name in names)
  if not (records.exists() and index.exists()):
    return False
  written = columns.facts(index, made_by=made_by).get(FILE)  # none in old ones
  return not written or records.stat().length == written["bytes"]


def merge(
  directory: epath.Path, shards: int, made_by: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
  """Numbers the rows; returns counts and files of the corpus's manifest.

  An index that is damaged, or was not `made_by` this, is refused.
  """
  names = [shard_names(number, shards) for number in range(shards)]

  def check(own):
    return columns.facts(directory / own[1], True, made_by)

  def describe(own, facts, first):
    records, index = (directory / name for name in own)
    columns.number(index, first)
    written = facts.get(FILE) or files.describe(records)  # of old versions
    return dict(zip(own, (written, files.describe(index))))

  counts, described = collections.Counter(), {}
  with futures.ThreadPoolExecutor(columns.AT_ONCE) as pool:
    facts = list(pool.map(check, names))
    rows = [one["counts"].get("rows", 0) for one in facts]
    firsts = itertools.accumulate(rows, initial=0)
    for one, its_files in zip(facts, pool.map(describe, names, facts, firsts)):
      distributed.raise_if_stopped()
      counts.update(one["counts"])
      described |= its_files
  return dict(counts) | {"parts": shards, "rows_by_part": rows}, described


class Corpus:
  """Random access to the rows of a packed corpus, by row id."""

  def __init__(self, manifest: Manifest):
    """Opens what a manifest describes, if its files are of their sizes."""
    manifest.check_sizes()
    self.manifest = manifest
    self.directory = directory = manifest.directory
    self.parts = parts = manifest.counts["parts"]
    self._ends = np.cumsum(manifest.counts["rows_by_part"])
    self._readers = Readers(
      lambda part: directory / shard_names(part, parts)[0]
    )

  def __len__(self) -> int:
    return self.manifest.counts["rows"]

  @property
  def eos_id(self) -> int:
    """The end-of-document id."""
    return self.manifest.details["eos_id"]

  @property
  def ids(self) -> int:
    """The highest id of a row and one more; the tokenizer's, if not noted."""
    details = self.manifest.details
    return details.get("highest_id", details["vocab_size"] - 1) + 1

  @property
  def bos_id(self) -> int | None:
    """The id that texts follow in rows, and so every row's first, if any."""
    return self.manifest.details.get("bos_id")

  @property
  def max_length(self) -> int:
    """The longest input; rows hold up to one id more."""
    return self.manifest.settings["max_length"]

  @functools.cached_property
  def index(self) -> columns.Columns:
    """The columns [rows]: domain, split, n_tokens, n_bytes and hash."""
    names = [shard_names(part, self.parts)[1] for part in range(self.parts)]
    return columns.Columns(self.manifest, names)

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """The number of ids in each row, int32 [rows]."""
    return self.index["n_tokens"].to_numpy()

  @functools.cached_property
  def hashes(self) -> np.ndarray:
    """The hash of each row's ids, uint64 [rows]."""
    return self.index["hash"].to_numpy()

  def domains(self, row_ids: np.ndarray | None = None) -> np.ndarray:
    """Returns the domain names, an object array, of some rows or of all."""
    codes, names = self.domain_codes
    return names[codes if row_ids is None else codes[row_ids]]

  @functools.cached_property
  def domain_codes(self) -> tuple[np.ndarray, np.ndarray]:
    """Each row's domain as a code, int32 [rows]; the names, object [codes]."""
    return columns.coded(self.index["domain"])

  def rows_of(self, split: str) -> np.ndarray:
    """Returns int64 row ids of a split, ascending."""
    return self.index.rows_where("split", split)

  def heldout_rows(
    self, most: int, ignore_domains: Sequence[str] = ()
  ) -> np.ndarray:
    """Returns int64 held-out row ids, at most so many, evenly spaced; 0 is all.

    Rows of the domains in `ignore_domains` are left out before.
    """
    rows = self.rows_of("heldout")
    if ignore_domains:
      rows = rows[~np.isin(self.domains(rows), list(ignore_domains))]
    # The first ones would be those of the first documents.
    return rows[:: fields.stride(len(rows), most)]

  def warn_of_missing(self, domains: Collection[str], stage: str):
    """Says which domains of `evaluate.ignore_domains` no row is of."""
    # No error: a config of one corpus, as the demo's, may be used with others.
    names = self.domain_codes[1].tolist() if domains else []
    for domain in sorted({*domains} - {*names}):
      warn(
        stage,
        f"no row is of domain {domain!r}, which "
        "config.evaluate.ignore_domains leaves out",
      )

  def check_vocabulary(self, vocab_size: int, where: str, hint: str):
    """Raises UserError if there are ids that a model does not have."""
    if self.ids > vocab_size:
      what = f"the corpus has {self.ids} token ids, the model {vocab_size}"
      raise UserError(what, where, hint)

  def check_model(self, folder: epath.Path, vocab_size: int):
    """Refuses a model that reads these ids as other text, or lacks some.

    Without a tokenizer in its Hugging Face directory it is taken to have the
    corpus's, and a line says so.

    Raises:
      UserError: the tokenizers differ in tokens that rows may have.
    """
    hint = "tokenize the corpus with the model's tokenizer"
    if (folder / "tokenizer.json").exists():
      ours = self.tokenizer()
      theirs = tokenizer.load(folder, ours.eos_token)
      theirs.warn_of_bos("score", ours.bos_token)
      # They may differ in tokens that no row has.
      if ours.model(self.ids) != theirs.model(self.ids):
        raise UserError(
          "the model has another tokenizer than the corpus",
          f"{folder / 'tokenizer.json'} and {self.directory / 'tokenizer'}",
          hint,
        )
    else:
      log("score", f"no tokenizer.json in {folder}: taken to be the corpus's")
    self.check_vocabulary(vocab_size, str(folder), hint)

  def tokenizer(self) -> Tokenizer:
    """Returns its own tokenizer, if that is the one it was made with."""
    settings, folder = self.manifest.settings, self.directory / "tokenizer"
    without_bos = tokenizer.load(folder, settings["eos_token"])
    now, then = without_bos.fingerprint, self.manifest.tokenizer
    if now != then:
      raise UserError(
        f"the tokenizer is {now[:12]}, the corpus was made with {then[:12]}",
        str(folder),
        self.manifest.remedy,
      )
    # Of converted corpora earlier versions noted it in the settings alone.
    bos_token = (settings | self.manifest.details).get("bos_token")
    if not bos_token:
      return without_bos
    return tokenizer.load(folder, settings["eos_token"], bos_token)

  def read(self, row_ids: Sequence[int]) -> list[StoredRow]:
    """Returns the rows with these ids, in this order.

    Raises:
      UserError: a shard is damaged or holds other rows than its index says.
    """
    row_ids = np.asarray(row_ids, np.int64)
    parts = np.searchsorted(self._ends, row_ids, "right")
    rows: list[Any] = [None] * len(row_ids)
    for part in np.unique(parts).tolist():
      places = np.flatnonzero(parts == part)
      first = self._ends[part - 1] if part else 0
      local = (row_ids[places] - first).tolist()
      path = self.directory / shard_names(part, self.parts)[0]
      with errors.parsing(path, self.manifest.remedy):
        for i, record in zip(places, self._readers.read(part, local)):
          rows[i] = row = StoredRow.from_bytes(record)
          if row.hash != self.hashes[row_ids[i]]:
            raise ValueError(f"row {row_ids[i]} is another than in the index")
    return rows


def read_each(corpus: Corpus, row_ids: np.ndarray) -> Iterator[StoredRow]:
  """Yields the rows with these ids, in this order, a few hundred in memory."""
  for start in range(0, len(row_ids), _BATCH):
    distributed.raise_if_stopped()
    yield from corpus.read(row_ids[start : start + _BATCH])


def open_corpus(inputs: Mapping[str, Manifest]) -> Corpus:
  """Returns the corpus of a step: of its own text, if it has such a one."""
  names = (CONVERTED, TARGET, GENERATED, "corpus")
  return Corpus(next(inputs[name] for name in names if name in inputs))
