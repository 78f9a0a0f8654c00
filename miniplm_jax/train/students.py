"""Trained students, as the stages that read them find them."""

import dataclasses

from miniplm_jax.core import manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import CONVERTED, GENERATED, MANIFEST, Workdir
from miniplm_jax.distill import objectives
from miniplm_jax.methods import for_method
from miniplm_jax.models import architecture

# Before the name of its selection, in a student's settings.rows.
OF_SELECTION = "selection "


def check(config, workdir: Workdir, method: str):
  """Refuses a config that describes another student than was trained.

  Args:
    config: the whole config.
    workdir: of the run.
    method: whose student; one that is not there is not looked at.

  Raises:
    UserError: it was made by another method, has another shape, or a tokenizer
      of its own where the config has none, or the reverse.
  """
  student = for_method(config, method).student
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
  name = trained.settings["rows"].removeprefix(OF_SELECTION)
  selection = manifest.read(workdir.selection(name) / MANIFEST)
  if selection and selection.fingerprint != trained.inputs["selection"]:
    selection = None  # it was made again since
  check_method(config, method, selection, trained)


def check_method(
  config,
  method: str,
  selection: Manifest | None,
  trained: Manifest | None = None,
):
  """Refuses what was made by another method than the config takes it for.

  Args:
    config: the whole config.
    method: that it should be of.
    selection: of its rows; None is not known.
    trained: its student; None is not looked at.

  Raises:
    UserError: it is of another.
  """
  names = for_method(config, method)
  ways = []
  if selection:
    there = selection.settings["definition"]
    ways.append(("rows by", there, names.definition))
  if trained:
    objective = objectives.trained_by(trained.settings)
    ways.append(("objective", objective, names.objective))
    ways.append(("generated", GENERATED in trained.inputs, names.generated))
  for what, then, now in ways:
    if then != now:
      raise UserError(
        f"{what} {then} there, but method {method} has {now} here",
        str((trained or selection).path),
        "give the method and the names that it was made with",
      )
