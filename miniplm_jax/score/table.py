"""The score table on disk: Parquet parts and what they must hold.

A part covers consecutive rows of D. `read` refuses anything that is not
exactly what the manifest says: the released code accepted missing and stale
parts, and selected NaN first.
"""

from collections.abc import Iterator

import numpy as np
from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest


def part_name(part: int, parts: int) -> str:
  """File name of a part."""
  return f"part-{part:05d}-of-{parts:05d}.parquet"


def write_part(
  path: epath.Path,
  row_ids: np.ndarray,
  nll_sum: np.ndarray,
  n_tokens: np.ndarray,
  weights: str,
):
  """Writes one part, whole or not at all.

  Args:
    path: of the part.
    row_ids: int64, ascending.
    nll_sum: float32, Σ −log p in nats.
    n_tokens: int32, tokens summed over.
    weights: fingerprint of the model.

  Raises:
    UserError: a score is not finite, or a row has no token to score.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  check_rows(path, row_ids, nll_sum, n_tokens)
  table = pa.table(
    {
      "row_id": pa.array(row_ids, pa.int64()),
      "nll_sum": pa.array(nll_sum, pa.float32()),
      "n_tokens": pa.array(n_tokens, pa.int32()),
    }
  ).replace_schema_metadata({"weights": weights})
  with files.replacing(path) as scratch:
    pq.write_table(table, scratch, compression="zstd")


def is_done(path: epath.Path, weights: str) -> bool:
  """True if the part is there, scored by the model with these weights.

  Raises:
    UserError: it is damaged, or was scored by another model, as when a hub's
      branch moved.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  if not path.exists():
    return False
  try:
    with path.open("rb") as f:
      metadata = pq.read_schema(f).metadata or {}
  except pa.ArrowException as e:
    raise UserError(
      f"score part is damaged ({e})", str(path), "remove it and run again"
    ) from e
  found = metadata.get(b"weights", b"").decode()
  if found != weights:
    raise UserError(
      f"this part was scored by weights {found[:12]}, now they are "
      f"{weights[:12]}",
      str(path),
      "give the model that began, or start over with --stages=score --force",
    )
  return True


def check_rows(path, row_ids, nll_sum, n_tokens):
  """Raises UserError, naming the row, at a score that cannot be used."""
  bad = ~np.isfinite(nll_sum) | (n_tokens < 1)
  if np.any(bad):
    i = int(np.argmax(bad))
    raise UserError(
      f"row {row_ids[i]} has nll_sum {nll_sum[i]} over {n_tokens[i]} tokens",
      f"{path} ({int(bad.sum())} such rows)",
      "look at the model's weights; nothing that is not finite is selected",
    )


def parts(
  manifest: Manifest, hashed: bool = True
) -> Iterator[dict[str, np.ndarray]]:
  """The parts of a finished table, checked, in row order.

  Args:
    manifest: of the table.
    hashed: compare each file's sha256 too; once a process is enough.

  Yields:
    row_id int64, nll_sum float32, n_tokens int32.

  Raises:
    UserError: a part is missing, damaged or not the one that was written, or
      holds a score that is not finite.
  """
  previous = -1
  for name, facts in manifest.files.items():
    path = manifest.directory / name
    columns = _read(path, manifest)
    row_ids = columns["row_id"]
    check_rows(path, row_ids, columns["nll_sum"], columns["n_tokens"])
    if hashed and files.describe(path) != facts:
      _damaged(path, manifest, "is not the file that was written")
    if row_ids[0] <= previous or np.any(np.diff(row_ids) <= 0):
      _damaged(path, manifest, "has rows out of order")
    previous = row_ids[-1]
    yield columns


def _read(path: epath.Path, manifest: Manifest) -> dict[str, np.ndarray]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    with path.open("rb") as f:
      table = pq.read_table(f)
    return {
      name: table[name].to_numpy() for name in ("row_id", "nll_sum", "n_tokens")
    }
  except FileNotFoundError:
    _damaged(path, manifest, "is missing")
  except (pa.ArrowException, OSError, KeyError, ValueError) as e:
    _damaged(path, manifest, f"is damaged ({e})")
  raise AssertionError


def _damaged(path: epath.Path, manifest: Manifest, what: str):
  raise UserError(
    f"score part {what}",
    str(path),
    f"restore it; or remove it, rename {manifest.path.name} beside it to "
    f"manifest.partial.json and run --stages={manifest.stage}: only that "
    "part is scored again",
  )
