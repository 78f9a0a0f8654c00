"""Checkpoints: the one place that imports orbax.

Checkpoint N holds the state after N batches; the data position is N, so
nothing else has to be saved. It also holds a checksum of every array: what is
stored has none, so a flipped bit would be read as another weight.
"""

import contextlib
import functools
import inspect
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from miniplm_jax.core import distributed, errors, files, gs, manifest
from miniplm_jax.core.errors import UserError, shortened
from miniplm_jax.core.log import warn
from miniplm_jax.core.workdir import UNREADABLE
from miniplm_jax.training import checksums
from miniplm_jax.training.comparable import CURVE_OF

# What to do about one of a training that is done.
GO_ON = (
  "restore it; or rename the manifest.json above it, if it is there, to "
  "manifest.partial.json and run that stage: it goes on from the newest "
  "checkpoint that is sound, and nothing else is made again"
)

_policies = ocp.checkpoint_managers

# What orbax writes of a checkpoint, and our part of it. Its own reader of it
# warns that it reads nothing else.
_FACTS, _MADE_BY = "_CHECKPOINT_METADATA", "made_by"
_FOR_GOOD = "for_good"  # steps that run.keep_every has kept so far


def _is_said_otherwise(shown) -> bool:
  """Whether orbax left it behind as it raised: a coroutine, or its loop."""
  if inspect.iscoroutine(shown.object):
    return "orbax" in shown.object.cr_code.co_filename
  return not shown.object and f"{shown.exc_value}" == "Event loop is closed"


def _quieten():
  """Lets nothing else be said of what orbax raises.

  Each of its threads logs it, with pages of tracebacks.
  """
  show = sys.unraisablehook
  sys.unraisablehook = lambda x: _is_said_otherwise(x) or show(x)
  logging.getLogger("absl").addFilter(lambda r: r.levelno < logging.ERROR)


_quieten()


class _AnotherRunError(UserError):
  """A checkpoint of another run."""


