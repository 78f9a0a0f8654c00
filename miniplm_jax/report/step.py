"""Stage report: what came out, as a table and as pictures."""

import dataclasses
from collections.abc import Callable, Mapping

from etils import epath, epy

from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.groups import ALL
from miniplm_jax.core.log import plain
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input, Policy, Step
from miniplm_jax.core.workdir import GENERATED, MANIFEST, Workdir
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.evaluate.heldout import ignored_in_words, losses
from miniplm_jax.methods import trained_by
from miniplm_jax.report import tasks_step
from miniplm_jax.report.analyses import step as analyze_step
from miniplm_jax.report.inventory import Scored, Student
from miniplm_jax.training import comparable
from miniplm_jax.training.trained import own_corpora

with epy.lazy_imports():  # NumPy, PyArrow and JAX
  from miniplm_jax.corpus import store
  from miniplm_jax.report import (
    comparison,
    findings,
    page,
    proxy,
    selection_summary,
    selection_tables,
    tasks,
  )
  from miniplm_jax.report import selection as selection_report
  from miniplm_jax.select import scored as scored_rows

STAGE = "report"


def steps(config, workdir: Workdir, plan: Callable) -> list[Step]:
  """One step: report.html; report.json is its manifest.

  Args:
    config: its methods, and what they are called.
    workdir: whose report it is.
    plan: (file of a plan) → its `page.Section`.
  """
  inputs = {"corpus": workdir.corpus / MANIFEST}
  for role in config.scorers:
    folder = workdir.scores(getattr(config, role).name)
    inputs[f"{role} scores"] = folder / MANIFEST
    if role in config.roles_with_model:
      inputs[f"{role} evaluation"] = folder / "evaluation.json"
  if config.uses_proxy:
    folder = workdir.scores(config.proxy.name)
    inputs["proxy scores"] = folder / MANIFEST
  if workdir.plan_file.exists():
    inputs["plan"] = lambda: files.sha256(workdir.plan_file)
  analyzed = workdir.analysis / MANIFEST
  if analyzed.exists():
    inputs["analysis"] = lambda: files.sha256(analyzed)
  if config.evaluation.tasks:
    inputs["tasks"] = tasks_step.manifest(workdir)
  for method in config.methods:
    names = config.names_of(method)
    inputs[f"{method} selection"] = (
      workdir.selection(names.selection) / MANIFEST
    )
    folder = workdir.student(names.student)
    inputs[f"{method} training"] = folder / MANIFEST
    inputs[f"{method} evaluation"] = folder / "evaluation.json"
  shown = [path for path in inputs.values() if isinstance(path, epath.Path)]
  # Losses and curves are shown too, which are in no fingerprint.
  inputs["content"] = lambda: files.digest(
    [made.content for path in shown if (made := manifest_lib.read(path))]
  )
  return [
    Step(
      stage=STAGE,
      manifest=workdir.root / "report.json",
      settings={"methods": list(config.methods)},
      inputs=inputs,
      outputs=(workdir.root / "report.html",),
      summary=f"{workdir.root / 'report.html'}",
      run=lambda found: _run(config, workdir, plan, found),
      policy=Policy(is_view=True, is_host_only=True),
      # Before the last report is removed.
      checks=(lambda: check(config, _manifests(inputs)),),
    )
  ]


def _manifests(inputs: Mapping[str, Input]) -> dict[str, Manifest]:
  return {
    name: manifest_lib.require(path)
    for name, path in inputs.items()
    if isinstance(path, epath.Path)
  }


