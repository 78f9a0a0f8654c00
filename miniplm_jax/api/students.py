"""Models that were trained here, what was measured of them, and whole runs."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from etils import epath, epy

from miniplm_jax.api import border
from miniplm_jax.api.artifacts import (
  Artifact,
  Corpus,
  OfCorpus,
  Rows,
  ScoreTable,
  Selection,
  ToPandas,
)
from miniplm_jax.api.scores import Scores
from miniplm_jax.config import ExportConfig, RunConfig
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.models import architecture
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.report import compare_step, model_card

with epy.lazy_imports():  # NumPy, PyArrow, JAX: `import miniplm_jax` is quick
  import numpy as np
  import pyarrow as pa
  import pyarrow.parquet as pq

  from miniplm_jax.evaluation import heldout
  from miniplm_jax.models import sharding
  from miniplm_jax.report import compare_page
  from miniplm_jax.training import batches, metrics, trained


class Student(OfCorpus):
  """A model that was trained here: a student, a reference or a teacher."""

  stages = ("train", "reference", "teacher", "conditional")
  _counted = ("parameters", "steps")

  def __init__(
    self,
    path: epath.PathLike,
    corpus: Corpus | None = None,
    rows: Rows | Selection | None = None,
  ):
    """Opens it; without `corpus` and `rows` those are looked for."""
    super().__init__(path, corpus)
    self._rows = rows

  @property
  def hf(self) -> epath.Path:
    """Its Hugging Face directory, once there is one."""
    return self.path / "hf"

  @property
  def shape(self) -> Architecture:
    """Its sizes."""
    return architecture.of(self.settings["model"])

  @property
  def rows(self) -> "Rows | Selection":
    """What it was trained on: a split, or a selection of its workdir.

    Raises:
      UserError: they are rows of one's own choice, which only what `train`
        returns knows.
    """
    if self._rows is not None:
      return self._rows
    kind, _, name = self.settings["rows"].partition(" ")
    if kind == "split":
      return self.corpus.split(name)
    if kind == "selection":
      path = self.corpus.path.parent / "selection" / name
      return Selection(path, self.corpus)
    hint = "call train again with them, or train on a selection or a split"
    raise UserError("its rows are not kept", str(self.path), hint)

  @property
  def evaluated(self) -> Manifest | None:
    """The manifest of its held-out losses, if these weights were evaluated."""
    return heldout.of(self.manifest)

  @property
  def evaluation(self) -> "Evaluation":
    """Its held-out losses; raises UserError if these are of other weights."""
    if not self.evaluated:
      hint = "call evaluate(student)"
      raise UserError("not evaluated yet", str(self.path), hint)
    rows = heldout.read_rows(self.evaluated)
    return Evaluation(self.name, heldout.losses(self.evaluated), rows)

  def curve(self, key: str = "train/loss") -> tuple[list[int], list[float]]:
    """Steps and values of a metric that was written during training.

    Raises:
      UserError: there is no such metric.
    """
    lines = metrics.read(self.path / "metrics")
    names = {name for line in lines for name in line} - {"step"}
    if key not in names:
      hint = f"choose from {', '.join(sorted(names)) or 'none'}"
      raise UserError(f"no metric {key!r}", str(self.path), hint)
    return metrics.curve(lines, key)

  @border.in_python()
  def save_pretrained(
    self, to: epath.PathLike, *, run: RunConfig = RunConfig(), **options: Any
  ) -> epath.Path:
    """Writes the directory that `transformers` loads, with a model card.

    Args:
      to: the directory; what is there is replaced, file by file.
      **options: fields of `ExportConfig`: dtype, max_shard_size.

    Raises:
      UserError: another artifact lies there, or this is a part of one.
    """
    to = border.folder_of(to)
    places = (manifest_lib.read(f / MANIFEST) for f in (to, to.parent))
    if owner := next(filter(None, places), None):
      is_own = owner.directory == to.parent and owner.path == self.manifest.path
      if not is_own or f"{to.name}/config.json" in owner.files:
        border.refuse_taken(to, owner.stage)
    section, corpus = ExportConfig(**options), self.corpus.reader
    rows, selection = self.rows, None
    weights = self.settings["train"].get("domain_weights", ())
    if isinstance(rows, Selection):
      rows, selection = rows.rows, rows.manifest
    card = model_card.write(self.name, self.manifest, selection, self.evaluated)
    trained.save(
      to,
      trained.restore(self.manifest, sharding.mesh_of(run)),
      corpus,
      batches.trained_on(corpus, np.asarray(rows.ids), weights),
      {"README.md": card.encode()},
      **dataclasses.asdict(section),
    )
    return to


@dataclasses.dataclass(frozen=True)
class Evaluation(ToPandas):
  """The losses of one model on rows that nothing was trained on."""

  name: str  # of the model
  # By domain; "all" is their total. Each has instance_mean and token_mean in
  # nats, bits_per_byte, rows, tokens.
  by_domain: Mapping[str, Mapping[str, Any]]
  # row_id int64, nll_sum float32 in nats and n_tokens int32, NumPy [rows]; None
  # if an earlier version kept none.
  rows: Mapping[str, "np.ndarray"] | None = dataclasses.field(compare=False)

  def __repr__(self) -> str:
    rows = self.by_domain["all"]["rows"]
    return f"Evaluation({self.name!r}, loss {self.loss:.4f} of {rows:,} rows)"

  @property
  def loss(self) -> float:
    """The mean of the rows' means per token, in nats, as the paper has it."""
    return self.by_domain["all"]["instance_mean"]

  def to_arrow(self) -> "pa.Table":
    """A table with a row for each domain."""
    return pa.Table.from_pylist(
      [{"domain": name, **loss} for name, loss in self.by_domain.items()]
    )


