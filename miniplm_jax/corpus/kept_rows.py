"""The rows that a selection keeps."""

from collections.abc import Sequence

import numpy as np

from miniplm_jax.core import gs
from miniplm_jax.core.manifest import Manifest


def kept_rows(selection: Manifest) -> np.ndarray:
  """Returns int64 kept row ids of a selection, ascending; not to be changed.

  The file is mapped: pages of it that are not needed may leave memory.

  Raises:
    UserError: they are not those that were selected.
  """
  with selection.reading("rows.npy"):
    path = gs.copied(selection.directory / "rows.npy")
  return np.load(path, mmap_mode="r").view(np.ndarray)


def among(row_id: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Bool [n]: which ids are there, in ascending `rows` that may be a file."""
  if not len(rows):
    return np.zeros(len(row_id), bool)
  place = np.searchsorted(rows, row_id)
  return rows[np.minimum(place, len(rows) - 1)] == row_id


def among_any(row_id: np.ndarray, kept: Sequence[np.ndarray]) -> np.ndarray:
  """Bool [n]: which ids are in any of several selections."""
  found = np.zeros(len(row_id), bool)
  for rows in kept:
    found |= among(row_id, rows)
  return found
