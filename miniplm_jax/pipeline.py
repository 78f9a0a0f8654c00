"""The stages in order, and running those that were asked for."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence

from etils import epath, epy
from ml_collections import ConfigDict

from miniplm_jax import config as config_lib
from miniplm_jax import config_rules
from miniplm_jax.convert import step as convert
from miniplm_jax.core import backend, gs, hosts, manifest
from miniplm_jax.core import execute as execute_lib
from miniplm_jax.core.claims import Board
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log, warn
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus import step as tokenize
from miniplm_jax.distillation import logits_step as logits
from miniplm_jax.distillation import proxy_step as proxy
from miniplm_jax.distillation import seqkd_step as seqkd
from miniplm_jax.evaluate import step as evaluate
from miniplm_jax.export import step as export
from miniplm_jax.forecast import step as plan
from miniplm_jax.generate import step as generate
from miniplm_jax.report import model_card
from miniplm_jax.report import selection_step as selection_report
from miniplm_jax.report import step as report
from miniplm_jax.report import tasks_step as tasks
from miniplm_jax.report.analyses import step as analyse
from miniplm_jax.score import step as score
from miniplm_jax.score import verify
from miniplm_jax.select import materialize_step as materialize
from miniplm_jax.select import step as select
from miniplm_jax.train import step as train
from miniplm_jax.training import reference_step as reference

with epy.lazy_imports():  # it imports JAX
  from miniplm_jax.forecast import outlook


def _select(config, workdir: Workdir) -> list[Step]:
  """Rows, then their reports."""
  # What only the reports need is looked at before there is anything to show.
  check = functools.partial(selection_report.check, config, workdir)
  rows = select.steps(config, workdir, check)
  return [*rows, *selection_report.steps(config, workdir, rows)]


def _evaluate(config, workdir: Workdir) -> list[Step]:
  """Losses and tasks, then the table of tasks."""
  return [*evaluate.steps(config, workdir), *tasks.steps(config, workdir)]


def _report(config, workdir: Workdir) -> list[Step]:
  return report.steps(config, workdir, lambda path: outlook.section(path))


# Stage modules import nothing heavy; what they run does.
STEPS: dict[str, Callable[..., list[Step]]] = {
  "tokenize": tokenize.steps,
  "teacher": reference.teacher_steps,
  "reference": reference.reference_steps,
  "score": score.steps,
  "proxy": proxy.steps,
  "select": _select,
  "materialize": materialize.steps,
  "seqkd": seqkd.steps,
  "convert": convert.steps,
  "logits": logits.steps,
  "train": train.steps,
  "evaluate": _evaluate,
  "export": functools.partial(export.steps, card=model_card.write),
  "analyse": analyse.steps,
  "report": _report,
}
LOOKS = {"plan": plan.run, "verify": verify.run, "generate": generate.run}


def run(
  config,
  where: str,
  stages: Sequence[str],
  *,
  force: bool,
  dry_run: bool,
  prompt: Sequence[str] = (),
):
  """Runs stages in the order of the data.

  Args:
    config: the configuration.
    where: its file, for messages.
    stages: which; empty runs those that the config lists.
    force: redo them even if nothing has changed.
    dry_run: print what would run, on what, and why; run nothing.
    prompt: what stage generate continues, beside the config's own.

  Raises:
    UserError: something that the user can put right.
  """
  config_rules.check(config, where)
  config = ConfigDict(config.to_dict())  # it may be frozen
  config.generate.prompts += tuple(prompt)
  config.stages = tuple(stages) or config.stages
  config_rules.check(config, "command line")
  config_rules.expand(config)
  if prompt and "generate" not in config.stages:
    raise UserError(
      "there is a prompt, and nothing that reads it",
      "command line",
      "add --stages=generate",
    )
  for bucket in buckets(config):
    gs.check(bucket)
  workdir = Workdir(epath.Path(config.workdir))
  run = config.run
  if not dry_run:
    backend.prepare(run.compilation_cache, workdir.root, run.deterministic)
  if run.coordinator and not dry_run:
    hosts.initialize(
      run.coordinator, run.processes, run.process_id, run.lost_after
    )
    _refuse_if_different(config, force)
  if dry_run:
    print(f"{where} in {workdir.root}:")
  order = config_lib.STAGES + config_lib.LOOKS
  with contextlib.ExitStack() as stack:
    board = None
    if not dry_run:
      board = Board(workdir.claims, run.lease_seconds)
      stack.enter_context(board)
    last = max(map(order.index, config.stages))
    if not dry_run:
      hosts.agree(lambda: _refuse_left_out(config, workdir, order[: last + 1]))
    makers: dict[epath.Path, Step] = {}  # all steps up to here, asked or not
    for stage in order[: last + 1]:
      is_asked = stage in config.stages
      if stage in config_lib.LOOKS:
        look = functools.partial(LOOKS[stage], config, workdir, dry_run)
        # It compiles for devices that are not here: one process can do that.
        if is_asked:
          hosts.agree(look) if stage == plan.STAGE else look()
        continue
      steps = _steps(stage, config, workdir, is_asked)
      if stage != tokenize.STAGE:  # looked at by a check of its own
        makers |= {step.manifest: step for step in steps}
      if not is_asked:
        continue
      if stage != tokenize.STAGE:
        steps = [_checked(j, config, workdir, makers) for j in steps]
      if stage == report.STAGE:
        _say_made_otherwise(*steps, makers)
      _refuse_outside(steps, workdir)
      if not steps and stage in stages:
        log(stage, "skipped, this config leaves it nothing to do")
      if not dry_run:
        execute_lib.execute(steps, force, board)
        continue
      for step in steps:
        state = "would be redone" if force else execute_lib.status(step)
        print(f"  {stage:11} {state}\n              {step.summary}")
  if not dry_run:
    backend.note()


def _refuse_left_out(config, workdir: Workdir, stages: Sequence[str]):
  """Before hours are spent: what is read is there, or made by then."""
  makers: dict[epath.Path, str] = {}
  for stage in stages:
    if stage in config_lib.LOOKS:
      continue
    steps = _steps(stage, config, workdir, False)
    makers |= {step.manifest: stage for step in steps}
    for path in (p for step in steps for p in step.input_manifests):
      maker = makers.get(path, stage)
      is_made = maker in config.stages or stage not in config.stages
      if not is_made and not path.exists():
        raise UserError(
          f"stage {stage} reads what stage {maker} makes, and has not made",
          str(path),
          f"add {maker} to --stages",
        )


def _steps(stage: str, config, workdir: Workdir, is_asked: bool) -> list[Step]:
  """Of one that was not asked none, if a model that it read is gone since."""
  try:
    return STEPS[stage](config, workdir)
  except UserError:
    if is_asked:
      raise
    return []


def _checked(
  step: Step, config, workdir: Workdir, makers: Mapping[epath.Path, Step]
) -> Step:
  """With the checks of what any stage finds by its name."""
  checks = [functools.partial(tokenize.check, config, workdir)]
  if step.stage != analyse.STAGE:  # it shows what there is, of any config
    checks.append(functools.partial(_refuse_made_otherwise, step, makers))
  return dataclasses.replace(step, checks=(*checks, *step.checks))


def _refuse_made_otherwise(step: Step, makers: Mapping[epath.Path, Step]):
  if step.stage == report.STAGE:  # of students it says how they were trained
    tables = score.STAGE, proxy.STAGE
    makers = {k: m for k, m in makers.items() if m.stage in tables}
  step.refuse_made_otherwise(makers)


def _say_made_otherwise(step: Step, makers: Mapping[epath.Path, Step]):
  """Says what a report shows that the config has otherwise."""
  try:
    step.refuse_made_otherwise(makers)
  except UserError as e:
    warn(step.stage, f"shown as it was made: {e.what}, {e.where}")


def buckets(config) -> list[str]:
  """Those that the config's paths are in, as gs://NAME."""
  remote = [p for p in config_rules.paths(config) if p.startswith(gs.SCHEME)]
  return sorted({"/".join(path.split("/")[:3]) for path in remote})


def _refuse_outside(steps: Sequence[Step], workdir: Workdir):
  """Refuses a step that would write or remove what is not in the workdir."""
  root = gs.absolute(workdir.root)
  for path in (p for step in steps for p in (step.manifest, *step.outputs)):
    if root not in gs.absolute(path).parents:
      raise UserError("not in the workdir", str(path), "give other names")


def _refuse_if_different(config, force: bool):
  """Refuses processes of one program that were not started alike."""
  import jax

  mine = {
    "config": json.loads(config.to_json_best_effort()),
    "force": force,
    "code": manifest.code_version(),
    "jax": jax.__version__,
  }
  del mine["config"]["run"]["process_id"]
  first = hosts.agree(lambda: mine)
  if difference := manifest.first_difference(first, mine):
    raise UserError(
      f"this process was not started like the first: {difference}",
      f"process {jax.process_index()} of {jax.process_count()}",
      "start all with the same command but for --config.run.process_id",
    )
  hosts.meet()
