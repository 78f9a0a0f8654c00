"""The columns of a corpus's index, read from its parts when they are wanted."""

from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest

_NAMES = ("domain", "split")
_AT_ONCE = 16  # files; from gs:// each is some requests


class Columns(dict):
  """Pyarrow columns [rows] by name, each read when it is first asked for.

  Names are dictionary-encoded: as strings those of 10⁸ rows are more than one
  Arrow array holds.
  """

  def __init__(self, manifest: Manifest, names: Sequence[str]):
    """Reads nothing yet.

    Args:
      manifest: of the corpus.
      names: of its files that are the index, in order.
    """
    self._manifest, self._files = manifest, names

  def __missing__(self, name: str):
    """Reads a column.

    Raises:
      UserError: a file is not the one that was written, or there are not as
        many rows as the manifest says.
    """
    import pyarrow as pa

    parts = list(self.by_part(name))
    column = pa.chunked_array([c for part in parts for c in part.chunks])
    rows = self._manifest.counts["rows"]
    if len(column) != rows:
      raise UserError(
        f"the index has {len(column)} rows, the manifest {rows}",
        str(self._manifest.directory),
        "make the corpus again with --stages=tokenize --force",
      )
    self[name] = column
    return column

  def by_part(self, name: str) -> Iterator[Any]:
    """A column of each part, in order; nothing is kept."""
    import pyarrow.parquet as pq

    def read(file: str):
      with self._manifest.reading(file) as path:
        table = pq.read_table(path, columns=[name], read_dictionary=_NAMES)
      return table[name]

    with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
      yield from pool.map(read, self._files)
