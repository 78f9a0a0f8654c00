"""The table of zero-shot tasks: the last step of stage evaluate.

It shows what was measured; a model or a task more, and it is made again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from miniplm_jax.config import EvaluationConfig
from miniplm_jax.config.sections import GROUP
from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log, plain
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.evaluation import tasks_step
from miniplm_jax.evaluation.subjects import Subject
from miniplm_jax.evaluation.tasks import average, error, merged, score, scores
from miniplm_jax.report.page import Section, Table

STAGE = tasks_step.STAGE
# Averages of the nine in per cent: arXiv 2410.17215.
PAPER_MODELS = ("Qwen 200M", "500M", "1.2B", "Llama 212M", "Mamba 130M")
PAPER = {
  "pretrain": (39.9, 43.2, 44.9, 41.0, 41.6),
  "vanilla_kd": (39.9, 43.6, 45.4, None, None),
  "minillm": (39.0, 41.5, 43.6, None, None),
  "seqkd": (39.7, 42.3, 44.3, 40.8, 41.0),
  "miniplm": (41.3, 44.8, 46.6, 41.8, 42.6),
  "miniplm_kd": (40.7, 44.9, 48.1, None, None),
  "difficulty": (39.9, None, None, None, None),
  "teacher_preference": (37.6, None, None, None, None),
  "proxy": (40.9, None, None, None, None),
}


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
    body = merged(measured, it.name)
    path = it.folder / "lm_eval.json"
    files.write_json(path, body)
    written[str(path.relative_to(workdir.root))] = files.describe(path)
    by_model[it.label] = body["results"]
    known = {p.stem for p in (it.folder / "tasks").glob("*.json")}
    if others := ", ".join(sorted(known - set(names))):
      hint = "config.evaluation.tasks does not name them"
      log(STAGE, f"{it.name} has results of {others}, too; {hint}")
  # Of all models the same documents.
  shown = table(by_model, body["n-samples"])
  plain(f"\n{shown.markdown()}\n")
  details = {"header": shown.titles, "rows": shown.cells()}
  details["asked"] = notes(body["asked"], body["n-samples"])
  return {"files": written, "details": details}


def _is_cut(n: Mapping[str, int]) -> bool:
  return n["effective"] < n["original"]


def table(
  by_model: Mapping[str, Mapping[str, Mapping[str, Any]]],
  samples: Mapping[str, Mapping[str, int]],
) -> Table:
  """A row for each model, in per cent; the paper's figures beside it.

  Args:
    by_model: lm_eval's "results" of each, by method or role.
    samples: lm_eval's "n-samples". A column of which not all documents were
      read says so, and then no figure of the paper's stands beside it.
  """
  whole = not any(map(_is_cut, samples.values()))

  def read(name: str) -> str:
    if whole or (name in samples and not _is_cut(samples[name])):
      return ""
    if n := samples.get(name):
      return f" ({n['effective']:,} of {n['original']:,})"
    return " (in part)"  # of a group, or of the average

  tasks = [t for t in next(iter(by_model.values())) if t != GROUP]
  columns = [("model", "", [*by_model])]  # title, form, cells
  for task in tasks:
    metrics = [results[task] for results in by_model.values()]
    chosen = score(metrics[0])
    if chosen:
      values = [
        f"{score(m)[1]:.1%}" + (f" ± {e:.1%}" if (e := error(m)) else "")
        for m in metrics
      ]
      columns.append((f"{task} {chosen[0]}{read(task)}", ">", values))
      continue
    for name, value in metrics[0].items():
      if isinstance(value, float) and "_stderr" not in name:
        title = f"{task} {name.partition(',')[0]}{read(task)}"
        columns.append((title, ".4g", [m[name] for m in metrics]))
  means = [average(scores(results)) for results in by_model.values()]
  if means[0] is not None:
    columns.append((f"average{read(GROUP)}", ".1%", means))
  if means[0] is not None and whole:
    for i, model in enumerate(PAPER_MODELS):
      averages = (PAPER.get(name, (None,) * 5)[i] for name in by_model)
      averages = [x if x is None else f"{x}%" for x in averages]
      columns.append((f"paper's {model}", ">", averages))
  *titles, cells = zip(*columns)
  return Table([*zip(*titles)], [*zip(*cells)])


def notes(
  asked: Mapping[str, Mapping[str, Any]],
  samples: Mapping[str, Mapping[str, int]],
) -> list[str]:
  """Of each task how much was asked, what guessing gives, and what was cut."""
  lines = []
  for task, n in asked.items():
    documents = samples[task]["effective"]
    chance = f", chance {n['guessed'] / documents:.1%}" if n["guessed"] else ""
    cut = f"; {n['cut']:,} of {n['requests']:,} requests lost their beginning, "
    cut = f"{cut}see evaluation.max_length" if n["cut"] else ""
    lines.append(f"{task}: {documents:,} documents{chance}{cut}.")
  return lines


def section(measured: Manifest, names: Mapping[str, str]) -> Section:
  """The table of zero-shot tasks; `names` are those of students, by method."""
  rows = measured.details["rows"]
  rows = [(names.get(label, label), *cells) for label, *cells in rows]
  return Section(
    "Zero-shot tasks",
    [
      "lm-evaluation-harness; acc_norm where a task has it, else acc, and the "
      "plain mean of the paper's nine. The paper's columns are the averages "
      "that it reports for its models by the same method. In brackets: how "
      "many of a task's documents were read, where it was not all. ± is one "
      "standard error over documents."
    ],
    notes=measured.details.get("asked", ()),
    table=Table.of_texts(measured.details["header"], rows),
  )
