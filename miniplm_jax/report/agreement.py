"""How far two selections of one corpus agree."""

import collections
import dataclasses

import numpy as np

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.kept_rows import among
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.selection import index


@dataclasses.dataclass(frozen=True)
class Shared:
  """How many rows of one group two selections have."""

  name: str  # of the group
  ours: int
  theirs: int
  both: int

  @property
  def jaccard(self) -> float:
    """Rows of both over rows of either; 1 if there is none."""
    either = self.ours + self.theirs - self.both
    return self.both / either if either else 1.0


@dataclasses.dataclass(frozen=True)
class Agreement:
  """This selection beside another one."""

  name: str  # of the other
  definition: str  # by which the other ranks
  total: Shared  # over all rows
  domains: list[Shared]  # most rows of this selection first
  chance: float  # Jaccard of two random selections of these sizes


def compare(
  corpus: Corpus,
  rows: np.ndarray,
  name: str,
  definition: str,
  other_rows: np.ndarray,
) -> Agreement:
  """Compares kept row ids, both ascending, in one pass over the index."""
  codes: dict[str, int] = {}
  counts = collections.Counter()
  for d in index.columns_of_d(corpus, domains=codes):
    ours, theirs = (among(d["row_id"], r) for r in (rows, other_rows))
    for i, is_kept in enumerate((ours, theirs, ours & theirs)):
      by_domain = index.counts(d["domain"][is_kept])
      counts.update({(code, i): n for code, n in by_domain.items()})
  domains = [
    Shared(domain, *(counts[code, i] for i in range(3)))
    for domain, code in codes.items()
    if counts[code, 0] or counts[code, 1]
  ]
  both = sum(s.both for s in domains)
  a, b = (len(ids) / index.size_of_d(corpus) for ids in (rows, other_rows))
  return Agreement(
    name=name,
    definition=definition,
    total=Shared("all", len(rows), len(other_rows), both),
    domains=sorted(domains, key=lambda s: (-s.ours, s.name)),
    chance=a * b / (a + b - a * b),
  )


def check(other: Manifest, corpus: Manifest):
  """Raises UserError unless the other selection is of this corpus."""
  if other.inputs["corpus"] != corpus.fingerprint:
    raise UserError(
      f"selection {other.path.parent.name} is of corpus "
      f"{other.inputs['corpus'][:12]}, this one of {corpus.fingerprint[:12]}",
      str(other.path),
      "let config.select.compare_with name a selection of this corpus, or ''",
    )
