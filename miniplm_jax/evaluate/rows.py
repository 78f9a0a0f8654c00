"""Σ nll of each held-out row under one model, on disk."""

from typing import Any

from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest

# Not Parquet: beside a score table, whose parts are all the Parquet there is.
NAME = "evaluation.arrow"
_TYPES = {"row_id": "int64", "nll_sum": "float32", "n_tokens": "int32"}


def write(folder: epath.Path, row_id, nll_sum, n_tokens) -> dict:
  """Writes the rows; all arrays [n], nll_sum in nats.

  Returns:
    What a manifest says of the file.
  """
  import pyarrow as pa
  from pyarrow import feather

  values = zip(_TYPES.items(), (row_id, nll_sum, n_tokens))
  columns = {name: pa.array(v.astype(kind)) for (name, kind), v in values}
  with files.replacing(folder / NAME) as scratch:
    feather.write_feather(pa.table(columns), str(scratch), compression="zstd")
  return {NAME: files.describe(folder / NAME)}


def read(evaluation: Manifest) -> dict[str, Any] | None:
  """row_id int64, nll_sum float32 and n_tokens int32 [n]; None if not kept.

  Raises:
    UserError: the file is not the one that was written.
  """
  from pyarrow import feather

  if NAME not in evaluation.files:  # an earlier version's
    return None
  path = evaluation.directory / NAME
  if not path.exists() or files.describe(path) != evaluation.files[NAME]:
    raise UserError(
      "the held-out rows are not those that were written",
      str(path),
      "evaluate again with --stages=evaluate --force",
    )
  with path.open("rb") as f:
    table = feather.read_table(f)
  return {name: table[name].to_numpy() for name in _TYPES}
