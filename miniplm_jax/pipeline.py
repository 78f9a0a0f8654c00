"""The stages in order, and running those that were asked for."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from miniplm_jax import config as config_lib
from miniplm_jax.config import Config
from miniplm_jax.core import backend, distributed, files, gs
from miniplm_jax.core.claims import Board
from miniplm_jax.core.errors import UserError, one_line
from miniplm_jax.core.execute import execute
from miniplm_jax.core.log import log, warn
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus import tokenize_step
from miniplm_jax.distillation import proxy_step
from miniplm_jax.dry_run import DryRun, doubts, outlay
from miniplm_jax.forecast import plan_step
from miniplm_jax.report import report_step
from miniplm_jax.scoring import score_step
from miniplm_jax.selection import select_step
from miniplm_jax.stages import Stages

# Stages of which nothing is made: they leave the config that made the workdir.
_VIEWS = {"analyze", report_step.STAGE, "publish", *config_lib.LOOKS}


def run(
  config: ConfigDict,
  where: str,
  stages: Sequence[str],
  *,
  force: bool,
  dry_run: bool,
  prompt: Sequence[str] = (),
):
  """Runs stages in the order of the data.

  Args:
    where: its file, for messages.
    stages: which; empty runs those that the config lists.
    force: redo them even if nothing has changed.
    dry_run: print what would run, on what, and why; run nothing.
    prompt: what stage generate continues, beside the config's own.
  """
  config = config_lib.from_dict(config, where)
  with config_lib.naming("config", "command line"):
    config = config.replace(stages=tuple(stages) or config.stages)
  prompts = (*config.generate.prompts, *prompt)
  with config_lib.naming("config.generate", "command line"):
    config = config.replace(generate=config.generate.replace(prompts=prompts))
  if prompt and "generate" not in config.stages:
    raise UserError(
      "there is a prompt, and nothing that reads it",
      "command line",
      "add --stages=generate",
    )
  for bucket in buckets(config):
    gs.check(bucket)
  workdir = Workdir(epath.Path(config.workdir))
  all_steps, run = Stages(config, workdir), config.run
  order = config_lib.STAGES + config_lib.ON_REQUEST + config_lib.LOOKS
  order = order[: max(map(order.index, config.stages)) + 1]
  if dry_run:
    print(f"{where} in {workdir.root}:")
    planned = DryRun()
    _each(all_steps, order, stages, force, planned)
    for line in outlay(all_steps) if "train" in config.stages else ():
      print(f"  {line}")
    for doubt in [*planned.doubts, *doubts(all_steps.trainings)]:
      print(f"  warning     {doubt}")
    if planned.error:
      raise planned.error
    return
  backend.prepare(run.compilation_cache, workdir.root, run.deterministic)
  if run.coordinator:
    distributed.initialize(
      run.coordinator, run.processes, run.process_id, run.lost_after
    )
    backend.refuse_if_different(dataclasses.asdict(config), force)
  with Board(workdir.claims, run.lease_seconds) as board:
    distributed.agree(lambda: _refuse_left_out(all_steps, order))
    _each(all_steps, order, stages, force, board)
  backend.note()


def _keep(config: Config, path: epath.Path):
  """Writes the config beside what it has made, unless it is there."""
  made_by = json.loads(json.dumps(config_lib.as_dict(config)))
  del made_by["stages"]
  if files.read_json(path) != made_by:
    try:
      files.write_json(path, made_by)
    except OSError as e:  # what is finished may lie on a disk that is full
      warn("run", f"the config is not kept: {one_line(e)}")


def _each(
  all_steps: Stages,
  order: Sequence[str],
  named: Sequence[str],
  force: bool,
  board: Board | DryRun,
):
  """Runs the stages that were asked for, or prints what would be run."""
  config, workdir = all_steps.config, all_steps.workdir
  is_dry = isinstance(board, DryRun)
  makers: dict[epath.Path, Step] = {}  # all steps up to here, asked or not
  for stage in order:
    is_asked = stage in config.stages
    if stage in config_lib.LOOKS:
      look = functools.partial(getattr(all_steps, stage), is_dry)
      # It compiles for devices that are not here: one process can do that.
      if is_asked:
        distributed.agree(look) if stage == plan_step.STAGE else look()
      continue
    steps = _steps(all_steps, stage, is_asked)
    if stage != tokenize_step.STAGE:  # looked at by a check of its own
      makers |= {step.manifest: step for step in steps}
    if not is_asked:
      continue
    if stage != tokenize_step.STAGE:
      steps = [_checked(step, config, workdir, makers) for step in steps]
    if stage == report_step.STAGE:
      _say_made_otherwise(*steps, makers)
    _refuse_outside(steps, workdir)
    if not steps and stage in named:
      log(stage, "skipped, this config leaves it nothing to do")
    if is_dry:
      board.say(stage, steps, force)
    elif execute(steps, force, board) and stage not in _VIEWS:
      distributed.agree(lambda: _keep(config, workdir.config_file))


def _refuse_left_out(all_steps: Stages, stages: Sequence[str]):
  """Before hours are spent: what is read is there, or made by then."""
  makers: dict[epath.Path, str] = {}
  for stage in stages:
    if stage in config_lib.LOOKS:
      continue
    # A criterion that nothing can rank by is not scored for.
    is_asked = stage == select_step.STAGE and stage in all_steps.config.stages
    steps = _steps(all_steps, stage, is_asked)
    makers |= {step.manifest: stage for step in steps}
    for path in (p for s in steps for p in s.input_manifests.values()):
      maker = makers.get(path, stage)
      asked = all_steps.config.stages
      is_made = maker in asked or stage not in asked
      if not is_made and not path.exists():
        raise UserError(
          f"stage {stage} reads what stage {maker} makes, and has not made",
          str(path),
          f"add {maker} to --stages",
        )


def _steps(all_steps: Stages, stage: str, is_asked: bool) -> list[Step]:
  """The stage's steps; none of one not asked for whose model is gone."""
  try:
    return all_steps.steps(stage)
  except UserError:
    if is_asked:
      raise
    return []


