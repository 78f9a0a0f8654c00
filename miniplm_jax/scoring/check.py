"""What a finished table must be: whole, and what its model says.

Some rows are scored again, in batches of another composition, and each is
compared with what the table says of it. Stage score does so with a few rows
before it says that a table is finished, on another mesh if there is one; look
verify with more of them, after reading every part.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from miniplm_jax.config import RunConfig, ScoreConfig, VerifyConfig
from miniplm_jax.core import claims, distributed
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import duration, log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import int8, sharding
from miniplm_jax.models.ref import Identity, ModelRef
from miniplm_jax.scoring import ngram, table, worker
from miniplm_jax.scoring.ngram import NgramRef, NgramScorer
from miniplm_jax.scoring.scorer import Scorer
from miniplm_jax.scoring.units import Unit
from miniplm_jax.scoring.worker import TableSpec

_VERIFY = "verify"  # the look, for the log
# A row's rounding errors add up like √tokens, so its mean has less of them the
# longer it is. The tolerance is that of rows of so many tokens or more.
_TOKENS = 256
# In nats per token. SmolLM2-135M on CPU, other padding: float32 within 1e-5;
# bfloat16 within 9e-3 at 128 tokens, 4e-4 at 480. Rows differ by 0.1 and more.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}


def sample(total: int, rows: int, seed: int) -> np.ndarray:
  """Places of at most so many rows of a table, int64, ascending."""
  rng = np.random.default_rng(seed)
  drawn = rng.choice(total, min(rows, total), replace=False, shuffle=False)
  return np.sort(drawn)


def compare(
  stage: str,
  name: str,
  where: str,
  stored: table.Columns,
  scorer: Scorer | NgramScorer,
  verify: VerifyConfig,
) -> tuple[float, float]:
  """Scores rows again; says and returns how far they are off, and may be.

  Both in nats per token, of rows of 256 tokens or more. The tolerance of a row
  of n tokens is √(256 / n) times as large; without one of `verify`, it is that
  of the dtype. At least one row is `stored`.

  Raises:
    UserError: a row is off by more, or has another number of tokens.
  """
  start = time.monotonic()
  tolerance = verify.tolerance or _TOLERANCE[scorer.dtype]
  value = table.value_of(stored)
  row_ids, n_stored = stored["row_id"], stored["n_tokens"]
  sums, n_tokens, _ = scorer(row_ids)
  off = np.abs(sums[name] - stored[value]) / n_stored
  allowed = tolerance * np.sqrt(_TOKENS / np.minimum(n_stored, _TOKENS))
  wrong = (n_tokens != n_stored) | ~(off <= allowed)  # NaN is wrong
  if wrong.any():
    i = int(np.argmax(np.where(wrong, np.nan_to_num(off, nan=np.inf), -1)))
    raise UserError(
      f"{int(wrong.sum())} of {len(row_ids)} rows are not what {name} says: "
      f"row {row_ids[i]} is stored as {stored[value][i]:.6g} nats over "
      f"{n_stored[i]} tokens, {name} says {sums[name][i]:.6g} over "
      f"{n_tokens[i]}, {off[i]:.2g} a token apart where {allowed[i]:.2g} are "
      "allowed",
      where,
      "look at more rows with --stages=verify; if it is rounding, raise "
      f"--config.verify.tolerance, else {table.again(where)}",
    )
  log(
    stage,
    f"{name}: {len(row_ids)} rows scored again, off by at most {off.max():.2g} "
    f"nats per token (tolerance {tolerance:g}), in "
    f"{duration(time.monotonic() - start)}",
  )
  return float(off.max()), tolerance


def rescorer(
  score: ScoreConfig,
  ref: ModelRef,
  corpus: Corpus,
  expected: Identity,
  is_int8: bool,
  mesh: Mesh,
) -> Scorer:
  """Makes what scores a table's rows again, all at full length: one program.

  Raises:
    UserError: it is another model than the table says.
  """
  dtype = expected.dtype
  model = ref.load(corpus, mesh, dtype, expected)
  if is_int8:
    model = int8.quantize(model)
  models = {ref.name: model}
  return Scorer(score, models, corpus, mesh, dtype=dtype, lengths=())


def merge(
  spec: TableSpec,
  corpus: Corpus,
  units: Sequence[Unit],
  run: RunConfig,
  verify: VerifyConfig,
  scorer_on: Callable[[Mesh], Scorer] | None = None,
) -> dict[str, Any]:
  """Merges the parts and returns the fields of the table's manifest.

  `scorer_on` loads the table's model onto a mesh, to score some rows again;
  None if there is no model.

  Raises:
    UserError: a part is missing or not of this table, or some of its rows,
      scored again, are not what it says.

  Returns:
    Nothing in other processes than the first.
  """
  fields: dict[str, Any] = {}

  def merge_parts():
    described, counts = table.merge(
      spec.directory, units, spec.made_by, run.any_code
    )
    claims.Board(spec.claims, 0).clear({unit.name for unit in units})
    fields.update(
      {
        "tokenizer": corpus.manifest.tokenizer,
        "weights": spec.made_by["weights"],
        "files": described,
        "counts": counts,
        "details": worker.summary(spec.directory)
        | {"architecture": spec.made_by.get("architecture")},
      }
    )
    log(spec.stage, worker.in_words(fields["details"]))

  distributed.agree(merge_parts)
  checked: Mapping[str, Any] = {"rows": 0}
  if scorer_on and run.self_check_rows:
    checked = _check_merged(spec, units, run, verify, scorer_on)
  if fields:
    fields["details"]["self_check"] = checked
  return fields


def _check_merged(
  spec: TableSpec,
  units: Sequence[Unit],
  run: RunConfig,
  verify: VerifyConfig,
  scorer_on: Callable[[Mesh], Scorer],
) -> dict[str, Any]:
  """Scores run.self_check_rows rows of a merged table again.

  All processes take part. If there are several devices they stand in reverse
  order: rows and shards of weights lie elsewhere than before. Returns what was
  done, for the manifest.
  """
  mesh = sharding.mesh_of(run)
  start = time.monotonic()
  columns = distributed.agree(
    lambda: _sampled(spec, units, run.self_check_rows, verify.seed)
  )
  stored = {name: np.array(values) for name, values in columns.items()}
  scorer = scorer_on(sharding.reordered(mesh))
  about = spec.stage, spec.model, str(spec.directory)
  off, tolerance = compare(*about, stored, scorer, verify)
  return {
    "rows": len(stored["row_id"]),
    "seed": verify.seed,
    "tolerance": tolerance,
    "max_difference": off,
    "devices_reordered": mesh.size > 1,
    "seconds": round(time.monotonic() - start, 2),
  }


def _sampled(
  spec: TableSpec, units: Sequence[Unit], rows: int, seed: int
) -> dict[str, list]:
  """Columns of a sample, as JSON; reads the parts that it lies in alone."""
  ends = np.cumsum([len(unit.rows) for unit in units])
  places = sample(int(ends[-1]), rows, seed)
  of_place = np.searchsorted(ends, places, "right")
  columns: dict[str, list] = {}
  for i in np.unique(of_place):
    unit = units[i]
    local = places[of_place == i] - (ends[i] - len(unit.rows))
    part = table.read_part(spec.directory / unit.name)
    for name, values in part.columns.items():
      columns.setdefault(name, []).extend(values[local].tolist())
  return columns


def verify_table(
  score: ScoreConfig,
  verify: VerifyConfig,
  run: RunConfig,
  ref: ModelRef | NgramRef,
  manifest: Manifest,
  corpus: Corpus,
):
  """Reads every part of a table, and scores a random sample of rows again.

  Raises:
    UserError: a part is damaged, or a row is not what its model says.
  """
  parts = list(table.parts(manifest))
  columns = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  total = len(columns["row_id"])
  if total != manifest.counts["rows"]:
    raise UserError(
      f"the table has {total} rows where its manifest says "
      f"{manifest.counts['rows']}",
      str(manifest.path),
      table.again(manifest.directory),
    )
  more = "; made elsewhere, so nothing is scored again" if ref.scores else ""
  whole = f"{ref.name}: {len(parts)} parts of {total:,} rows are whole"
  log(_VERIFY, whole + more)
  if ref.scores:
    return
  places = sample(total, verify.rows, verify.seed)
  stored = {name: values[places] for name, values in columns.items()}
  if isinstance(ref, NgramRef):
    scorer = ngram.rescorer(ref, corpus, manifest, run.max_broken)
  else:
    expected, is_int8 = Identity.of(manifest), manifest.settings["int8"]
    mesh = sharding.mesh_of(run)
    scorer = rescorer(score, ref, corpus, expected, is_int8, mesh)
  compare(_VERIFY, ref.name, str(manifest.directory), stored, scorer, verify)