class DocumentScores(Artifact, ToPandas):
  """Σ −log p of whole documents under the model of its name."""

  stages = ("score_documents",)
  _counted = ("documents", "scored", "tokens")

  def __len__(self) -> int:
    return self.manifest.counts["documents"]

  def to_arrow(self) -> "pa.Table":
    """A row a document: `documents.SCHEMA`; one without a score has a reason.

    doc_id, corpus_id, nll_sum in nats, n_tokens, n_bytes, bits_per_byte,
    reason.
    """
    return pq.read_table([self.path / name for name in self.manifest.files])


@dataclasses.dataclass(frozen=True)
class Run:
  """What lies in a workdir, whatever made it."""

  path: epath.PathLike

  def _all(self, folder: str, kind: type[Artifact]) -> dict[str, Any]:
    root = epath.Path(self.path).expanduser()
    paths = sorted(root.glob(f"{folder}/*/{MANIFEST}"))
    return {path.parent.name: kind(path.parent) for path in paths}

  @property
  def corpus(self) -> Corpus:
    """Its packed rows."""
    return Corpus(epath.Path(self.path) / "corpus")

  @property
  def scores(self) -> Scores:
    """Its finished score tables of most rows, by their names.

    Those of fewer are of a part of D, such as the rest of it in a training in
    stages, and stand beside no others: `open_artifact` opens them.
    """
    tables = self._all("scores", ScoreTable)
    most = max(map(len, tables.values()), default=0)
    whole = {k: table for k, table in tables.items() if len(table) == most}
    if parts := tables.keys() - whole:
      names = ", ".join(sorted(parts))
      log("score", f"of a part of D, and not among these tables: {names}")
    return Scores(self.corpus, whole)

  @property
  def selections(self) -> dict[str, Selection]:
    """Its selections, by their names."""
    return self._all("selection", Selection)

  @property
  def students(self) -> dict[str, Student]:
    """Its trained students, by their names."""
    return self._all("students", Student)


class CriteriaComparison(Artifact, ToPandas):
  """Criteria × seeds beside each other, with intervals."""

  stages = ("compare",)
  _counted = ("criteria", "seeds", "heldout_rows")

  @functools.cached_property
  def figures(self) -> dict[str, Any]:
    """All that compare.json says."""
    return compare_step.figures_of(self.manifest)

  def to_arrow(self) -> "pa.Table":
    """The lines of table.csv, see docs/selection.md."""
    return pa.Table.from_pylist(compare_page.lines(self.figures))

  def __str__(self) -> str:
    shown = compare_page.section(self.figures)
    return "\n".join([shown.table.text(), *shown.notes])


KINDS = (
  Corpus,
  ScoreTable,
  DocumentScores,
  Selection,
  Student,
  CriteriaComparison,
)


def open_artifact(path: epath.PathLike) -> Artifact | Run:
  """Opens a folder as what it is; a workdir as a `Run`.

  Raises:
    UserError: it is neither, or its manifest cannot be read.
  """
  folder = border.folder_of(path)
  if not (folder / MANIFEST).exists():
    if (folder / "corpus" / MANIFEST).exists():
      return Run(folder)
    hint = "give a folder with a manifest.json, or with a corpus that has one"
    raise UserError("nothing finished lies here", str(folder), hint)
  made = Artifact(folder).manifest
  # Stage conditional makes rows of its own, and a model.
  kinds = KINDS[1:] if made.weights else KINDS
  return next((k for k in kinds if made.stage in k.stages), Artifact)(folder)
