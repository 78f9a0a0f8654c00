"""Held-out losses compare if they are means over the same rows."""

import collections
from collections.abc import Iterable, Mapping

from miniplm_jax.core import files
from miniplm_jax.core.manifest import Manifest

# In the details of trainings, of their curves, and of evaluations.
CURVE, LOSS = "curve_rows", "loss_rows"
# In what a checkpoint says of its run; they decide the curve alone.
CURVE_OF = "rows by run.eval_rows and evaluate.ignore_domains"


def digest(corpus, row_ids) -> str:
  """Returns a digest of what rows [n] hold, not of their ids.

  A corpus that the teacher wrote in part has the same held-out rows elsewhere.
  """
  return files.digest(corpus.hashes[row_ids].tolist())


def rows_of(measured: Manifest) -> str:
  """A digest of the rows that an evaluation or a learning curve is of.

  Earlier versions have none: the settings of an evaluation stand in.
  """
  settings = [measured.settings.get(n) for n in ("max_rows", "ignore_domains")]
  recorded = measured.details.get(CURVE) or measured.details.get(LOSS)
  return recorded or files.digest(settings)


def left_out(measured: Mapping[str, Manifest]) -> list[str]:
  """Names of what was measured on other rows than most of its tokenizer."""
  groups = collections.defaultdict(collections.Counter)
  for one in measured.values():
    groups[one.tokenizer][rows_of(one)] += 1
  most = {t: rows.most_common(1)[0][0] for t, rows in groups.items()}
  return [
    name
    for name, one in measured.items()
    if rows_of(one) != most[one.tokenizer]
  ]


def in_words(names: Iterable[str]) -> list[str]:
  """A note that they were left out; none without any."""
  text = ", ".join(names)
  why = "measured on other held-out rows than most"
  return [f"Left out, {why}: {text}."] if text else []
