"""rows.npy, written part by part."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from miniplm_jax.selection import cutoff as cutoff_lib
from miniplm_jax.selection import index
from miniplm_jax.selection.candidates import Candidates
from miniplm_jax.selection.cutoff import Cutoff


@dataclasses.dataclass(frozen=True)
class Kept:
  """What was written."""

  tokens: int  # ids of the kept rows
  weights: tuple[int, ...]  # rows, or tokens of a budget in tokens, by group
  domains: dict[str, dict[str, int]]  # {name: {"rows" of D, "kept" rows}}


def write(path: pathlib.Path, candidates: Candidates, cutoff: Cutoff) -> Kept:
  """Writes the kept row ids, ascending, in the bytes of `np.save`."""
  header = np.lib.format.header_data_from_array_1_0(np.zeros(0, np.int64))
  header["shape"] = (cutoff.kept,)
  weights = np.zeros(1 + len(candidates.quotas), np.int64)
  by_domain = collections.Counter()
  tokens = written = 0
  with path.open("wb") as f:
    np.lib.format.write_array_header_1_0(f, header)
    for columns in candidates.columns():
      # indices: five times as fast as a mask of random bits
      kept = np.flatnonzero(cutoff_lib.keeps(cutoff, columns))
      row_id = columns["row_id"][kept].astype("<i8", copy=False)
      f.write(row_id.tobytes())
      written += len(kept)
      by_domain.update(index.counts(columns["domain"][kept]))
      tokens += int(columns["tokens"][kept].sum())
      if candidates.quotas:
        weight = columns["weight"][kept] if "weight" in columns else None
        by_group = np.bincount(columns["group"][kept], weight, len(weights))
        weights += by_group.astype(np.int64)
      elif "weight" in columns:
        weights += int(columns["weight"][kept].sum())
      else:
        weights += len(kept)
  if written != cutoff.kept:
    raise AssertionError(f"kept {written} rows, the cutoff {cutoff.kept}")
  domains = {
    name: {"rows": rows, "kept": by_domain[code]}
    for code, (name, rows) in enumerate(candidates.rows_by_domain.items())
  }
  return Kept(tokens, tuple(weights.tolist()), domains)


def shortfalls(
  candidates: Candidates, cutoff: Cutoff, kept: Kept
) -> Iterator[str]:
  """What was asked for and is not there, in words."""
  # Less than a row is no shortfall.
  total, slack = candidates.budget(), candidates.heaviest
  if sum(kept.weights) + slack <= total:
    yield (
      f"all that may be kept are {cutoff.kept:,} rows, fewer than the budget "
      f"of {total:,} allows"
    )
  for (domain, (least, _)), weight in zip(
    candidates.shares().items(), kept.weights[1:]
  ):
    if weight + slack <= least:
      yield f"domain {domain} has only {weight:,} of its {least:,}"
