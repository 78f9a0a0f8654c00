"""The rows of D with their scores, from the tables of both models."""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from miniplm_jax import criteria
from miniplm_jax.config import SelectConfig
from miniplm_jax.core import fields
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import NAMED, Manifest
from miniplm_jax.corpus.kept_rows import among_any
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.criteria import formula
from miniplm_jax.criteria.nodes import FIELD
from miniplm_jax.scoring import table
from miniplm_jax.selection import cutoff, index, row_fields
from miniplm_jax.selection.index import Columns


class ScoredRows:
  """Rows and scores, part by part, as often as one likes."""

  def __init__(
    self,
    tables: Mapping[str, Manifest],
    definition: str,
    seed: int,
    corpus: Corpus,
    min_length: int = 0,
    before: Sequence[np.ndarray] = (),
    files: Mapping[str, str] | None = None,
  ):
    """Checks that the tables belong together.

    Args:
      tables: score manifests by role; without any, every row of D is there.
      definition: a key of `CRITERIA`, or a formula.
      seed: for what is random in it.
      min_length: shorter rows need no score.
      before: int64 row ids, ascending, of what was selected before: those
        rows are not there, and tables may be without them.
      files: Parquet files with fields that the corpus does not have, by name.

    Raises:
      UserError: a table is of another corpus or of a part of D, or there is no
        such field.
    """
    self.criterion = criteria.criterion(definition)  # how rows are ranked
    self._evaluate = formula.Evaluator(self.criterion.formula, seed)
    self._name = definition
    names = self.criterion.formula.fields
    self._fields = row_fields.RowFields(names, files or {}, corpus)
    self._tables, self._corpus = tables, corpus
    self._min_length, self._before = min_length, before
    self._hashed = False
    self._rows = collections.Counter()  # by domain code, from the first pass
    self._codes: dict[str, int] = {}
    self.of_d = index.size_of_d(corpus)  # rows of D
    self.rows = self.of_d - sum(map(len, before))  # that are there
    for role, manifest in tables.items():
      manifest.check_inputs({"corpus": corpus.manifest})
      rows = manifest.counts["rows"]
      if rows not in (self.of_d, self.rows):
        hint = "name a table of all of D"
        if "share" in manifest.settings:
          hint = "score all: --stages=score --force --config.score.share=1"
        what = f"{role} scored {rows:,} of D's {self.of_d:,} rows"
        raise UserError(what, str(manifest.path), hint)

  @property
  def domains(self) -> list[str]:
    """Names of the domain codes met so far; all of them after one pass."""
    return list(self._codes)

  @property
  def rows_by_domain(self) -> dict[str, int]:
    """Rows of each domain, after one pass."""
    return {name: self._rows[code] for name, code in self._codes.items()}

  def columns(self) -> Iterator[Columns]:
    """Part by part; the first pass compares every file with its sha256.

    Yields:
      row_id int64, score float32, NaN for a row that has none and is shorter
      than min_length, without what the score is per, or without a field that it
      reads, which lacks_field says, bool; for each role
      ROLE_nll float32, or ROLE_diff of the proxy, and ROLE_tokens int32; from
      the corpus index domain int32 (a place in `domains`), n_bytes int32, hash
      uint64, and corpus_tokens int32, the ids of the row.

    Raises:
      UserError: another row has no finite score, or a table cannot be used, or
      a file of fields has a number of no row.
    """
    # Over all of D, whatever else is left out: a row's score is its own.
    for columns in self._evaluate.over(self._joined, self.rows):
      lacks_field = np.zeros(len(columns["score"]), bool)
      for name in self.criterion.formula.fields:
        lacks_field |= np.isnan(columns[FIELD + name])
      self._check(columns, ~lacks_field)
      yield columns | {"lacks_field": lacks_field}

  def _joined(self) -> Iterator[Columns]:
    """The index and the tables, by row id, without scores."""
    rows = index.columns_of_d(
      self._corpus,
      ("n_tokens", "n_bytes", "hash"),
      self._codes,
      self._fields.columns,
      self._fields.read,
    )
    tables = (
      table.parts(manifest, hashed=not self._hashed)
      for manifest in self._tables.values()
    )
    for known, *parts in _in_step(map(self._left, (rows, *tables))):
      columns = {}
      for (role, manifest), part in zip(self._tables.items(), parts):
        if not np.array_equal(part["row_id"], known["row_id"]):
          what = f"the parts of {role} hold other rows"
          hint = "score both on the same corpus"
          raise UserError(what, str(manifest.path), hint)
        value = table.value_of(part)  # nll_sum, or diff_sum of the proxy
        columns[f"{role}_{value.removesuffix('_sum')}"] = part[value]
        columns[f"{role}_tokens"] = part["n_tokens"]
      if not self._hashed:
        self._rows.update(index.counts(known["domain"]))
      yield columns | known | {"corpus_tokens": known["n_tokens"]}
    self._hashed = True
    if self.rows:
      self._fields.refuse_unmet()

  def _left(self, parts: Iterable[Columns]) -> Iterator[Columns]:
    """The parts without the rows that were selected before."""
    for part in parts:
      if self._before:
        left = np.flatnonzero(~among_any(part["row_id"], self._before))
        part = {name: values[left] for name, values in part.items()}
      if len(part["row_id"]):
        yield part

  def _check(self, columns: Columns, needs_score: np.ndarray):
    needs_score &= columns["corpus_tokens"] >= self._min_length
    if "n_bytes" in self.criterion.formula.columns:
      needs_score &= columns["n_bytes"] > 0
    bad = np.flatnonzero(needs_score & np.isnan(columns["score"]))
    if len(bad):
      domain = self.domains[columns["domain"][bad[0]]]
      raise UserError(
        f"row {columns['row_id'][bad[0]]} of domain {domain} has "
        f"no finite {self._name}",
        f"config.select.definition ({len(bad)} such rows in one part)",
        "look at its log-probs, and at what is divided or taken the log of; "
        "nothing that is not finite is selected",
      )


