"""How diverse is the text: the Vendi score of rows, by their n-grams.

Friedman and Dieng, arXiv 2210.02410.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from miniplm_jax.core.workdir import GENERATED
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.report.analyses.base import Analysis, NoInputs
from miniplm_jax.report.inventory import Inventory
from miniplm_jax.report.page import Section, Table
from miniplm_jax.selection import index
from miniplm_jax.training.trained import own_corpora

_NS = (1, 2)  # as the authors' n-gram kernel by default
_ROWS, _DRAWS, _SEED = 500, 4, 10


def vendi(kernel: np.ndarray) -> float:
  """The Vendi score of a matrix of similarities, float [n, n].

  That is symmetric, positive semi-definite, with ones on its diagonal. The
  score is 1 (all equal) to n (nothing in common).
  """
  from scipy import special

  values = np.linalg.eigvalsh(kernel / len(kernel))
  return float(np.exp(special.entr(np.maximum(values, 0)).sum()))


def ngram_kernel(rows: Sequence[np.ndarray], ns: Sequence[int] = _NS):
  """Cosines of counts of n-grams, a mean over `ns`; float64 [rows, rows].

  A row, int ids [length], that has no n-gram of a length is like no other in
  that length.
  """
  return np.mean([_cosines(rows, n) for n in ns], axis=0)


def _cosines(rows: Sequence[np.ndarray], n: int) -> np.ndarray:
  from scipy import sparse

  grams, owner = [], []
  for i, row in enumerate(rows):
    if len(row) >= n:
      grams.append(np.lib.stride_tricks.sliding_window_view(row, n))
      owner.append(np.full(len(grams[-1]), i))
  kernel = np.zeros((len(rows), len(rows)))
  if grams:
    _, column = np.unique(np.concatenate(grams), axis=0, return_inverse=True)
    where = np.concatenate(owner), column.reshape(-1)
    counts = sparse.coo_array((np.ones(len(column)), where)).tocsr()
    counts.resize(len(rows), counts.shape[1])
    norm = np.sqrt(counts.power(2).sum(1))
    counts = sparse.diags_array(1 / np.maximum(norm, 1)) @ counts
    kernel = (counts @ counts.T).toarray()
  np.fill_diagonal(kernel, 1)
  return kernel


def measure(workdir: Inventory) -> dict[str, Any]:
  """Measures D, each selection, and what a teacher wrote.

  Raises:
    NoInputs: there is nothing to compare D with.
  """
  if not workdir.selections:
    raise NoInputs("there is no selection: run --stages=select")
  corpus = Corpus(workdir.corpus)
  # (corpus, rows, places of rows → their ids) by name.
  ids_of_d = functools.partial(index.at, corpus)
  texts = {"D": (corpus, index.size_of_d(corpus), ids_of_d)}
  for name, selection in workdir.selections.items():
    ids = kept_rows(selection)
    if len(ids):
      texts[f"selected: {name}"] = corpus, len(ids), ids.__getitem__
  for name, student in workdir.students.items():
    if written := own_corpora(student.training).get(GENERATED):
      own = Corpus(written)
      ids = own.rows_of("train")
      texts[f"written: {name}"] = own, len(ids), ids.__getitem__
  # Draws of more than half of a text would hardly differ.
  n = min(_ROWS, *(-(-rows // 2) for _, rows, _ in texts.values()))
  scores = {}
  for name, (source, rows, ids_at) in texts.items():
    rng = np.random.default_rng(_SEED)
    scores[name] = [
      vendi(ngram_kernel([row.ids for row in source.read(ids_at(at))]))
      for at in (
        np.sort(rng.choice(rows, n, replace=False)) for _ in range(_DRAWS)
      )
    ]
  return {
    "kernel": "cosine of counts of token n-grams, mean over n",
    "n": list(_NS),
    "rows": n,
    "scores": scores,
  }


def render(figures: Mapping[str, Any]) -> Section:
  """The table, with the deviation of the draws."""
  scores = figures["scores"]
  mean = np.mean([*scores.values()], 1)
  std = np.std([*scores.values()], 1, ddof=1)
  return Section(
    table=Table.of(
      zip(scores, mean, std),
      ("text", "", lambda line: line[0]),
      ("rows", "d", lambda _: figures["rows"]),
      ("Vendi score", ".2f", lambda line: line[1]),
      ("standard deviation", ".2f", lambda line: line[2]),
      ("against D", ">", lambda line: f"{line[1] / mean[0]:.3f} ×"),
    ),
  )


ANALYSIS = Analysis(
  "Diversity",
  "The Vendi score (arXiv 2210.02410) of as many rows of each text: exp(−Σ λ "
  "log λ) over the eigenvalues λ of K / n, the effective number of different "
  "rows among n. The kernel K is the cosine of two rows' counts of n-grams of "
  "token ids, a mean over n = 1 and 2. It grows with n, so only equal n "
  "compare. Mean and standard deviation over "
  f"{_DRAWS} draws without replacement. The paper has 32.25 for the original "
  "text, 30.16 for what the teacher wrote and 36.70 for the selected text, of "
  "a kernel that it does not give: the order compares, not the magnitude.",
  measure,
  render,
)
