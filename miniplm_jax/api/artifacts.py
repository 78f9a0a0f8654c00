"""What steps have made, as objects: opened by path, read as Arrow tables.

An artifact is a folder with a manifest that says of what it was made, how, and
which files it has. The functions of this package and the command line
make the same folders; whatever made one, it opens here.
"""

import collections
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from etils import epath, epy

from miniplm_jax import criteria
from miniplm_jax.api import border
from miniplm_jax.config import RunConfig, SelectConfig
from miniplm_jax.core import files, gs
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.selection import select_step

with epy.lazy_imports():  # NumPy, PyArrow, JAX: `import miniplm_jax` is quick
  import numpy as np
  import pyarrow as pa

  from miniplm_jax.corpus import kept_rows, store
  from miniplm_jax.report import agreement, audit, selection_summary
  from miniplm_jax.scoring import table
  from miniplm_jax.selection import scored, selection


class ToPandas:
  """What can be read as an Arrow table."""

  def to_pandas(self):
    """`to_arrow` as a DataFrame; needs pandas."""
    return self.to_arrow().to_pandas()


class Artifact:
  """A folder with a manifest."""

  stages: tuple[str, ...] = ()  # that make such an artifact
  _counted: tuple[str, ...] = ("rows",)  # of its manifest's counts, to be shown

  @border.in_python()
  def __init__(self, path: epath.PathLike):
    """Opens it; raises UserError if it is none, damaged or of another kind."""
    self.path = epath.Path(path).expanduser()
    self.manifest = manifest_lib.require(self.path / MANIFEST)
    if self.stages and self.manifest.stage not in self.stages:
      raise UserError(
        f"not made by stage {' or '.join(self.stages)} but by "
        f"{self.manifest.stage}",
        str(self.path),
        "open it with open_artifact, or give another folder",
      )

  @property
  def name(self) -> str:
    """Its folder's name."""
    return self.path.name

  @property
  def settings(self) -> Mapping[str, Any]:
    """Everything that was set and changes the content."""
    return self.manifest.settings

  @property
  def fingerprint(self) -> str:
    """sha256 of what it was made from, how, and of its files."""
    return self.manifest.fingerprint

  @border.in_python()
  def check(self):
    """Raises UserError unless all files have the sha256 that was written."""
    self.manifest.check_content()

  def __repr__(self) -> str:
    counts = self.manifest.counts
    words = [f"{counts[n]:,} {n}" for n in self._counted if n in counts]
    return f"{type(self).__name__}({', '.join([repr(str(self.path)), *words])})"


class Corpus(Artifact, ToPandas):
  """Packed rows with their domains and splits, and the tokenizer."""

  stages = ("tokenize", "convert", "seqkd", "conditional")

  @functools.cached_property
  def reader(self) -> "store.Corpus":
    """Random access to the rows."""
    return store.Corpus(self.manifest)

  def __len__(self) -> int:
    return self.manifest.counts["rows"]

  @property
  def max_length(self) -> int:
    """Inputs of a row; it holds one id more."""
    return self.settings["max_length"]

  @property
  def tokenizer(self):
    """The tokenizer that the rows were made with."""
    return self.reader.tokenizer()

  def split(self, name: str) -> "Rows":
    """The rows of a split: train (what is selected from), reference, heldout.

    Raises:
      UserError: there is no such split.
    """
    if name not in store.SPLITS:
      hint = f"choose from {', '.join(store.SPLITS)}"
      raise UserError(f"no split {name!r}", str(self.path), hint)
    return Rows(self, self.reader.rows_of(name), f"split {name}")

  def to_arrow(self) -> "pa.Table":
    """A table of row_id, domain, split, n_tokens, n_bytes and hash."""
    return self.rows(np.arange(len(self))).to_arrow()

  def rows(self, ids) -> "Rows":
    """Some rows, by their ids.

    Raises:
      UserError: there is no such row.
    """
    ids = np.unique(ids)
    if len(ids) and ids.dtype.kind not in "iu":
      what = f"row ids are {ids.dtype}"
      raise UserError(what, str(self.path), "give whole numbers")
    for row_id in ids[(ids < 0) | (ids >= len(self))].tolist()[:1]:
      hint = f"there are {len(self):,}, from 0"
      raise UserError(f"no row {row_id}", str(self.path), hint)
    ids = ids.astype(np.int64)
    return Rows(self, ids, f"rows {files.digest(ids.tolist())[:12]}")


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(ToPandas):
  """Rows of a corpus: of a split, of a selection, or of one's own choice."""

  corpus: Corpus
  ids: Any  # int64 [rows], ascending
  name: str  # in words, as manifests of training have it
  path: epath.Path | None = None  # of the selection that they are

  def __len__(self) -> int:
    return len(self.ids)

  def __repr__(self) -> str:
    return f"Rows({self.name!r}, {len(self):,} of {self.corpus!r})"

  def to_arrow(self) -> "pa.Table":
    """A table of row_id, domain, split, n_tokens, n_bytes and hash."""
    index = self.corpus.reader.index
    names = ("domain", "split", "n_tokens", "n_bytes", "hash")
    columns = {name: index[name].take(pa.array(self.ids)) for name in names}
    return pa.table({"row_id": pa.array(self.ids), **columns})

  @border.in_python()
  def texts(self, most: int | None = None) -> list[str]:
    """The texts of the first rows, as the tokenizer decodes them."""
    decode = self.corpus.tokenizer.decode
    return [decode(row.ids) for row in self.corpus.reader.read(self.ids[:most])]


