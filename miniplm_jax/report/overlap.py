"""Evaluation items whose words stand in the rows: n-gram contamination.

As in GPT-3's report (arXiv 2005.14165, appendix C): lower case, punctuation
stripped, 13 words in a row. N-grams are compared as 64-bit hashes.
"""

import collections
import dataclasses
import glob
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from miniplm_jax.core import fields, gs
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.splitmix import GOLDEN, mix
from miniplm_jax.corpus import formats
from miniplm_jax.corpus.chunks import BrokenRecord, parsing
from miniplm_jax.corpus.kept_rows import among
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.selection import index

WORDS = 13  # of an n-gram
SHORTEST = 8  # a text of fewer words is not looked for
_MOST = 200_000  # rows of D that are read
_BATCH = 512  # rows that are searched together
_WORST = 3  # items that are shown

_MARKS = re.compile(r"[^\w\s]|_")


@dataclasses.dataclass(frozen=True)
class Match:
  """An item that was found."""

  texts: list[str]  # of the item
  share: float  # of its n-grams, those that were found
  row_id: int  # a row that has one of them, a kept one if there is one


@dataclasses.dataclass(frozen=True)
class Overlap:
  """One evaluation set beside the rows."""

  name: str  # its file's, see `names_of`
  items: int  # its records
  too_short: int  # items without a text that is long enough
  found: int  # items with an n-gram in the rows of D that were read
  found_kept: int  # likewise, in kept rows
  rows: int  # rows with an n-gram of the set
  kept_rows: int  # of these
  rows_read: int  # rows of D that were read
  kept_read: int  # of these
  worst: list[Match]  # the items of which most was found


def paths(patterns: Sequence[str]) -> list[epath.Path]:
  """The files that paths or globs name.

  Raises:
    UserError: nothing matches, or it is of an unknown format.
  """
  files = []
  for pattern in patterns:
    path = epath.Path(pattern)
    if path.exists():
      new = [path]
    elif gs.is_local(path):
      new = [epath.Path(p) for p in sorted(glob.glob(str(path)))]
    else:
      new = sorted(path.parent.glob(path.name))
    new = [p for p in new if not p.is_dir()]
    if not new:
      raise UserError(
        "no file of evaluation items is there",
        f"config.select.evaluation_sets={pattern}",
        "give files or globs of .jsonl, .json or .parquet",
      )
    files += new
  return list(dict.fromkeys(files))


def rows_to_read(corpus: Corpus, most: int = _MOST) -> np.ndarray:
  """int64 ids of all rows of D, or of evenly spaced ones if there are more."""
  size = index.size_of_d(corpus)
  return index.at(corpus, np.arange(0, size, fields.stride(size, most)))


def measure(
  corpus: Corpus,
  rows: np.ndarray,
  sets: Sequence[epath.Path],
  ids: np.ndarray,
  done: Callable[[int], None] = lambda n: None,
) -> list[Overlap]:
  """Looks for the items of evaluation sets in decoded rows of D.

  Args:
    rows: the kept ids, ascending.
    ids: of the rows that are read, see `rows_to_read`.
    done: is told how many more rows have been read.
  """
  texts = (list(read_texts(path)) for path in sets)
  grams = _Grams(list(zip(names_of(sets), texts)))
  kept = among(ids, rows)
  tokenizer = corpus.tokenizer()
  for start in range(0, len(ids), _BATCH):
    batch = ids[start : start + _BATCH]
    texts = [_text(tokenizer, row.ids) for row in corpus.read(batch)]
    grams.search(texts, batch, kept[start : start + _BATCH])
    done(len(batch))
  return grams.overlaps(len(ids), int(kept.sum()))


def _text(tokenizer, ids: np.ndarray) -> str:
  """The documents of a row; no word goes from one into another, or into eos."""
  each = np.split(ids, np.flatnonzero(ids == tokenizer.eos_id) + 1)
  sized = tokenizer.byte_lengths  # of BOS, eos and the unknown token 0
  return " ".join(tokenizer.decode(part[sized[part] > 0]) for part in each)


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


def read_texts(path: epath.Path) -> Iterator[list[str]]:
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
      f"{path}, config.select.evaluation_sets",
      "give files with a record for each item",
    )


def _records(path: epath.Path) -> Iterator[Any]:
  if path.suffix == ".parquet":
    import pyarrow.parquet as pq

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
  grams = set()
  for text in (*texts, " ".join(texts)):
    parts = words(text)
    if len(parts) >= SHORTEST:
      n = min(len(parts), WORDS)
      grams |= {tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)}
  return grams


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


