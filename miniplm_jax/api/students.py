"""Models that were trained here, what was measured of them, and whole runs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath, epy

from miniplm_jax.api.artifacts import (
  Artifact,
  Corpus,
  OfCorpus,
  Rows,
  Scores,
  ScoreTable,
  Selection,
  ToPandas,
)
from miniplm_jax.config import ExportConfig, RunConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.models import architecture
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.report import model_card

with epy.lazy_imports():  # NumPy, PyArrow, JAX: `import miniplm_jax` is quick
  import numpy as np
  import pyarrow as pa

  from miniplm_jax.evaluation import heldout
  from miniplm_jax.models import sharding
  from miniplm_jax.training import batches, metrics, trained


class Student(OfCorpus):
  """A model that was trained here: a student, a reference or a teacher."""

  stages = ("train", "reference", "teacher")

  @property
  def hf(self) -> epath.Path:
    """Its Hugging Face directory, once there is one."""
    return self.path / "hf"

  @property
  def corpus(self) -> Corpus:
    """The corpus that it was trained on."""
    beside = self.path.parent / "corpus"  # of a reference: DIR/reference
    if self._corpus or not (beside / MANIFEST).exists():
      return super().corpus
    return Corpus(beside)

  @property
  def shape(self) -> Architecture:
    """Its sizes."""
    return architecture.of(self.settings["model"])

  @property
  def rows(self) -> "Rows | Selection":
    """What it was trained on: a split, or a selection of its workdir.

    Raises:
      UserError: they are rows of one's own choice, which are not kept.
    """
    kind, _, name = self.settings["rows"].partition(" ")
    if kind == "split":
      return self.corpus.split(name)
    if kind == "selection":
      path = self.corpus.path.parent / "selection" / name
      return Selection(path, self.corpus)
    hint = "give a selection or a split to train"
    raise UserError("its rows are not kept", str(self.path), hint)

  @property
  def evaluated(self) -> Manifest | None:
    """The manifest of its held-out losses, if these weights were evaluated."""
    return heldout.of(self.manifest)

  @property
  def evaluation(self) -> "Evaluation":
    """Its held-out losses; raises UserError if these are of other weights."""
    if not self.evaluated:
      hint = "call evaluate(student), or run --stages=evaluate"
      raise UserError("not evaluated yet", str(self.path), hint)
    return Evaluation(self.name, heldout.losses(self.evaluated))

  def curve(self, key: str = "train/loss") -> tuple[list[int], list[float]]:
    """Steps and values of a metric that was written during training."""
    return metrics.curve(metrics.read(self.path / "metrics"), key)

  def save_pretrained(
    self, to: epath.PathLike, *, run: RunConfig = RunConfig(), **options: Any
  ) -> epath.Path:
    """Writes the directory that `transformers` loads, with a model card.

    Args:
      to: the directory; what is there is replaced, file by file.
      **options: fields of `ExportConfig`: dtype, max_shard_size.
    """
    section, corpus = ExportConfig(**options), self.corpus.reader
    rows, extra = self.rows, {}
    weights = self.settings["train"].get("domain_weights", ())
    if isinstance(rows, Selection):
      card = model_card.write(
        self.name, self.manifest, rows.manifest, self.evaluated
      )
      extra["README.md"] = card.encode()
      rows = rows.rows
    trained.save(
      epath.Path(to),
      trained.restore(self.manifest, sharding.mesh_of(run)),
      corpus,
      batches.trained_on(corpus, np.asarray(rows.ids), weights),
      extra,
      **dataclasses.asdict(section),
    )
    return epath.Path(to)


@dataclasses.dataclass(frozen=True)
class Evaluation(ToPandas):
  """The losses of one model on rows that nothing was trained on."""

  name: str  # of the model
  # By domain; "all" is their total. Each has instance_mean and token_mean in
  # nats, bits_per_byte, rows, tokens.
  by_domain: Mapping[str, Mapping[str, Any]]

  @property
  def loss(self) -> float:
    """The mean of the rows' means per token, in nats, as the paper has it."""
    return self.by_domain["all"]["instance_mean"]

  def to_arrow(self) -> "pa.Table":
    """A table with a row for each domain."""
    return pa.Table.from_pylist(
      [{"domain": name, **loss} for name, loss in self.by_domain.items()]
    )


@dataclasses.dataclass(frozen=True)
class Run:
  """What lies in a workdir, whatever made it."""

  path: epath.PathLike

  def _all(self, folder: str, kind: type[Artifact], **more) -> dict[str, Any]:
    paths = sorted(epath.Path(self.path).glob(f"{folder}/*/{MANIFEST}"))
    return {path.parent.name: kind(path.parent, **more) for path in paths}

  @property
  def corpus(self) -> Corpus:
    """Its packed rows."""
    return Corpus(epath.Path(self.path) / "corpus")

  @property
  def scores(self) -> Scores:
    """Its finished score tables, by their names."""
    return Scores(self.corpus, self._all("scores", ScoreTable))

  @property
  def selections(self) -> dict[str, Selection]:
    """Its selections, by their names."""
    return self._all("selection", Selection)

  @property
  def students(self) -> dict[str, Student]:
    """Its trained students, by their names."""
    return self._all("students", Student)


KINDS = (Corpus, ScoreTable, Selection, Student)


def open_artifact(path: epath.PathLike) -> Artifact:
  """Opens a folder as what it is; raises UserError without a whole manifest."""
  stage = Artifact(path).manifest.stage
  return next((k for k in KINDS if stage in k.stages), Artifact)(path)
