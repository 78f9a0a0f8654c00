"""Scores that another engine made, as a table of this workdir.

FILE is Parquet with columns row_id, nll_sum and, if it has them, n_tokens; or
.npy, one number for each row of D in order. FILE.json beside it says what
they are:

  {"corpus": "<fingerprint in corpus/manifest.json>", "model": "my engine",
   "nll": "sum"}          (or "mean", per scored token; in nats)

Or the folder of a table that stage publish wrote: there each row has its hash.
"""

import json
from typing import Any

import numpy as np
from etils import epath

from miniplm_jax.core import claims, errors, files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress, log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.scoring import table
from miniplm_jax.scoring.units import units_of

FILE = "scores.parquet"  # of a table, in a folder of its name
PUBLISHED = "published"  # in a taken table's details: what its model was
# Settings of a corpus that its rows' ids and hashes do not depend on; of the
# tokenizer they have what it holds.
_NOT_OF_ROWS = "fields", "id_field", "tokenizer_revision", "vocab_size"
_HINT = "give Σ −log p of every row in nats, a number that is 0 or more"


def published(path: str) -> Manifest | None:
  """The manifest of what stage publish wrote, of the folder of one table.

  Raises:
    UserError: there is a table, and no such manifest names it.
  """
  folder = epath.Path(path).expanduser()
  if not (folder / FILE).exists():
    return None
  found, name = manifest_lib.read(folder.parent / MANIFEST), folder.name
  is_it = found and found.stage == "publish"
  if not is_it or f"{name}/{FILE}" not in found.files:
    beside = f"{folder.parent / MANIFEST}"
    raise UserError(
      f"no published table {name}: "
      + (f"{beside} names none" if found else f"{beside} is not there"),
      str(folder),
      "give FOLDER/NAME as publish wrote them, with FOLDER/manifest.json",
    )
  return found


def known(path: str) -> dict[str, Any]:
  """Details of a taken table: what its publisher says of the model."""
  tables = published(path)
  name = epath.Path(path).name
  return {PUBLISHED: tables.details["models"][name]} if tables else {}


def write_parts(
  source: str, directory: epath.Path, corpus: Corpus, rows_per_part: int
) -> dict[str, str]:
  """Checks the scores of a file and writes them as parts of a table.

  Returns:
    What the parts say they were made by.

  Raises:
    UserError: they are of another corpus or of other rows, count tokens
      otherwise, or one is not finite.
  """
  path = epath.Path(source)
  units = units_of(corpus, rows_per_part)
  row_ids = np.concatenate([unit.rows for unit in units])
  if tables := published(source):
    sha256 = tables.files[f"{path.name}/{FILE}"]["sha256"]
    described = tables.details["models"][path.name] | {"nll": "sum"}
    nll, n_tokens = _taken(tables, path.name, corpus, row_ids)
  else:
    described = _manifest(path, corpus)
    nll, n_tokens = _read(path, row_ids)
    sha256 = files.sha256(path)
  made_by = {
    "weights": f"imported {sha256}",
    "tokenizer": corpus.manifest.tokenizer,
    "code": f"{described.get('model', 'unknown')}",
    "settings": described["nll"],
  }
  start = 0
  with Progress("score", len(row_ids), "rows") as progress:
    for unit in units:
      of_unit = slice(start, start + len(unit.rows))
      # As `likelihood.loss_mask` has it.
      counted = np.asarray(
        [
          np.count_nonzero(row.ids[:-1] != corpus.eos_id)
          for row in corpus.read(unit.rows)
        ],
        np.int32,
      )
      if n_tokens is not None and np.any(n_tokens[of_unit] != counted):
        i = int(np.argmax(n_tokens[of_unit] != counted))
        raise UserError(
          f"row {unit.rows[i]} was scored over {n_tokens[of_unit][i]} tokens, "
          f"here it has {counted[i]}",
          source,
          "count every predicted id whose input is not the end of a document",
        )
      nll_sum = nll[of_unit]
      if described["nll"] == "mean":
        nll_sum = nll_sum * counted
      part = table.encode(unit, nll_sum.astype(np.float32), counted, made_by)
      claims.publish(directory / unit.name, part)
      start = of_unit.stop
      progress.update(len(unit.rows))
  return made_by


