"""Steps are done once, resumed, skipped, or refused, as `decide` says."""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from miniplm_jax.core import distributed, files, gs
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.backup import clear
from miniplm_jax.core.claims import Board, Claim
from miniplm_jax.core.decide import Action, decide
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import duration, log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Step


def execute(
  steps: Sequence[Step], force: bool = False, board: Board | None = None
) -> bool:
  """Does those steps that are not done, in order; returns whether there were.

  Several processes of one program call this together: the first claims for
  all.

  Args:
    force: make what is done or begun again, from nothing.
    board: beside whose folder the steps' folders lie; None if no other program
      can be there.

  Raises:
    UserError: an input is missing, another program makes the same, or what is
      on disk was made from other inputs or with other settings and `force` is
      False.
  """
  distributed.agree(lambda: _refuse_early(steps, force))
  has_run, skipped = False, set()
  for _, group in itertools.groupby(
    steps, lambda step: step.shared_pass or step
  ):
    group = list(group)
    claims = [Claim(board, step) for step in group]

    def begin(group=group, claims=claims):
      pairs = enumerate(zip(group, claims))
      return [
        i for i, (step, claim) in pairs if _begin(step, force, claim, skipped)
      ]

    try:
      begun = [group[i] for i in distributed.agree(begin)]
      _run(begun)
      has_run |= bool(begun)
    except BaseException as e:
      for step, claim in zip(group, claims):
        if distributed.is_first() and claim.is_taken:
          _undo(step, claim, e)
      raise
    finally:
      for claim in claims:
        claim.release()
  return has_run


def _refuse_early(steps: Sequence[Step], force: bool):
  """Refuses what any would be refused for, before the first is begun."""
  made_here = {step.manifest for step in steps}
  for step in steps:
    # What is made before it is looked at then.
    if made_here.isdisjoint(step.input_manifests.values()):
      step.read_inputs()
      for check in step.checks:
        check()
    is_kept = not (force or step.policy.is_view)
    if is_kept and (old := manifest_lib.read(step.manifest)):
      step.refuse(old, step.other_settings(old))


def _begin(step: Step, force: bool, claim: Claim, skipped: set) -> bool:
  """Makes room for what is to be made; returns whether the step is to be run.

  What is to be skipped is not claimed: it may lie on a disk that is full or
  can only be read. What else lies there may be another program's, and is
  decided about when it is claimed.
  """
  step.read_inputs()
  decision = decide(step, force)
  if decision.expected is None:  # whoever makes it
    raise decision.error
  is_left = step.partial.exists() or step.backup.exists()  # by a kill
  if decision.action is Action.SKIP and not is_left:
    _check_files(step, decision.manifest)
    return _skip(step, skipped)
  claim.take()
  _sweep(step)
  decision = decide(step, force, decision.expected)
  if decision.action is Action.REFUSE and not decision.manifest:
    raise decision.error  # what cannot be read replaces nothing
  if step.backup.exists():  # a killed program was making it again
    if step.manifest.exists():
      step.backup.drop()
    elif decision.goes_back:
      claim.refuse_others()
      step.backup.put_back()
    decision = decide(step, force)
  match decision.action:
    case Action.WAIT | Action.REFUSE:
      raise decision.error
    case Action.SKIP:
      _check_files(step, decision.manifest)
      if step.partial.exists():  # asked: a disk that can only be read refuses
        step.partial.unlink(missing_ok=True)
      return _skip(step, skipped)
    case Action.RUN:
      _write_begun(step, decision.expected, force)
    case Action.REMAKE:
      claim.refuse_others()
      if step.manifest.exists():
        step.backup.set_aside()
      # In this order: a kill in between leaves files of unknown origin.
      files.remove(step.partial)
      clear(step.outputs)
      _write_begun(step, decision.expected, force)
    case Action.RESUME:
      _go_on(step, decision.manifest, decision.manifest)
      log(step.stage, f"resuming {step.manifest.parent}")
    case Action.CONTINUE:
      _check_files(step, decision.manifest)
      where = step.manifest.parent
      log(step.stage, f"going on, {decision.reason}: {where}")
      # The old manifest holds for what it names until the new one replaces it.
      _go_on(step, decision.manifest, decision.expected)
  return True


