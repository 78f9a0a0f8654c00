"""What a training is, before anything of it is read."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from miniplm_jax.config import ExportConfig, RunConfig, TrainConfig
from miniplm_jax.core.fields import Section
from miniplm_jax.core.step import Input
from miniplm_jax.models import architecture
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.training import flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
  """What a training minimizes, and what that takes.

  Without any of its fields it is the next-token loss.
  """

  name: str = "next_token"  # of `methods.OBJECTIVES`
  section: Section | None = None  # what it may be told
  # (this training, corpus, mesh, input manifests) → an `objective.NextToken` or
  # what extends it; None is `NextToken` itself.
  make: Callable[..., Any] | None = None
  # Its part of the manifest's settings.
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # What it reads beside corpus and selection, by name.
  inputs: Mapping[str, Input] = dataclasses.field(default_factory=dict)
  # FLOPs of training on an input token; 0 is the next-token loss.
  token_flops: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
  """One training, as its step plans it and the loop runs it."""

  stage: str  # as on the command line
  folder: epath.Path  # gets checkpoints/ and metrics/
  shape: Architecture
  train: TrainConfig  # what decides the result
  run: RunConfig  # how it is run
  max_length: int  # inputs of a row
  objective: ObjectiveSpec = ObjectiveSpec()
  # (shape, corpus, what that was generated from, mesh) → the weights to begin
  # with, float32; None draws them.
  begin: Callable[..., Any] | None = None
  rows: str = ""  # which rows, in words, for the manifest
  # (corpus, input manifests) → int64 ids of the rows to train on.
  row_ids: Callable[..., Any] | None = None
  ignore_domains: Sequence[str] = ()  # not in the learning curve
  writes_hf: bool = False  # hf/ at the end
  # trained_rows.json at the end; without it they are of D, none held out.
  writes_rows: bool = False
  # How hf-<step> is written every run.export_every steps; None is never.
  export: ExportConfig | None = None
  plain_steps: int = 0  # of the next-token loss at the same cost, if others
  # () → FLOPs that were spent for it before, by part; None of a part is not
  # known.
  offline: Callable[[], Mapping[str, float | None]] | None = None
  # Of train.steps, those between these are trained here: another training has
  # done what comes before, whose manifest is the input `goes_on`.
  between: tuple[int, int] = (0, 0)  # the second one 0: to the last
  goes_on: str = ""
  # As `row_ids`, with what it goes on from; None are those alone.
  all_row_ids: Callable[..., Any] | None = None

  @property
  def name(self) -> str:
    """The name in the log: a student's own, or the stage."""
    return self.folder.name if self.stage == "train" else self.stage

  @property
  def last_step(self) -> int:
    """The step that it ends with."""
    return self.between[1] or self.train.steps

  def spent_before(self) -> dict[str, float | None]:
    """FLOPs before its training, by part; what given weights took, too."""
    if not self.offline:
      return {}
    began = {"the weights that it begins with": None} if self.begin else {}
    return {**self.offline(), **began}

  @property
  def settings(self) -> dict[str, Any]:
    """All that decides the result, for the manifest."""
    ends_before = self.last_step < self.train.steps
    return {
      "model": architecture.settings_of(self.shape),
      "train": dataclasses.asdict(self.train),
      "rows": self.rows,
      **({"last_step": self.last_step} if ends_before else {}),
      **self.objective.settings,
    }

  @property
  def step_tokens(self) -> int:
    """Inputs of a batch, over all devices."""
    return self.train.batch_size * self.max_length

  @property
  def token_flops(self) -> float:
    """FLOPs that the method asks for on an input token."""
    plain = flops.next_token(self.shape, self.max_length)
    return self.objective.token_flops or plain