def _taken(tables: Manifest, name: str, corpus: Corpus, row_ids: np.ndarray):
  """Numbers and token counts of a published table, joined by rows' hashes.

  If the rows are not those that were scored, in their order, then each takes
  the scores of the first that has its hash.
  """
  import pyarrow.parquet as pq

  with tables.reading(f"{name}/{FILE}") as local:
    columns = pq.read_table(local, columns=["hash", "nll_sum", "n_tokens"])
  theirs, nll, n_tokens = (column.to_numpy() for column in columns)
  ours = corpus.hashes[row_ids]
  if not np.array_equal(ours, theirs):
    order = np.argsort(theirs, kind="stable")
    at = np.searchsorted(theirs, ours, sorter=order)
    places = order[np.minimum(at, len(theirs) - 1)]
    if missing := int(np.count_nonzero(theirs[places] != ours)):
      there, facts = tables.details["corpus"], corpus.manifest
      settings = there["settings"] | {"tokenizer": there["tokenizer"]}
      here = facts.settings | {"tokenizer": facts.tokenizer}
      names = sorted({*settings, *here}.difference(_NOT_OF_ROWS))
      whys = (
        manifest_lib.first_difference(settings.get(name), here.get(name), name)
        for name in names
      )
      why = "; ".join(filter(None, whys)) or "its text is another"
      raise UserError(
        f"{missing:,} of the {len(ours):,} rows of D are not among the "
        f"{len(theirs):,} that were scored",
        f"{tables.directory}",
        f"make the corpus as it was: {why}",
      )
    log("score", f"{name}: other rows were scored too; taken by rows' hashes")
    nll, n_tokens = nll[places], n_tokens[places]
  return nll, n_tokens


def _manifest(path: epath.Path, corpus: Corpus) -> dict[str, str]:
  beside = path.parent / f"{path.name}.json"
  try:
    about = json.loads(beside.read_text())
    is_known = about["nll"] in ("sum", "mean")
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
    raise UserError(
      f"the manifest of these scores cannot be read ({type(e).__name__}: {e})",
      str(beside),
      'write {"corpus": FINGERPRINT, "model": NAME, "nll": "sum" or "mean"}',
    ) from e
  if not is_known:
    raise UserError(
      f'"nll" is {about["nll"]!r}', str(beside), "say sum or mean, in nats"
    )
  ours = corpus.manifest.fingerprint
  if about.get("corpus") != ours:
    raise UserError(
      f"these scores are of corpus {str(about.get('corpus'))[:12]}, here it is "
      f"{ours[:12]}",
      str(beside),
      f"score the rows of {corpus.directory}",
    )
  return about


def _read(path: epath.Path, row_ids: np.ndarray):
  """Numbers and, if there are any, token counts, in the order of `row_ids`."""
  import pyarrow.parquet as pq

  n_tokens, what = None, "these scores cannot be read"
  hint = "give Parquet with row_id and nll_sum, or a vector as .npy"
  with errors.parsing(path, hint, what), path.open("rb") as f:
    if path.suffix == ".npy":
      nll, ids = np.load(f, allow_pickle=False), row_ids
      if not isinstance(nll, np.ndarray):
        raise ValueError("an archive of arrays")
    else:
      names = set(pq.read_schema(f).names) & {"n_tokens"}
      names = ["row_id", "nll_sum", *names]
      columns = pq.read_table(f, columns=names).sort_by("row_id")
      ids = columns["row_id"].to_numpy()
      nll = columns["nll_sum"].to_numpy()
      if "n_tokens" in columns.column_names:
        n_tokens = columns["n_tokens"].to_numpy()
      for name, values in (("row_id", ids), ("n_tokens", n_tokens)):
        if values is not None and values.dtype.kind not in "iu":
          raise ValueError(f"{name} is {values.dtype}")
  if nll.dtype.kind not in "fiu":
    raise UserError(
      f"there is something that is no −log p: {nll.dtype}", str(path), _HINT
    )
  if (
    nll.ndim != 1
    or len(nll) != len(row_ids)
    or not np.array_equal(ids, row_ids)
  ):
    only = np.setxor1d(ids, row_ids)
    which = f", row {only[0]} is in one alone" if len(only) else ""
    raise UserError(
      f"there are {nll.shape} scores where D has {len(row_ids)} rows{which}",
      str(path),
      "score every row of D once: those of split train in corpus/index-*",
    )
  # Not NaN, nor null, nor what float32 cannot hold.
  if np.any(bad := ~((nll >= 0) & (nll <= np.finfo(np.float32).max))):
    i = int(np.argmax(bad))
    raise UserError(
      f"row {row_ids[i]} has {nll[i]}, which is no −log p",
      f"{path} ({int(bad.sum())} such rows)",
      _HINT,
    )
  return nll, n_tokens
