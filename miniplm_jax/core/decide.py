"""What is to be done of a step, decided by what lies there.

It is decided here alone: `execute` acts on it, and a dry run prints it.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest, MissingError
from miniplm_jax.core.step import Step

FORCED = "forced"


class Action(enum.Enum):
  """What is to be done, in the words of a dry run; {} is the reason."""

  WAIT = "would run when it has {}"
  RUN = "would run"
  RESUME = "would resume"  # with what was begun
  CONTINUE = "would go on: {}"  # from what is finished: an input is another
  REMAKE = "would run again"  # and replace what is there
  SKIP = "done"
  REFUSE = "would be refused: {}"


@dataclasses.dataclass(frozen=True)
class Decision:
  """An action, and what it was decided by."""

  action: Action
  # The inputs that are missing, the first difference, or FORCED. To find it
  # may take a while where nothing depends on it: then it is a function.
  reason: str | Callable[[], str | None] = ""
  # What lies there, finished or begun, and is skipped or gone on with.
  manifest: Manifest | None = None
  # What the manifest would say as things are; None if nobody can know.
  expected: Manifest | None = None
  # What there is to raise, of WAIT and REFUSE.
  error: UserError | None = None
  # Making it again was killed: what it was before is put back first.
  goes_back: bool = False

  def __str__(self) -> str:
    reason = self.reason() if callable(self.reason) else self.reason
    if reason == FORCED:
      return "would be redone"
    is_more = self.action is Action.RESUME and reason
    action = Action.CONTINUE if is_more else self.action
    return action.value.format(reason)


def decide(
  step: Step, force: bool = False, expected: Manifest | None = None
) -> Decision:
  """Decides what is to be done of a step; changes nothing.

  In this order: an input is not there: WAIT. A check, or an input that is
  gone: REFUSE. `force`: REMAKE. Finished, see `_of_finished`. Begun, see
  `_of_begun`. Nothing there: RUN; files that no manifest is of: REFUSE.

  Whether the inputs belong together is seen when they are read. Until then a
  stage before may make them anew.

  Args:
    expected: what its manifest would say, if that was asked before: it takes
      a look at each file that is read.
  """
  try:
    if force:
      step.refuse_own_inputs()
    expected = expected or step.expected()
    if force:
      is_aside = step.backup.exists() and not step.manifest.exists()
      decision = Decision(Action.REMAKE, FORCED, goes_back=is_aside)
    else:
      decision = _decided(step, expected)
  except MissingError as e:
    decision = Decision(Action.WAIT, e.in_words, error=e)
  except UserError as e:  # such as a manifest that cannot be read
    decision = Decision(Action.REFUSE, str(e), error=e)
  return dataclasses.replace(decision, expected=expected)


def _decided(step: Step, expected: Manifest) -> Decision:
  is_aside = step.backup.exists()
  if finished := manifest_lib.read(step.manifest):
    return _of_finished(step, finished, expected)
  # What is measured in one go is written over.
  is_measure = step.policy.is_measure
  file = None if is_measure else next(step.files_made(), None)
  is_asked = not step.is_brief if is_aside else file is not None
  begun = manifest_lib.read(step.partial) if is_asked else None
  # Again: another worker may have finished in between, and writes its
  # manifest before it removes the partial one.
  if begun is None and (finished := manifest_lib.read(step.manifest)):
    return _of_finished(step, finished, expected)
  if is_aside and (old := manifest_lib.read(step.backup.manifest)):
    is_better = begun is None or (
      step.difference(begun, expected) and not step.difference(old, expected)
    )
    if is_better:
      decision = _of_finished(step, old, expected, goes_back=True)
      return dataclasses.replace(decision, goes_back=True)
  if file is None:
    return Decision(Action.RUN)
  if begun is None:
    raise UserError(
      "there are files, but no manifest that says what they are",
      str(file),
      f"restore {step.manifest.name}, choose another --config.workdir, or move "
      "them away: then they are made again",
    )
  return _of_begun(step, begun, expected)


def _of_finished(
  step: Step, manifest: Manifest, expected: Manifest, goes_back: bool = False
) -> Decision:
  """Decides SKIP if nothing differs, unless going on from it was stopped.

  A view of, or a measurement by, what is new now: REMAKE. Other settings or
  inputs: REFUSE. Inputs alone that each piece vouches for: CONTINUE, if the
  step grows.
  """
  grows = step.policy.grows
  difference = step.difference(manifest, expected, rechecked=True)
  if difference:
    alike = dataclasses.replace(manifest, settings=expected.settings)
    if step.policy.is_measure and not step.difference(manifest, alike):
      return Decision(Action.REMAKE, manifest=manifest)
    if other := step.difference(manifest, expected):
      if step.policy.is_view:
        return Decision(Action.REMAKE, manifest=manifest)
      return _refused(step, manifest, other)
  if step.rechecks and not goes_back:
    # Stopped while it went on from a finished state: that names files which
    # may be gone.
    begun = manifest_lib.read(step.partial)
    if begun and not step.difference(begun, expected, rechecked=not grows):
      return _going_on(step, Decision(Action.RESUME, difference or "", begun))
  if not difference:
    return Decision(Action.SKIP, manifest=manifest)
  if not grows:
    return _refused(step, manifest, difference)
  return _going_on(step, Decision(Action.CONTINUE, difference, manifest))


def _of_begun(step: Step, begun: Manifest, expected: Manifest) -> Decision:
  """Decides RESUME if it is alike; REMAKE of a view, else REFUSE.

  Inputs that each piece vouches for may be others.
  """
  if difference := step.difference(begun, expected):
    if step.policy.is_view:
      return Decision(Action.REMAKE, manifest=begun)
    return _refused(step, begun, difference)
  rest = functools.partial(step.difference, begun, expected, rechecked=True)
  return _going_on(step, Decision(Action.RESUME, rest, begun))


def _refused(step: Step, manifest: Manifest, difference: str) -> Decision:
  reason = difference + step.explained(manifest)
  error = manifest_lib.made_otherwise(step.remade_by, manifest.path, reason)
  return Decision(Action.REFUSE, reason, manifest, error=error)


def _going_on(step: Step, decision: Decision) -> Decision:
  """Refuses what another version of the code began, if that will not do."""
  manifest = decision.manifest
  try:
    step.code.check(manifest.details, f"{manifest.path}", step.stage)
  except UserError as e:
    return Decision(Action.REFUSE, e.what, manifest, error=e)
  return decision