class _Steps(set[int]):
  """Steps that are kept, as orbax asks for them."""

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Returns whether each is kept."""
    del context
    return [one.step in self for one in checkpoints]


class Checkpoints:
  """The checkpoints of one training run."""

  def __init__(
    self,
    directory: epath.Path,
    keep: int | None,
    keep_every: int = 0,
    made_by: Mapping[str, Any] | None = None,
  ):
    """Opens or makes `directory`.

    Args:
      keep: how many of the newest are kept; None is all.
      keep_every: steps; those of a multiple of it are kept for good, whatever
        a later start says. 0 is none.
      made_by: what decides the run's result, JSON, and the rows of its curve.
        It is saved with each checkpoint; to go on from one of something else
        is refused, but for another curve.

    Raises:
      UserError: orbax could not read what it writes there.
    """
    self._made_by = json.loads(json.dumps(made_by or {}))  # as it is read
    self._keep_every = keep_every
    # orbax wants an absolute path
    self._directory = gs.absolute(directory)
    if odd := UNREADABLE.intersection(str(self._directory)):
      raise UserError(
        f"checkpoints cannot be read back below a name with {min(odd)}",
        str(self._directory),
        "rename that folder or choose another --config.workdir: what lies "
        "there stays valid",
      )
    self._kept = _Steps() if keep is None else _Steps(self._for_good())
    kept = [_policies.LatestN(keep), self._kept]
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_policies.AnyPreservationPolicy(kept),
        enable_async_checkpointing=True,
        temporary_path_class=_temporary_path_class(self._directory),
      ),
    )

  def latest(self) -> int | None:
    """The newest complete checkpoint's step."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any):
    """Starts saving; `state` may be donated once this returns."""
    distributed.agree(files.guard)
    arrays = _pure(state)
    content = {"state": arrays, "checksums": checksums.of(arrays)}
    self._kept.discard(step)  # it may stand in for one that was broken
    self._kept.update(self._multiples([step]))
    facts = {_MADE_BY: self._made_by, _FOR_GOOD: sorted(self._kept)}
    with self._saving():
      self._manager.save(
        step, args=ocp.args.StandardSave(content), custom_metadata=facts
      )

  def restore(self, step: int, state: Any, is_part: bool = False) -> Any:
    """Reads checkpoint `step` into the shapes and shardings of `state`.

    That is a pytree of ShapeDtypeStructs. If it is a part, the checkpoint may
    hold more, which is neither read nor checked.

    Raises:
      UserError: it is damaged, or that of another model.
    """
    self._refuse_another_shape(step, _pure(state))
    arrays = self._read(step, _pure(state), is_part)
    arrays = traverse_util.flatten_dict(arrays, sep="/")
    return jax.tree_util.tree_map_with_path(
      lambda path, _: arrays[_name(path)], state
    )

  def restore_newest(self, name: str, state: Any) -> tuple[int, Any]:
    """The newest checkpoint that is sound, with its step, as `restore` does.

    Newer ones are renamed to broken-STEP, so that their steps can be saved
    again, and a line in the log, under this name, says why.

    Returns:
      (0, None) if there is no checkpoint.

    Raises:
      UserError: there are checkpoints, but none is sound, or the newest that
        is belongs to another run. None is touched: it may be the code or the
        config that does not fit.
    """
    broken = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        self._refuse_another(step)
        restored = self.restore(step, state)
      except _AnotherRunError:
        raise
      except UserError as e:
        broken.append((step, e))
        continue
      for other, why in broken:
        distributed.agree(functools.partial(self._set_aside, other))
        warn(name, f"skipped checkpoint {other}: {why.what}")
      if broken:
        self._manager.reload()
      return step, restored
    for _, why in broken:
      hint = "restore one; to start over, remove all that are there"
      raise UserError(why.what, why.where, hint)
    return 0, None

  def is_same_curve(self, step: int) -> bool:
    """Whether the learning curve up to a checkpoint is of this run's rows.

    One of an earlier version, which does not say, is taken to be.
    """
    stored = (self._facts(step).get(_MADE_BY) or {}).get(CURVE_OF)
    return stored in (None, self._made_by.get(CURVE_OF))

  def wait(self):
    """Waits for what is being saved; raises UserError if it failed."""
    with self._saving():
      self._manager.wait_until_finished()

  def close(self):
    """Waits for what is being saved; no more can be."""
    with self._saving():
      self._manager.close()

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    try:
      yield
    except Exception as e:  # of orbax, tensorstore or the disk
      if isinstance(e, UserError) or distributed.is_out_of_memory(e):
        raise
      raise UserError(
        f"a checkpoint cannot be saved ({_short(e)})",
        str(self._directory),
        "make room on that disk or put it right, then run it again: it goes on "
        f"from checkpoint {self.latest() or 0}",
      ) from e

  def _refuse_another(self, step: int):
    """Raises AnotherRunError unless a checkpoint is of this run."""
    made_by = dict(self._facts(step).get(_MADE_BY) or {})
    made_by.pop(CURVE_OF, None)
    if difference := manifest.other_maker(made_by, self._made_by):
      raise _AnotherRunError(
        f"checkpoint {step} is of another run: {difference}",
        str(self._directory / str(step)),
        "move it back to that run, or remove it",
      )

  def _facts(self, step: int) -> dict[str, Any]:
    """Our part of what is said of a checkpoint; earlier versions say less."""
    path = self._directory / str(step) / _FACTS
    try:
      facts = json.loads(path.read_bytes()) if path.exists() else {}
      return dict(facts.get("custom_metadata") or {})
    except (ValueError, TypeError, AttributeError) as e:
      why = f"its facts cannot be read ({_short(e)})"
      raise self._unreadable(step, why) from e

  def _multiples(self, steps: Iterable[int]) -> list[int]:
    return [s for s in steps if self._keep_every and s % self._keep_every == 0]

  def _for_good(self) -> set[int]:
    """Steps that stay, and those of earlier versions, which do not say."""
    paths = self._directory.iterdir() if self._directory.exists() else ()
    steps = [int(path.name) for path in paths if path.name.isdecimal()]
    kept = set(self._multiples(steps))
    for step in steps:
      with contextlib.suppress(UserError):  # it is looked at when restored
        kept.update(self._facts(step).get(_FOR_GOOD, [step]))
    return kept

  def _read(self, step: int, state: Any, is_part: bool) -> dict[str, Any]:
    """The nested dicts of a checkpoint."""
    where = jax.tree.leaves(state)[0].sharding.mesh
    where = jax.NamedSharding(where, jax.P())
    sums = jax.tree.map(
      lambda _: jax.ShapeDtypeStruct((), jnp.uint32, sharding=where), state
    )
    content_shapes = {"state": state, "checksums": sums}
    content, why = None, ""
    try:
      # Not through the manager: there every process waits for the others, and
      # one that fails would be waited for.
      content = ocp.PyTreeCheckpointHandler().restore(
        self._directory / str(step) / "default",
        args=ocp.args.PyTreeRestore(
          content_shapes,
          restore_args=ocp.checkpoint_utils.construct_restore_args(
            content_shapes
          ),
          partial_restore=is_part,
        ),
      )
      # Of a part, orbax leaves what it does not find as it is.
      for path, leaf in jax.tree_util.tree_leaves_with_path(content):
        if not isinstance(leaf, jax.Array):
          raise KeyError(_name(path))
      jax.block_until_ready(content)
    except Exception as e:  # orbax raises that very class for lost chunks
      if distributed.is_out_of_memory(e) or errors.is_of_the_machine(e):
        raise  # nothing is wrong with the checkpoint
      why = f"it cannot be read ({_short(e)})"
    # In any process.
    if multihost_utils.process_allgather(np.asarray(bool(why))).any():
      raise self._unreadable(step, why or "another process cannot read it")
    now, then = jax.device_get(
      (checksums.of(content["state"]), content["checksums"])
    )
    both = zip(jax.tree_util.tree_leaves_with_path(now), jax.tree.leaves(then))
    for (path, value), saved in both:
      if value != saved:
        why = f"{_name(path)} is not what was saved (checksum)"
        raise self._unreadable(step, why)
    return content["state"]

  def _refuse_another_shape(self, step: int, state: Any):
    """Raises UserError if a checkpoint has arrays of other shapes."""
    path = self._directory / str(step)
    try:
      metadata = ocp.PyTreeCheckpointHandler().metadata(path / "default")
      stored = _shapes(metadata.tree["state"])
    except Exception:  # of orbax: it is damaged
      return
    ours = _shapes(state)
    stored = {name: stored.get(name) for name in ours}
    if difference := manifest.first_difference(stored, ours):
      raise UserError(
        f"checkpoint {step} is of another model: {difference}",
        str(path),
        "put the model's shape back, or choose another name",
      )

  def _unreadable(self, step: int, why: str) -> UserError:
    return UserError(
      f"checkpoint {step} cannot be used: {why}",
      str(self._directory / str(step)),
      GO_ON,
    )

  def _set_aside(self, step: int):
    aside = self._directory / f"broken-{step}"
    files.remove(aside)
    files.move(self._directory / str(step), aside)


def _temporary_path_class(directory: epath.Path) -> type:
  """Makes a class of what becomes a checkpoint, unless its folder was lost.

  A checkpoint is saved for minutes beside the steps that follow.
  """
  kinds = ocp.path.atomicity
  kind = kinds.CommitFileTemporaryPath
  if gs.is_local(directory):
    kind = kinds.AtomicRenameTemporaryPath

  class Guarded(kind):
    async def finalize(self):
      files.guard()
      await super().finalize()

  return Guarded


def _short(e: Exception) -> str:
  """The first words of what orbax says."""
  return shortened(f"{type(e).__name__}: {e}")


def _pure(state: Any) -> Any:
  """The state as nested dicts, so that the files outlive our classes."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  by_name = {_name(path): leaf for path, leaf in leaves}
  return traverse_util.unflatten_dict(by_name, sep="/")


def _shapes(tree: Any) -> dict[str, list[int]]:
  """Returns the shapes of the arrays, by path."""
  return {
    _name(path): list(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _name(path) -> str:
  """A pytree path as plain names: model/embed/value."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
