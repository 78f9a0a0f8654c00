"""Look plan: does a run fit a TPU slice, and how long would it take there?

Compiles the programs of the config for slices that are not here. Memory and
FLOPs are the compiled program's, every time is a prediction.
"""

from collections.abc import Callable, Sequence

from etils import epy

from miniplm_jax.config import PlanConfig, RunConfig
from miniplm_jax.core.log import log, plain
from miniplm_jax.core.workdir import Workdir

with epy.lazy_imports():  # they import JAX
  from miniplm_jax.forecast import outlook as outlook_lib
  from miniplm_jax.forecast import outlook_page, topology, workload

STAGE = "plan"


def look(
  plan: PlanConfig,
  run: RunConfig,
  needed: "Callable[[], Sequence[workload.Program]]",
  missing: Sequence[str],
  workdir: Workdir,
  dry_run: bool,
):
  """Prints a table for each slice, and writes plan.json for the report.

  What has been compiled is kept in plan/, so a plan that was stopped, or that
  has one more slice, compiles only what is new.

  Args:
    run: mesh and remat.
    needed: gives the programs; a dry run does not ask for them.
    missing: what TPUs would run beside them, in words.

  Raises:
    UserError: there is no such slice, libtpu is not installed, or a batch
      does not split over the slice.
  """
  slices = plan.topology.split(",")
  if dry_run:
    where = ", ".join(slices)
    plain(f"  {STAGE:9} would compile this config's programs for {where}")
    return
  topology.prepare()
  programs = needed()
  # The student of the run's own method is the first that is trained.
  main_student = next(p for p in programs if p.is_student)
  outlooks = []
  for name in slices:
    mesh = topology.mesh(name, run.data, run.fsdp, run.tensor)
    place = outlook_lib.Slice(name, mesh, run.remat, workdir.plan)
    for program in programs:
      log(STAGE, f"{name}: compiling {program.name}, about a minute")
      outlook = place.first_that_fits(program)
      outlooks.append(outlook)
      is_scoring = program.name.startswith(workload.SCORE_BY)
      if plan.search and (is_scoring or program is main_student):
        outlooks += place.search(program, outlook)
  notes = [f"Not in the totals: {', '.join(missing)}."]
  if run.score_together:
    notes += outlook_page.together(outlooks)
  outlook_lib.write(
    workdir.plan_file, outlook_lib.Plan(outlooks, plan.price, notes)
  )
  plain("\n" + outlook_page.table(outlooks, plan.price).markdown())
  for text in (
    *outlook_page.advice(outlooks),
    *outlook_page.totals(outlooks, plan.price),
    *notes,
    outlook_page.CAVEAT,
    str(workdir.plan_file),
  ):
    plain(f"\n{text}")
