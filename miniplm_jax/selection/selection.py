"""Selecting rows, as a function of score tables and options."""

import collections
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
from etils import epath

from miniplm_jax import criteria
from miniplm_jax.config import SelectConfig
from miniplm_jax.core import fields, noise
from miniplm_jax.core import groups as domains
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.kept_rows import among_any
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.selection import cutoff as cutoff_lib
from miniplm_jax.selection import duplicates, index, overlap, redundancy
from miniplm_jax.selection.cutoff import Cutoff
from miniplm_jax.selection.index import Columns
from miniplm_jax.selection.scored import ScoredRows

_ONE = np.ones(1, np.int64)
# Why a row is left out, by the code in `Candidates.left_out`; 0 is not.
REASONS = (
  *("", "too_short", "without_text", "duplicate", "near_duplicate"),
  *("without_field", "contaminated", "not_drawn"),
)
_CODES = {reason: code for code, reason in enumerate(REASONS)}


class Candidates:
  """The rows of D that are not left out, by value, as often as one likes."""

  # uint8 by row id, a place in `REASONS`; None leaves only out what is too
  # short.
  left_out: np.ndarray | None = None
  # Float32 by row id, by which rows are ranked; None is the score.
  values: np.ndarray | None = None
  # Of the pass that ended last: the weight of the heaviest row, and of all.
  heaviest = weight = 0

  def __init__(
    self,
    scored: ScoredRows,
    rows: int,
    options: SelectConfig,
    steps: Sequence[int] = (0, 1, 1),
    before: Sequence[np.ndarray] = (),
  ):
    """Nothing is read yet; see `select`. `rows` are those drawn of D."""
    self.scored, self._rows, self._options = scored, rows, options
    self._steps, self._before = steps, before
    # Rows of D by reason, of the pass that ended last.
    self.dropped: dict[str, int] = {}
    shares = map(fields.share_of, sorted(options.quotas))
    # Least and largest share by domain; their groups are 1, 2 and so on.
    self.quotas = {domain: both for domain, *both in shares}

  def columns(self) -> Iterator[Columns]:
    """Part by part.

    Yields:
      row_id, score, hash, domain, tokens; value float32, by which rows are
      ranked; weight if the budget is in tokens; group if there are quotas.
    """
    options = self._options
    counts, heaviest, total = np.zeros(len(REASONS), np.int64), 0, 0
    for columns in self.scored.columns():
      reason = (columns["corpus_tokens"] < options.min_length).astype(np.uint8)
      # Any other row without a score was refused.
      has_none = (reason == 0) & np.isnan(columns["score"])
      reason[has_none] = _CODES["without_text"]
      reason[has_none & columns["lacks_field"]] = _CODES["without_field"]
      if self.left_out is not None:
        reason = np.maximum(reason, self.left_out[columns["row_id"]])
      if options.share < 1:
        row_id, seed = columns["row_id"], options.seed
        is_drawn = noise.drawn(row_id, seed, options.share)
        reason[~is_drawn] = _CODES["not_drawn"]
      counts += np.bincount(reason, minlength=len(REASONS))
      kept = {k: columns[k] for k in ("row_id", "score", "hash", "domain")}
      kept["tokens"] = columns["corpus_tokens"]
      kept["value"] = self._value(columns)
      if options.tokens:
        kept["weight"] = kept["tokens"]
      if self.quotas:
        places = {name: i for i, name in enumerate(self.quotas, 1)}
        of_code = [places.get(name, 0) for name in self.scored.domains]
        kept["group"] = np.array(of_code)[columns["domain"]]
      if np.any(reason):
        left = np.flatnonzero(reason == 0)
        kept = {k: v[left] for k, v in kept.items()}
      if self.values is not None:
        kept["value"] = self.values[kept["row_id"]]
      heaviest = max(heaviest, kept.get("weight", _ONE).max(initial=0))
      total += int(kept.get("weight", np.ones_like(kept["row_id"])).sum())
      yield kept
    self.dropped = dict(zip(REASONS[1:], counts[1:].tolist()))
    self.heaviest, self.weight = int(heaviest), total

  def leave_out(
    self,
    corpus: Corpus,
    folder: pathlib.Path,
    contaminated: Iterable[np.ndarray],
  ):
    """Sets `left_out`: what is contaminated, then copies among the others.

    The folder is an empty one on a disk, that stays while rows are read. It
    will hold a byte for each row of the corpus, and of copies 20 more at first.
    """
    n, copies = len(corpus), self._options.max_copies
    threshold = self._options.near_duplicates
    left_out = np.memmap(folder / "left_out", np.uint8, "w+", shape=n)
    self.left_out = left_out
    for row_ids in contaminated:
      left_out[row_ids] = _CODES["contaminated"]

    def read():
      yield from self.columns()
      for ids in self._kept_before():  # and they stay so
        score = np.full(len(ids), np.inf, np.float32)
        yield {"row_id": ids, "score": score, "hash": corpus.hashes[ids]}

    if copies:
      for row_ids in duplicates.exact(read, n, copies, folder):
        left_out[row_ids] = _CODES["duplicate"]
    if threshold:
      for row_ids in duplicates.near(read, corpus, threshold, copies or 1):
        left_out[row_ids] = _CODES["near_duplicate"]

  def _kept_before(self) -> Iterator[np.ndarray]:
    """The rows of earlier stages, 2²⁰ at a time."""
    for rows in self._before:
      yield from np.split(rows, range(1 << 20, len(rows), 1 << 20))

  def _value(self, columns: Columns) -> np.ndarray:
    """The score; with a temperature, plus noise that is as large.

    Adding T · Gumbel ranks like score / T + Gumbel, at any T.
    """
    temperature = self._options.temperature
    if not temperature:
      return columns["score"]
    drawn = noise.gumbel(columns["row_id"], self._options.seed)
    return (columns["score"] + temperature * drawn).astype(np.float32)

  def budget(self) -> int:
    """Rows or tokens that are to be kept."""
    first, end, steps = self._steps
    return self._all * end // steps - self._all * first // steps

  @property
  def _all(self) -> int:
    """The budget of all stages."""
    # of all of D, as in the method, whatever else is left out
    return self._options.budget(self._rows)

  def refuse_too_few(self):
    """Raises UserError, after a pass, if later stages would have no rows."""
    is_first = not self._before and self.budget() < self._all
    if is_first and self.weight < self._all:
      raise UserError(
        f"all stages together keep {self._all:,}, and there are only "
        f"{self.weight:,} to keep: no row is in two of them",
        "config.select.ratio, rows and tokens",
        "keep fewer, or give more text",
      )

  def shares(self) -> dict[str, tuple[int, int]]:
    """Least and largest budget of each domain that has a quota.

    Rounded down, they fit together, and are met to within a row.
    """
    total = self.budget()
    return {
      domain: tuple(int(share * total) for share in both)
      for domain, both in self.quotas.items()
    }

  def cutoff(self) -> Cutoff:
    """Where to cut; refuses a quota of no domain of D, and to keep nothing."""
    total = self.budget()
    if not self.quotas:
      cuts = cutoff_lib.find(self.columns, [total])
      kept = cuts[0].kept
    else:
      shares = [(0, total), *self.shares().values()]
      cuts, kept = cutoff_lib.divide(self.columns, total, shares)
    where = f"config.select.quotas={','.join(sorted(self._options.quotas))}"
    domains.refuse_unknown(self.quotas, self.scored.domains, "row", where)
    self._refuse_none(kept, total)
    (threshold, last_tie, *_), *groups = cuts
    groups = dict(zip(self.quotas, (list(cut[:2]) for cut in groups)))
    return Cutoff(threshold, last_tie, kept, self.scored.rows, groups)

  def cutoff_but_for_redundancy(
    self, corpus: Corpus, folder: pathlib.Path
  ) -> Cutoff:
    """Sets `values`, see `redundancy.rank`; they are cut, ties and all."""
    options, total = self._options, self.budget()
    self.values, last, kept = redundancy.rank(
      self.columns,
      corpus,
      options.redundancy,
      total,
      in_tokens=bool(options.tokens),
      before=self._kept_before(),
      folder=folder,
    )
    self._refuse_none(kept, total)
    return Cutoff(last, len(corpus), kept, self.scored.rows)

  def _refuse_none(self, kept: int, total: int):
    if not kept:
      rows, out = self.scored.rows, self.dropped.items()
      what = f"none of {rows} rows fits into a budget of {total}"
      if sum(n for _, n in out) == rows:
        why = (f"{n} {name.replace('_', ' ')}" for name, n in out if n)
        what = f"all {rows} rows are left out: {', '.join(why)}"
      raise UserError(
        what,
        "config.select.ratio, rows, tokens, share, min_length and quotas",
        "keep more, or give more text",
      )


