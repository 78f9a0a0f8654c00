"""The score table on disk: Parquet parts and what they must hold.

A part covers the rows of D in one unit and says what it was made from. It is
written once, by whichever worker is first, and nothing that is not exactly
what was expected is ever read: the released code accepted missing and stale
parts, and selected NaN first.
"""

import dataclasses
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from miniplm_jax.core import distributed, errors, files
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.scoring.units import Unit, range_of

Columns = dict[str, np.ndarray]
# What is kept of a row, summed over its scored tokens, in nats: −log p, or a
# prediction of log p − log p_ref. A table has one of them.
VALUES = ("nll_sum", "diff_sum")
_RESTORE = (
  "restore it; or remove it, rename manifest.json beside it, if it is there, "
  "to manifest.partial.json, and run --stages=score: only that part is scored "
  "again"
)


@dataclasses.dataclass(frozen=True)
class Part:
  """One part as read."""

  path: epath.Path  # its file
  unit: Mapping[str, Any]  # the facts of its unit
  made_by: Mapping[str, str]  # what scored it, by name
  sums: Mapping[str, float]  # of the value and of n_tokens, as written
  # row_id int64, one of `VALUES` float32, n_tokens int32; None if only the
  # header was read.
  columns: Columns | None


def value_of(columns: Columns) -> str:
  """Which of `VALUES` a table has; KeyError if none."""
  values = [name for name in VALUES if name in columns]
  if len(values) != 1:
    raise KeyError(f"columns {', '.join(columns)}")
  return values[0]


