"""Where things lie in a workdir. Users rely on this layout."""

import dataclasses

from etils import epath

MANIFEST = "manifest.json"
# The input of a job that is a corpus in the student's own tokens.
CONVERTED = "converted"
# And one whose rows the teacher wrote in part.
GENERATED = "generated"


@dataclasses.dataclass(frozen=True)
class Workdir:
  """The folders of one workdir, local or gs://."""

  root: epath.Path

  @property
  def corpus(self) -> epath.Path:
    """Packed rows."""
    return self.root / "corpus"

  def scorer(self, role: str) -> epath.Path:
    """A teacher or reference that was pre-trained here."""
    return self.root / role

  def scores(self, model: str) -> epath.Path:
    """Σ nll and tokens per row under one model."""
    return self.root / "scores" / model

  def selection(self, name: str) -> epath.Path:
    """Kept row ids."""
    return self.root / "selection" / name

  def student(self, name: str) -> epath.Path:
    """Converted corpus, checkpoints, evaluation and export of a student."""
    return self.root / "students" / name

  @property
  def plan(self) -> epath.Path:
    """What the config would take on TPU slices."""
    return self.root / "plan"

  @property
  def analysis(self) -> epath.Path:
    """What all runs of the workdir come to."""
    return self.root / "analysis"

  def generated(self, name: str) -> epath.Path:
    """Rows that the teacher wrote in part for a student."""
    return self.student(name) / "generated"
