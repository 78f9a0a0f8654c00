"""Stage train: one student a method, the plain next-token loss."""

from miniplm_jax.config import for_method, methods
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.job import Job
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.trainer import training_job

STAGE = "train"


def jobs(config, workdir: Workdir) -> list[Job]:
  """One job a method."""
  return [_job(config, workdir, for_method(config, m)) for m in methods(config)]


def _job(config, workdir: Workdir, names) -> Job:
  return training_job.make(
    stage=STAGE,
    config=config,
    workdir=workdir,
    directory=workdir.student(names.student),
    arch=Architecture(**config.student.model),
    train=config.train,
    rows=f"selection {names.selection}",
    row_ids=_selected,
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      "selection": workdir.selection(names.selection) / MANIFEST,
    },
  )


def _selected(corpus, inputs):
  """The rows of the selection, checked against its manifest."""
  import numpy as np

  from miniplm_jax.core import files

  selection = inputs["selection"]
  path = selection.directory / "rows.npy"
  if not path.exists() or files.describe(path) != selection.files["rows.npy"]:
    raise UserError(
      "the kept rows are not those that were selected",
      str(path),
      "select again with --stages=select --force",
    )
  with path.open("rb") as f:
    return np.load(f)