def _checked(
  step: Step, config, workdir: Workdir, makers: Mapping[epath.Path, Step]
) -> Step:
  """The step, checking that its corpus and inputs are as the config says."""
  corpus, folder, run = config.corpus, workdir.corpus, config.run
  checks = [functools.partial(tokenize_step.check, corpus, folder, run)]
  if step.stage != "analyze":  # it shows what there is, of any config
    checks.append(functools.partial(_refuse_made_otherwise, step, makers))
  return dataclasses.replace(step, checks=(*checks, *step.checks))


def _refuse_made_otherwise(step: Step, makers: Mapping[epath.Path, Step]):
  # Of students the report says how they were trained.
  if step.stage == report_step.STAGE:
    tables = score_step.STAGE, proxy_step.STAGE
    makers = {k: m for k, m in makers.items() if m.stage in tables}
  step.refuse_made_otherwise(makers)


def _say_made_otherwise(step: Step, makers: Mapping[epath.Path, Step]):
  """Says what a report shows that the config has otherwise."""
  try:
    step.refuse_made_otherwise(makers)
  except UserError as e:
    warn(step.stage, f"shown as it was made: {e.what}, {e.where}")


def buckets(config: Config) -> list[str]:
  """Those that the config's paths are in, as gs://NAME."""
  remote = [p for p in config_lib.paths(config) if p.startswith(gs.SCHEME)]
  return sorted({"/".join(path.split("/")[:3]) for path in remote})


def _refuse_outside(steps: Sequence[Step], workdir: Workdir):
  """Refuses a step that would write or remove what is not in the workdir."""
  root = gs.absolute(workdir.root)
  for path in (p for step in steps for p in (step.manifest, *step.outputs)):
    if root not in gs.absolute(path).parents:
      raise UserError("not in the workdir", str(path), "give other names")
