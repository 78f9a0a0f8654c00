"""Where things lie in a workdir. Users rely on this layout."""

import os

from etils import epath

from miniplm_jax.core import fields
from miniplm_jax.core.errors import UserError

MANIFEST = "manifest.json"
PARTIAL = "manifest.partial.json"  # of a step that is not done
# The input of a step that is a corpus in the student's own tokens.
CONVERTED = "converted"
# And one whose rows the teacher wrote in part.
GENERATED = "generated"
# And one of a target text.
TARGET = "target"
# What the folders of a workdir are called.
FOLDERS = frozenset(
  [
    "corpus",
    "teacher",
    "reference",
    "conditional",
    "scores",
    "proxy",
    "selection",
    "students",
    "plan",
    "analysis",
    "compare",
    "tasks",
    "document_scores",
    "published",
  ]
)
# And files beside them that could be taken for documents.
FILES = ("broken_records.jsonl", "report.json", "tasks.json", "config.json")
# orbax looks for its own files by patterns, and tensorstore takes \\ for /.
UNREADABLE = frozenset("*?[\\")


class Workdir:
  """The folders of one workdir, local or gs://."""

  def __init__(self, root: epath.Path):
    self.root = root
    self.claims = root / ".claims"  # who makes what now, see core/claims.py
    self.config_file = root / "config.json"  # by which it was made last
    self.corpus = root / "corpus"  # packed rows
    self.plan = root / "plan"  # what the config would take on TPU slices
    self.plan_file = self.plan / "plan.json"
    # What models say of whole documents, by the models' names.
    self.document_scores = root / "document_scores"
    self.published = root / "published"  # score tables, for others
    self.analysis = root / "analysis"  # what all its runs come to

  def claims_of(self, folder: epath.Path) -> epath.Path:
    """Who makes what in a folder."""
    return self.claims / os.path.relpath(folder, self.root)

  def scorer(self, role: str) -> epath.Path:
    """A teacher or reference that was pre-trained here."""
    return self.root / role

  def scores(self, model: str) -> epath.Path:
    """Σ nll and tokens per row under one model."""
    return self._named("scores", model)

  def selection(self, name: str) -> epath.Path:
    """Kept row ids."""
    return self._named("selection", name)

  def student(self, name: str) -> epath.Path:
    """Converted corpus, checkpoints, evaluation and export of a student."""
    return self._named("students", name)

  def compared(self, name: str = "") -> epath.Path:
    """Criteria beside each other; "" are those without a name."""
    return self._named("compare", name) if name else self.root / "compare"

  def generated(self, name: str) -> epath.Path:
    """Rows that the teacher wrote in part for a student."""
    return self.student(name) / "generated"

  def _named(self, folder: str, name: str) -> epath.Path:
    # Nothing is read, written or removed elsewhere, whoever gives the name.
    if not fields.is_name(name):
      where = str(self.root / folder)
      raise UserError(f"the name {name!r}", where, fields.NAME_TODO)
    return self.root / folder / name


def table_files(folder: epath.Path) -> tuple[epath.Path, ...]:
  """A score table's own; evaluations and tasks of the model lie beside it."""
  return folder / "*.parquet", folder / "workers"