def _skip(step: Step, said: set) -> bool:
  """Says that what is there stands, of a folder once; it is not to be run."""
  if (folder := step.manifest.parent) not in said:
    log(step.stage, f"skipped, nothing has changed: {folder}")
  said.add(folder)
  return False


def _check_files(step: Step, manifest: Manifest):
  manifest.check_sizes(
    f"restore the file; or rename {step.manifest.name} to {step.partial.name} "
    "and run it again: only what is missing is made"
    if step.rechecks
    else ""
  )


def _write_begun(step: Step, expected: Manifest, force: bool):
  """Writes the partial manifest of what is begun from nothing."""
  details = step.code.joined(None) | _noted(step)
  begun = dataclasses.replace(expected, path=step.partial, details=details)
  begun.write()
  if force:  # what was there may have bound an input to what it was
    dataclasses.replace(begun, inputs=step.expected().inputs).write()


def _go_on(step: Step, begun: Manifest, expected: Manifest):
  """Writes the partial manifest, with all versions of the code that worked."""
  details = step.code.joined(begun.details)
  if begun is not expected or begun.details != details:
    dataclasses.replace(expected, path=step.partial, details=details).write()


def _undo(step: Step, claim: Claim, e: BaseException):
  """Puts back what was before, unless what failed can be gone on with."""
  if not (
    step.is_brief or (isinstance(e, UserError) and not any(step.files_made()))
  ):
    return
  # Else it is another program's now, or the next run does this.
  with contextlib.suppress(UserError, OSError):
    files.guard()
    claim.refuse_others()
    if step.backup.exists() and not step.manifest.exists():
      step.backup.put_back()
    elif not any(step.files_made()):
      files.remove(step.partial)  # nothing to resume


def _sweep(step: Step):
  """Removes the scratch files that killed processes left."""
  if gs.is_local(step.manifest):
    folder = step.manifest.parent
    beside = folder.iterdir() if folder.exists() else ()
    files.sweep([*beside, *files.walk(step.outputs)])


def _run(steps: Sequence[Step]):
  """Runs steps that were begun, and writes their manifests."""
  start = time.monotonic()
  for step in steps:
    log(step.stage, step.in_words)
  # As they were when the work began.
  inputs = [step.read_inputs() for step in steps]
  expected = [step.expected() for step in steps]
  begun = [manifest_lib.read(step.partial) for step in steps]
  if steps and steps[0].shared_pass:
    steps[0].shared_pass({s.name: given for s, given in zip(steps, inputs)})
  for step, given, manifest, old in zip(steps, inputs, expected, begun):
    outputs: dict[str, Any] = {}
    if step.policy.is_host_only:
      into = outputs.update  # what it returns need not be JSON
      distributed.agree(lambda s=step, i=given, into=into: into(s.run(i)))
    else:
      outputs.update(step.run(given))
    seconds = round(time.monotonic() - start, 2)
    details = outputs.get("details", {}) | {"seconds": seconds}
    if idle := [*step.idle, *(f"inputs.{name}" for name in step.rechecks)]:
      details |= {"idle": idle}
    outputs["details"] = details | _noted(step) | (old.details if old else {})
    # Nobody reads it before it is there.
    distributed.agree(functools.partial(_finish, step, manifest, outputs))
    log(step.stage, f"done in {duration(seconds)}: {step.manifest}")


def _noted(step: Step) -> dict[str, Any]:
  """Returns by which paths inputs were given, which were local, and so on."""
  named = step.named_inputs
  local = [name for name, s in named.items() if getattr(s, "is_folder", False)]
  noted = {
    manifest_lib.NAMED: {n: source.path for n, source in named.items()},
    manifest_lib.HERE: local,
  }
  remade_by = {manifest_lib.REMADE_BY: step.made_in}
  return noted | (remade_by if step.made_in else {})


def _finish(step: Step, manifest: Manifest, outputs: Mapping[str, Any]):
  dataclasses.replace(manifest, **outputs).write()
  files.remove(step.partial)
  step.backup.drop()
