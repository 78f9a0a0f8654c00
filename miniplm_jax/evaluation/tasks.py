"""Tasks of lm-evaluation-harness: documents, one run of one, what it comes to.

Needs the extra `eval`; imported where a step runs. Of lm_eval only what does
not import torch is used: `simple_evaluate` would.
"""

import contextlib
import functools
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from miniplm_jax.config import EvaluationConfig
from miniplm_jax.config.sections import GROUP, PAPER_TASKS
from miniplm_jax.core.errors import UserError

# How `datasets` calls the formats, by the files' ends.
_FORMATS = {
  ".jsonl": "json",
  ".json": "json",
  ".parquet": "parquet",
  ".arrow": "arrow",
  ".csv": "csv",
}
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
# Where lm_eval keeps the paper's tasks: to look through all 14,000 takes 15 s.
_FOLDERS = "hellaswag lambada winogrande openbookqa arc piqa siqa storycloze"
# Of lm_eval's results, what those of several tasks add up to.
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


def run(lm, name: str, evaluation: EvaluationConfig) -> dict[str, Any]:
  """Evaluates one task, or one group of tasks, zero-shot.

  Returns:
    What lm_eval's `evaluate` returns, as JSON, with "lm_eval_version".

  Raises:
    UserError: there is no such task, or its documents cannot be had.
  """
  import lm_eval
  from lm_eval import evaluator
  from lm_eval.utils import handle_non_serializable

  hub = _without_hub() if evaluation.offline else contextlib.nullcontext()
  with hub, _without_forks():
    loaded = _loaded(name, evaluation.task_data, evaluation.offline)
    for task in loaded["tasks"].values():
      if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
      task.set_fewshot_seed(seed=1234)  # as simple_evaluate does
    answers = evaluator.evaluate(
      lm,
      loaded,
      limit=evaluation.documents or None,
      log_samples=False,
      # 100,000 of LAMBADA would take hours in one process.
      bootstrap_iters=1000,
    )
  answers["lm_eval_version"] = lm_eval.__version__
  text = json.dumps(answers, default=handle_non_serializable)
  return json.loads(text, parse_constant=str)  # NaN becomes a word


@contextlib.contextmanager
def _without_hub() -> Iterator[None]:
  """Nobody in this process asks the hub during the body."""
  import datasets
  import huggingface_hub

  name = "HF_HUB_OFFLINE"
  with contextlib.ExitStack() as stack:
    # The environment is read when they are imported, and they may be.
    for place in (datasets.config, huggingface_hub.constants):
      stack.callback(setattr, place, name, getattr(place, name))
      setattr(place, name, True)
    yield


@contextlib.contextmanager
def _without_forks() -> Iterator[None]:
  """Standard errors are bootstrapped in this process during the body.

  Forks and JAX do not mix.
  """
  name = "DISABLE_MULTIPROC"  # looked at whenever lm_eval would fork
  before = os.environ.get(name)
  try:
    os.environ[name] = before or "1"
    yield
  finally:
    if before is None:
      del os.environ[name]


def _loaded(name: str, data: str, offline: bool) -> dict[str, Any]:
  """A task with its documents, as lm_eval's `evaluate` takes it."""
  manager = _manager(name not in PAPER_TASKS)
  entry = manager.task_index.get(name)
  if entry is None:
    raise UserError(
      f"lm_eval has no task {name}",
      "config.evaluation.tasks",
      "see `lm_eval ls tasks`",
    )
  folder = folder_of(data, name)
  spec: Any = name
  if folder:
    # A task in a group may have settings of its own.
    override = {"task": name, **_local(folder, entry.cfg)}
    spec = {"group": "local", "task": [override]}
  try:
    tasks = manager.load([spec])
  except Exception as e:  # of any library that reads or fetches
    cause = " ".join(str(e).split())[:200]
    raise UserError(
      f"the documents of {name} cannot be had ({type(e).__name__}: {cause})",
      str(folder) if spec != name else "the hub" + ", offline" * offline,
      f"see docs/evaluation.md for the files of {name} in task_data",
    ) from e
  if spec != name:
    tasks |= {"groups": {}, "group_map": {}}
  return tasks


@functools.cache
def _manager(everything: bool):
  from lm_eval import tasks

  logging.getLogger("lm_eval").setLevel(logging.WARNING)
  if everything:
    return tasks.TaskManager()
  root = pathlib.Path(tasks.__file__).parent
  folders = [root / folder for folder in _FOLDERS.split()]
  return tasks.TaskManager(include_defaults=False, include_path=folders)


def folder_of(data: str, name: str) -> pathlib.Path | None:
  """The folder of a task's documents; None where they come from the hub."""
  folder = pathlib.Path(data) / name
  return folder if data and folder.is_dir() else None


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files of a task's folder that hold documents."""
  return sorted(p for p in folder.rglob("*") if p.suffix in _FORMATS)


def _local(folder: pathlib.Path, task: dict[str, Any]) -> dict[str, Any]:
  """A task's settings by which it reads a folder's files.

  Those of split test are test.jsonl, test-*.parquet or test/*.arrow.
  """
  if "dataset_path" not in task:
    raise UserError(
      "a group has no documents of its own", str(folder), "name its tasks"
    )
  chosen, changed = {}, {}
  for field in _SPLITS:
    split = task.get(field)
    if not isinstance(split, str):
      continue
    paths = [
      path
      for path in files_of(folder)
      for first in [path.relative_to(folder).parts[0]]
      if first in (split, split + path.suffix) or first.startswith(f"{split}-")
    ]
    if paths:
      chosen[split] = [str(path) for path in paths]
    else:
      changed[field] = None
  suffixes = {
    pathlib.Path(p).suffix for names in chosen.values() for p in names
  }
  formats = {_FORMATS[suffix] for suffix in suffixes}
  scored = [task[f] for f in ("test_split", "validation_split") if task.get(f)]
  if len(formats) != 1 or not any(split in chosen for split in scored):
    raise UserError(
      f"files in {len(formats)} formats" if chosen else "no files of a split",
      str(folder),
      f"give {' or '.join(scored)} as .jsonl, .parquet, .arrow or .csv",
    )
  return changed | {
    "dataset_path": formats.pop(),
    "dataset_name": None,
    "dataset_kwargs": {"data_files": chosen},
  }


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
  metric, _ = score(metrics) or ("", 0)
  errors = {name.partition(",")[0]: value for name, value in metrics.items()}
  value = errors.get(f"{metric}_stderr")
  return value if isinstance(value, float) else None


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
