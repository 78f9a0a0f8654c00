"""The rows of D with their scores, from the tables of both models."""

from collections.abc import Iterator, Mapping

import numpy as np

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.score import table
from miniplm_jax.select import definitions

Columns = dict[str, np.ndarray]


class ScoredRows:
  """Rows and scores, part by part, as often as one likes."""

  def __init__(
    self, tables: Mapping[str, Manifest], definition: str, seed: int
  ):
    """Checks that the tables belong together.

    Args:
      tables: score manifests by role.
      definition: a key of `DEFINITIONS`.
      seed: for the definition random.

    Raises:
      UserError: the tables were made from different corpora or in different
        parts.
    """
    self.definition = definitions.DEFINITIONS[definition]
    self._seed, self._tables = seed, tables
    self._hashed = False
    (role, first), *others = tables.items()
    for other_role, other in others:
      for what, ours, theirs in (
        ("inputs.corpus", first.inputs["corpus"], other.inputs["corpus"]),
        ("counts.rows", first.counts["rows"], other.counts["rows"]),
        ("counts.parts", first.counts["parts"], other.counts["parts"]),
      ):
        if ours != theirs:
          _refuse(other, f"{what} of {other_role} is {theirs}, {role}'s {ours}")
    self.rows = first.counts["rows"]
    self.parts = first.counts["parts"]

  def columns(self) -> Iterator[Columns]:
    """Part by part; the first pass compares every file with its sha256.

    Yields:
      row_id int64, score float32, and for each role ROLE_nll float32, or
      ROLE_diff of the proxy, and ROLE_tokens int32.
    """
    streams = [
      table.parts(manifest, hashed=not self._hashed)
      for manifest in self._tables.values()
    ]
    for found in zip(*streams, strict=True):
      columns = {"row_id": found[0]["row_id"]}
      for (role, manifest), part in zip(self._tables.items(), found):
        if not np.array_equal(part["row_id"], columns["row_id"]):
          _refuse(manifest, f"the parts of {role} hold other rows")
        value = table.value_of(part)  # nll_sum, or diff_sum of the proxy
        columns[f"{role}_{value.removesuffix('_sum')}"] = part[value]
        columns[f"{role}_tokens"] = part["n_tokens"]
      score = self.definition.score(columns, self._seed)
      yield columns | {"score": score.astype(np.float32)}
    self._hashed = True

  def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row ids int64, scores float32), part by part."""
    return ((c["row_id"], c["score"]) for c in self.columns())


def _refuse(manifest: Manifest, what: str):
  raise UserError(
    what,
    str(manifest.path),
    "score both on the same corpus with the same rows_per_part",
  )
