"""The corpus index by ascending row id, without holding more than a piece."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from miniplm_jax.core import distributed, noise
from miniplm_jax.corpus.columns import codes_of
from miniplm_jax.corpus.store import Corpus, shard_names

Columns = dict[str, np.ndarray]
_NUMBERS = ("n_tokens", "n_bytes", "hash")


def columns_of_d(
  corpus: Corpus,
  domains: dict[str, int],
  more: Sequence[str] = (),
  read: Callable[[Any, int], Columns] = lambda table, first: {},
) -> Iterator[Columns]:
  """What the index says of D's rows; a row group of one shard is in memory.

  Args:
    domains: name → code, grows by the names that are met.
    more: columns of the index that `read` needs.
    read: makes further columns of a table, and of the id of its first row.

  Yields:
    Piece by piece: row_id int64, ascending over all, domain int32 (codes),
    n_tokens int32, n_bytes int32, hash uint64, and what `read` made.
  """
  first = 0
  for table in _tables(corpus, ["domain", "split", *_NUMBERS, *more]):
    columns = {k: table[k].to_numpy() for k in _NUMBERS} | read(table, first)
    columns["domain"] = codes_of(table["domain"], domains)
    columns["row_id"] = np.arange(first, first + table.num_rows)
    places = _places_of_d(table)
    yield {k: v[places] for k, v in columns.items()}
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
    places = _places_of_d(table)
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


def _places_of_d(table) -> np.ndarray:
  """Where rows of D are in a table of the index, ascending."""
  names: dict[str, int] = {}
  splits = codes_of(table["split"], names)
  return np.flatnonzero(splits == names.get("train", -1))


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
