"""The methods: which rows a student sees, what it minimizes, what that takes.

The one list of them. A new method is an entry of `METHODS`. If it minimizes
something of its own, that is an entry of `OBJECTIVES`, a class in distillation/
and its section in config/methods.py. A new way to rank rows is a
formula, see criteria/. Nothing here imports JAX or NumPy.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from miniplm_jax.core.workdir import CONVERTED, GENERATED

TEACHER = "teacher"


class Method(NamedTuple):
  """What makes a student."""

  selection: str  # the method whose rows it trains on, for select.name
  criterion: str | None  # that ranks them; None is select.definition
  objective: str = "next_token"  # what training minimizes
  generated: bool = False  # the teacher writes a part of each row, stage seqkd
  staged: bool = False  # rows are selected again while it is trained


class Labels(NamedTuple):
  """What stage logits stores of each token of the kept rows."""

  role: str  # which model says it: teacher or reference
  kind: str  # sampling or top_k
  ids: int  # of a token; 0 stores −log p of the label alone
  seed: int  # of what is sampled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What training minimizes, and what that takes.

  Its class is made of (train section, id of the end of documents, what the
  backward pass keeps, the teacher or the labels, its own section).
  """

  words: str  # for cards and reports
  loss: str = ""  # MODULE.CLASS in distillation/; "" is `NextToken`
  section: str = ""  # of the config, which is its part of the settings
  runs_teacher: bool = False  # the teacher takes part in each step
  # Its section → what stage logits stores for it.
  labels: Callable[[Any], Labels] | None = None
  # (`flops.TokenCost`, its section) → FLOPs of training on an input token; None
  # is the next-token loss.
  token_flops: Callable[[Any, Any], float] | None = None
  has_z_loss: bool = True  # its kernel knows train.z_loss
  # Stage plan compiles its step. For the others that of the next-token loss
  # stands in, slower by their FLOPs.
  is_compiled: bool = False

  def role(self, section: Any) -> str:
    """Whose weights it needs, teacher or reference; "" is nobody's."""
    if self.labels:
      return self.labels(section).role
    return TEACHER if self.runs_teacher else ""


OBJECTIVES = {
  "next_token": Objective(words="the next-token loss"),
  "soft_labels": Objective(
    words="the next-token loss and a teacher's soft labels",
    loss="vanilla_kd.SoftLabels",
    section="kd",
    runs_teacher=True,
    # The teacher reads the batch too (paper, section 3.1).
    token_flops=lambda cost, _: cost.training + cost.teacher_pass,
    has_z_loss=False,
    is_compiled=True,
  ),
  "minillm": Objective(
    words="reverse KL to a teacher, on samples, and the next-token loss",
    loss="minillm.MiniLLM",
    section="minillm",
    runs_teacher=True,
    token_flops=lambda cost, section: cost.on_policy(section.prompt_share),
  ),
  # As many FLOPs as the next-token loss: the teacher's outputs are stored.
  "sparse_kd": Objective(
    words="what a teacher has said of few ids at each token",
    loss="sparse_kd.SparseKD",
    section="sparse_kd",
    labels=lambda s: Labels(TEACHER, s.kind, s.ids, s.seed),
    has_z_loss=False,
  ),
  "token_selection": Objective(
    words="the next-token loss of the tokens that gain most by a frozen model",
    loss="token_selection.TokenSelection",
    section="token_selection",
    labels=lambda s: Labels(s.model, "top_k", 0, 0),  # nothing is drawn
    # A forward pass finds the tokens, another one trains on them.
    token_flops=lambda cost, _: cost.training + cost.student_pass,
  ),
}
METHODS = {
  "miniplm": Method("miniplm", None),
  "pretrain": Method("pretrain", "random"),
  "difficulty": Method("difficulty", "difficulty"),
  "teacher_preference": Method("teacher_preference", "teacher_preference"),
  "proxy": Method("proxy", "proxy"),
  "staged": Method("staged", None, staged=True),
  "minillm": Method("pretrain", "random", "minillm"),
  "seqkd": Method("pretrain", "random", generated=True),
  # On the rows of the first two, with the teacher's distributions.
  "vanilla_kd": Method("pretrain", "random", "soft_labels"),
  "miniplm_kd": Method("miniplm", None, "soft_labels"),
  "sparse_kd": Method("miniplm", None, "sparse_kd"),
  "token_selection": Method("pretrain", "random", "token_selection"),
}

# Inputs of a student's training; a selection has a teacher's scores as
# "teacher".
INIT = "init"  # the weights that it begins with
TEACHER_WEIGHTS = "teacher_weights"
SEQKD = "seqkd"  # how the generated rows were written
LABELS = "logits"
LABELS_OF = "logits_of"
INPUTS = {
  "selection": "selection manifest",
  GENERATED: "rows that the teacher wrote in part",
  SEQKD: "that teacher, and how it wrote",
  CONVERTED: "the selection in this tokenizer",
  INIT: "model that it began with",
  TEACHER_WEIGHTS: "teacher that took part in each step",
  LABELS: "what a frozen model has said of each token",
  LABELS_OF: "that model, and how it was asked",
}


@dataclasses.dataclass(frozen=True)
class MethodNames:
  """What is made for one method of a run."""

  selection: str  # the folder of its rows' ids
  student: str  # its student's folder
  definition: str  # the criterion by which `select` ranks the rows
  objective: str  # what training minimizes
  generated: bool  # whether the teacher writes a part of each row
  staged: bool = False  # whether rows are selected again as it is trained

  @property
  def made_by(self) -> "MethodNames":
    """Equal of those that are made alike, whatever their names."""
    return dataclasses.replace(self, selection="", student="")


def settings_key(objective: str) -> str:
  """Where a student's settings have those of its objective."""
  return OBJECTIVES[objective].section or objective


def trained_by(settings: Mapping[str, Any]) -> str:
  """The objective whose settings a student's manifest has."""
  by_key = {settings_key(name): name for name in OBJECTIVES}
  return next((by_key[key] for key in settings if key in by_key), "next_token")


def trained_in_words(settings: Mapping[str, Any]) -> str:
  """What a student minimized, with its options, by its manifest's settings."""
  name = trained_by(settings)
  section = settings.get(settings_key(name), {})
  options = ", ".join(f"{key} {value}" for key, value in section.items())
  text = f"`{name}`, {OBJECTIVES[name].words}"
  return f"{text} ({options})" if options else text
