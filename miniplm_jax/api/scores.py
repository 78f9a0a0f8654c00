"""The score tables of a corpus, and what is made of them: selections."""

import collections
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax import criteria
from miniplm_jax.api import border
from miniplm_jax.api.artifacts import Corpus, ScoreTable, Selection, ToPandas
from miniplm_jax.config import RunConfig, SelectConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.selection import select_step

with epy.lazy_imports():  # NumPy, PyArrow, JAX: `import miniplm_jax` is quick
  import numpy as np
  import pyarrow as pa

  from miniplm_jax.report import agreement, audit, selection_summary
  from miniplm_jax.selection import scored, selection


class Scores(ToPandas, collections.UserDict[str, ScoreTable]):
  """The score tables of a corpus, by the role of their model."""

  def __init__(self, corpus: Corpus, tables: Mapping[str, ScoreTable]):
    super().__init__(tables)
    self.corpus = corpus

  def to_arrow(self) -> "pa.Table":
    """A table of row_id, domain, n_tokens, n_bytes, and two columns a model.

    The rows are those of D, in the corpus's order. `teacher_nll` is in nats,
    the sum over `teacher_tokens` scored tokens, fewer than n_tokens, the row's
    ids.

    Raises:
      UserError: the tables are of different rows.
    """
    columns, row_ids = {}, None
    for role, scored in self.items():
      one = scored.to_arrow()
      if row_ids is None:
        row_ids = one["row_id"].to_numpy()
      elif not np.array_equal(row_ids, one["row_id"].to_numpy()):
        hint = "score both on the same corpus"
        raise UserError("tables of other rows", str(scored.path), hint)
      value = one.column_names[1]
      columns[f"{role}_{value.removesuffix('_sum')}"] = one[value]
      columns[f"{role}_tokens"] = one["n_tokens"]
    rows = self.corpus.rows(row_ids).to_arrow()
    return pa.table(
      {name: rows[name] for name in ("row_id", "domain", "n_tokens", "n_bytes")}
      | columns
    )

  @border.in_python()
  def values(
    self,
    criterion: str = "mean_diff",
    columns: Sequence[str] = (),
    seed: int = 10,
  ) -> "pa.Table":
    """A table of row_id, domain, and value, float32, that a criterion makes.

    Args:
      criterion: as of `select`.
      columns: NAME=FILE.parquet of what field("NAME") reads, as of `select`.
      seed: of what is random.

    Raises:
      UserError: a row has no finite value; without a field it is NaN.
    """
    _require(criterion, self)
    section = SelectConfig(
      definition=criterion, columns=tuple(columns), seed=seed
    )
    rows = self._ranked(section, criteria.criterion(criterion).reads)
    parts = [(c["row_id"], c["domain"], c["score"]) for c in rows.columns()]
    row_id, domain, value = map(np.concatenate, zip(*parts))
    names = pa.array(rows.domains)
    return pa.table(
      {"row_id": row_id, "domain": names.take(pa.array(domain)), "value": value}
    )

  def matrix(self, unit: str = "bits_per_byte") -> "np.ndarray":
    """Float64 [models, rows], as the package perplexity-correlations reads it.

    Models are in the order of `self`, rows those of `to_arrow`. The other unit
    is "nats_per_token".

    Raises:
      UserError: a row has no text, and so no bytes.
    """
    table = self.to_arrow()
    columns = {name: table[name].to_numpy() for name in table.column_names}
    if unit not in ("bits_per_byte", "nats_per_token"):
      hint = "give bits_per_byte or nats_per_token"
      raise UserError(f"no unit {unit!r}", "matrix", hint)
    per = np.log(2) * columns["n_bytes"]
    if unit == "bits_per_byte" and not per.all():
      hint = 'give unit="nats_per_token"'
      what = f"{np.count_nonzero(per == 0):,} rows have no bytes"
      raise UserError(what, str(self.corpus.path), hint)
    by_token = unit == "nats_per_token"
    return np.stack(
      [
        columns[f"{name}_nll"].astype(np.float64)
        / (columns[f"{name}_tokens"] if by_token else per)
        for name in self
      ]
    )

  @border.in_python()
  def select(
    self,
    criterion: str = "mean_diff",
    *,
    name: str = "",
    to: epath.PathLike | None = None,
    run: RunConfig = RunConfig(),
    force: bool = False,
    **options: Any,
  ) -> "Selection":
    """Keeps the rows of D that rank highest by a criterion.

    Args:
      criterion: a key of `criteria.CRITERIA`, as "mean_diff", the paper's, or a
        formula over tables, as "reference - teacher"; see docs/selection.md.
      name: of the selection's folder in the corpus's workdir; "" is "miniplm"
        for the paper's criterion, another's own name, and none for a formula.
      to: the folder, if it is not to lie there.
      force: make it again, if it was made otherwise, too.
      **options: fields of `SelectConfig`: ratio, rows, quotas, max_copies, …;
        with rows or tokens there is no ratio.

    Raises:
      UserError: a model that the criterion reads has no scores here.
    """
    section = _section(criterion, options)
    corpus = self.corpus
    if not name and criterion not in criteria.CRITERIA:
      raise UserError("a formula has no name", criterion, "give name=")
    name = name or ("miniplm" if criterion == "mean_diff" else criterion)
    folder = Workdir(corpus.path.parent).selection(name)
    folder = border.folder_of(to) if to else folder
    tables = {role: table.path for role, table in self.items()}
    _require(criterion, self)
    selecting = select_step.Selecting(
      section, criterion, tables, corpus.path / MANIFEST, folder
    )
    border.execute([selecting.step()], run, force)
    return Selection(folder, corpus)

  @border.in_python()
  def audit(
    self, criterion: str = "mean_diff", *others: str, **options: Any
  ) -> "audit.Audit":
    """What a criterion goes with, before anything is trained on its rows.

    Prints as tables: the share of its variance between domains, its rank
    correlation with length and with each table, what is kept of each domain,
    and the overlap with what others keep.

    Args:
      criterion: as of `select`.
      *others: criteria to compare the kept rows with.
      **options: as of `select`, for all of them: ratio, rows, ….

    Raises:
      UserError: a table that is read is not there, or not of all of D.
    """
    corpus, read = self.corpus.reader, {}
    tables = {name: one.manifest for name, one in self.items()}
    for definition in (criterion, *others):
      _require(definition, self)
      section = _section(definition, options)
      with tempfile.TemporaryDirectory(prefix="miniplm_jax_") as folder:
        path = pathlib.Path(folder) / "rows.npy"
        selection.select(corpus, tables, definition, section, path)
        read[definition] = np.load(path)
    ranked = self._ranked(_section(criterion, options), self)
    rows = read.pop(criterion)
    figures = selection_summary.summarize(corpus, ranked, rows)
    overlaps = [
      agreement.compare(corpus, rows, other, other, its)
      for other, its in read.items()
    ]
    return audit.Audit.of(criterion, figures, overlaps)

  def _ranked(
    self, section: SelectConfig, names: Iterable[str]
  ) -> "scored.ScoredRows":
    """The rows of D with some of the tables, and what a criterion makes."""
    return scored.ScoredRows(
      {name: self[name].manifest for name in names},
      section.definition,
      section.seed,
      self.corpus.reader,
      section.min_length,
      files=section.files,
    )


