"""The table of zero-shot tasks: the last step of stage evaluate.

It shows what was measured; a model or a task more, and it is made again.
"""

from collections.abc import Mapping, Sequence

from miniplm_jax.config import EvaluationConfig
from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log, plain
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.evaluation import results, tasks_step
from miniplm_jax.evaluation.subjects import Subject
from miniplm_jax.report import tasks

STAGE = tasks_step.STAGE


def steps(
  models: Sequence[Subject], evaluation: EvaluationConfig, workdir: Workdir
) -> list[Step]:
  """One step, if any task is named."""
  names = tasks_step.names(evaluation)
  if not names:
    return []
  few = evaluation.documents
  return [
    Step(
      stage=STAGE,
      manifest=manifest(workdir),
      settings={
        "tasks": list(names),
        "models": [it.label for it in models],
        **({"documents": few} if few else {}),
      },
      inputs={
        f"{it.label} {name}": tasks_step.file(it, name)
        for it in models
        for name in names
      },
      outputs=tuple(it.folder / "lm_eval.json" for it in models),
      summary=f"table of {len(models)} models and {len(names)} tasks",
      run=lambda inputs: _run(workdir, models, names, inputs),
      policy=Policy(is_view=True, is_host_only=True),
    )
  ]


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
      task = manifest_lib.require(path)
      table.check_inputs({f"{label} {name}": task})
      task.check_inputs({"model": models[label]})
      if task.settings["documents"] != table.settings.get("documents", 0):
        raise UserError(
          f"{name} was measured on the first {task.settings['documents']} "
          "documents, which an earlier version's table does not say",
          str(table.path),
          f"make the table again with --stages={STAGE}",
        )


def _run(
  workdir: Workdir,
  models: Sequence[Subject],
  names: Sequence[str],
  inputs: Mapping[str, Manifest],
):
  by_model, written = {}, {}
  for it in models:
    measured = [
      inputs[f"{it.label} {name}"].details["lm_eval"] for name in names
    ]
    body = results.merged(measured, it.name)
    path = it.folder / "lm_eval.json"
    files.write_json(path, body)
    written[str(path.relative_to(workdir.root))] = files.describe(path)
    by_model[it.label] = body["results"]
    known = {p.stem for p in (it.folder / "tasks").glob("*.json")}
    if others := ", ".join(sorted(known - set(names))):
      hint = "config.evaluation.tasks does not name them"
      log(STAGE, f"{it.name} has results of {others}, too; {hint}")
  # Of all models the same documents.
  table = tasks.table(by_model, body["n-samples"])
  plain(f"\n{table.markdown()}\n")
  details = {"header": table.titles, "rows": table.cells()}
  details["asked"] = tasks.notes(body["asked"], body["n-samples"])
  return {"files": written, "details": details}
