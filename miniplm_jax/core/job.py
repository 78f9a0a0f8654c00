"""One unit of work: done once, resumed, skipped, or refused.

A stage turns the config into jobs; this runs them. It is plumbing and is
meant to stay this small.
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import files, gs, hosts
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.claims import Board, Claim
from miniplm_jax.core.code import WHOLE, Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.progress import duration, say

# An input is another job's manifest file, or how to fingerprint it.
Input = epath.Path | Callable[[], str]


@dataclasses.dataclass(frozen=True)
class Job:
  """What a stage wants done.

  Attributes:
    stage: the stage's name, as on the command line.
    manifest: the file that says it is done.
    settings: everything of the config that changes the result.
    inputs: what it reads, by name.
    outputs: files and folders that a forced run removes first.
    summary: one line for `--dry_run`.
    run: does it. Takes the inputs' manifests and returns the fields of the
      new manifest other than stage, settings and inputs. May be called
      again after a kill: it finds its own partial work in `outputs`.
    is_view: shows what other jobs made; with other inputs it is made again
      instead of being refused.
    rechecks: inputs that may change: `run` compares each piece of its earlier
      work with them, and goes on with what still holds.
    idle: settings without effect beside the others: kept, and not compared.
    grows: goes on in that way from a finished state, too; otherwise finished
      work is refused when an input that it rechecks has changed.
    explain: what has changed in the inputs since a manifest was written, in
      words, for a refusal; "" if it cannot tell.
    together: several jobs of a stage may share a pass over the data: they
      carry the same function, which is called with the inputs of those that
      are not done, by name of the job's folder, before each one's `run`.
    is_host_only: needs no device; of several processes the first runs it.
    is_measure: of what other jobs made; with other inputs it is made again,
      with other settings it is refused.
    code: what makes its pieces; another version that began is refused.
    is_shared: several programs may make it, by claims of their own.
    checks: each raises UserError if the config disagrees with what is read.
  """

  stage: str
  manifest: epath.Path
  settings: Mapping[str, Any]
  inputs: Mapping[str, Input]
  outputs: tuple[epath.Path, ...]
  summary: str
  run: Callable[[Mapping[str, Manifest]], Mapping[str, Any]]
  is_view: bool = False
  rechecks: tuple[str, ...] = ()
  idle: tuple[str, ...] = ()
  grows: bool = False
  explain: Callable[[Manifest], str] | None = None
  together: Callable[[Mapping[str, Mapping[str, Manifest]]], None] | None = None
  is_host_only: bool = False
  is_measure: bool = False
  code: Version = WHOLE
  is_shared: bool = False
  checks: tuple[Callable[[], None], ...] = ()

  @property
  def name(self) -> str:
    """The folder that it makes."""
    return self.manifest.parent.name

  @property
  def input_manifests(self) -> list[epath.Path]:
    """Those of its inputs that are other jobs'."""
    return [p for p in self.inputs.values() if isinstance(p, epath.Path)]

  @property
  def partial(self) -> epath.Path:
    """The file that stands in for the manifest while the job runs."""
    stem = self.manifest.name.removesuffix(".json")
    return self.manifest.parent / f"{stem}.partial.json"


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
      _run([group[i] for i in hosts.agree(begin)], claims)
    finally:
      for claim in claims.values():
        claim.release()


