"""What a selection did to the corpus, in figures: one pass over the scores."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from miniplm_jax.corpus.kept_rows import among
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.criteria.statistics import Moments
from miniplm_jax.selection.scored import ScoredRows

_SAMPLE = 50_000  # rows that the pictures are drawn from
TEXTS = 2  # rows of each domain at each place of the ranking

# Added up by group of rows; what begins with kept_, over the kept rows alone.
_SUMS = ("rows", "tokens", "score", "noise", "scored")
_FIELDS = (*_SUMS, *(f"kept_{name}" for name in _SUMS))

# Places of a domain's ranking: which rows, and whether the highest are meant.
PLACES = {
  "highest score": (None, True),
  "lowest score that was kept": (True, False),
  "highest score that was left out": (False, True),
  "lowest score": (None, False),
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Some rows of D, and those of them that were kept."""

  name: str
  rows: int
  tokens: int  # ids in them
  score: float  # sum of their scores
  noise: int  # rows that the reference finds likelier than the teacher does
  scored: int  # rows with a score; what is left out before may have none
  kept_rows: int  # of the kept rows alone; likewise what follows
  kept_tokens: int
  kept_score: float
  kept_noise: int
  kept_scored: int

  @property
  def share(self) -> float:
    """The share of its rows that was kept."""
    return self.kept_rows / self.rows


@dataclasses.dataclass(frozen=True)
class PlotSample:
  """Evenly spaced rows of D that have a score, for pictures; all arrays [n]."""

  score: np.ndarray  # float32
  kept: np.ndarray  # bool
  domain: np.ndarray  # names
  tokens: np.ndarray  # int32, ids of the row
  means: Mapping[str, np.ndarray]  # float32, mean NLL per token, by table


@dataclasses.dataclass(frozen=True)
class Summary:
  """A selection in figures; exact but for `sample`."""

  domains: list[Group]  # most tokens first
  lengths: list[Group]  # by tokens of a row, shortest first, no empty ones
  total: Group  # all rows of D
  # Share of the variance of D's scores that lies between domains, η².
  between_domains: float
  has_noise: bool  # whether teacher and reference tables were both there
  # {domain: {place of `PLACES`: [(score, row id)]}}
  places: dict[str, dict[str, list[tuple[float, int]]]]
  sample: PlotSample  # for pictures


