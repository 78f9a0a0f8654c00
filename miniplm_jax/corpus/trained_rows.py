"""Which rows a model was trained on, in a file of its own folder.

What is measured on these says nothing: a score of D, a loss of held-out rows.
Splits keep them apart within a workdir; the file does so wherever the model
is given by path, and also if the corpus was split by another seed there.
"""

import base64
import json

import numpy as np
from etils import epath

from miniplm_jax.core import distributed, errors, fields
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus import store
from miniplm_jax.corpus.store import Corpus

NAME = "trained_rows.json"
_MOST = 1 << 20  # rows that are hashed anew: a minute


def encode(corpus: Corpus, row_ids: np.ndarray) -> bytes:
  """Returns the file's content: hashes of the rows, 8 bytes each, in base64."""
  hashes = np.sort(corpus.hashes[row_ids]).astype("<u8")
  body = {
    "tokenizer": corpus.manifest.tokenizer,
    "seed": corpus.manifest.settings["seed"],
    "hashes": base64.b64encode(hashes.tobytes()).decode(),
  }
  return json.dumps(body, indent=1).encode()


def new_rows(target: Corpus, corpus: Corpus) -> np.ndarray:
  """Returns int64 ids of a target's rows, but for those that a corpus has.

  Both have one seed, so that equal rows have equal hashes.
  """
  rows = target.rows_of("train")
  is_new = np.ones(len(rows), bool)
  for start in range(0, len(corpus), _MOST):
    distributed.raise_if_stopped()
    some = corpus.hashes[start : start + _MOST]
    is_new &= ~np.isin(target.hashes[rows], some)
  n = len(rows) - np.count_nonzero(is_new)
  what = f"the corpus has {n:,} of the {len(rows):,} rows of the target"
  if n == len(rows):
    hint = "give target text that is not in it"
    raise UserError(what, str(target.directory), hint)
  if n:
    log("conditional", f"{what}: they are left out")
  return rows[is_new]


def refuse(
  directory: epath.Path,
  corpus: Corpus,
  row_ids: np.ndarray,
  name: str,
  which: str = "rows of D",
):
  """Refuses a model that was trained on rows that it is measured on.

  Of another seed's hashes at most 2²⁰ rows, evenly spaced, are looked at.

  Args:
    directory: of the model, or of its training; without the file nothing is
      known.
    corpus: of the rows.
    row_ids: int64, ascending.
    name: of the model, in words.
    which: rows these are, in words.

  Raises:
    UserError: it was trained on some of them, or the file is damaged.
  """
  distributed.agree(lambda: _refuse(directory, corpus, row_ids, name, which))


def _refuse(directory, corpus, row_ids, name, which):
  places = directory / NAME, directory / "hf" / NAME
  path = next((place for place in places if place.exists()), None)
  if not path:
    made = manifest_lib.read(directory / MANIFEST)
    if made and NAME in made.files:
      hint = "restore it, or train the model again"
      raise UserError(
        "the list of its rows is gone", f"{directory / NAME}", hint
      )
    return
  with errors.parsing(path, "fetch the model again"):
    body = json.loads(path.read_bytes())
    seed, other = body["seed"], body["tokenizer"] != corpus.manifest.tokenizer
    store.hash_of(np.zeros(0), seed)
    trained = base64.b64decode(body["hashes"], validate=True)
    trained = np.frombuffer(trained, "<u8")
  if other:  # its ids are no ids of this corpus
    return
  if seed == corpus.manifest.settings["seed"]:
    hashes = corpus.hashes[row_ids]
  else:
    row_ids = row_ids[:: fields.stride(len(row_ids), _MOST)]
    rows = store.read_each(corpus, row_ids)
    hashes = np.array([store.hash_of(r.ids, seed) for r in rows], np.uint64)
  is_trained = np.isin(hashes, trained)
  if is_trained.any():
    raise UserError(
      f"{name} was trained on {int(is_trained.sum()):,} of {len(row_ids):,} "
      f"{which}, row {row_ids[np.argmax(is_trained)]} the first: what is "
      "measured on them would say nothing",
      str(directory),
      "give other rows, a model that has not seen them, or the corpus the seed "
      "and shares that the model was trained with",
    )