def _require(criterion: str, tables: Mapping[str, Any]):
  """Raises UserError unless the tables that a criterion reads are here."""
  if missing := set(criteria.criterion(criterion).reads) - set(tables):
    raise UserError(
      f"there is no criterion and no score table {' or '.join(missing)}",
      f"criterion={criterion}",
      f"criteria are {', '.join(criteria.CRITERIA)}; tables here "
      f"{', '.join(sorted(tables))}: score with more models",
    )


@border.in_python()
def select(
  scores: Scores | Mapping[str, Sequence],
  criterion: str = "mean_diff",
  **options: Any,
) -> "Selection | np.ndarray":
  """Keeps the rows of D that rank highest, see `Scores.select`.

  Of arrays, {"teacher": (nll, tokens), …}, it returns the places of these rows,
  int64, ascending, and writes nothing: nll is Σ −log p of each row in nats,
  over so many tokens. Options are ratio or rows, and seed.
  """
  if isinstance(scores, Scores):
    return scores.select(criterion, **options)
  hint = 'give what score returns, or {"teacher": (nll, tokens), …}'
  border.of_kind(scores, Mapping, "scores", hint)
  section = _section(criterion, options)
  if other := sorted(options.keys() - {"ratio", "rows", "seed"}):
    hint = "give ratio, rows and seed, or what score returns"
    raise UserError(f"{other[0]} needs a corpus", "select", hint)
  _require(criterion, scores)
  return scored.places_kept(scores, section)


def _section(criterion: str, options: Mapping[str, Any]) -> SelectConfig:
  """With rows or tokens there is no ratio."""
  if options.get("rows") or options.get("tokens"):
    options = {"ratio": 0} | options
  return SelectConfig(definition=criterion, **options)
