"""Look plan: does a run fit a TPU slice, and how long would it take there?

Compiles the programs of the config for slices that are not here. Memory and
FLOPs are the compiled program's, every time is a prediction.
"""

from collections.abc import Callable, Mapping

from miniplm_jax.core.log import log, plain
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.training.spec import TrainSpec

STAGE = "plan"


def run(
  config,
  workdir: Workdir,
  dry_run: bool,
  students: Callable[[], Mapping[str, TrainSpec]],
):
  """Prints a table for each slice, and writes plan.json for the report.

  What has been compiled is kept in plan/, so a plan that was stopped, or that
  has one more slice, compiles only what is new.

  Args:
    config: the configuration.
    workdir: of the run.
    dry_run: only say what would be compiled.
    students: gives how each is trained, by method.

  Raises:
    UserError: there is no such slice, libtpu is not installed, or a batch
      does not split over the slice.
  """
  slices = config.plan.topology.split(",")
  if dry_run:
    where = ", ".join(slices)
    plain(f"  {STAGE:9} would compile this config's programs for {where}")
    return
  from miniplm_jax.forecast import outlook, topology, work

  topology.prepare()
  run = config.run
  pieces = work.pieces(config, workdir, students())
  found = []
  for name in slices:
    mesh = topology.mesh(name, run.data, run.fsdp, run.tensor)
    for piece in pieces:
      log(STAGE, f"{name}: compiling {piece.name}, about a minute")
      line = outlook.first_that_fits(piece, name, mesh, run.remat, workdir.plan)
      found.append(line)
      if config.plan.search and piece is _main_student(pieces):
        found += outlook.search(
          piece, name, mesh, run.remat, workdir.plan, line
        )
  price = config.plan.price
  outlook.write(workdir.plan_file, found, price)
  plain("\n" + outlook.table(found, price).markdown())
  for text in (*outlook.advice(found), *outlook.totals(found, price)):
    plain(f"\n{text}")
  plain(f"\n{outlook.CAVEAT}\n\n{workdir.plan_file}")


def _main_student(pieces):
  """The student of `config.method`: the first that is trained after scoring."""
  return next(p for p in pieces if p.is_student)