def _begin(job: Job, force: bool, claim: Claim) -> bool:
  """Checks what is there; returns whether the job is to be run.

  What is to be skipped is not claimed: it may lie on a disk that is full or
  can only be read.
  """
  _read_inputs(job)
  wanted = _wanted(job)
  if force or not _is_done(job, wanted):
    claim.take()
    _sweep(job)
  # In this order: another worker writes its manifest before anything else.
  has_files = any(_files(job))
  found = None
  if not force:
    found = manifest_lib.read(job.manifest)
    if found is None and has_files:
      # The last one again: another worker may have finished in between.
      for path in (job.partial, job.manifest):
        found = found or manifest_lib.read(path)
  if force or (found and _is_outdated(job, found, wanted)):
    claim.refuse_others()
    # In this order: a kill in between leaves files of unknown origin.
    for path in (job.manifest, job.partial, *job.outputs):
      _remove(path)
    found = None
  if found is None:
    _refuse_unknown_files(job)
    details = job.code.joined(None)
    dataclasses.replace(wanted, path=job.partial, details=details).write()
    return True
  is_final = found.path != job.partial and not job.grows
  _refuse_if_different(job, found, wanted)
  begun = found
  if job.rechecks and found.path != job.partial:
    # Stopped while it went on from a finished state: that names files which
    # may be gone.
    begun = manifest_lib.read(job.partial) or found
  if begun.path == job.partial and not _difference(
    job, begun, wanted, rechecked=is_final
  ):
    _go_on(job, begun, begun)
    say(job.stage, f"resuming {job.manifest.parent}")
    return True
  if is_final:
    _refuse_if_different(job, found, wanted, rechecked=True)
  found.check_sizes(
    f"restore the file; or rename {job.manifest.name} to {job.partial.name} "
    "and run it again: only what is missing is made"
    if job.rechecks
    else ""
  )
  if difference := _difference(job, found, wanted, rechecked=True):
    say(job.stage, f"going on, {difference}: {job.manifest.parent}")
    # The old manifest holds for what it names until the new one replaces it.
    _go_on(job, found, wanted)
    return True
  if job.partial.exists():  # asked: a disk that can only be read refuses
    job.partial.unlink(missing_ok=True)
  say(job.stage, f"skipped, nothing has changed: {job.manifest.parent}")
  return False


def _go_on(job: Job, begun: Manifest, wanted: Manifest):
  """Writes the partial manifest, with all versions of the code that worked.

  Raises:
    UserError: another version began, and that will not do.
  """
  job.code.check(begun.details, f"{begun.path}", job.stage)
  details = job.code.joined(begun.details)
  if begun is not wanted or begun.details != details:
    dataclasses.replace(wanted, path=job.partial, details=details).write()


def _is_done(job: Job, wanted: Manifest) -> bool:
  found = manifest_lib.read(job.manifest)
  if found is None or job.partial.exists():
    return False
  return not _difference(job, found, wanted, rechecked=True)


def _is_outdated(job: Job, old: Manifest, wanted: Manifest) -> bool:
  """Whether it is to be made again, as what it shows or measures is new."""
  if job.is_measure and old.settings == wanted.settings:
    return old.inputs != wanted.inputs
  return job.is_view and bool(_difference(job, old, wanted))


def _sweep(job: Job):
  """Removes the scratch files that killed processes left."""
  if gs.is_local(job.manifest):
    beside = job.manifest.parent
    files.sweep(
      [*(beside.iterdir() if beside.exists() else ()), *files.walk(job.outputs)]
    )


