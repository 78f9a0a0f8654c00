"""What stage tokenize made, in words: rows and tokens by domain and split."""

import collections
from collections.abc import Iterable, Mapping

from etils import epath, epy

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core.errors import shortened
from miniplm_jax.core.log import log, warn

with epy.lazy_imports():
  import pyarrow.parquet as pq

_MANY_DOMAINS = 1000
_SHOWN = 12  # domains, those with the most rows
# Held-out rows below which a loss says little: the standard error of a mean of
# 200 is 7 % of the spread of rows.
FEW = 200
_ALL = None  # as a domain, the total
_Counts = collections.Counter[tuple[str | None, str]]  # by domain and split


def say(
  stage: str,
  corpus: CorpusConfig,
  indices: Iterable[epath.Path],
  counts: Mapping[str, int],
):
  """Says how much there is, and warns of what few would want.

  Args:
    stage: for the log.
    indices: the corpus's index files.
    counts: of its manifest.
  """
  names = ["domain", "split", "n_tokens"]
  rows, tokens = _Counts(), _Counts()
  sums = [("n_tokens", "count"), ("n_tokens", "sum")]
  for index in indices:
    with index.open("rb") as f:
      table = pq.read_table(f, columns=names)
    for line in table.group_by(names[:2]).aggregate(sums).to_pylist():
      for domain in line["domain"], _ALL:
        rows[domain, line["split"]] += line["n_tokens_count"]
        tokens[domain, line["split"]] += line["n_tokens_sum"]
  sizes = collections.Counter()
  for (domain, _), n in rows.items():
    sizes[domain] += n
  splits = sorted({s for _, s in rows}, key=lambda s: (s != "train", s))
  shown = [d for d, _ in sizes.most_common(_SHOWN + 1) if d is not _ALL]
  lines = [["rows (tokens)", *splits]] + [
    ["all" if d is _ALL else d or "no domain"]
    + [f"{rows[d, s]:,} ({tokens[d, s]:,})" for s in splits]
    for d in [*shown, _ALL]
  ]
  del sizes[_ALL]
  log(
    stage,
    f"{counts['documents'] - counts.get('broken', 0):,} documents are "
    f"{counts['rows']:,} rows of "
    f"{counts['tokens']:,} tokens, by domain"
    + (f" (the largest of {len(sizes):,})" if len(sizes) > _SHOWN else ""),
  )
  first, *others = (max(map(len, column)) for column in zip(*lines))
  for name, *cells in lines:
    log(stage, "  ".join([name.ljust(first), *map(str.rjust, cells, others)]))
  _warn(stage, corpus, rows, sorted(sizes))


def _warn(stage: str, corpus: CorpusConfig, rows: _Counts, domains: list[str]):
  """Warns of too little to measure on, and of domains that tell nothing."""
  held = rows[_ALL, "heldout"]
  if held < FEW and (corpus.heldout_share or corpus.split_field):
    share = FEW / sum(n for (d, _), n in rows.items() if d is _ALL)
    hint = f"--config.corpus.heldout_share={share:.2g} makes them about {FEW}"
    hint = hint if share < 0.3 and not corpus.split_field else "give more text"
    warn(stage, f"held-out rows are few to measure on, {held}: {hint}")
  if missing := [d for d in domains if held and not rows[d, "heldout"]]:
    # What documents say of their split may be meant so.
    say_it = log if corpus.split_field else warn
    names = shortened(", ".join(missing))
    say_it(stage, f"no held-out row is of domain {names}")
  if len(domains) == 1 and corpus.domain_field:
    warn(
      stage,
      f"all rows are of one domain, {domains[0]!r}: if documents name theirs, "
      "say where with --config.corpus.domain_field, which is "
      f"{corpus.domain_field!r}",
    )
  if len(domains) > _MANY_DOMAINS:
    warn(
      stage,
      "evaluations and reports hold and list every domain by itself; "
      "set --config.corpus.domain_field to a field with few values, or ''",
    )
