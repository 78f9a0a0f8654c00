"""Evaluation items whose words stand in the rows: n-gram contamination.

N-grams are compared as 64-bit hashes. `measure` says how much of each set is in
the rows, `contaminated` which rows have some.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from miniplm_jax.core import fields, files
from miniplm_jax.core.log import Progress, log, warn
from miniplm_jax.core.noise import GOLDEN, mix
from miniplm_jax.corpus.kept_rows import among
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.selection import index
from miniplm_jax.selection.items import (
  SHORTEST,
  byte_words,
  names_of,
  paths,
  read_texts,
  searched,
)

_MOST = 200_000  # rows of D that are read
_BATCH = 512  # rows that are searched together
_END = b"\x1e"  # of a document
_WORST = 3  # items that are shown

_FACTOR = np.uint64(0xD6E8FEB86659FD93)  # of the hash of words in a row


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


def rows_to_read(corpus: Corpus, most: int = _MOST) -> np.ndarray:
  """int64 ids of all rows of D, or of evenly spaced ones if there are more."""
  size = index.size_of_d(corpus)  # nobody holds all ids of 10⁹ rows
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
  texts = [list(read_texts(path)) for path in sets]
  grams, kept = _Grams(corpus, texts), among(ids, rows)
  # Of each n-gram the last row with it, left out or kept; −1 is none.
  row_of = np.full((2, grams.size), -1)
  counts = np.zeros((2, len(sets)), np.int64)  # rows, left out or kept
  for start, row, gram in grams.search(ids):
    batch = slice(start, start + _BATCH)
    is_kept = kept[batch]
    hit = grams.sets_of(row, gram)[: len(is_kept)]
    row_of[is_kept[row].astype(np.int64), gram] = ids[batch][row]
    counts += [hit[~is_kept].sum(0), hit[is_kept].sum(0)]
    done(len(is_kept))
  return [
    Overlap(
      name=name,
      rows=int(counts[:, i].sum()),
      kept_rows=int(counts[1, i]),
      rows_read=len(ids),
      kept_read=int(kept.sum()),
      **_found(texts[i], grams.items[i], row_of),
    )
    for i, name in enumerate(names_of(sets))
  ]


def _found(texts, items, row_of: np.ndarray) -> dict[str, Any]:
  """What `Overlap` says of the items of one set."""
  either = [row_of[:, item].max(0) >= 0 for item in items]
  shares = np.array([e.mean() if len(e) else 0.0 for e in either])

  def match(j: int) -> Match:
    left_out, kept = row_of[:, items[j]].max(1)
    row = int(kept if kept >= 0 else left_out)
    return Match(texts[j], float(shares[j]), row)

  worst = np.argsort(-shares, kind="stable")[:_WORST]
  return {
    "items": len(items),
    "too_short": sum(not len(item) for item in items),
    "found": sum(bool(e.any()) for e in either),
    "found_kept": sum(bool((row_of[1, item] >= 0).any()) for item in items),
    "worst": [match(j) for j in worst if shares[j]],
  }


def contaminated(
  corpus: Corpus, patterns: Sequence[str], folder: epath.Path
) -> Iterator[tuple[np.ndarray, collections.Counter]]:
  """Finds all rows of D with an n-gram of an item.

  They are written, with the sets that they have some of, into
  contaminated-*.parquet of a folder; a file that is there is whole, and not
  made again. Items are in files, of which `patterns` are paths or globs.

  Yields:
    Part by part: row_id int64 [n], and how many of them each set has, 0 too.

  Raises:
    UserError: items cannot be read.
  """
  field = "exclude_sets"
  sets = paths(patterns, field)
  names = names_of(sets)
  grams = _Grams(corpus, [list(read_texts(path, field)) for path in sets])
  for name, each in zip(names, grams.items):
    if short := sum(not len(item) for item in each):
      what = f"{name}: {short:,} of {len(each):,} items have no text of "
      say = warn if short == len(each) else log
      say("select", f"{what}{SHORTEST} words or more: they are not looked for")
  with Progress("select", index.size_of_d(corpus), "rows") as progress:
    for number, piece in enumerate(index.columns_of_d(corpus)):
      ids = piece["row_id"]
      path = folder / f"contaminated-{number:05d}.parquet"
      if path.exists():
        progress.update(len(ids))
      else:
        found = [np.zeros((2, 0), np.int64)]
        for start, row, gram in grams.search(ids):
          place, of_set = np.nonzero(grams.sets_of(row, gram))
          found.append(np.stack([ids[start + place], of_set]))
          progress.update(len(ids[start : start + _BATCH]))
        row_id, of_set = np.concatenate(found, 1)
        of_set = pa.array(np.array(names, object)[of_set], pa.string())
        with files.replacing(path) as scratch:
          pq.write_table(pa.table({"row_id": row_id, "set": of_set}), scratch)
      with path.open("rb") as f:
        table = pq.read_table(f)
      counts = collections.Counter(dict.fromkeys(names, 0))
      counts.update(table["set"].to_pylist())
      yield np.unique(table["row_id"].to_numpy()), counts


def row_bytes(tokenizer) -> Callable[[np.ndarray], bytes]:
  """Returns what gives the text of a row's ids, as bytes; `_END` for eos."""
  each = tokenizer.token_bytes()  # none of BOS and of the unknown token
  each[tokenizer.eos_id] = _END
  return lambda ids: b"".join(map(each.__getitem__, ids.tolist()))