def _run(jobs: Sequence[Job], claims: Mapping[epath.Path, Claim]):
  """Runs jobs that were begun, and writes their manifests."""
  start = time.monotonic()
  for job in jobs:
    say(job.stage, job.summary)
  # As they were when the work began.
  inputs, wanted = [_read_inputs(j) for j in jobs], [_wanted(j) for j in jobs]
  begun = [manifest_lib.read(j.partial) for j in jobs]
  try:
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
      details |= {"idle": list(job.idle)} if job.idle else {}
      made["details"] = details | (old.details if old else {})
      hosts.agree(claims[job.manifest].check)
      if hosts.is_first():
        dataclasses.replace(result, **made).write()
        job.partial.unlink(missing_ok=True)
      hosts.agree(lambda: None)  # nobody reads it before it is there
      say(job.stage, f"done in {duration(seconds)}: {job.manifest}")
  except UserError:
    for job in jobs if hosts.is_first() else ():
      # Another worker may rely on the partial manifest of a shared pass.
      if not job.together and not any(_files(job)):
        job.partial.unlink(missing_ok=True)  # nothing to resume
    raise


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
    wanted = _wanted(job)
    for path, same in ((job.manifest, "done"), (job.partial, "would resume")):
      old = manifest_lib.read(path)
      if old is not None:
        difference = _difference(job, old, wanted)
        if _is_outdated(job, old, wanted):
          return "would run again"
        if difference:
          return f"would be refused: {difference}"
        difference = _difference(job, old, wanted, rechecked=True)
        if difference and path == job.manifest and not job.grows:
          return f"would be refused: {difference}{_explained(job, old)}"
        goes_on = difference or path == job.partial
        if goes_on and (other := job.code.difference(old.details)):
          return f"would be refused: {other}"
        return f"would go on: {difference}" if difference else same
  except UserError as e:
    return f"would be refused: {e}"
  return "would run: nothing is there yet"


def _read_inputs(job: Job) -> dict[str, Manifest]:
  """The inputs' manifests, checked against each other.

  Whether the files are those that were written is checked where they are
  read: there it can be said what is wrong with them.
  """
  inputs = {
    name: manifest_lib.require(source)
    for name, source in job.inputs.items()
    if isinstance(source, epath.Path)
  }
  for made in inputs.values():
    made.check_inputs(inputs)
  return inputs


def _files(job: Job) -> Iterator[epath.Path]:
  """What was made of the job's outputs, without its own partial manifest."""
  for path in files.walk(job.outputs):
    is_other = files.is_lock(path) or files.is_scratch(path)
    if path != job.partial and not is_other:
      yield path


def _refuse_unknown_files(job: Job):
  for path in _files(job):
    raise UserError(
      "there are files, but no manifest that says what they are",
      str(path),
      "choose another --config.workdir, move them away, or remake them with "
      f"--stages={job.stage} --force",
    )


def _wanted(job: Job) -> Manifest:
  for check in job.checks:
    check()
  inputs = {}
  for name, source in job.inputs.items():
    if isinstance(source, epath.Path):
      inputs[name] = manifest_lib.read(source).fingerprint
    else:
      inputs[name] = source()
  # Through JSON, so that a tuple equals the list that is on disk.
  settings = json.loads(json.dumps(dict(job.settings)))
  return Manifest(job.manifest, job.stage, settings, inputs)


def _difference(
  job: Job, old: Manifest, wanted: Manifest, rechecked: bool = False
) -> str | None:
  """The first difference; in inputs that the job rechecks only if asked."""
  given = {
    name: old.fingerprint_by(source)
    for name, source in job.inputs.items()
    if hasattr(source, "former")
  }
  wanted = dataclasses.replace(wanted, inputs=wanted.inputs | given)

  def facts(made: Manifest):
    names = made.inputs.keys() - (() if rechecked else job.rechecks)
    inputs = {name: made.inputs[name] for name in names}
    settings = {k: v for k, v in made.settings.items() if k not in job.idle}
    return {"settings": settings, "inputs": inputs}

  return manifest_lib.first_difference(facts(old), facts(wanted))


def _explained(job: Job, old: Manifest) -> str:
  return f" ({text})" if job.explain and (text := job.explain(old)) else ""


def _refuse_if_different(
  job: Job, old: Manifest, wanted: Manifest, rechecked: bool = False
):
  difference = _difference(job, old, wanted, rechecked)
  if difference:
    raise UserError(
      f"stage {job.stage} was run otherwise: {difference}"
      + _explained(job, old),
      f"{old.path}",
      "put the setting back, choose another --config.workdir or name, or "
      f"remake it with --stages={job.stage} --force",
    )


def _remove(path: epath.Path):
  if path.is_dir():
    path.rmtree()
  else:
    path.unlink(missing_ok=True)
