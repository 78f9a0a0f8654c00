"""The part of stage evaluate that runs tasks of lm-evaluation-harness.

A task is a step: what is done stays done, and further tasks are added.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

from miniplm_jax.config.sections import GROUP, PAPER_TASKS
from miniplm_jax.core import contents, files
from miniplm_jax.core.errors import GoneError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.evaluate import tasks
from miniplm_jax.evaluate.subjects import Subject, subjects

STAGE = "evaluate"


def steps(config, workdir: Workdir) -> list[Step]:
  """One step a model and task."""
  # The last model that was loaded, for its next task; only of this config.
  held: dict[str, object] = {}
  chosen = names(config)
  return [
    _step(config, held, it, task)
    for it in (models(config, workdir) if chosen else ())
    for task in chosen
  ]


def names(config) -> tuple[str, ...]:
  """The tasks, the paper's group resolved, each once."""
  found = []
  for name in config.evaluation.tasks:
    found += PAPER_TASKS if name == GROUP else (name,)
  return tuple(dict.fromkeys(found))


def models(config, workdir: Workdir) -> list[Subject]:
  """Those that tasks are run on."""
  return subjects(config, workdir, scorers=config.evaluation.scorers)


def file(it: Subject, task: str):
  """The manifest of a task's results."""
  return it.folder / "tasks" / f"{task}.json"


def _step(config, held: dict[str, object], it: Subject, task: str) -> Step:
  c = config.evaluation
  return Step(
    stage=STAGE,
    manifest=file(it, task),
    settings={
      "task": task,
      "documents": c.documents,
      "dtype": c.dtype,
      "max_length": config.corpus.max_length,
    },
    inputs={
      **it.corpus,
      "model": it.folder / MANIFEST,
      "documents": _documents(c.task_data, task),
    },
    outputs=(),
    # An earlier version's say of what name: the folder does.
    effect=lambda s: {k: v for k, v in s.items() if k != "name"},
    is_measure=True,
    summary=f"{task} by {it.name}",
    run=lambda inputs: _run(config, held, it, task, inputs),
  )


@dataclasses.dataclass(frozen=True)
class _Hub:
  """Documents of the hub, of which nothing is known before they are fetched.

  Attributes:
    path: the folder that has none of this task, or "".
  """

  path: str

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
    """As earlier versions had it, of a task without a folder in task_data."""
    return (files.digest([]),)


def _documents(data: str, task: str) -> Callable[[], str]:
  """What is known of a task's documents before they are read."""
  folder = tasks.folder_of(data, task)
  if not folder:
    return _Hub(data)
  return contents.Whole(lambda: tasks.files_of(folder), data)


def _run(config, held, it: Subject, task: str, inputs):
  try:
    from miniplm_jax.evaluate import jax_lm
  except ModuleNotFoundError as e:
    from miniplm_jax.evaluate import harness

    raise harness.missing(e) from e
  from miniplm_jax.core.log import log
  from miniplm_jax.evaluate import results

  c = config.evaluation
  model = _loaded(jax_lm.JaxLM, config, held, it, inputs)
  found = tasks.run(model, task, c.task_data, c.offline, c.documents)
  for name, metrics in found["results"].items():
    if chosen := results.score(metrics):
      log(STAGE, f"{name} of {it.name}: {chosen[0]} {chosen[1]:.4f}")
  return {
    "weights": inputs["model"].weights,
    "counts": {"documents": _count(found)},
    "details": {"lm_eval": found},
  }


def _count(found) -> int:
  return sum(n["effective"] for n in found["n-samples"].values())


def _loaded(make, config, held, it: Subject, inputs: Mapping[str, Manifest]):
  """The model as lm_eval takes it; the last one is kept for its next task."""
  key = f"{it.folder} {inputs['model'].fingerprint}"
  if key not in held:
    from miniplm_jax.corpus.store import open_corpus
    from miniplm_jax.models import sharding

    held.clear()
    c, run = config.evaluation, config.run
    corpus = open_corpus(inputs)
    mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
    held[key] = make(
      it.load(inputs, mesh, c.dtype),
      corpus.text_engine(),
      mesh,
      eot_id=corpus.eos_id,
      prefix_id=corpus.bos_id,
      dtype=c.dtype,
      batch_tokens=config.score.batch_tokens,
      max_length=corpus.max_length,
      log_every_seconds=run.log_every_seconds,
    )
  return held[key]