def summarize(corpus: Corpus, scored: ScoredRows, rows: np.ndarray) -> Summary:
  """Reads the score tables once, a part at a time; `rows` are the kept ids."""
  by_domain = np.zeros((len(_FIELDS), 0))
  by_length = np.zeros((len(_FIELDS), corpus.max_length + 2))
  places, has_noise, moments = _Places(), True, Moments()
  sample, every, start = [], max(scored.rows // _SAMPLE, 1), 0
  for columns in scored.columns():
    ids, score = columns["row_id"], columns["score"]
    if not len(ids):
      continue
    domain, length = columns["domain"], columns["corpus_tokens"]
    new = len(scored.domains) - by_domain.shape[1]  # domains not met before
    by_domain = np.pad(by_domain, ((0, 0), (0, new)))
    kept = among(ids, rows)
    means = _means(columns)
    noise = np.zeros(len(ids))
    if has_noise := {"teacher", "reference"} <= means.keys():
      noise = (means["reference"] < means["teacher"]).astype(np.float64)
    has_score = ~np.isnan(score)
    known = np.where(has_score, score, 0)
    values = np.ones(len(ids)), length, known, noise, has_score
    _add(by_domain, domain, kept, values)
    _add(by_length, length, kept, values)
    places.add(*(c[has_score] for c in (domain, score, ids, kept)))
    moments.add(domain[has_score], score[has_score])
    drawn = np.arange(-start % every, len(ids), every)
    drawn = drawn[has_score[drawn]]
    start += len(ids)
    columns = score, kept, domain, length, *means.values()
    sample.append([c[drawn] for c in columns])
  score, kept, domain, length, *drawn = map(np.concatenate, zip(*sample))
  names = np.array(scored.domains, object)
  drawn = dict(zip(means, drawn))
  sample = PlotSample(score, kept, names[domain], length, drawn)
  domains = [
    group(name, by_domain[:, i])
    for i, name in enumerate(names)
    if by_domain[0, i]
  ]
  lengths = [
    group(f"{low:,} to {high - 1:,}" if high > low + 1 else f"{low:,}", total)
    for low, high in _buckets(by_length.shape[1] - 2)
    if (total := by_length[:, low:high].sum(1))[0]
  ]
  return Summary(
    domains=sorted(domains, key=lambda g: (-g.tokens, g.name)),
    lengths=lengths,
    total=group("all", by_domain.sum(1)),
    between_domains=moments.between(),
    has_noise=has_noise,
    places={names[i]: rows for i, rows in places.best().items()},
    sample=sample,
  )


def group(name: str, sums: Iterable[float]) -> Group:
  """A group from its sums, in the order of `Group`'s fields."""
  sums = dict(zip(_FIELDS, sums))
  whole = {k: v if k.endswith("score") else int(v) for k, v in sums.items()}
  return Group(name, **whole)


def largest(groups: Sequence[Group], most: int = 12) -> list[Group]:
  """The first `most` groups, and the others as one if they are several."""
  if len(groups) <= most + 1:
    return list(groups)
  rest = groups[most:]
  sums = [sum(getattr(g, field) for g in rest) for field in _FIELDS]
  return [*groups[:most], group(f"{len(rest)} other domains", sums)]


def _buckets(max_length: int) -> list[tuple[int, int]]:
  """Lengths [low, high): finer where packed rows are, at the long end."""
  shares = (0.25, 0.5, 0.75, 0.875, 0.9375)
  inner = {max(int(s * max_length), 2) for s in shares}
  edges = sorted({2, *inner, max_length + 1, max_length + 2})
  return list(itertools.pairwise(edges))


def _means(columns) -> dict[str, np.ndarray]:
  """float32 [n], the mean NLL per token, by table."""
  return {
    (name := key.removesuffix("_nll")): columns[key]
    / columns[f"{name}_tokens"].astype(np.float32)
    for key in columns
    if key.endswith("_nll")
  }


def _add(sums: np.ndarray, code: np.ndarray, kept: np.ndarray, values):
  """Adds values [n] to sums [fields, groups]; exact for counts < 2^53."""
  n = sums.shape[1]
  for i, value in enumerate(values):
    sums[i] += np.bincount(code, value, n)
    sums[i + len(values)] += np.bincount(code[kept], value[kept], n)


class _Places:
  """The rows at each place of each domain's ranking, so far."""

  def __init__(self):
    # Columns domain, score and row id, by whether rows were kept, and whether
    # the highest are meant.
    self._rows = {key: [] for key in itertools.product((True, False), repeat=2)}

  def add(self, domain, score, row_id, kept):
    """Takes a part's rows; all arrays [n]."""
    for (is_kept, highest), rows in self._rows.items():
      new = [c[kept == is_kept] for c in (domain, score, row_id)]
      rows[:] = [_first([*rows, new], highest)]

  def best(self) -> dict[int, dict[str, list[tuple[float, int]]]]:
    """The rows as (score, row id), by domain code and place of `PLACES`."""
    by_domain = {}
    for place, (is_kept, highest) in PLACES.items():
      either = (True, False) if is_kept is None else (is_kept,)
      rows = [columns for k in either for columns in self._rows[k, highest]]
      for code, *pair in zip(*(c.tolist() for c in _first(rows, highest))):
        places = by_domain.setdefault(code, {name: [] for name in PLACES})
        places[place].append(tuple(pair))
    return by_domain


def _first(rows: Sequence[Sequence[np.ndarray]], highest: bool):
  """The best rows of each domain, of equal scores the first: columns alike."""
  domain, score, row_id = map(np.concatenate, zip(*rows))
  order = np.lexsort((row_id, -score if highest else score, domain))
  code, is_best = domain[order], np.ones(len(order), bool)
  is_best[TEXTS:] = code[TEXTS:] != code[:-TEXTS]  # fewer of it come before
  return [c[order[is_best]] for c in (domain, score, row_id)]
