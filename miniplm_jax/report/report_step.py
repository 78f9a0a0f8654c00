"""Stage report: what came out, as a table and as pictures."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping

from etils import epath, epy

from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.groups import ALL
from miniplm_jax.core.log import plain, warn
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input, Policy, Step
from miniplm_jax.core.workdir import GENERATED, MANIFEST, Workdir
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.criteria import criterion
from miniplm_jax.evaluation import divergence
from miniplm_jax.evaluation.heldout import ignored_in_words, losses
from miniplm_jax.methods import MethodNames, trained_by
from miniplm_jax.report import compare_step, tasks_report_step
from miniplm_jax.report.analyses.analyze_step import Analyses
from miniplm_jax.report.inventory import Scored, Student, same_rows
from miniplm_jax.training import comparable
from miniplm_jax.training.trained import own_corpora

with epy.lazy_imports():  # NumPy, PyArrow and JAX
  from miniplm_jax.corpus import store
  from miniplm_jax.report import (
    by_domain,
    compare_page,
    comparison,
    findings,
    headline,
    page,
    selection_summary,
    selection_tables,
  )
  from miniplm_jax.report import selection as selection_report
  from miniplm_jax.selection import scored as scored_rows

STAGE = "report"


@dataclasses.dataclass(frozen=True)
class Report:
  """The report of a run, and what it shows."""

  methods: Mapping[str, MethodNames]  # what was made for each, main one first
  tables: Mapping[str, epath.Path]  # folders of scores, by their model's role
  evaluated: Collection[str]  # roles whose models have held-out losses
  has_tasks: bool  # there is a table of zero-shot tasks
  has_divergence: bool  # how far students are from the teacher was measured
  workdir: Workdir
  analyses: Analyses  # of that workdir
  plan: Callable[[epath.Path], "page.Section"]  # its file → its section
  # The share of D that the proxy learned from, its seed, and the share by which
  # rankings are compared; None without a proxy.
  proxy_sample: tuple[float, int, float] | None = None

  def step(self) -> Step:
    """The step that makes report.html; report.json is its manifest."""
    path = self.workdir.root / "report.html"
    step = Step(
      stage=STAGE,
      manifest=self.workdir.root / "report.json",
      settings={"methods": list(self.methods)},
      inputs=self._inputs(),
      outputs=(path,),
      summary=f"{path}",
      run=lambda manifests: self._run(path, manifests),
      policy=Policy(is_view=True, is_host_only=True),
    )
    # Before the last report is removed.
    checks = (lambda: check(self.methods, step.read_inputs()),)
    return dataclasses.replace(step, checks=checks)

  def _inputs(self) -> dict[str, Input]:
    workdir = self.workdir
    inputs = {"corpus": workdir.corpus / MANIFEST}
    for role, folder in self.tables.items():
      inputs[f"{role} scores"] = folder / MANIFEST
      if role in self.evaluated:
        inputs[f"{role} evaluation"] = folder / "evaluation.json"
    if workdir.plan_file.exists():
      inputs["plan"] = lambda: files.sha256(workdir.plan_file)
    if workdir.config_file.exists():  # how it is run decides nothing
      made_by = files.read_json(workdir.config_file) | {"run": {}}
      inputs["config"] = lambda: files.digest(made_by)
    analyzed = workdir.analysis / MANIFEST
    if analyzed.exists():
      inputs["analysis"] = lambda: files.sha256(analyzed)
    folder = workdir.compared()
    for path in (folder, *sorted(folder.glob("*"))):
      if (compared := path / MANIFEST).exists():
        name = path.name if path != folder else ""
        inputs[f"{compare_step.STAGE} {name}".strip()] = compared
    if self.has_tasks or self._measured_tasks():
      inputs["tasks"] = tasks_report_step.manifest(workdir)
    for method, names in self.methods.items():
      selection = workdir.selection(names.selection)
      inputs[f"{method} selection"] = selection / MANIFEST
      folder = workdir.student(names.student)
      inputs[f"{method} training"] = folder / MANIFEST
      inputs[f"{method} evaluation"] = folder / "evaluation.json"
      if self.has_divergence:
        inputs[f"{method} divergence"] = folder / divergence.MANIFEST
    if others := self._others():
      made = [each.evaluation.content for each in others.values()]
      inputs["other students"] = lambda: files.digest(made)
    shown = [path for path in inputs.values() if isinstance(path, epath.Path)]
    # Losses and curves are shown too, which are in no fingerprint.
    inputs["content"] = lambda: files.digest(
      [
        manifest.content
        for path in shown
        if (manifest := manifest_lib.read(path))
      ]
    )
    return inputs

  def _measured_tasks(self) -> bool:
    """Whether there is a table of tasks, of what these models are now."""
    table = manifest_lib.read(tasks_report_step.manifest(self.workdir))
    student, names = self.workdir.student, self.methods.items()
    folders = {m: student(n.student) for m, n in names} | dict(self.tables)
    with contextlib.suppress(UserError):
      if table and folders.keys() >= {*table.settings["models"]}:
        models = {
          label: manifest_lib.require(folders[label] / MANIFEST)
          for label in table.settings["models"]
        }
        tasks_report_step.check(table, models)
        return True
    return False

  def _others(self) -> dict[str, Student]:
    """Further students that were measured on the rows of most, by name."""
    own = {names.student for names in self.methods.values()}
    try:
      held = self.analyses.inventory().students
    except UserError:  # no corpus yet, or what students are of is gone
      return {}
    alike, _ = same_rows(held, "evaluation")
    return {name: each for name, each in alike.items() if name not in own}

  def _run(self, path: epath.Path, inputs: Mapping[str, Manifest]):
    compared = [
      compare_step.figures_of(made)
      for name, made in inputs.items()
      if name.split(" ")[0] == compare_step.STAGE
    ]
    parts = ("training", "selection", "evaluation")
    label = {
      method: _label(names, compared, self.evaluated)
      for method, names in self.methods.items()
    }
    students = {
      name: Student(*(inputs[f"{method} {part}"] for part in parts))
      for method, name in label.items()
    }
    scored = {
      role: Scored(
        inputs[f"{role} scores"],
        # "proxy evaluation" is that of the student of method proxy.
        inputs[f"{role} evaluation"] if role in self.evaluated else None,
      )
      for role in self.tables
    }
    losses_by_model = findings.loss_table(students, scored)
    main = next(iter(students.values()))
    corpus = store.Corpus(inputs["corpus"])
    selection, evaluation = main.selection, main.evaluation
    made_from = {
      role: scored[role].table for role in selection.settings["scores"]
    }
    made_from["corpus"] = corpus.manifest
    figures = selection_summary.summarize(
      corpus,
      scored_rows.of_selection(selection, made_from),
      kept_rows(selection),
    )
    shown = selection_tables.SelectionReport.of(selection, figures)
    by_row = by_domain.Paired.of(students, corpus)
    top = headline.Headline.of(
      students, scored, corpus, compared, figures, by_row
    )
    texts = losses_by_model.text(), comparison.table(students).text(), f"{top}"
    plain("\n" + "\n\n".join(texts) + "\n")
    for doubt in top.doubts:
      warn(STAGE, doubt)
    body = [
      *map(compare_page.section, compared),
      *([by_row.section(figures)] if by_row else []),
      comparison.section(students),
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
    if others := self._others():
      words = "Of this workdir, measured on the same rows; not of this config."
      table = comparison.table(others)
      body.insert(-1, page.Section("Other students", [words], table=table))
    if self.has_divergence:
      measured = {
        label[m]: divergence.Divergence.of(inputs[f"{m} divergence"])
        for m in self.methods
      }
      body.append(findings.divergences(measured))
    if "tasks" in inputs:
      body.append(tasks_report_step.section(inputs["tasks"], label))
    body += selection_report.sections(shown, corpus, by_row is not None)
    if self.proxy_sample:
      tables = {role: each.table for role, each in scored.items()}
      body.append(findings.of_proxy(*self.proxy_sample, corpus, tables))
    if self.workdir.plan_file.exists():
      body.append(self.plan(self.workdir.plan_file))
    body += self.analyses.sections()
    body.append(findings.provenance(inputs, shown.name))
    if config := files.read_json(self.workdir.config_file):
      body.append(findings.settings(config))
    title = f"MiniPLM: {self.workdir.root.name}"
    page.write(path, title, top.verdict, body, top.doubts, top.next)
    cost = comparison.rows(students)
    return {
      "tokenizer": corpus.manifest.tokenizer,
      "files": {path.name: files.describe(path)},
      "counts": {"rows": len(corpus)},
      "details": {
        "verdict": " ".join(top.verdict),
        "doubts": top.doubts,
        "next": top.next,
        "loss": {
          name.removesuffix(" evaluation"): losses(manifest)[ALL]
          for name, manifest in inputs.items()
          if name.endswith(" evaluation")
        },
        "methods": {method: cost[label[method]] for method in label},
      },
    }


def _label(
  names: MethodNames, compared: Collection[Mapping], roles: Collection[str]
) -> str:
  """A student's folder; with its criterion, if that name is another's, too."""
  text = criterion(names.definition).text
  others = (one["criteria"].get(names.student) for one in compared)
  is_another = any(one and one["formula"] != text for one in others)
  is_another |= names.student in roles
  return names.student + f" ({names.definition})" * is_another


def check(methods: Mapping[str, MethodNames], inputs: Mapping[str, Manifest]):
  """Raises UserError unless all that is shown was made from each other."""
  tables = {
    name.removesuffix(" scores"): table
    for name, table in inputs.items()
    if name.endswith(" scores")
  }
  models = dict(tables)
  for table in tables.values():
    table.check_inputs(tables)  # the proxy learned from the others
  for method, names in methods.items():
    selection = inputs[f"{method} selection"]
    models[method] = trained = inputs[f"{method} training"]
    selection.check_inputs(tables)
    own = own_corpora(trained)
    trained.check_inputs({"selection": selection, **own})
    if measured := inputs.get(f"{method} divergence"):
      measured.check_inputs({"model": trained})
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
      "evaluate all alike with --stages=evaluate, and --force if that is asked",
    )
  if "tasks" in inputs:
    tasks_report_step.check(inputs["tasks"], models)
