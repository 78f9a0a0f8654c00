"""Evaluation items: their files, their texts, and the n-grams of these.

As in GPT-3's report (arXiv 2005.14165, appendix C): lower case, punctuation
stripped, 13 words in a row.
"""

import collections
import glob
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq
from etils import epath

from miniplm_jax.core import gs
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.corpus import formats
from miniplm_jax.corpus.chunks import BrokenRecord, parsing

WORDS = 13  # of an n-gram
SHORTEST = 8  # a text of fewer words is not looked for

_MARKS = re.compile(r"[^\w\s]|_")
# The same of bytes: ten times as fast, where all are ASCII.
_ASCII = [chr(i) for i in range(128)]
_SPACES = bytes.maketrans(
  bytes(i for i, c in enumerate(_ASCII) if c.isspace()),
  b" " * sum(c.isspace() for c in _ASCII),
)
_DROPPED = "".join(filter(_MARKS.match, _ASCII)).encode()


def paths(
  patterns: Sequence[str], field: str = "evaluation_sets"
) -> list[epath.Path]:
  """The files that paths or globs name.

  Raises:
    UserError: nothing matches, or it is of an unknown format.
  """
  found = []
  for pattern in patterns:
    new = [path for path in matching(pattern) if not path.is_dir()]
    if not new:
      raise GoneError(
        "no file of evaluation items is there",
        f"config.select.{field}={pattern}",
        "give files or globs of .jsonl, .json or .parquet",
      )
    found += new
  return list(dict.fromkeys(found))


def matching(pattern: str) -> list[epath.Path]:
  """The files and folders that a path or a glob names, in their order."""
  path = epath.Path(pattern)
  if path.exists():
    return [path]
  if gs.is_local(path):
    return [epath.Path(p) for p in sorted(glob.glob(str(path)))]
  return sorted(path.parent.glob(path.name))


def names_of(sets: Sequence[epath.Path]) -> list[str]:
  """File names; with as many folders before them as tell them apart."""
  names = [path.name for path in sets]
  for depth in range(2, max((len(path.parts) for path in sets), default=0) + 1):
    count = collections.Counter(names)
    names = [
      "/".join(path.parts[-depth:]) if count[name] > 1 else name
      for path, name in zip(sets, names)
    ]
  return names


def words(text: str) -> list[str]:
  """Lower case, punctuation stripped."""
  return _MARKS.sub("", text.lower()).split()


def byte_words(text: bytes) -> list[bytes]:
  """`words` of UTF-8."""
  if text.isascii():
    return text.lower().translate(_SPACES, _DROPPED).split()
  return [word.encode() for word in words(text.decode(errors="replace"))]


def read_texts(
  path: epath.Path, field: str = "evaluation_sets"
) -> Iterator[list[str]]:
  """The texts of each record of a file, in the order of its fields.

  Raises:
    UserError: the file cannot be read, or has no record.
  """
  items = 0
  hint = "give .jsonl, .json (with .gz or .zst) or .parquet"
  with parsing(lambda: f"{path} after item {items}", hint):
    for record in _records(path):
      items += 1
      yield list(dict.fromkeys(_strings(record)))
  if not items:
    raise UserError(
      "this file of evaluation items is empty",
      f"{path}, config.select.{field}",
      "give files with a record for each item",
    )


def _records(path: epath.Path) -> Iterator[Any]:
  if path.suffix == ".parquet":
    with path.open("rb") as f:
      for batch in pq.ParquetFile(f).iter_batches():
        yield from batch.to_pylist()
    return
  for _, record in formats.json_records(path, 0, math.inf):
    if isinstance(record, BrokenRecord):
      raise UserError(record.what, record.where, record.hint)
    yield record


def _strings(record: Any) -> Iterator[str]:
  if isinstance(record, str):
    yield record
  elif isinstance(record, dict | list):
    for value in record.values() if isinstance(record, dict) else record:
      yield from _strings(value)


def ngrams(texts: Sequence[str]) -> set[tuple[str, ...]]:
  """The n-grams of an item: of each text, and of all of them joined.

  A text of `SHORTEST` to `WORDS` words is one n-gram, a shorter one is none.
  """
  return {
    tuple(parts[i : i + n])
    for parts, n in searched(texts)
    for i in range(len(parts) - n + 1)
  }


def searched(texts: Sequence[str]) -> Iterator[tuple[list[str], int]]:
  """Yields the words of each text that is looked for, and n of its n-grams."""
  for text in (*texts, " ".join(texts)):
    parts = words(text)
    if len(parts) >= SHORTEST:
      yield parts, min(len(parts), WORDS)


def locate(texts: Sequence[str], row: str) -> int:
  """Where in a row's text the first n-gram of an item begins, or 0."""
  grams = ngrams(texts)
  lengths = {len(gram) for gram in grams}
  places = [(words(m[0]), m.start()) for m in re.finditer(r"\S+", row)]
  places = [(word[0], start) for word, start in places if word]
  for i, (_, start) in enumerate(places):
    for n in lengths:
      if tuple(word for word, _ in places[i : i + n]) in grams:
        return start
  return 0
