"""Trained students, as the stages that read them find them."""

import dataclasses

from miniplm_jax.core import manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import CONVERTED, MANIFEST, Workdir
from miniplm_jax.models import architecture


def check(config, workdir: Workdir, student: str):
  """Refuses a config that describes another student than was trained.

  Args:
    config: the whole config.
    workdir: of the run.
    student: its name; one that is not there is not looked at.

  Raises:
    UserError: it has another shape, or a tokenizer of its own where the config
      has none, or the reverse.
  """
  trained = manifest.read(workdir.student(student) / MANIFEST)
  if not trained:
    return
  there, here = (
    {"model": dataclasses.asdict(arch), "own_tokenizer": is_own}
    for arch, is_own in (
      (
        architecture.of(trained.settings["model"]),
        CONVERTED in trained.inputs,
      ),
      (
        architecture.make(config.student.model),
        bool(config.student.tokenizer),
      ),
    )
  )
  if difference := manifest.first_difference(there, here, "student"):
    raise UserError(
      f"{student} was trained otherwise: {difference}",
      str(trained.path),
      "put it back, choose another --config.student.name, or train it again "
      f"with --stages={trained.stage} --force",
    )
