"""One unit of work: done once, resumed, skipped, or refused.

A stage turns the config into jobs; this runs them. It is plumbing and is
meant to stay this small.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from miniplm_jax.core import manifest as manifest_lib
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
  """

  stage: str
  manifest: epath.Path
  settings: Mapping[str, Any]
  inputs: Mapping[str, Input]
  outputs: tuple[epath.Path, ...]
  summary: str
  run: Callable[[Mapping[str, Manifest]], Mapping[str, Any]]
  is_view: bool = False

  @property
  def partial(self) -> epath.Path:
    """The file that stands in for the manifest while the job runs."""
    stem = self.manifest.name.removesuffix(".json")
    return self.manifest.parent / f"{stem}.partial.json"


def execute(job: Job, force: bool = False) -> Manifest:
  """Does the job unless it is done; returns its manifest.

  Raises:
    UserError: an input is missing, or what is on disk was made from other
      inputs or with other settings and `force` is False.
  """
  inputs = _read_inputs(job)
  wanted = _wanted(job)
  found = None
  if not force:
    found = manifest_lib.read(job.manifest) or manifest_lib.read(job.partial)
  if force or (job.is_view and found and _difference(found, wanted)):
    # In this order: a kill in between leaves files of unknown origin.
    for path in (job.manifest, job.partial, *job.outputs):
      _remove(path)
    found = None
  if found is None:
    _refuse_unknown_files(job)
    dataclasses.replace(wanted, path=job.partial).write()
  else:
    _refuse_if_different(job, found, wanted)
    if found.path == job.manifest:
      found.check_sizes()
      say(job.stage, f"skipped, nothing has changed: {job.manifest.parent}")
      return found
    say(job.stage, f"resuming {job.manifest.parent}")
  say(job.stage, job.summary)
  start = time.monotonic()
  try:
    made = dict(job.run(inputs))
  except UserError:
    if not any(_files(job)):
      job.partial.unlink(missing_ok=True)  # nothing to resume: start afresh
    raise
  seconds = round(time.monotonic() - start, 2)
  made["details"] = {"seconds": seconds} | made.get("details", {})
  result = dataclasses.replace(wanted, **made)
  result.write()
  job.partial.unlink(missing_ok=True)
  say(job.stage, f"done in {duration(seconds)}: {job.manifest}")
  return result


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
        difference = _difference(old, wanted)
        if difference and job.is_view:
          return "would run again"
        return f"would be refused: {difference}" if difference else same
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
  """Files in the job's outputs, without its own partial manifest."""
  todo = list(job.outputs)
  while todo:
    path = todo.pop()
    if path.is_dir():
      todo += path.iterdir()
    elif path != job.partial and path.exists():
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
  inputs = {}
  for name, source in job.inputs.items():
    if isinstance(source, epath.Path):
      inputs[name] = manifest_lib.read(source).fingerprint
    else:
      inputs[name] = source()
  # Through JSON, so that a tuple equals the list that is on disk.
  settings = json.loads(json.dumps(dict(job.settings)))
  return Manifest(job.manifest, job.stage, settings, inputs)


def _difference(old: Manifest, wanted: Manifest) -> str | None:
  return manifest_lib.first_difference(
    {"settings": old.settings, "inputs": old.inputs},
    {"settings": wanted.settings, "inputs": wanted.inputs},
  )


def _refuse_if_different(job: Job, old: Manifest, wanted: Manifest):
  difference = _difference(old, wanted)
  if difference:
    raise UserError(
      f"stage {job.stage} was run otherwise: {difference}",
      f"{old.path}",
      "put the setting back, choose another --config.workdir or name, or "
      f"remake it with --stages={job.stage} --force",
    )


def _remove(path: epath.Path):
  if path.is_dir():
    path.rmtree()
  else:
    path.unlink(missing_ok=True)
