"""Selecting rows, as a function of score tables and options."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping

import numpy as np

from miniplm_jax.config import SelectConfig
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.criteria import CRITERIA
from miniplm_jax.selection import writing
from miniplm_jax.selection.candidates import Candidates
from miniplm_jax.selection.cutoff import Cutoff
from miniplm_jax.selection.scored import ScoredRows
from miniplm_jax.selection.writing import Kept


@dataclasses.dataclass(frozen=True)
class Selected:
  """What was kept, and what was left out."""

  cutoff: Cutoff  # which rows are kept
  counts: Kept  # of the kept rows
  dropped: Mapping[str, int]  # rows that were not considered, by reason
  shortfalls: tuple[str, ...]  # what was asked for and is not there, in words


def select(
  corpus: Corpus,
  tables: Mapping[str, Manifest],
  criterion: str,
  options: SelectConfig,
  path: pathlib.Path,
) -> Selected:
  """Writes the ids of the kept rows, int64, ascending, as `np.save` would.

  Needs memory for a part of the tables and 1 MB for each quota; copies are
  looked for in temporary files.

  Args:
    corpus: that was scored.
    tables: manifests of score tables by role, those that the criterion reads.
    criterion: by what rows are ranked, a key of `CRITERIA`.
    options: how much is kept, and of what; not its `definition`.
    path: the file to write.

  Raises:
    UserError: the tables do not belong together, a row has no finite score, or
      nothing is kept.
  """
  read = {role: tables[role] for role in CRITERIA[criterion].reads}
  scored = ScoredRows(read, criterion, options.seed, corpus, options.min_length)
  candidates = Candidates(scored, options)
  with contextlib.ExitStack() as stack:
    if options.max_copies or options.near_duplicates:
      scratch = tempfile.TemporaryDirectory(prefix="miniplm_jax_")
      folder = pathlib.Path(stack.enter_context(scratch))
      candidates.leave_out_copies(corpus, folder)
    cutoff = candidates.cutoff()
    counts = writing.write(path, candidates, cutoff)
  shortfalls = tuple(writing.shortfalls(candidates, cutoff, counts))
  return Selected(cutoff, counts, candidates.dropped, shortfalls)


def kept_ids(
  corpus: Corpus,
  tables: Mapping[str, Manifest],
  criterion: str = "mean_diff",
  options: SelectConfig | None = None,
) -> np.ndarray:
  """The ids of the rows that `select` keeps, int64 [kept], ascending."""
  with tempfile.TemporaryDirectory(prefix="miniplm_jax_") as folder:
    path = pathlib.Path(folder) / "rows.npy"
    select(corpus, tables, criterion, options or SelectConfig(), path)
    return np.load(path)