class _Grams:
  """The n-grams of all items, as hashes of their words' numbers."""

  def __init__(self, corpus: Corpus, sets: Sequence[Sequence[Sequence[str]]]):
    """Takes whose rows are read, and the texts of items, by set."""
    self._corpus, self._text_of = corpus, row_bytes(corpus.tokenizer())
    self._number: dict[bytes, int] = {}  # of a word; 0 is any other
    self._lengths: set[int] = set()
    items = [[self._hashes(texts) for texts in each] for each in sets]
    every = [np.zeros(0, np.uint64), *(i for each in items for i in each)]
    self._keys = np.unique(np.concatenate(every))
    self.size = len(self._keys)
    # [set][item] → places among the n-grams
    self.items = [
      [np.searchsorted(self._keys, item) for item in each] for each in items
    ]
    # By set and n-gram; an n-gram may be of several sets.
    self._in_set = np.zeros((len(sets), len(self._keys)), bool)
    for its, each in zip(self._in_set, self.items):
      for item in each:
        its[item] = True
    # Whether one may begin with these bits: of 16 others, one is looked for.
    bits = len(self._keys).bit_length() + 4
    self._shift = np.uint64(64 - bits)
    self._may_be = np.zeros(1 << bits, bool)
    self._may_be[self._keys >> self._shift] = True

  def _hashes(self, texts: Sequence[str]) -> np.ndarray:
    """uint64 [n]: the n-grams of an item, see `ngrams`."""
    found = [np.zeros(0, np.uint64)]
    for parts, n in searched(texts):
      self._lengths.add(n)
      known = self._number
      numbers = [known.setdefault(w.encode(), len(known) + 1) for w in parts]
      found += _windows(_mixed(np.array(numbers, np.uint64)), {n})
    return np.unique(np.concatenate(found))

  def search(
    self, ids: np.ndarray
  ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Looks for them in rows, in batches.

    Yields:
      Where in ids the batch begins, and of each n-gram that stands in it the
      row, by its place in the batch, and the n-gram.
    """
    get = self._number.get
    for start in range(0, len(ids), _BATCH):
      numbers, ends = [], []
      for row in self._corpus.read(ids[start : start + _BATCH]):
        for text in self._text_of(row.ids).split(_END):
          numbers += [get(word, 0) for word in byte_words(text)]
          numbers.append(0)  # a word that no item has, after each document
        ends.append(len(numbers))
      rows, grams = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
      mixed = _mixed(np.array(numbers, np.uint64))
      for keys in _windows(mixed, self._lengths):
        places = np.flatnonzero(self._may_be[keys >> self._shift])
        gram = np.searchsorted(self._keys, keys[places])
        gram[gram == len(self._keys)] = 0
        is_one = self._keys[gram] == keys[places]
        grams.append(gram[is_one])
        rows.append(np.searchsorted(ends, places[is_one], "right"))
      yield start, np.concatenate(rows), np.concatenate(grams)

  def sets_of(self, row: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Bool [rows of a batch, sets]: which rows have some of which."""
    hit = np.zeros((_BATCH, len(self._in_set)), bool)
    for i, its in enumerate(self._in_set):
      hit[row[its[gram]], i] = True
    return hit


def _mixed(numbers: np.ndarray) -> np.ndarray:
  """Word numbers as uniform 64 bits."""
  return mix((numbers + np.uint64(1)) * GOLDEN)


def _windows(
  mixed: np.ndarray, lengths: Collection[int]
) -> Iterator[np.ndarray]:
  """Yields uint64 [words − n + 1] of each n, hashes of all n words in a row.

  They hold until the next ones are asked for.
  """
  keys = np.zeros(len(mixed), np.uint64)
  for n in range(1, min(max(lengths, default=0), len(mixed)) + 1):
    keys = keys[: len(mixed) - n + 1]
    keys *= _FACTOR  # a polynomial: order counts
    keys += mixed[n - 1 :]
    if n in lengths:
      yield keys
