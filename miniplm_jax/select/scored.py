"""The rows of D with their scores, from the tables of both models."""

from collections.abc import Iterator, Mapping

import numpy as np

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.score import table
from miniplm_jax.select import definitions

Chunk = tuple[np.ndarray, np.ndarray]


class ScoredRows:
  """Rows and scores, in chunks, as often as one likes."""

  def __init__(
    self, tables: Mapping[str, Manifest], definition: str, seed: int
  ):
    """Checks that the tables belong together.

    Args:
      tables: score manifests by role.
      definition: a key of `DEFINITIONS`.
      seed: for the definition random.

    Raises:
      UserError: the tables were made from different corpora, or the
        definition is unknown.
    """
    if definition not in definitions.DEFINITIONS:
      raise UserError(
        f"unknown definition {definition!r}",
        "config.select.definition",
        f"choose one of {', '.join(definitions.DEFINITIONS)}",
      )
    self._score = definitions.DEFINITIONS[definition]
    self._seed, self._tables = seed, tables
    first, *others = tables.items()
    for role, other in others:
      for what, ours, theirs in (
        ("inputs.corpus", first[1].inputs["corpus"], other.inputs["corpus"]),
        ("counts.rows", first[1].counts["rows"], other.counts["rows"]),
        ("counts.parts", first[1].counts["parts"], other.counts["parts"]),
      ):
        if ours != theirs:
          raise UserError(
            f"{what} of {role} is {theirs} and of {first[0]} {ours}",
            str(other.path),
            "score both on the same corpus with the same rows_per_part",
          )
    self.rows = first[1].counts["rows"]
    self.parts = first[1].counts["parts"]

  def columns(self) -> Iterator[dict[str, np.ndarray]]:
    """row_id, and nll and tokens of each role, part by part."""
    streams = [table.parts(manifest) for manifest in self._tables.values()]
    for found in zip(*streams, strict=True):
      columns = {"row_id": found[0]["row_id"]}
      for (role, manifest), part in zip(self._tables.items(), found):
        if not np.array_equal(part["row_id"], columns["row_id"]):
          raise UserError(
            f"the parts of {role} hold other rows",
            str(manifest.path),
            "score both on the same corpus with the same rows_per_part",
          )
        columns[f"{role}_nll"] = part["nll_sum"]
        columns[f"{role}_tokens"] = part["n_tokens"]
      yield columns

  def chunks(self) -> Iterator[Chunk]:
    """(row ids int64, scores float32), part by part."""
    for columns in self.columns():
      score = self._score(columns, self._seed)
      yield columns["row_id"], score.astype(np.float32)