class ScoreTable(Artifact, ToPandas):
  """Σ −log p and tokens of every row under the model of its name."""

  stages = ("score", "proxy")

  def __len__(self) -> int:
    return self.manifest.counts["rows"]

  def to_arrow(self) -> "pa.Table":
    """A table of row_id, nll_sum (diff_sum of a proxy), in nats, n_tokens."""
    parts = [pa.table(dict(part)) for part in table.parts(self.manifest)]
    return pa.concat_tables(parts)


class Scores(ToPandas, collections.UserDict[str, ScoreTable]):
  """The score tables of a corpus, by the role of their model."""

  def __init__(self, corpus: Corpus, tables: Mapping[str, ScoreTable]):
    super().__init__(tables)
    self.corpus = corpus

  def to_arrow(self) -> "pa.Table":
    """A table of row_id, domain, n_tokens, n_bytes, <role>_nll, <role>_tokens.

    The rows are those of D, in the corpus's order. <role>_nll is in nats, the
    sum over <role>_tokens scored tokens, fewer than n_tokens, the row's ids.

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
    self._require(criterion)
    step = select_step.step(
      section, criterion, tables, corpus.path / MANIFEST, folder
    )
    border.execute([step], run, force)
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
      self._require(definition)
      section = _section(definition, options)
      with tempfile.TemporaryDirectory(prefix="miniplm_jax_") as folder:
        path = pathlib.Path(folder) / "rows.npy"
        selection.select(corpus, tables, definition, section, path)
        read[definition] = np.load(path)
    scored_rows = scored.ScoredRows(
      tables, criterion, section.seed, corpus, section.min_length
    )
    rows = read.pop(criterion)
    figures = selection_summary.summarize(corpus, scored_rows, rows)
    overlaps = [
      agreement.compare(corpus, rows, other, other, its)
      for other, its in read.items()
    ]
    return audit.Audit.of(criterion, figures, overlaps)

  def _require(self, criterion: str):
    """Raises UserError unless the tables that a criterion reads are here."""
    if missing := set(criteria.criterion(criterion).reads) - set(self):
      raise UserError(
        f"there is no criterion and no score table {' or '.join(missing)}",
        f"criterion={criterion}",
        f"criteria are {', '.join(criteria.CRITERIA)}; tables here "
        f"{', '.join(sorted(self))}: score with more models",
      )


def _section(criterion: str, options: Mapping[str, Any]) -> SelectConfig:
  """With rows or tokens there is no ratio."""
  if options.get("rows") or options.get("tokens"):
    options = {"ratio": 0} | options
  return SelectConfig(definition=criterion, **options)


class OfCorpus(Artifact):
  """What is made from a corpus, which lies in the same workdir."""

  def __init__(self, path: epath.PathLike, corpus: Corpus | None = None):
    """Opens it; without `corpus` that which lies in a folder above it."""
    super().__init__(path)
    self._corpus = corpus

  @functools.cached_property
  def corpus(self) -> Corpus:
    """The corpus that it was made from.

    Raises:
      UserError: it is in none of three folders above, or is another by now.
    """
    if self._corpus is not None:
      return self._corpus
    for folder in gs.absolute(self.path).parents[:3]:
      manifest = manifest_lib.read(folder / "corpus" / MANIFEST)
      if manifest and manifest.fingerprint == self.manifest.inputs["corpus"]:
        return Corpus(folder / "corpus")
    raise UserError(
      "the corpus that it was made from is not in a folder above it",
      str(self.path),
      f"give it: {type(self).__name__}(path, corpus)",
    )


class Selection(OfCorpus, ToPandas):
  """The rows of D that are kept."""

  stages = ("select",)
  _counted = ("kept", "rows")

  @functools.cached_property
  def rows(self) -> Rows:
    """The kept rows, in the corpus's order."""
    ids = kept_rows.kept_rows(self.manifest)
    return Rows(self.corpus, ids, f"selection {self.name}", self.path)

  def __len__(self) -> int:
    return len(self.rows)

  def to_arrow(self) -> "pa.Table":
    """As `Rows.to_arrow`, of the kept rows."""
    return self.rows.to_arrow()
