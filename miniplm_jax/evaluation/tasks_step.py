"""The part of stage evaluate that runs tasks of lm-evaluation-harness.

A task is a step: what is done stays done, and further tasks are added.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.config import EvaluationConfig, RunConfig
from miniplm_jax.config.sections import GROUP, PAPER_TASKS
from miniplm_jax.core import contents, files
from miniplm_jax.core.errors import GoneError
from miniplm_jax.core.log import log, warn
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.evaluation import harness, tasks
from miniplm_jax.evaluation.subjects import Subject

with epy.lazy_imports():
  from miniplm_jax.corpus import store
  from miniplm_jax.models import sharding

STAGE = "evaluate"


def names(evaluation: EvaluationConfig) -> tuple[str, ...]:
  """The tasks, the paper's group resolved, each once."""
  chosen: list[str] = []
  for name in evaluation.tasks:
    chosen += PAPER_TASKS if name == GROUP else (name,)
  return tuple(dict.fromkeys(chosen))


def file(it: Subject, task: str) -> epath.Path:
  """The manifest of a task's results."""
  return it.folder / "tasks" / f"{task}.json"


@dataclasses.dataclass(frozen=True)
class Runner:
  """Runs tasks of models."""

  evaluation: EvaluationConfig  # which tasks, on what
  # Inputs of a row of the corpus; of a longer request the beginning is lost.
  max_length: int
  batch_tokens: int  # inputs of a batch over all devices, padding included
  run: RunConfig
  # The last model that was loaded, for its next task.
  loaded: dict[str, Any] = dataclasses.field(default_factory=dict)

  def steps(self, subjects: Sequence[Subject]) -> list[Step]:
    """One step a model and task."""
    chosen = names(self.evaluation)
    return [self._step(it, task) for it in subjects for task in chosen]

  def _step(self, it: Subject, task: str) -> Step:
    evaluation = self.evaluation
    return Step(
      stage=STAGE,
      manifest=file(it, task),
      settings={
        "task": task,
        "documents": evaluation.documents,
        "dtype": evaluation.dtype,
        "max_length": evaluation.max_length or self.max_length,
      },
      inputs={
        **it.corpus,
        "model": it.folder / MANIFEST,
        "documents": _documents(evaluation.task_data, task),
      },
      outputs=(),
      # An earlier version's say of what name: the folder does.
      effect=lambda s: {k: v for k, v in s.items() if k != "name"},
      policy=Policy(is_measure=True),
      summary=f"{task} by",
      subject=it.name,
      run=lambda inputs: self._run(it, task, inputs),
    )

  def _run(
    self, it: Subject, task: str, inputs: Mapping[str, Manifest]
  ) -> dict[str, Any]:
    model = self._model(it, inputs)
    model.asked.clear()
    answers = tasks.run(model, task, self.evaluation)
    answers["asked"] = {name: dict(n) for name, n in model.asked.items()}
    for name, n in answers["asked"].items():
      if n["cut"]:
        warn(
          STAGE,
          f"{n['cut']:,} of {n['requests']:,} requests of {name} are longer "
          f"than {model.max_length:,} tokens and lose their beginning: see "
          "config.evaluation.max_length",
        )
    for name, metrics in answers["results"].items():
      if chosen := tasks.score(metrics):
        log(STAGE, f"{name} of {it.name}: {chosen[0]} {chosen[1]:.4f}")
    documents = sum(n["effective"] for n in answers["n-samples"].values())
    return {
      "weights": inputs["model"].weights,
      "counts": {"documents": documents},
      "details": {"lm_eval": answers},
    }

  def _model(self, it: Subject, inputs: Mapping[str, Manifest]):
    """The model as lm_eval takes it; the last one is kept for its next task."""
    key = f"{it.folder} {inputs['model'].fingerprint}"
    if key not in self.loaded:
      try:
        from miniplm_jax.evaluation import lm
      except ModuleNotFoundError as e:
        raise harness.missing(e) from e
      self.loaded.clear()
      mesh = sharding.mesh_of(self.run)
      self.loaded[key] = lm.JaxLM(
        it.text_model(inputs, mesh, self.evaluation.dtype),
        batch_tokens=self.batch_tokens,
        max_length=self.evaluation.max_length
        or store.open_corpus(inputs).max_length,
        log_every_seconds=self.run.log_every_seconds,
      )
    return self.loaded[key]


@dataclasses.dataclass(frozen=True)
class _Hub:
  """Documents of the hub, of which nothing is known before they are fetched."""

  path: str  # the folder that has none of this task, or ""

  def __call__(self) -> str:
    """The fingerprint."""
    if self.path and not pathlib.Path(self.path).is_dir():
      raise GoneError(
        "no folder of tasks here",
        f"config.evaluation.task_data={self.path}",
        "give a folder with one of each task, or none: then they are fetched",
      )
    return files.digest("the hub")

  def former(self) -> tuple[str]:
    """Returns what earlier versions had for a task without a folder."""
    return (files.digest([]),)


def _documents(data: str, task: str) -> Callable[[], str]:
  """Returns what is known of a task's documents before they are read."""
  folder = tasks.folder_of(data, task)
  if not folder:
    return _Hub(data)
  return contents.Whole(lambda: tasks.files_of(folder), data)