@dataclasses.dataclass(frozen=True)
class Kept:
  """What was written."""

  tokens: int  # ids of the kept rows
  weights: tuple[int, ...]  # rows, or tokens of a budget in tokens, by group
  domains: dict[str, dict[str, int]]  # {name: {"rows" of D, "kept" rows}}


@dataclasses.dataclass(frozen=True)
class Selected:
  """What was kept, and what was left out."""

  cutoff: Cutoff  # which rows are kept
  counts: Kept
  dropped: Mapping[str, int]  # rows that were not considered, by reason
  contaminated: Mapping[str, int]  # rows with items, by set of exclude_sets
  shortfalls: tuple[str, ...]  # what was asked for and is not there, in words


def select(
  corpus: Corpus,
  tables: Mapping[str, Manifest],
  definition: str,
  options: SelectConfig,
  path: pathlib.Path,
  steps: Sequence[int] = (0, 1, 1),
  before: Sequence[np.ndarray] = (),
  folder: epath.Path | None = None,
) -> Selected:
  """Writes the ids of the kept rows, int64, ascending, as `np.save` would.

  Needs memory for a part of the tables and 1 MB for each quota; copies are
  looked for in temporary files.

  Args:
    tables: manifests of score tables by role; others are not read.
    definition: by what rows are ranked, a key of `CRITERIA` or a formula.
    options: how much is kept, and of what; not its `definition`.
    steps: of a stage of training the first and the end, and how many all
      stages have: it keeps that part of the budget.
    before: row ids, int64, ascending, that earlier stages kept: none is kept
      again.
    folder: where it is written which rows are contaminated; the file's.

  Raises:
    UserError: the tables do not belong together, a row has no finite score, or
      nothing is kept.
  """
  reads = criteria.criterion(definition).reads
  scored = ScoredRows(
    {name: tables[name] for name in reads},
    definition,
    options.seed,
    corpus,
    options.min_length,
    before,
    options.files,
  )
  rows = index.size_drawn(corpus, options.share, options.seed)
  candidates = Candidates(scored, rows, options, steps, before)
  by_set = collections.Counter()
  sets, folder = options.exclude_sets, folder or epath.Path(path.parent)

  def contaminated():
    for row_ids, counts in overlap.contaminated(corpus, sets, folder):
      by_set.update(counts)
      yield row_ids

  with tempfile.TemporaryDirectory(prefix="miniplm_jax_") as name:
    scratch = pathlib.Path(name)
    if options.max_copies or options.near_duplicates or sets:
      candidates.leave_out(corpus, scratch, contaminated() if sets else ())
    if options.redundancy:
      cutoff = candidates.cutoff_but_for_redundancy(corpus, scratch)
    else:
      cutoff = candidates.cutoff()
    candidates.refuse_too_few()
    counts = write(path, candidates, cutoff)
  shortfalls = tuple(_shortfalls(candidates, cutoff, counts))
  return Selected(cutoff, counts, candidates.dropped, by_set, shortfalls)