def encode(
  unit: Unit,
  sums: np.ndarray,
  n_tokens: np.ndarray,
  made_by: Mapping[str, str],
  value: str = "nll_sum",
) -> bytes:
  """One part as a Parquet file; equal scores are equal bytes.

  Args:
    sums: float32 [rows], in nats.
    n_tokens: int32 [rows], tokens summed over.
    made_by: fingerprints of what scored it, by name.
    value: what is summed, one of `VALUES`.

  Raises:
    UserError: a score is not finite, or a row has no token to score.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  columns = {"row_id": unit.rows, value: sums, "n_tokens": n_tokens}
  check_rows(unit.name, columns)
  facts = {
    "unit": unit.facts,
    "made_by": dict(made_by),
    "sums": _sums(columns),
  }
  table = pa.table(
    {
      "row_id": pa.array(unit.rows, pa.int64()),
      value: pa.array(sums, pa.float32()),
      "n_tokens": pa.array(n_tokens, pa.int32()),
    }
  ).replace_schema_metadata({k: json.dumps(v) for k, v in facts.items()})
  content = io.BytesIO()
  pq.write_table(table, content, compression="zstd")
  return content.getvalue()


def _sums(columns: Columns) -> dict[str, float]:
  value, n_tokens = value_of(columns), columns["n_tokens"]
  # fsum: exact, so the order of rows does not matter
  return {value: math.fsum(columns[value]), "n_tokens": int(n_tokens.sum())}


def read_part(path: epath.Path, header_only: bool = False) -> Part:
  """Reads one part; raises UserError if it is missing or damaged."""
  import pyarrow.parquet as pq

  try:
    opened = path.open("rb")
  except FileNotFoundError:
    damaged(path, "is missing")
  with opened as f, errors.parsing(path, _RESTORE, "score part is damaged"):
    file = pq.ParquetFile(f)
    facts = file.schema_arrow.metadata or {}
    unit, made_by, sums = (
      json.loads(facts[name]) for name in (b"unit", b"made_by", b"sums")
    )
    columns = None
    if not header_only:
      table = file.read()
      names = ("row_id", value_of(table.column_names), "n_tokens")
      columns = {name: table[name].to_numpy() for name in names}
      for values, kind in zip(columns.values(), ("i8", "f4", "i4")):
        if values.dtype != kind or not len(values):
          raise ValueError(f"{len(values)} values, {values.dtype}")
    if not all(isinstance(v, dict) for v in (unit, made_by, sums)):
      raise ValueError("its header is of another kind")
  return Part(path, unit, made_by, sums, columns)


def check_rows(path, columns: Columns):
  """Raises UserError, naming the row, at a score that cannot be used."""
  row_ids, n_tokens = columns["row_id"], columns["n_tokens"]
  value = value_of(columns)
  bad = ~np.isfinite(columns[value]) | (n_tokens < 1)
  if np.any(bad):
    i = int(np.argmax(bad))
    hint = "look at the model's weights; nothing that is not finite is selected"
    if n_tokens[i] < 1:  # as corpora of earlier versions may have some
      hint = (
        "make the corpus again with --stages=tokenize --force: then no row "
        "has only ends of documents"
      )
    raise UserError(
      f"row {row_ids[i]} has {value} {columns[value][i]} over {n_tokens[i]} "
      "tokens",
      f"{path} ({int(bad.sum())} such rows)",
      hint,
    )


def check_part(
  part: Part, unit: Unit, made_by: Mapping[str, str], any_code: bool
):
  """Raises UserError if it is not this unit's, or was scored by another.

  With `any_code`, other versions of the code will do.
  """
  for name, expected in unit.facts.items():
    if part.unit.get(name) != expected:
      damaged(
        part.path,
        f"has {name} {_short(part.unit.get(name))} where this "
        f"corpus has {_short(expected)}: it belongs elsewhere or the corpus "
        "has changed",
      )
  for name, expected in made_by.items():
    stored = part.made_by.get(name, "")
    if stored != expected and not (any_code and name == "code"):
      raise UserError(
        f"this part was scored with {name} {_short(stored)}, now it is "
        f"{_short(expected)}",
        str(part.path),
        f"score with what began, or {again(part.path.parent)}"
        + (", or say --config.run.any_code=True" if name == "code" else ""),
      )
  if part.columns is None:
    return
  if not np.array_equal(part.columns["row_id"], unit.rows):
    damaged(part.path, "does not hold the rows of D that it should")
  check_rows(part.path, part.columns)
  if _sums(part.columns) != part.sums:
    damaged(part.path, f"does not add up to {part.sums}")


def _short(value: Any) -> str:
  return f"{value}"[:48] or "unknown"


def check_names(directory: epath.Path, units: Sequence[Unit]) -> set[str]:
  """Returns the names of the parts; UserError at one of rows of no unit."""
  names = {unit.name for unit in units}
  existing = {path.name for path in directory.glob("*.parquet")}
  for name in sorted(existing - names):
    rows, also = range_of(name), ""
    if rows:
      over = [u.name for u in units if u.first < rows[1] and rows[0] < u.end]
      also = f", overlaps {over[0]}" if over else ", is outside this corpus"
    damaged(
      directory / name,
      f"is none of this table{also}: it is a copy or the corpus has changed",
      f"move it away, or {again(directory)}",
    )
  return existing


def merge(
  directory: epath.Path,
  units: Sequence[Unit],
  made_by: Mapping[str, str],
  any_code: bool,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
  """Checks that the parts are the whole table, each row once.

  Returns:
    What a manifest says of the files, and the counts.

  Raises:
    UserError: there is a gap, an overlap or a part of something else.
  """
  check_names(directory, units)
  described, sums = {}, []
  for unit in units:
    distributed.raise_if_stopped()
    part = read_part(directory / unit.name)
    check_part(part, unit, made_by, any_code)
    described[unit.name] = files.describe(part.path)
    sums.append(part.sums)
  return described, {
    "rows": sum(len(unit.rows) for unit in units),
    "parts": len(units),
    "tokens": sum(s["n_tokens"] for s in sums),
    **{
      name: math.fsum(s[name] for s in sums)
      for name in VALUES
      if name in sums[0]
    },
  }


def parts(manifest: Manifest, hashed: bool = True) -> Iterator[Columns]:
  """The parts of a finished table, checked, in row order.

  Each file's sha256 is compared if they are to be `hashed`; once a process is
  enough.

  Yields:
    row_id int64, one of `VALUES` float32, n_tokens int32.

  Raises:
    UserError: a part is missing, damaged or not the one that was written, or
      holds a score that is not finite.
  """
  previous = -1
  for name, facts in manifest.files.items():
    path = manifest.directory / name
    distributed.raise_if_stopped()
    if hashed and path.exists() and files.describe(path) != facts:
      damaged(path, "is not the file that was written")
    columns = read_part(path).columns
    row_ids = columns["row_id"]
    check_rows(path, columns)
    if row_ids[0] <= previous or np.any(np.diff(row_ids) <= 0):
      damaged(path, "has rows out of order")
    previous = row_ids[-1]
    yield columns


def again(directory: epath.Path) -> str:
  """How to make one table anew; --force drops the others, too."""
  return f"remove {directory} and score again, or give it another name"


def damaged(path: epath.Path, what: str, hint: str = _RESTORE):
  """Raises UserError: this part cannot be used."""
  raise UserError(f"score part {what}", str(path), hint)
