"""The corpus index by ascending row id, without holding more than a piece."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from miniplm_jax.core import distributed, noise
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus.columns import codes_of
from miniplm_jax.corpus.store import Corpus, shard_names

Columns = dict[str, np.ndarray]
_NUMBERS = ("n_tokens", "n_bytes", "hash")


class IndexReader:
  """One pass over the index; a row group of one shard is in memory."""

  def __init__(
    self,
    corpus: Corpus,
    domains: dict[str, int],
    more: Sequence[str] = (),
    read: Callable[[Any, int], Columns] = lambda table, first: {},
  ):
    """Begins before the first row; `domains`, name → code, grows as met.

    `read` makes further columns of each table, with the columns `more` in it,
    and of the id of its first row.
    """
    self._corpus = corpus
    self._domains, self._more, self._read_more = domains, more, read
    self._pieces = self._read()
    self._first, self._end, self._piece = 0, 0, {}

  def take(self, row_id: np.ndarray) -> Columns:
    """Columns of int64 [n] ids, ascending, that follow those taken before.

    Returns:
      domain int32 (codes), n_tokens int32, n_bytes int32, hash uint64, and
      what `read` made.
    """
    taken = []
    while True:
      places = row_id[: np.searchsorted(row_id, self._end)] - self._first
      taken.append({k: v[places] for k, v in self._piece.items()})
      row_id = row_id[len(places) :]
      if not len(row_id):
        break
      self._piece = next(self._pieces, None)
      if self._piece is None:
        raise UserError(
          f"the index ends before row {row_id[0]}",
          str(self._corpus.directory),
          self._corpus.manifest.remedy,
        )
      self._first = self._end
      self._end += len(self._piece["hash"])
    taken = [columns for columns in taken if columns]
    return {k: np.concatenate([c[k] for c in taken]) for k in taken[0]}

  def _read(self) -> Iterator[Columns]:
    first = 0
    for table in _tables(self._corpus, ["domain", *_NUMBERS, *self._more]):
      columns = {k: table[k].to_numpy() for k in _NUMBERS}
      columns["domain"] = codes_of(table["domain"], self._domains)
      yield columns | self._read_more(table, first)
      first += table.num_rows


def size_of_d(corpus: Corpus) -> int:
  """How many rows D has."""
  return corpus.manifest.counts["split train"]


def size_drawn(corpus: Corpus, share: float, seed: int) -> int:
  """How many rows of D are drawn; of less than all, the index is read."""
  if share == 1:
    return size_of_d(corpus)
  pieces = rows_of(corpus, {}, "n_tokens")
  return sum(int(noise.drawn(ids, seed, share).sum()) for ids, _ in pieces)


def rows_of(
  corpus: Corpus,
  domains: dict[str, int],
  column: str = "domain",
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The ids of D's rows, with a column of the index.

  A domain is a code; `domains`, name → code, grows by the names that are met.

  Yields:
    Piece by piece: row_id int64 [n], ascending over all, and the column [n].
  """
  first = 0
  for table in _tables(corpus, ["split", column]):
    names: dict[str, int] = {}
    splits = codes_of(table["split"], names)
    places = np.flatnonzero(splits == names.get("train", -1))
    if column == "domain":
      values = codes_of(table[column], domains)
    else:
      values = table[column].to_numpy()
    yield first + places, values[places]
    first += table.num_rows


def at(corpus: Corpus, places: np.ndarray) -> np.ndarray:
  """Ids of the rows at these places of D, int64 [n], both ascending."""
  chosen, start = [], 0
  for ids, _ in rows_of(corpus, {}, "n_tokens"):
    first, end = np.searchsorted(places, [start, start + len(ids)])
    chosen.append(ids[places[first:end] - start])
    start += len(ids)
  return np.concatenate(chosen)


def counts(code: np.ndarray) -> dict[int, int]:
  """How many rows have each code that is there: of many, a part has few."""
  rows = np.bincount(code)
  codes = np.flatnonzero(rows)
  return dict(zip(codes.tolist(), rows[codes].tolist()))


def _tables(corpus: Corpus, columns: list[str]) -> Iterator:
  """Arrow tables of the row groups, names dictionary-encoded."""
  import pyarrow.parquet as pq

  parts = corpus.manifest.counts["parts"]
  for part in range(parts):
    name = shard_names(part, parts)[1]
    with corpus.manifest.reading(name) as path, path.open("rb") as f:
      file = pq.ParquetFile(f, read_dictionary=["domain", "split"])
      for i in range(file.num_row_groups):
        distributed.raise_if_stopped()
        yield file.read_row_group(i, columns).combine_chunks()