def check(config, inputs: Mapping[str, Manifest]):
  """Raises UserError unless all that is shown was made from each other.

  Args:
    config: its methods, and what they are called.
    inputs: of the step.
  """
  tables = {
    name.removesuffix(" scores"): made
    for name, made in inputs.items()
    if name.endswith(" scores")
  }
  models = dict(tables)
  for made in tables.values():
    made.check_inputs(tables)  # the proxy learned from the others
  for method in config.methods:
    selection = inputs[f"{method} selection"]
    models[method] = trained = inputs[f"{method} training"]
    selection.check_inputs(tables)
    own = own_corpora(trained)
    trained.check_inputs({"selection": selection, **own})
    names = config.names_of(method)
    ways = {
      "rows by": (selection.settings["definition"], names.definition),
      "objective": (trained_by(trained.settings), names.objective),
      "generated": (GENERATED in trained.inputs, names.generated),
    }
    for what, (then, now) in ways.items():
      if then != now:
        raise UserError(
          f"{what} {then} there, but method {method} has {now} here",
          str(trained.path),
          "give the method and the names that it was made with",
        )
  evaluations = {
    label: inputs[name]
    for label in models
    if (name := f"{label} evaluation") in inputs
  }
  for label, evaluation in evaluations.items():
    evaluation.check_inputs({"model": models[label]})
  if unlike := comparable.left_out(evaluations):
    raise UserError(
      f"the held-out loss of {', '.join(unlike)} is of other rows than that of "
      f"{', '.join(label for label in evaluations if label not in unlike)}",
      str(evaluations[unlike[0]].path),
      "evaluate all alike with --stages=evaluate --force",
    )
  if "tasks" in inputs:
    tasks_step.check(inputs["tasks"], models)


def _shown(
  config, inputs: Mapping[str, Manifest]
) -> tuple[dict[str, Student], dict[str, Scored]]:
  """The students by method, the main one first; what scores, by role."""
  students = {
    method: Student(
      *(
        inputs[f"{method} {what}"]
        for what in ("training", "selection", "evaluation")
      )
    )
    for method in config.methods
  }
  scored = {
    role: Scored(inputs[f"{role} scores"], inputs.get(f"{role} evaluation"))
    for role in config.scorers
  }
  if config.uses_proxy:  # "proxy evaluation" is that of the method's student
    scored["proxy"] = Scored(inputs["proxy scores"])
  return students, scored


def _run(config, workdir: Workdir, plan: Callable, inputs):
  students, scored = _shown(config, inputs)
  main = students[config.method]
  losses_by_model = findings.loss_table(students, scored)
  verdict = findings.verdict(students)
  tables = [losses_by_model.text(), comparison.table(students).text()]
  plain("\n" + "\n\n".join([*tables, verdict]) + "\n")

  corpus = store.Corpus(inputs["corpus"])
  selection, evaluation = main.selection, main.evaluation
  made_from = {
    role: scored[role].table for role in selection.settings["scores"]
  }
  made_from["corpus"] = corpus.manifest
  figures = selection_summary.summarize(
    corpus,
    scored_rows.of_selection(selection.settings, made_from),
    kept_rows(selection),
  )
  shown = selection_tables.SelectionReport.of(selection, figures)
  body = [
    comparison.section(
      students, findings.unlike(students), findings.otherwise(students)
    ),
    page.Section(
      "Held-out loss",
      [
        "Nats; mean over rows of the mean per token (MiniPLM's), and per "
        f"token; of {evaluation.counts['rows']:,} rows. "
        f"{ignored_in_words(evaluation)}"
      ],
      table=losses_by_model,
      pictures=findings.pictures(students),
    ),
  ]
  if "tasks" in inputs:
    body.append(tasks.section(inputs["tasks"]))
  body += selection_report.sections(shown, corpus)
  if config.uses_proxy:
    body.append(proxy.section(config, corpus, inputs))
  if workdir.plan_file.exists():
    body.append(plan(workdir.plan_file))
  body += analyze_step.sections(config, workdir)
  body.append(findings.provenance(inputs, shown.name))
  path = workdir.root / "report.html"
  page.write(path, f"MiniPLM: {workdir.root.name}", verdict, body)
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "files": {path.name: files.describe(path)},
    "counts": {"rows": len(corpus)},
    "details": {
      "verdict": verdict,
      "loss": {
        name.removesuffix(" evaluation"): losses(manifest)[ALL]
        for name, manifest in inputs.items()
        if name.endswith(" evaluation")
      },
      "methods": {
        method: dataclasses.asdict(row)
        for method, row in comparison.rows(students).items()
      },
    },
  }
