"""The methods: which rows a student sees, and what it minimizes."""

import dataclasses
from typing import NamedTuple


class Method(NamedTuple):
  """What makes a student.

  Attributes:
    selection: the method whose rows it trains on, for select.name.
    definition: by which `select` ranks them; None is select.definition.
    objective: what training minimizes, a key of distillation/objectives.py.
    generated: the teacher writes a part of each row, stage seqkd.
  """

  selection: str
  definition: str | None
  objective: str = "next_token"
  generated: bool = False


_BOTH = "teacher", "reference"
# How `select` may rank, the functions of select/definitions.py; and the models
# whose scores each reads.
DEFINITIONS = {
  "mean_diff": _BOTH,
  "sum_diff": _BOTH,
  "bits_per_byte_diff": _BOTH,
  "zscore_by_domain": _BOTH,
  "difficulty": ("reference",),
  "teacher_preference": ("teacher",),
  "random": (),
  "proxy": ("proxy",),
}
METHODS = {
  "miniplm": Method("miniplm", None),
  "pretrain": Method("pretrain", "random"),
  "difficulty": Method("difficulty", "difficulty"),
  "teacher_preference": Method("teacher_preference", "teacher_preference"),
  "proxy": Method("proxy", "proxy"),
  "minillm": Method("pretrain", "random", "minillm"),
  "seqkd": Method("pretrain", "random", generated=True),
  # On the rows of the first two, with the teacher's distributions.
  "vanilla_kd": Method("pretrain", "random", "soft_labels"),
  "miniplm_kd": Method("miniplm", None, "soft_labels"),
  "sparse_kd": Method("miniplm", None, "sparse_kd"),
  "token_selection": Method("pretrain", "random", "token_selection"),
}


@dataclasses.dataclass(frozen=True)
class MethodNames:
  """What is made for one method of a run."""

  selection: str  # the folder of its rows' ids
  student: str  # its student's folder
  definition: str  # by which `select` ranks the rows
  objective: str  # what training minimizes
  generated: bool  # whether the teacher writes a part of each row