class _Grams:
  """The n-grams of all items, and where they were found."""

  def __init__(self, sets: Sequence[tuple[str, list[list[str]]]]):
    self._sets = sets
    self._number: dict[str, int] = {}  # of a word; 0 is any other
    hashes, self._items = [], []  # [set][item] → indices of n-grams
    for _, items in sets:
      self._items.append([])
      for texts in items:
        new = [self._hash(gram) for gram in sorted(ngrams(texts))]
        self._items[-1].append(np.arange(len(hashes), len(hashes) + len(new)))
        hashes += new
    self._lengths = sorted({n for n, _ in hashes})
    self._keys, index = np.unique(
      np.array([key for _, key in hashes], np.uint64), return_inverse=True
    )
    self._items = [[index[i] for i in items] for items in self._items]
    # By set and n-gram; an n-gram may be of several sets.
    self._in_set = np.zeros((len(sets), len(self._keys)), bool)
    for i, items in enumerate(self._items):
      for item in items:
        self._in_set[i, item] = True
    self._row = np.full((2, len(self._keys)), -1)  # left out or kept; last
    self._rows = np.zeros((2, len(sets)), np.int64)

  def _hash(self, gram: tuple[str, ...]) -> tuple[int, np.uint64]:
    for word in gram:
      self._number.setdefault(word, len(self._number) + 1)
    numbers = np.array([self._number[word] for word in gram], np.uint64)
    return len(gram), _windows(_mixed(numbers), len(gram))[0]

  def search(self, texts: Sequence[str], row_ids, kept):
    """Notes which n-grams stand in these rows."""
    numbers, row = [], []
    for i, text in enumerate(texts):
      known = [self._number.get(word, 0) for word in words(text)]
      # A word that no item has stands between two rows.
      numbers += [*known, 0]
      row += [i] * (len(known) + 1)
    mixed, row = _mixed(np.array(numbers, np.uint64)), np.array(row)
    hit = np.zeros((len(texts), len(self._sets)), bool)
    for n in self._lengths:
      keys = _windows(mixed, n)
      place = np.searchsorted(self._keys, keys)
      place[place == len(self._keys)] = 0
      hits = np.flatnonzero(self._keys[place] == keys)
      gram, local = place[hits], row[hits]
      self._row[kept[local].astype(np.int64), gram] = row_ids[local]
      for i, is_in_set in enumerate(self._in_set):
        hit[local[is_in_set[gram]], i] = True
    for k in (0, 1):
      self._rows[k] += hit[kept == bool(k)].sum(0)

  def overlaps(self, rows_read: int, kept_read: int) -> list[Overlap]:
    """What was found, by set."""
    overlaps = []
    for i, (name, texts) in enumerate(self._sets):
      items = self._items[i]
      kept = [self._row[1, item] >= 0 for item in items]
      either = [self._row[:, item].max(0) >= 0 for item in items]
      shares = np.array([e.mean() if len(e) else 0.0 for e in either])
      worst = np.argsort(-shares, kind="stable")[:_WORST]
      overlaps.append(
        Overlap(
          name=name,
          items=len(items),
          too_short=sum(not len(item) for item in items),
          found=sum(bool(e.any()) for e in either),
          found_kept=sum(bool(k.any()) for k in kept),
          rows=int(self._rows[:, i].sum()),
          kept_rows=int(self._rows[1, i]),
          rows_read=rows_read,
          kept_read=kept_read,
          worst=[
            Match(texts[j], float(shares[j]), self._place(items[j]))
            for j in worst
            if shares[j]
          ],
        )
      )
    return overlaps

  def _place(self, item: np.ndarray) -> int:
    left_out, kept = self._row[:, item].max(1)
    return int(kept if kept >= 0 else left_out)


def _mixed(numbers: np.ndarray) -> np.ndarray:
  """Word numbers as uniform 64 bits."""
  return mix((numbers + np.uint64(1)) * GOLDEN)


def _windows(mixed: np.ndarray, n: int) -> np.ndarray:
  """Hashes of all n words in a row: uint64 [words − n + 1]."""
  count = max(len(mixed) - n + 1, 0)
  keys = np.full(count, n, np.uint64)
  for i in range(n):  # a polynomial: order counts
    keys = keys * np.uint64(0xD6E8FEB86659FD93) + mixed[i : i + count]
  return keys