def write(path: pathlib.Path, candidates: Candidates, cutoff: Cutoff) -> Kept:
  """Writes the kept row ids, ascending, in the bytes of `np.save`."""
  weights = np.zeros(1 + len(candidates.quotas), np.int64)
  by_domain = collections.Counter()
  tokens = written = 0
  with path.open("wb") as f:
    _write_header(f, cutoff.kept)
    for columns in candidates.columns():
      # indices: five times as fast as a mask of random bits
      kept = np.flatnonzero(cutoff_lib.keeps(cutoff, columns))
      row_id = columns["row_id"][kept].astype("<i8", copy=False)
      f.write(row_id.tobytes())
      written += len(kept)
      by_domain.update(index.counts(columns["domain"][kept]))
      tokens += int(columns["tokens"][kept].sum())
      group = columns["group"][kept] if candidates.quotas else kept * 0
      weight = columns["weight"][kept] if "weight" in columns else None
      weights += np.bincount(group, weight, len(weights)).astype(np.int64)
  if written != cutoff.kept:
    raise AssertionError(f"kept {written} rows, the cutoff {cutoff.kept}")
  of_d = candidates.scored.rows_by_domain.items()
  domains = {
    name: {"rows": rows, "kept": by_domain[code]}
    for code, (name, rows) in enumerate(of_d)
  }
  return Kept(tokens, tuple(weights.tolist()), domains)


def _write_header(file: BinaryIO, rows: int):
  header = {"descr": "<i8", "fortran_order": False, "shape": (rows,)}
  np.lib.format.write_array_header_1_0(file, header)


def write_union(path: pathlib.Path, corpus: Corpus, kept: Sequence[np.ndarray]):
  """Writes the ids of several selections that share no row, as `select`."""
  with path.open("wb") as f:
    _write_header(f, sum(map(len, kept)))
    for piece in index.columns_of_d(corpus):
      ids = piece["row_id"]
      f.write(ids[among_any(ids, kept)].astype("<i8", copy=False).tobytes())


def _shortfalls(
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
