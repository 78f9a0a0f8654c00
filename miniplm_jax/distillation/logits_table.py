"""What a model said of each token of some rows, on disk, readable by row.

An array_record file holds `rows_per_part` rows in the order of the selection,
a record each: a msgpack map of row_id, nll (float32 [T]), ids (int32 [T, K])
and log_probs (float16 [T, K]), of the T inputs of the row, arrays as
little-endian bytes. Ids are ascending and stored as differences, which
compress well; of sampled ids there are no log_probs, each counts 1 / K. Before
compression a token takes 4 bytes, 4 more for each id and 2 for its log_prob.
float16 keeps a log-probability above −16 to 0.004, so p to 0.4 %.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from etils import epath

from miniplm_jax.core import errors, files
from miniplm_jax.core.array_records import Readers
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest

# A record is read on its own.
_WRITER_OPTIONS = "group_size:1,zstd"

_AGAIN = (
  "restore it; or rename manifest.json beside it to manifest.partial.json and "
  "run --stages=logits: only what is damaged is made again"
)

Row = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def part_name(part: int, parts: int) -> str:
  """File name of a part."""
  return f"part-{part:05d}-of-{parts:05d}.array_record"


def idle(settings: Mapping[str, Any]) -> tuple[str, ...]:
  """Settings of a table without effect: a seed, where nothing is drawn."""
  return ("seed",) if settings["kind"] == "top_k" else ()


def mark(
  settings: Mapping[str, Any], weights: str, architecture: str | None
) -> str:
  """What each record says of a table's settings and its model's fingerprints.

  `architecture` is None in tables that were made without.
  """
  kept = {k: v for k, v in settings.items() if k not in idle(settings)}
  by = [weights, architecture] if architecture else [weights]
  return files.digest([kept, *by])[:16]


def encode(row_id: int, row: Row, mark: str) -> bytes:
  """A record of nll float32 [T], ids int32 and log-probs float32 [T, K].

  Raises:
    UserError: a number is not finite.
  """
  nll_T, id_TxK, log_p_TxK = row
  if not all(np.isfinite(x).all() for x in (nll_T, log_p_TxK) if x is not None):
    raise UserError(
      f"the log-probabilities of row {row_id} are not finite",
      "stage logits",
      "its model's weights hold NaN or overflow; try "
      "--config.score.dtype=float32",
    )
  steps_TxK = np.diff(id_TxK, axis=-1, prepend=np.int32(0))
  body = {
    "row_id": row_id,
    "mark": mark,
    "nll": np.ascontiguousarray(nll_T, "<f4").tobytes(),
    "ids": np.ascontiguousarray(steps_TxK, "<i4").tobytes(),
  }
  if log_p_TxK is not None:
    # Nothing is −inf: 0 to float32 is likelier than e^−65504.
    low_TxK = np.maximum(log_p_TxK, np.finfo(np.float16).min)
    body["log_probs"] = np.ascontiguousarray(low_TxK, "<f2").tobytes()
  return msgpack.packb(body)


def write_part(path: epath.Path, records: Iterable[bytes]):
  """Writes a part, whole or not at all."""
  from array_record.python.array_record_module import ArrayRecordWriter

  with files.replacing(path) as scratch:
    writer = ArrayRecordWriter(str(scratch), _WRITER_OPTIONS)
    for record in records:
      writer.write(record)
    writer.close()


def holds(path: epath.Path, row_ids: Sequence[int], mark: str) -> bool:
  """Whether a part has these rows, of the table with this mark."""
  try:
    with errors.parsing(path, _AGAIN):
      places = range(len(row_ids))
      records = Readers(lambda _: path).read(0, places) if path.exists() else []
      bodies = map(msgpack.unpackb, records)
      return [(b["row_id"], b.get("mark", mark)) for b in bodies] == [
        (row_id, mark) for row_id in row_ids
      ]
  except UserError:
    return False


class LogitsTable:
  """Random access by row id."""

  def __init__(self, manifest: Manifest, kept_rows: np.ndarray):
    """Opens what stage logits wrote of the kept rows of a selection.

    Raises:
      UserError: a file is missing or of another size.
    """
    manifest.check_sizes()
    self._manifest, self._rows = manifest, kept_rows
    self._size = manifest.settings["rows_per_part"]
    architecture = manifest.details.get("architecture")
    self._mark = mark(manifest.settings, manifest.weights, architecture)
    directory, parts = manifest.directory, manifest.counts["parts"]
    self._path_of = lambda part: directory / part_name(part, parts)
    self._readers = Readers(self._path_of)

  def read(
    self, row_ids: Sequence[int], length: int
  ) -> Mapping[str, np.ndarray]:
    """Rows, zero-padded to `length` inputs.

    Returns:
      `nll` float32 [B, T], `ids` int32 [B, T, K], and `log_probs` float16
      [B, T, K] of what was not sampled.

    Raises:
      UserError: a row is not the one that belongs there.
    """
    row_ids = np.asarray(row_ids, np.int64)
    places = np.searchsorted(self._rows, row_ids)
    places = np.minimum(places, len(self._rows) - 1)
    parts = places // self._size
    count = self._manifest.settings["ids"]
    nll = np.zeros((len(row_ids), length), np.float32)
    arrays = {"nll": nll, "ids": np.zeros((*nll.shape, count), np.int32)}
    if count and self._manifest.settings["kind"] == "top_k":
      arrays["log_probs"] = np.zeros((*nll.shape, count), np.float16)
    for part in np.unique(parts):
      of_part = np.flatnonzero(parts == part)
      local = (places[of_part] - part * self._size).tolist()
      path = self._path_of(int(part))
      with errors.parsing(path, _AGAIN):
        for i, record in zip(of_part, self._readers.read(int(part), local)):
          self._fill(arrays, i, msgpack.unpackb(record), int(row_ids[i]))
    return arrays

  def _fill(self, arrays, i: int, body, row_id: int):
    """Writes a record into place i."""
    if body["row_id"] != row_id:
      raise UserError(
        f"row {body['row_id']} is where row {row_id} belongs",
        str(self._manifest.directory),
        _AGAIN,
      )
    # Those of earlier versions have none.
    if body.get("mark", self._mark) != self._mark:
      raise ValueError("it is of another table")
    nll_T = np.frombuffer(body["nll"], "<f4")
    shape = len(nll_T), arrays["ids"].shape[-1]
    steps_TxK = np.frombuffer(body["ids"], "<i4").reshape(shape)
    arrays["nll"][i, : len(nll_T)] = nll_T
    np.cumsum(steps_TxK, -1, np.int32, arrays["ids"][i, : len(nll_T)])
    if "log_probs" in arrays:
      low_TxK = np.frombuffer(body["log_probs"], "<f2").reshape(shape)
      arrays["log_probs"][i, : len(nll_T)] = low_TxK
