"""Where metrics are shown: TensorBoard, and Weights & Biases if asked for."""

import json
import os
import pathlib
import secrets
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from miniplm_jax.core import errors, files, gs
from miniplm_jax.core.errors import UserError


class TensorBoard:
  """Event files."""

  def __init__(self, directory: epath.Path, first_step: int):
    """Goes on after `first_step`; later points, of a killed run, go."""
    # Without TensorFlow: importing that costs 6 s. And without its thread,
    # which dies when the disk is full, and whose queue then waits for ever.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import SessionLog

    # What tensorboardX writes to gs:// it writes again as the process ends.
    self._directory, self._scratch = directory, None
    if not gs.is_local(directory):
      self._scratch = tempfile.TemporaryDirectory()
    folder = self._scratch.name if self._scratch else os.fspath(directory)
    with errors.naming(directory):
      self._writer = EventsWriter(os.path.join(folder, "events"))
    if first_step:
      start = SessionLog(status=SessionLog.START)
      self._add(first_step + 1, session_log=start)

  def write(self, step: int, values: Mapping[str, float]):
    """Adds values after `step` steps."""
    from tensorboardX.summary import scalar

    for name, value in values.items():
      self._add(step, summary=scalar(name, value))

  def _add(self, step: int, **what):
    from tensorboardX.proto.event_pb2 import Event

    with errors.naming(self._directory):
      event = Event(step=step, wall_time=time.time(), **what)
      self._writer.write_event(event)

  def flush(self):
    """Puts on disk what was written."""
    with errors.naming(self._directory):
      self._writer.flush()
      self._upload()

  def close(self):
    """Flushes and ends."""
    with errors.naming(self._directory):
      self._writer.close()
      self._upload()

  def _upload(self):
    """Puts event files where they belong, if that is not on a disk."""
    if self._scratch:
      for path in pathlib.Path(self._scratch.name).iterdir():
        gs.upload(path, self._directory / path.name)


def wandb_run(
  project: str, name: str, directory: epath.Path, config: Mapping[str, Any]
) -> Any:
  """A `wandb.Run`, a new one or that of an earlier start.

  WANDB_MODE and its other variables hold. The run's id is kept in the
  directory, and the config listed beside the run.

  Raises:
    UserError: wandb is not installed or cannot start.
  """
  where = f"config.run.wandb_project={project}"
  try:
    import wandb
  except ImportError as e:
    raise UserError(
      f"wandb cannot be imported ({e})",
      where,
      "pip install 'miniplm_jax[wandb]', or leave the project empty",
    ) from e
  try:
    return wandb.init(
      project=project,
      name=name,
      id=_id(directory / "wandb.json"),
      resume="allow",
      config=dict(config),
      dir=str(directory) if gs.is_local(directory) else None,
    )
  except Exception as e:
    raise UserError(
      f"wandb did not start ({e})",
      where,
      "run `wandb login`, set WANDB_MODE=offline, or leave the project empty",
    ) from e


def _id(path: epath.Path) -> str:
  """The run's id: new with --force, which removes the file."""
  if not path.exists():
    files.write_json(path, {"id": secrets.token_hex(4)})
  hint = "remove it: then what follows is another run of wandb"
  with errors.parsing(path, hint):
    return json.loads(path.read_bytes())["id"]
