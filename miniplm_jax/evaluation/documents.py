"""Documents of a source with their log-probs under one model, part by part.

A part is a run of neighboring documents, a function of the source alone. It
says what it was made by and of which documents, so a pass that was killed reads
the texts again and computes what is missing.
"""

import collections
import functools
import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from miniplm_jax.core import distributed, files
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.corpus.chunks import (
  BrokenRecord,
  Chunk,
  Reading,
  TokenizedRecord,
)
from miniplm_jax.evaluation.texts import TextScorer

SCHEMA = pa.schema(
  {
    "doc_id": pa.string(),
    "corpus_id": pa.string(),  # the domain
    "nll_sum": pa.float64(),  # nats
    "n_tokens": pa.int64(),
    "n_bytes": pa.int64(),
    "bits_per_byte": pa.float64(),
    "reason": pa.string(),  # why there is no score; else null
  }
)
_MOST = 65_536  # documents of a part, however short
_MARK = b"mark"  # in a part, a digest of its documents and of what scored them


class Item(NamedTuple):
  """One record of the source."""

  doc_id: str
  corpus_id: str | None
  text: str | None
  reason: str | None = None  # why there is no text


def read(chunks: Iterable[Chunk]) -> Iterator[Item]:
  """The records of chunks, those without a text too.

  Without an id of its own a document is called by its text: sha256:, and the
  first 32 digits. A record without text is called by its place: chunk#number.

  Raises:
    UserError: a file cannot be read, or holds ids and no text.
  """
  for chunk in chunks:
    for number, record in enumerate(Reading(chunk)):
      if isinstance(record, TokenizedRecord):
        hint = "give its text: each model reads it by its own tokenizer"
        raise UserError("there is no text but ids", chunk.name, hint)
      if isinstance(record, BrokenRecord):
        own_id = record.doc_id or f"{chunk.name}#{number}"
        yield Item(own_id, None, None, record.what)
        continue
      digest = hashlib.sha256(record.text.encode()).hexdigest()
      own_id = record.doc_id or f"sha256:{digest[:32]}"
      yield Item(own_id, record.domain, record.text)


def _parts(items: Iterable[Item], part_bytes: int) -> Iterator[list[Item]]:
  part, size = [], 0
  for item in items:
    distributed.raise_if_stopped()
    part.append(item)
    size += len((item.text or "").encode())
    if size >= part_bytes or len(part) == _MOST:
      yield part
      part, size = [], 0
  if part:
    yield part


def fill(
  folder: epath.Path,
  items: Iterable[Item],
  scorer: TextScorer,
  part_bytes: int,
  made_by: Sequence[Any],
  stage: str,
) -> list[str]:
  """Scores the documents whose part is not there; returns the parts' names.

  All processes take part, and the first one writes. A part that is there is
  kept if it is of these documents and `made_by` the same.

  Raises:
    UserError: no document of the first part can be scored.
  """
  names = []
  for number, part in enumerate(_parts(items, part_bytes)):
    names.append(f"part-{number:06d}.parquet")
    path = folder / names[-1]
    mark = files.digest([made_by, part]).encode()
    if distributed.agree(functools.partial(_has, path, mark)):
      continue
    table = _scored(part, scorer)
    reasons = table["reason"]
    if not number and not reasons.null_count:
      what = f"none of the first {len(part)} documents can be scored"
      raise UserError(
        f"{what}: {part[0].doc_id}: {reasons[0]}",
        str(folder),
        "look at the model, or name the field of the text with "
        "--config.corpus.text_field",
      )
    content = io.BytesIO()
    table = table.replace_schema_metadata({_MARK: mark})
    pq.write_table(table, content, compression="zstd")
    distributed.agree(
      functools.partial(files.write_bytes, path, content.getvalue())
    )
    n = reasons.null_count
    log(stage, f"{path.name}: {n:,} of {len(part):,} documents have a score")
  return names


def _has(path: epath.Path, mark: bytes) -> bool:
  try:
    with path.open("rb") as f:
      return (pq.read_schema(f).metadata or {}).get(_MARK) == mark
  except (OSError, pa.ArrowInvalid):  # it is not there, or damaged
    return False


def _scored(part: Sequence[Item], scorer: TextScorer) -> pa.Table:
  scores = iter(scorer([item.text for item in part if item.text is not None]))
  rows = []
  for item in part:
    row = {"doc_id": item.doc_id, "corpus_id": item.corpus_id}
    if item.text is None:
      row["reason"] = item.reason
    else:
      score = next(scores)
      row |= score._asdict() | {"bits_per_byte": score.bits_per_byte}
    rows.append(row)
  return pa.Table.from_pylist(rows, SCHEMA)


def merge(folder: epath.Path, names: Sequence[str]) -> dict[str, Any]:
  """The fields of a manifest: files, counts, and reasons with their counts."""
  counts, reasons = collections.Counter(parts=len(names)), collections.Counter()
  sums, described = [], {}
  for name in names:
    distributed.raise_if_stopped()
    with (folder / name).open("rb") as f:
      table = pq.read_table(f)
    described[name] = files.describe(folder / name)
    reasons.update(table["reason"].drop_null().to_pylist())
    scored = table.filter(table["reason"].is_null())
    counts.update(documents=len(table), scored=len(scored))
    for column, values in (("tokens", "n_tokens"), ("bytes", "n_bytes")):
      counts[column] += int(scored[values].to_numpy().sum())
    sums.append(math.fsum(scored["nll_sum"].to_numpy()))
  total = math.fsum(sums)
  return {
    "files": described,
    "counts": dict(counts) | {"nll_sum": total},
    "details": {
      "unscored": dict(reasons.most_common(20)),
      "bits_per_byte": total / math.log(2) / max(counts["bytes"], 1),
    },
  }
