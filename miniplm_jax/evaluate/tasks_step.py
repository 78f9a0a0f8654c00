"""The part of stage evaluate that runs tasks of lm-evaluation-harness.

A task is a step: what is done stays done, and further tasks are added.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

from miniplm_jax.core import contents, files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.evaluate import tasks
from miniplm_jax.evaluate.subjects import Subject, subjects
from miniplm_jax.evaluation_config import GROUP, PAPER_TASKS

STAGE = "evaluate"


def steps(config, workdir: Workdir) -> list[Step]:
  """One step a model and task, and one that puts them into a table."""
  names = _names(config)
  if not names:
    return []
  found = _subjects(config, workdir)
  # The last model that was loaded, for its next task; only of this config.
  held: dict[str, object] = {}
  made = [_step(config, held, it, name) for it in found for name in names]
  return [*made, _table_step(config, workdir, found, names)]


def _names(config) -> tuple[str, ...]:
  """The tasks, the paper's group resolved, each once."""
  found = []
  for name in config.evaluation.tasks:
    found += PAPER_TASKS if name == GROUP else (name,)
  return tuple(dict.fromkeys(found))


def manifest(workdir: Workdir):
  """The file with the table of all models and tasks."""
  return workdir.root / "tasks.json"


def check(table: Manifest, models: Mapping[str, Manifest]):
  """Raises UserError unless a table is of these models by label, of now."""
  for label in table.settings["models"]:
    if label not in models:
      raise UserError(
        f"the table of tasks has {label}, which is not of this run",
        str(table.path),
        f"make the table again with --stages={STAGE}, or give the same methods",
      )
    for name in table.settings["tasks"]:
      path = models[label].directory / "tasks" / f"{name}.json"
      found = manifest_lib.require(path)
      table.check_inputs({f"{label} {name}": found})
      found.check_inputs({"model": models[label]})
      if found.settings["documents"] != table.settings.get("documents", 0):
        raise UserError(
          f"{name} was measured on the first {found.settings['documents']} "
          "documents, which an earlier version's table does not say",
          str(table.path),
          f"make the table again with --stages={STAGE}",
        )


def _subjects(config, workdir: Workdir) -> list[Subject]:
  return subjects(config, workdir, scorers=config.evaluation.scorers)


def _file(it: Subject, task: str):
  return it.folder / "tasks" / f"{task}.json"


def _step(config, held: dict[str, object], it: Subject, task: str) -> Step:
  c = config.evaluation
  return Step(
    stage=STAGE,
    manifest=_file(it, task),
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
  from miniplm_jax.core.progress import say
  from miniplm_jax.evaluate import results

  c = config.evaluation
  model = _loaded(jax_lm.JaxLM, config, held, it, inputs)
  found = tasks.run(model, task, c.task_data, c.offline, c.documents)
  for name, metrics in found["results"].items():
    if chosen := results.score(metrics):
      say(STAGE, f"{name} of {it.name}: {chosen[0]} {chosen[1]:.4f}")
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


def _table_step(config, workdir: Workdir, found, names) -> Step:
  few = config.evaluation.documents
  return Step(
    stage=STAGE,
    manifest=manifest(workdir),
    settings={
      "tasks": list(names),
      "models": [it.label for it in found],
      **({"documents": few} if few else {}),
    },
    inputs={
      f"{it.label} {name}": _file(it, name) for it in found for name in names
    },
    outputs=tuple(it.folder / "lm_eval.json" for it in found),
    summary=f"table of {len(found)} models and {len(names)} tasks",
    run=lambda inputs: _tabulate(workdir, found, names, inputs),
    is_view=True,
    is_host_only=True,
  )


def _tabulate(workdir: Workdir, found, names, inputs):
  from miniplm_jax.core.progress import say
  from miniplm_jax.evaluate import results
  from miniplm_jax.report import page

  by_model, written = {}, {}
  for it in found:
    made = [inputs[f"{it.label} {name}"].details["lm_eval"] for name in names]
    body = results.merged(made, it.name)
    path = it.folder / "lm_eval.json"
    files.write_json(path, body)
    written[str(path.relative_to(workdir.root))] = files.describe(path)
    by_model[it.label] = body["results"]
    there = {p.stem for p in (it.folder / "tasks").glob("*.json")}
    if others := ", ".join(sorted(there - set(names))):
      hint = "config.evaluation.tasks does not name them"
      say(STAGE, f"{it.name} has results of {others}, too; {hint}")
  # Of all models the same documents.
  header, rows = results.table(by_model, body["n-samples"])
  print("\n" + page.markdown_table(header, rows) + "\n", flush=True)
  return {"files": written, "details": {"header": header, "rows": rows}}
