"""One unit of work: done once, resumed, skipped, or refused.

A stage turns the config into steps; this runs them. It is plumbing and is
meant to stay this small.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import files, gs, hosts
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.claims import Board, Claim
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.former import clear
from miniplm_jax.core.log import duration, log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input, Step

__all__ = ["Input", "Step", "execute", "status"]


def execute(
  steps: Sequence[Step], force: bool = False, board: Board | None = None
):
  """Does those steps that are not done, in order.

  Several processes of one program call this together: the first claims for
  all.

  Args:
    steps: what to do.
    force: make what is done or begun again, from nothing.
    board: beside whose folder the steps' folders lie; None if no other program
      can be there.

  Raises:
    UserError: an input is missing, another program makes the same, or what is
      on disk was made from other inputs or with other settings and `force` is
      False.
  """
  hosts.agree(lambda: _refuse_early(steps, force))
  for _, group in itertools.groupby(steps, lambda step: step.together or step):
    group = list(group)
    claims = {
      j.manifest: Claim(
        board, j.stage, j.manifest, j.outputs, j.input_manifests, j.is_shared
      )
      for j in group
    }

    def begin(group=group, claims=claims):
      return [
        i for i, j in enumerate(group) if _begin(j, force, claims[j.manifest])
      ]

    try:
      _run([group[i] for i in hosts.agree(begin)])
    except BaseException as e:
      for step in group:
        if hosts.is_first() and claims[step.manifest].is_taken:
          _undo(step, claims[step.manifest], e)
      raise
    finally:
      for claim in claims.values():
        claim.release()


def _refuse_early(steps: Sequence[Step], force: bool):
  """What any would be refused for, before the first is begun or replaced."""
  made_here = {step.manifest for step in steps}
  for step in steps:
    if made_here.isdisjoint(step.input_manifests):  # else they may be new then
      step.read_inputs()
      for check in step.checks:
        check()
    old = None if force or step.is_view else manifest_lib.read(step.manifest)
    if old:
      step.refuse(old, step.other_settings(old))


def _begin(step: Step, force: bool, claim: Claim) -> bool:
  """Checks what is there; returns whether the step is to be run.

  What is to be skipped is not claimed: it may lie on a disk that is full or
  can only be read.
  """
  step.read_inputs()
  wanted = step.wanted()
  if not force and (done := _done(step, wanted)):
    _check_files(step, done)
    return _skip(step)
  if force:
    step.refuse_own_inputs()
  claim.take()
  _sweep(step)
  if step.former.exists():
    _settle(step, force, claim, wanted)
    wanted = step.wanted()
  # In this order: another worker writes its manifest before anything else.
  # What is measured in one go is written over.
  has_files = not step.is_measure and any(step.files_made())
  found = None
  if not force:
    found = manifest_lib.read(step.manifest)
    if found is None and has_files:
      # The last one again: another worker may have finished in between.
      for path in (step.partial, step.manifest):
        found = found or manifest_lib.read(path)
  if force or (found and _is_outdated(step, found, wanted)):
    claim.refuse_others()
    if step.manifest.exists():
      step.former.set_aside()
    # In this order: a kill in between leaves files of unknown origin.
    files.remove(step.partial)
    clear(step.outputs)
    found = None
  if found is None:
    if not step.is_measure:
      _refuse_unknown_files(step)
    details = step.code.joined(None) | _named(step)
    begun = dataclasses.replace(wanted, path=step.partial, details=details)
    begun.write()
    if force:  # what was there may have bound an input to what it was
      dataclasses.replace(begun, inputs=step.wanted().inputs).write()
    return True
  is_final = found.path != step.partial and not step.grows
  step.refuse(found, step.difference(found, wanted))
  begun = found
  if step.rechecks and found.path != step.partial:
    # Stopped while it went on from a finished state: that names files which
    # may be gone.
    begun = manifest_lib.read(step.partial) or found
  if begun.path == step.partial and not step.difference(
    begun, wanted, rechecked=is_final
  ):
    _go_on(step, begun, begun)
    log(step.stage, f"resuming {step.manifest.parent}")
    return True
  if is_final:
    step.refuse(found, step.difference(found, wanted, rechecked=True))
  _check_files(step, found)
  if difference := step.difference(found, wanted, rechecked=True):
    log(step.stage, f"going on, {difference}: {step.manifest.parent}")
    # The old manifest holds for what it names until the new one replaces it.
    _go_on(step, found, wanted)
    return True
  if step.partial.exists():  # asked: a disk that can only be read refuses
    step.partial.unlink(missing_ok=True)
  return _skip(step)


def _skip(step: Step) -> bool:
  """Says that what is there stands; it is not to be run."""
  log(step.stage, f"skipped, nothing has changed: {step.manifest.parent}")
  return False


def _check_files(step: Step, found: Manifest):
  found.check_sizes(
    f"restore the file; or rename {step.manifest.name} to {step.partial.name} "
    "and run it again: only what is missing is made"
    if step.rechecks
    else ""
  )


def _go_on(step: Step, begun: Manifest, wanted: Manifest):
  """Writes the partial manifest, with all versions of the code that worked.

  Raises:
    UserError: another version began, and that will not do.
  """
  step.code.check(begun.details, f"{begun.path}", step.stage)
  details = step.code.joined(begun.details)
  if begun is not wanted or begun.details != details:
    dataclasses.replace(wanted, path=step.partial, details=details).write()


def _done(step: Step, wanted: Manifest) -> Manifest | None:
  """The manifest of what is finished, and just as wanted."""
  found = manifest_lib.read(step.manifest)
  if found is None or step.partial.exists() or step.former.exists():
    return None
  return None if step.difference(found, wanted, rechecked=True) else found


def _is_outdated(step: Step, old: Manifest, wanted: Manifest) -> bool:
  """Whether it is to be made again, as what it shows or measures is new."""
  alike = dataclasses.replace(old, settings=wanted.settings)
  if step.is_measure and not step.difference(old, alike):
    return bool(step.difference(old, wanted, rechecked=True))
  return step.is_view and bool(step.difference(old, wanted))


def _settle(step: Step, force: bool, claim: Claim, wanted: Manifest):
  """Ends what a killed program left of making it again."""
  if step.manifest.exists():
    step.former.drop()
  elif _goes_back(step, force, wanted):
    claim.refuse_others()
    step.former.put_back()


def _goes_back(step: Step, force: bool, wanted: Manifest) -> bool:
  """Whether what was made before is put back; else the new is gone on with."""
  begun = None if force or step.is_brief else manifest_lib.read(step.partial)
  return begun is None or bool(
    step.difference(begun, wanted)
    and not step.difference(manifest_lib.read(step.former.manifest), wanted)
  )


def _undo(step: Step, claim: Claim, e: BaseException):
  """After a failure, unless it can be gone on with: as it was before."""
  if not (
    step.is_brief or (isinstance(e, UserError) and not any(step.files_made()))
  ):
    return
  # Else it is another program's now, or the next run does this.
  with contextlib.suppress(UserError, OSError):
    files.guard()
    claim.refuse_others()
    if step.former.exists() and not step.manifest.exists():
      step.former.put_back()
    elif not any(step.files_made()):
      files.remove(step.partial)  # nothing to resume


def _sweep(step: Step):
  """Removes the scratch files that killed processes left."""
  if gs.is_local(step.manifest):
    beside = step.manifest.parent
    files.sweep(
      [
        *(beside.iterdir() if beside.exists() else ()),
        *files.walk(step.outputs),
      ]
    )


def _run(steps: Sequence[Step]):
  """Runs steps that were begun, and writes their manifests."""
  start = time.monotonic()
  for step in steps:
    log(step.stage, step.summary)
  # As they were when the work began.
  inputs, wanted = [j.read_inputs() for j in steps], [j.wanted() for j in steps]
  begun = [manifest_lib.read(j.partial) for j in steps]
  if steps and steps[0].together:
    steps[0].together({j.name: found for j, found in zip(steps, inputs)})
  for step, found, result, old in zip(steps, inputs, wanted, begun):
    made = {}
    if step.is_host_only:
      hosts.agree(functools.partial(_into, made, step, found))
    else:
      made.update(step.run(found))
    seconds = round(time.monotonic() - start, 2)
    details = made.get("details", {}) | {"seconds": seconds}
    if idle := [*step.idle, *(f"inputs.{name}" for name in step.rechecks)]:
      details |= {"idle": idle}
    made["details"] = details | _named(step) | (old.details if old else {})
    # Nobody reads it before it is there.
    hosts.agree(functools.partial(_finish, step, result, made))
    log(step.stage, f"done in {duration(seconds)}: {step.manifest}")


def _named(step: Step) -> dict[str, Any]:
  """By which paths its inputs were given, and which of them were here."""
  named = step.named_inputs
  here = [n for n, source in named.items() if getattr(source, "is_here", False)]
  return {
    manifest_lib.NAMED: {n: source.path for n, source in named.items()},
    manifest_lib.HERE: here,
  }


def _finish(step: Step, result: Manifest, made: Mapping[str, Any]):
  dataclasses.replace(result, **made).write()
  files.remove(step.partial)
  step.former.drop()


def _into(made: dict[str, Any], step: Step, inputs: Mapping[str, Manifest]):
  made.update(step.run(inputs))


def status(step: Step) -> str:
  """What `execute` would do, in words, without doing it."""
  missing = [
    name
    for name, source in step.inputs.items()
    if isinstance(source, epath.Path) and not source.exists()
  ]
  if missing:
    names = (
      " and ".join(missing) if len(missing) < 4 else f"{len(missing)} inputs"
    )
    return f"would run when it has {names}"
  try:
    wanted = step.wanted()
    states = ((step.manifest, "done"), (step.partial, "would resume"))
    if step.former.exists() and _goes_back(step, False, wanted):
      states = (states[0], (step.former.manifest, "done"))
    for path, same in states:
      old = manifest_lib.read(path)
      if old is not None:
        difference = step.difference(old, wanted)
        if _is_outdated(step, old, wanted):
          return "would run again"
        if difference:
          return f"would be refused: {difference}"
        difference = step.difference(old, wanted, rechecked=True)
        if difference and path != step.partial and not step.grows:
          return f"would be refused: {difference}{step.explained(old)}"
        goes_on = difference or path == step.partial
        if goes_on and (other := step.code.difference(old.details)):
          return f"would be refused: {other}"
        return f"would go on: {difference}" if difference else same
  except UserError as e:
    return f"would be refused: {e}"
  return "would run: nothing is there yet"


def _refuse_unknown_files(step: Step):
  for path in step.files_made():
    raise UserError(
      "there are files, but no manifest that says what they are",
      str(path),
      f"restore {step.manifest.name}, choose another --config.workdir, or move "
      "them away: then they are made again",
    )
