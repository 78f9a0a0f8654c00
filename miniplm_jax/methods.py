"""The methods: which rows a student sees, and what it minimizes."""

import types
from typing import NamedTuple

from ml_collections import ConfigDict


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


def for_method(config: ConfigDict, method: str) -> types.SimpleNamespace:
  """What is made for one method.

  Returns:
    Names `selection` and `student`, and `definition`, `objective` and
    `generated`.
  """
  made = METHODS[method]
  return types.SimpleNamespace(
    selection=config.select.name.replace("{method}", made.selection),
    student=config.student.name.replace("{method}", method),
    definition=made.definition or config.select.definition,
    objective=made.objective,
    generated=made.generated,
  )


def methods(config: ConfigDict) -> tuple[str, ...]:
  """All methods of a run, the main one first."""
  return tuple(dict.fromkeys((config.method, *config.baselines)))


def scorers(config: ConfigDict) -> tuple[str, ...]:
  """Those of teacher and reference that must score D.

  All of a run whose methods read no scores: there they are for later.
  """
  definitions = [for_method(config, m).definition for m in methods(config)]
  read = {role for name in definitions for role in DEFINITIONS[name]}
  # The proxy learns from both, and int8 is judged by the ranking of both.
  if not read or "proxy" in read or config.score.int8_teacher:
    return _BOTH
  return tuple(role for role in _BOTH if role in read)


def uses_generated(config: ConfigDict) -> bool:
  """Whether a method of the run trains on rows that the teacher wrote."""
  return any(METHODS[method].generated for method in methods(config))


def uses_proxy(config: ConfigDict) -> bool:
  """Whether a method of the run ranks by the proxy's predictions."""
  return "proxy" in methods(config)
