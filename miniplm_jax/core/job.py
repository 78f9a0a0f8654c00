"""One unit of work: done once, resumed, skipped, or refused.

A stage turns the config into jobs; this runs them. It is plumbing and is
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
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.progress import duration, say
from miniplm_jax.core.work import Input, Job

__all__ = ["Input", "Job", "execute", "status"]


def execute(
  jobs: Sequence[Job], force: bool = False, board: Board | None = None
):
  """Does those jobs that are not done, in order.

  Several processes of one program call this together: the first claims for
  all.

  Args:
    jobs: what to do.
    force: make what is done or begun again, from nothing.
    board: beside whose folder the jobs' folders lie; None if no other program
      can be there.

  Raises:
    UserError: an input is missing, another program makes the same, or what is
      on disk was made from other inputs or with other settings and `force` is
      False.
  """
  hosts.agree(lambda: _refuse_early(jobs, force))
  for _, group in itertools.groupby(jobs, lambda job: job.together or job):
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
      for job in group:
        if hosts.is_first() and claims[job.manifest].is_taken:
          _undo(job, claims[job.manifest], e)
      raise
    finally:
      for claim in claims.values():
        claim.release()


def _refuse_early(jobs: Sequence[Job], force: bool):
  """What any would be refused for, before the first is begun or replaced."""
  made_here = {job.manifest for job in jobs}
  for job in jobs:
    if made_here.isdisjoint(job.input_manifests):  # else they may be new then
      job.read_inputs()
      for check in job.checks:
        check()
    old = None if force or job.is_view else manifest_lib.read(job.manifest)
    if old:
      job.refuse(old, job.other_settings(old))


def _begin(job: Job, force: bool, claim: Claim) -> bool:
  """Checks what is there; returns whether the job is to be run.

  What is to be skipped is not claimed: it may lie on a disk that is full or
  can only be read.
  """
  job.read_inputs()
  wanted = job.wanted()
  if not force and (done := _done(job, wanted)):
    _check_files(job, done)
    return _skip(job)
  if force:
    job.refuse_own_inputs()
  claim.take()
  _sweep(job)
  if job.former.exists():
    _settle(job, force, claim, wanted)
    wanted = job.wanted()
  # In this order: another worker writes its manifest before anything else.
  # What is measured in one go is written over.
  has_files = not job.is_measure and any(job.files_made())
  found = None
  if not force:
    found = manifest_lib.read(job.manifest)
    if found is None and has_files:
      # The last one again: another worker may have finished in between.
      for path in (job.partial, job.manifest):
        found = found or manifest_lib.read(path)
  if force or (found and _is_outdated(job, found, wanted)):
    claim.refuse_others()
    if job.manifest.exists():
      job.former.set_aside()
    # In this order: a kill in between leaves files of unknown origin.
    files.remove(job.partial)
    clear(job.outputs)
    found = None
  if found is None:
    if not job.is_measure:
      _refuse_unknown_files(job)
    details = job.code.joined(None) | _named(job)
    begun = dataclasses.replace(wanted, path=job.partial, details=details)
    begun.write()
    if force:  # what was there may have bound an input to what it was
      dataclasses.replace(begun, inputs=job.wanted().inputs).write()
    return True
  is_final = found.path != job.partial and not job.grows
  job.refuse(found, job.difference(found, wanted))
  begun = found
  if job.rechecks and found.path != job.partial:
    # Stopped while it went on from a finished state: that names files which
    # may be gone.
    begun = manifest_lib.read(job.partial) or found
  if begun.path == job.partial and not job.difference(
    begun, wanted, rechecked=is_final
  ):
    _go_on(job, begun, begun)
    say(job.stage, f"resuming {job.manifest.parent}")
    return True
  if is_final:
    job.refuse(found, job.difference(found, wanted, rechecked=True))
  _check_files(job, found)
  if difference := job.difference(found, wanted, rechecked=True):
    say(job.stage, f"going on, {difference}: {job.manifest.parent}")
    # The old manifest holds for what it names until the new one replaces it.
    _go_on(job, found, wanted)
    return True
  if job.partial.exists():  # asked: a disk that can only be read refuses
    job.partial.unlink(missing_ok=True)
  return _skip(job)


def _skip(job: Job) -> bool:
  """Says that what is there stands; it is not to be run."""
  say(job.stage, f"skipped, nothing has changed: {job.manifest.parent}")
  return False


def _check_files(job: Job, found: Manifest):
  found.check_sizes(
    f"restore the file; or rename {job.manifest.name} to {job.partial.name} "
    "and run it again: only what is missing is made"
    if job.rechecks
    else ""
  )


def _go_on(job: Job, begun: Manifest, wanted: Manifest):
  """Writes the partial manifest, with all versions of the code that worked.

  Raises:
    UserError: another version began, and that will not do.
  """
  job.code.check(begun.details, f"{begun.path}", job.stage)
  details = job.code.joined(begun.details)
  if begun is not wanted or begun.details != details:
    dataclasses.replace(wanted, path=job.partial, details=details).write()


def _done(job: Job, wanted: Manifest) -> Manifest | None:
  """The manifest of what is finished, and just as wanted."""
  found = manifest_lib.read(job.manifest)
  if found is None or job.partial.exists() or job.former.exists():
    return None
  return None if job.difference(found, wanted, rechecked=True) else found


def _is_outdated(job: Job, old: Manifest, wanted: Manifest) -> bool:
  """Whether it is to be made again, as what it shows or measures is new."""
  alike = dataclasses.replace(old, settings=wanted.settings)
  if job.is_measure and not job.difference(old, alike):
    return bool(job.difference(old, wanted, rechecked=True))
  return job.is_view and bool(job.difference(old, wanted))


def _settle(job: Job, force: bool, claim: Claim, wanted: Manifest):
  """Ends what a killed program left of making it again."""
  if job.manifest.exists():
    job.former.drop()
  elif _goes_back(job, force, wanted):
    claim.refuse_others()
    job.former.put_back()


def _goes_back(job: Job, force: bool, wanted: Manifest) -> bool:
  """Whether what was made before is put back; else the new is gone on with."""
  begun = None if force or job.is_brief else manifest_lib.read(job.partial)
  return begun is None or bool(
    job.difference(begun, wanted)
    and not job.difference(manifest_lib.read(job.former.manifest), wanted)
  )


def _undo(job: Job, claim: Claim, e: BaseException):
  """After a failure, unless it can be gone on with: as it was before."""
  if not (
    job.is_brief or (isinstance(e, UserError) and not any(job.files_made()))
  ):
    return
  # Else it is another program's now, or the next run does this.
  with contextlib.suppress(UserError, OSError):
    files.guard()
    claim.refuse_others()
    if job.former.exists() and not job.manifest.exists():
      job.former.put_back()
    elif not any(job.files_made()):
      files.remove(job.partial)  # nothing to resume


def _sweep(job: Job):
  """Removes the scratch files that killed processes left."""
  if gs.is_local(job.manifest):
    beside = job.manifest.parent
    files.sweep(
      [*(beside.iterdir() if beside.exists() else ()), *files.walk(job.outputs)]
    )


def _run(jobs: Sequence[Job]):
  """Runs jobs that were begun, and writes their manifests."""
  start = time.monotonic()
  for job in jobs:
    say(job.stage, job.summary)
  # As they were when the work began.
  inputs, wanted = [j.read_inputs() for j in jobs], [j.wanted() for j in jobs]
  begun = [manifest_lib.read(j.partial) for j in jobs]
  if jobs and jobs[0].together:
    jobs[0].together({j.name: found for j, found in zip(jobs, inputs)})
  for job, found, result, old in zip(jobs, inputs, wanted, begun):
    made = {}
    if job.is_host_only:
      hosts.agree(functools.partial(_into, made, job, found))
    else:
      made.update(job.run(found))
    seconds = round(time.monotonic() - start, 2)
    details = made.get("details", {}) | {"seconds": seconds}
    if idle := [*job.idle, *(f"inputs.{name}" for name in job.rechecks)]:
      details |= {"idle": idle}
    made["details"] = details | _named(job) | (old.details if old else {})
    # Nobody reads it before it is there.
    hosts.agree(functools.partial(_finish, job, result, made))
    say(job.stage, f"done in {duration(seconds)}: {job.manifest}")


def _named(job: Job) -> dict[str, Any]:
  """By which paths its inputs were given, and which of them were here."""
  named = job.named_inputs
  here = [n for n, source in named.items() if getattr(source, "is_here", False)]
  return {
    manifest_lib.NAMED: {n: source.path for n, source in named.items()},
    manifest_lib.HERE: here,
  }


def _finish(job: Job, result: Manifest, made: Mapping[str, Any]):
  dataclasses.replace(result, **made).write()
  files.remove(job.partial)
  job.former.drop()


def _into(made: dict[str, Any], job: Job, inputs: Mapping[str, Manifest]):
  made.update(job.run(inputs))


def status(job: Job) -> str:
  """What `execute` would do, in words, without doing it."""
  missing = [
    name
    for name, source in job.inputs.items()
    if isinstance(source, epath.Path) and not source.exists()
  ]
  if missing:
    names = (
      " and ".join(missing) if len(missing) < 4 else f"{len(missing)} inputs"
    )
    return f"would run when it has {names}"
  try:
    wanted = job.wanted()
    states = ((job.manifest, "done"), (job.partial, "would resume"))
    if job.former.exists() and _goes_back(job, False, wanted):
      states = (states[0], (job.former.manifest, "done"))
    for path, same in states:
      old = manifest_lib.read(path)
      if old is not None:
        difference = job.difference(old, wanted)
        if _is_outdated(job, old, wanted):
          return "would run again"
        if difference:
          return f"would be refused: {difference}"
        difference = job.difference(old, wanted, rechecked=True)
        if difference and path != job.partial and not job.grows:
          return f"would be refused: {difference}{job.explained(old)}"
        goes_on = difference or path == job.partial
        if goes_on and (other := job.code.difference(old.details)):
          return f"would be refused: {other}"
        return f"would go on: {difference}" if difference else same
  except UserError as e:
    return f"would be refused: {e}"
  return "would run: nothing is there yet"


def _refuse_unknown_files(job: Job):
  for path in job.files_made():
    raise UserError(
      "there are files, but no manifest that says what they are",
      str(path),
      f"restore {job.manifest.name}, choose another --config.workdir, or move "
      "them away: then they are made again",
    )
