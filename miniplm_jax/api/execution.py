"""How the library's functions run steps: as the command line does."""

from collections.abc import Sequence

from etils import epath

from miniplm_jax.config import RunConfig
from miniplm_jax.core import execute as execute_lib
from miniplm_jax.core.claims import Board
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import FOLDERS, Workdir


def execute(steps: Sequence[Step], run: RunConfig):
  """Claims, resumes, skips or refuses steps of one workdir."""
  workdir = Workdir(root_of(steps[0].manifest.parent))
  with Board(workdir.claims, run.lease_seconds) as board:
    execute_lib.execute(steps, board=board)


def root_of(folder: epath.Path) -> epath.Path:
  """The workdir of an artifact's folder: DIR of DIR/corpus, DIR/scores/x."""
  above = folder.parent
  return above.parent if above.name in FOLDERS else above
