"""The corpus index by ascending row id, without holding more than a piece."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from miniplm_jax.core import distributed, noise
from miniplm_jax.corpus.columns import codes_of
from miniplm_jax.corpus.store import Corpus, shard_names

Columns = dict[str, np.ndarray]


def columns_of_d(
  corpus: Corpus,
  names: Sequence[str] = (),
  domains: dict[str, int] | None = None,
  more: Sequence[str] = (),
  read: Callable[[Any, int], Columns] = lambda table, first: {},
) -> Iterator[Columns]:
  """What the index says of D's rows; a row group of one shard is in memory.

  Args:
    names: columns of numbers: n_tokens, n_bytes, hash.
    domains: name → code, grows by the names that are met.
    more: columns that `read` needs.
    read: makes further columns of a table, and of the id of its first row.

  Yields:
    Piece by piece: row_id int64, ascending over all, those of `names`, domain
    int32, a code, if `domains` are given, and what `read` made.
  """
  first, by_name = 0, ["split"] if domains is None else ["split", "domain"]
  for table in _tables(corpus, [*by_name, *names, *more]):
    columns = {k: table[k].to_numpy() for k in names} | read(table, first)
    columns["row_id"] = np.arange(first, first + table.num_rows)
    if domains is not None:
      columns["domain"] = codes_of(table["domain"], domains)
    splits: dict[str, int] = {}
    split = codes_of(table["split"], splits)
    places = np.flatnonzero(split == splits.get("train", -1))
    yield {k: v[places] for k, v in columns.items()}
    first += table.num_rows


def size_of_d(corpus: Corpus) -> int:
  """How many rows D has."""
  return corpus.manifest.counts["split train"]


def size_drawn(corpus: Corpus, share: float, seed: int) -> int:
  """How many rows of D are drawn; of less than all, the index is read."""
  if share == 1:
    return size_of_d(corpus)
  every = (piece["row_id"] for piece in columns_of_d(corpus))
  return sum(int(noise.drawn(ids, seed, share).sum()) for ids in every)


def at(corpus: Corpus, places: np.ndarray) -> np.ndarray:
  """Ids of the rows at these places of D, int64 [n], both ascending."""
  chosen, start = [], 0
  for piece in columns_of_d(corpus):
    ids = piece["row_id"]
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
