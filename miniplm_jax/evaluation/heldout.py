"""Held-out loss of a model: measured, by domain, and as evaluation.json has it.

evaluation.json is the manifest; beside it lies Σ nll of each row.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath, epy

from miniplm_jax.config import ScoreConfig
from miniplm_jax.core import files, groups
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest

with epy.lazy_imports():
  from miniplm_jax.models import likelihood
  from miniplm_jax.scoring import scorer as scorer_lib

STAGE = "evaluate"
MANIFEST = "evaluation.json"
# Not Parquet: beside a score table, whose parts are all the Parquet there is.
ROWS = "evaluation.arrow"
_TYPES = {"row_id": "int64", "nll_sum": "float32", "n_tokens": "int32"}


class Measured(NamedTuple):
  """What a model says of held-out rows, without those that have no token."""

  row_ids: np.ndarray  # int64 [n]
  nll_sum: np.ndarray  # Σ nll of each in nats, float64 [n]
  n_tokens: np.ndarray  # int32 [n]
  losses: dict[str, dict[str, Any]]  # see `grouped_losses`


def measure(
  model,
  corpus,
  row_ids: np.ndarray,
  mesh,
  score: ScoreConfig,
  *,
  dtype: str,
  ignored: Sequence[str] = (),
  progress: Callable[[int], Any] = lambda rows: None,
) -> Measured:
  """The losses of some rows, of each domain and of all.

  Args:
    model: a `Decoder` on `mesh`.
    corpus: a `store.Corpus` in the model's tokens.
    row_ids: int64 [n].
    ignored: domains that do not count in the total.
    progress: called with the number of rows that are done.
  """
  scorer = scorer_lib.Scorer(score, {"model": model}, corpus, mesh, dtype=dtype)
  by_model, count, _ = scorer(row_ids, progress=progress)
  keep = count > 0
  return weighted(
    corpus, row_ids[keep], by_model["model"][keep], count[keep], ignored
  )


def weighted(corpus, row_ids, nll_sum, n_tokens, ignored) -> Measured:
  """What was measured, with the losses of domains and of those that count."""
  nll = nll_sum.astype(np.float64)
  n_bytes = corpus.index["n_bytes"].to_numpy()[row_ids]
  domain = corpus.domains(row_ids)
  losses = grouped_losses(domain, nll, n_tokens, n_bytes, ignored)
  return Measured(row_ids, nll, n_tokens, losses)


def grouped_losses(
  domain, nll, count, n_bytes, ignored: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
  """Losses of all rows and of each domain, as evaluation.json has them.

  Args:
    domain: name of each row's, object [n].
    nll: Σ nll of each row, float64 [n].
    count: tokens of each row [n].
    n_bytes: UTF-8 bytes of each row's text [n].
    ignored: domains that are listed and do not count in the total.

  Returns:
    A mapping of `groups.with_total`. `instance_mean` is in nats, the mean over
    rows of the row's mean per token, as MiniPLM reports it; `token_mean` that
    over all tokens; `bits_per_byte` Σ nll in bits over the text's UTF-8 bytes,
    which compares models of different tokenizers.
  """

  def loss(rows):
    instance_mean, token_mean = likelihood.mean_losses(nll[rows], count[rows])
    bits, of_text = float(nll[rows].sum()) / math.log(2), n_bytes[rows].sum()
    return {
      "instance_mean": instance_mean,
      "token_mean": token_mean,
      # A row may hold documents' ends alone.
      "bits_per_byte": bits / max(int(of_text), 1),
      "rows": len(nll[rows]),
      "tokens": int(count[rows].sum()),
    }

  names, code = np.unique(domain, return_inverse=True)
  rows = groups.places(code, len(names))
  total = loss(~np.isin(domain, np.array([*ignored], object)))
  return groups.with_total(total, dict(zip(names.tolist(), map(loss, rows))))


def of(student: Manifest) -> Manifest | None:
  """The manifest of its held-out losses, if these weights were evaluated."""
  evaluation = manifest_lib.read(student.directory / MANIFEST)
  is_of_it = evaluation and evaluation.inputs["model"] == student.fingerprint
  return evaluation if is_of_it else None


def losses(evaluation: Manifest) -> dict[str, dict[str, Any]]:
  """The losses of an evaluation.json, see `grouped_losses`.

  Raises:
    UserError: in it the domains do not make up the total: earlier versions
      let a domain called "all" take its place.
  """
  by_domain = evaluation.details["loss"]
  total = by_domain.get(groups.ALL, {}).get("rows", 0)
  ignored = set(map(groups.key, evaluation.settings.get("ignore_domains", ())))
  rows = [
    loss.get("rows", 0)
    for name, loss in by_domain.items()
    if name != groups.ALL and name not in ignored
  ]
  if groups.ALL not in by_domain or (rows and sum(rows) != total):
    raise UserError(
      f"the loss of “{groups.ALL}” is of {total:,} rows, but the domains that "
      f"count have {sum(rows):,}",
      str(evaluation.path),
      f"evaluate again with --stages={STAGE} --force",
    )
  return by_domain


def ignored_in_words(evaluation: Manifest) -> str:
  """Which domains do not count, in words; or nothing."""
  names = ", ".join(evaluation.settings.get("ignore_domains", ()))
  return f"Not counted in “all”: {names}." if names else ""


def write_rows(folder: epath.Path, measured: Measured) -> dict[str, Any]:
  """Writes what was measured of each row; returns what a manifest says."""
  import pyarrow as pa
  from pyarrow import feather

  table = pa.table(of_rows(measured))
  with files.replacing(folder / ROWS) as scratch:
    feather.write_feather(table, str(scratch), compression="zstd")
  return {ROWS: files.describe(folder / ROWS)}


def of_rows(measured: Measured) -> dict[str, np.ndarray]:
  """What was measured of each row, as `read_rows` returns it."""
  values = zip(_TYPES.items(), measured)  # its first three
  return {name: value.astype(kind) for (name, kind), value in values}


def read_rows(
  evaluation: Manifest, at: epath.Path | None = None
) -> dict[str, np.ndarray] | None:
  """row_id int64, nll_sum float32 and n_tokens int32 [n]; None if not kept.

  Of the file `at` another place, if it was moved there.

  Raises:
    UserError: the file is not the one that was written.
  """
  from pyarrow import feather

  if ROWS not in evaluation.files:  # an earlier version's
    return None
  with evaluation.reading(ROWS, at) as path:
    table = feather.read_table(str(path))
  return {name: table[name].to_numpy() for name in _TYPES}


def row_means(evaluation: Manifest) -> tuple[np.ndarray, np.ndarray] | None:
  """row_id int64 [n] and its mean NLL per token, float64 [n]; or None."""
  if rows := read_rows(evaluation):
    nll, count = rows["nll_sum"].astype(np.float64), rows["n_tokens"]
    return rows["row_id"], nll / count
  return None
