"""Finished tables against the models that they name.

Some rows are scored again, in batches of another composition, and each is
compared with what the table says of it. Stage score does so with a few rows
before it says that a table is finished, on another mesh if there is one; look
verify with more of them, after reading every part.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from miniplm_jax.core import hosts
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import duration, log
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import int8, sharding
from miniplm_jax.score import step as score_stage
from miniplm_jax.score import table, uses
from miniplm_jax.score.scorer import Scorer
from miniplm_jax.score.units import Unit
from miniplm_jax.score.work import Table

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
  name: str, where: str, stored: table.Columns, scorer: Scorer, tolerance: float
) -> float:
  """Scores rows again; returns how far they are off at most.

  Args:
    name: of the table and of the scorer's model.
    where: the table, for the error.
    stored: columns of the rows, at least one, as the table has them.
    scorer: of that model.
    tolerance: nats per token, of rows of 256 tokens or more; that of a row of
      n tokens is √(256 / n) times as large.

  Raises:
    UserError: a row is off by more, or has another number of tokens.
  """
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
  return float(off.max())


def tolerance_of(config, dtype: str) -> float:
  """`verify.tolerance`, or what the rounding of `dtype` asks for."""
  return config.verify.tolerance or _TOLERANCE[dtype]


def rescorer(
  config, source: score_stage.Source, corpus: Corpus, mesh: Mesh, facts
) -> Scorer:
  """What scores a table's rows again, all at full length: one program.

  Args:
    config: the whole config, of which `score` is used.
    source: the table's model.
    corpus: of the rows.
    mesh: where to load the model.
    facts: `weights`, `dtype` and `int8` of the table, and `architecture`, if
      it says that.

  Raises:
    UserError: it is another model.
  """
  dtype = facts["dtype"]
  model = score_stage.load_checked(source, corpus, mesh, dtype)
  uses.check_loaded(source, model, facts)
  if facts["int8"]:
    model = int8.quantize(model)
  return score_stage.scorer_of(
    config, {source.name: model}, corpus, mesh, dtype, lengths=()
  )


def after_merge(
  config, filled: Table, units: Sequence[Unit], scorer_on
) -> dict[str, Any]:
  """Scores run.self_check_rows rows of a merged table again.

  All processes take part. If there are several devices they stand in reverse
  order: rows and shards of weights lie elsewhere than before.

  Args:
    config: the whole config, of which `run` and `verify` are used.
    filled: the table.
    units: all of its units.
    scorer_on: loads the table's model onto a mesh and returns its `Scorer`.

  Returns:
    What was done, for the manifest.

  Raises:
    UserError: as in `compare`.
  """
  run, c = config.run, config.verify
  tolerance = tolerance_of(config, config.score.dtype)
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  start = time.monotonic()
  found = hosts.agree(
    lambda: _stored(filled, units, run.self_check_rows, c.seed)
  )
  stored = {name: np.array(values) for name, values in found.items()}
  off = compare(
    filled.model,
    str(filled.directory),
    stored,
    scorer_on(sharding.reordered(mesh)),
    tolerance,
  )
  report = {
    "rows": len(stored["row_id"]),
    "seed": c.seed,
    "tolerance": tolerance,
    "max_difference": off,
    "devices_reordered": mesh.size > 1,
    "seconds": round(time.monotonic() - start, 2),
  }
  log(
    filled.stage,
    f"{filled.model}: {report['rows']} rows scored again, off by at most "
    f"{off:.2g} nats per token (tolerance {tolerance:g}), in "
    f"{duration(report['seconds'])}",
  )
  return report


def _stored(filled: Table, units: Sequence[Unit], rows: int, seed: int):
  """Columns of a sample, as JSON; reads the parts that it lies in alone."""
  ends = np.cumsum([len(unit.rows) for unit in units])
  places = sample(int(ends[-1]), rows, seed)
  of_place = np.searchsorted(ends, places, "right")
  found: dict[str, list] = {}
  for i in np.unique(of_place):
    unit = units[i]
    local = places[of_place == i] - (ends[i] - len(unit.rows))
    columns = table.read_part(filled.directory / unit.name).columns
    for name, values in columns.items():
      found.setdefault(name, []).extend(values[local].tolist())
  return found