def places_kept(
  tables: Mapping[str, Sequence[np.ndarray]], options: SelectConfig
) -> np.ndarray:
  """The places that a selection keeps of arrays, int64, ascending.

  Args:
    tables: Σ −log p in nats and the scored tokens, [rows] each, by role.
    options: what ranks them, a ratio or rows, and the seed.

  Raises:
    UserError: they are not of the same rows, or a value cannot be used.
  """
  its, columns = criteria.criterion(options.definition).formula, {}
  if its.columns or its.fields or "by=domain" in its.text or not its.tables:
    hint = "give what score returns"
    raise UserError("it reads other than arrays", its.text, hint)
  for name in its.tables:
    try:
      nll, tokens = map(np.asarray, tables[name])
      nll = nll.astype(np.float32)  # as in score tables
      row_id = columns.setdefault("row_id", np.arange(len(nll)))
      good = nll.shape == tokens.shape == row_id.shape != (0,)
    except (TypeError, ValueError):
      good = False
    if not good or tokens.dtype.kind not in "iu":
      hint = "give (nll, tokens), of each table [rows], tokens whole numbers"
      raise UserError(f"{name} is {fields.shown(tables[name])}", its.text, hint)
    part = {"row_id": row_id, "nll_sum": nll, "n_tokens": tokens}
    table.check_rows(f"table {name}", part)
    columns |= {f"{name}_nll": nll, f"{name}_tokens": tokens}
  evaluate = formula.Evaluator(its, options.seed)
  (ranked,) = evaluate.over(lambda: [columns], len(row_id))
  ranked["value"] = ranked["score"]
  if len(bad := np.flatnonzero(np.isnan(ranked["value"]))):
    hint = "look at what is divided or taken the log of"
    raise UserError(f"row {bad[0]} has no finite value", its.text, hint)
  (cut,) = cutoff.find(lambda: [ranked], [options.budget(len(row_id))])
  return row_id[cutoff.within([cut], ranked)]


def of_selection(
  manifest: Manifest, inputs: Mapping[str, Manifest]
) -> ScoredRows:
  """The rows and scores of a selection, from its corpus and its tables.

  Raises:
    UserError: a file of fields is gone, or another by now; or as `ScoredRows`.
  """
  settings, named = manifest.settings, manifest.details.get(NAMED, {})
  paths = {k: v for k, v in named.items() if k.startswith(FIELD)}
  rows = ScoredRows(
    {role: inputs[role] for role in settings["scores"]},
    settings["definition"],
    settings["seed"],
    Corpus(inputs["corpus"]),
    settings["min_length"],
    files={name.removeprefix(FIELD): path for name, path in paths.items()},
  )
  for name, path in paths.items():
    if row_fields.Files(path)() != manifest.inputs[name]:
      what = f"{name} is not of the file that was read"
      raise UserError(what, path, manifest.remedy)
  return rows


def _in_step(streams: Iterable[Iterator[Columns]]) -> Iterator[list[Columns]]:
  """As many rows of each stream, which may be cut into other parts."""
  none, streams = {"row_id": np.zeros(0, np.int64)}, list(streams)
  parts = [next(stream, none) for stream in streams]
  while any(len(part["row_id"]) for part in parts):
    n = min(len(part["row_id"]) for part in parts)
    # Of one that has ended nothing is left: its rows are not the others'.
    n = n or max(len(part["row_id"]) for part in parts)
    yield [{k: v[:n] for k, v in part.items()} for part in parts]
    rests = [{k: v[n:] for k, v in part.items()} for part in parts]
    parts = [
      rest if len(rest["row_id"]) else next(stream, none)
      for rest, stream in zip(rests, streams)
    ]
