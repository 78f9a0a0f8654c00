"""Checkpoints: the one place that imports orbax.

Checkpoint N holds the state after N batches; the data position is N, so
nothing else has to be saved.
"""

import functools
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from miniplm_jax.core.errors import UserError


class Checkpoints:
  """The checkpoints of one training run."""

  def __init__(self, directory: epath.Path, keep: int | None):
    """Opens or makes `directory`; the newest `keep`, or all, are kept."""
    self._directory = directory
    # orbax wants an absolute path
    self._manager = ocp.CheckpointManager(
      directory.resolve(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=True
      ),
    )

  def latest(self) -> int | None:
    """The newest complete checkpoint's step."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any):
    """Starts saving; `state` may be donated once this returns."""
    self._manager.save(step, args=ocp.args.StandardSave(_pure(state)))

  def restore(self, step: int, state: Any) -> Any:
    """Reads checkpoint `step` into the shapes and shardings of `state`.

    Args:
      step: a step that `latest` named.
      state: a pytree of ShapeDtypeStructs with shardings.
    """
    try:
      pure = self._manager.restore(
        step, args=ocp.args.StandardRestore(_pure(state))
      )
    except (ValueError, FileNotFoundError, KeyError) as e:
      raise UserError(
        f"the checkpoint cannot be read ({e})",
        str(self._directory / str(step)),
        "remove it to go on from the one before",
      ) from e
    return jax.tree_util.tree_map_with_path(
      lambda path, _: functools.reduce(lambda d, k: d[k], _keys(path), pure),
      state,
    )

  def close(self):
    """Waits for what is being saved; raises if it failed."""
    self._manager.wait_until_finished()
    self._manager.close()


def _pure(state: Any) -> Any:
  """The state as nested dicts, so that the files outlive our classes."""
  nested: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    *folders, last = _keys(path)
    node = nested
    for name in folders:
      node = node.setdefault(name, {})
    node[last] = leaf
  return nested


def _keys(path) -> list[str]:
  """A pytree path as plain names."""
  return [
    str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k))))
    for k in path
  ]
