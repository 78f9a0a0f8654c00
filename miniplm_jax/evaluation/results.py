"""Results of tasks: the metric that counts, their average, several as one."""

from collections.abc import Mapping, Sequence
from typing import Any

from miniplm_jax.config.sections import GROUP, PAPER_TASKS

_MERGED = (
  "results",
  "groups",
  "group_subtasks",
  "configs",
  "versions",
  "n-shot",
  "higher_is_better",
  "n-samples",
  "asked",
)


def score(metrics: Mapping[str, Any]) -> tuple[str, float] | None:
  """The metric that counts by the paper's rule, and its value.

  acc_norm where the task has it, else acc; None if it has neither.
  """
  for metric in ("acc_norm", "acc"):
    for name, value in metrics.items():
      if name.partition(",")[0] == metric and isinstance(value, float):
        return metric, value
  return None


def error(metrics: Mapping[str, Any]) -> float | None:
  """The standard error of the metric that counts, if it is known."""
  chosen = score(metrics)
  for name, value in metrics.items() if chosen else ():
    is_its = name.partition(",")[0] == f"{chosen[0]}_stderr"
    if is_its and isinstance(value, float):
      return value
  return None


def asked(
  choices: Mapping[tuple[str, int], int], cut: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
  """What a model was asked, by task.

  Args:
    choices: how many continuations it was to compare, by task and document.
    cut: requests that lost their beginning, by task.

  Returns:
    Requests, how many of them were `cut`, and `chance`: the accuracy of who
    guesses, 0 where there is nothing to choose from.
  """
  by_task: dict[str, list[int]] = {}
  for (task, _), n in choices.items():
    by_task.setdefault(task, []).append(n)
  return {
    task: {
      "requests": sum(ns),
      "cut": cut.get(task, 0),
      "chance": sum(1 / n for n in ns if n > 1) / len(ns),
    }
    for task, ns in by_task.items()
  }


def average(scores: Mapping[str, float]) -> float | None:
  """The plain mean of the paper's nine, or None if one is missing."""
  if not all(task in scores for task in PAPER_TASKS):
    return None
  return sum(scores[task] for task in PAPER_TASKS) / len(PAPER_TASKS)


def merged(answers: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
  """Results of several tasks as those of one run of lm_eval.

  With all nine it has their average as the group `miniplm`.
  """
  body = {key: {} for key in _MERGED}
  for one in answers:
    for key in _MERGED:
      body[key] |= one.get(key, {})
  mean = average(scores(body["results"]))
  if mean is not None:
    line = {"alias": GROUP, "name": GROUP, "acc_norm_or_acc,none": mean}
    body["groups"][GROUP] = body["results"][GROUP] = line
    body["group_subtasks"][GROUP] = list(PAPER_TASKS)
  body["config"] = {"model": "miniplm_jax", "model_args": {"pretrained": name}}
  body["model_name"] = name
  body["lm_eval_version"] = answers[0]["lm_eval_version"]
  return body


def scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """The value that counts, by task."""
  chosen = {name: score(metrics) for name, metrics in results.items()}
  return {name: value[1] for name, value in chosen.items() if value}
