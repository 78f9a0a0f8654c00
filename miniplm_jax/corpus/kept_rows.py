"""The rows that a selection keeps."""

import numpy as np

from miniplm_jax.core import files, gs
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest


def kept_rows(selection: Manifest) -> np.ndarray:
  """Returns int64 kept row ids of a selection, ascending; not to be changed.

  The file is mapped: pages of it that are not needed may leave memory.

  Raises:
    UserError: they are not those that were selected.
  """
  path = selection.directory / "rows.npy"
  if not path.exists() or files.describe(path) != selection.files["rows.npy"]:
    raise UserError(
      "the kept rows are not those that were selected",
      str(path),
      "select again with --stages=select --force",
    )
  return np.load(gs.copied(path), mmap_mode="r").view(np.ndarray)
