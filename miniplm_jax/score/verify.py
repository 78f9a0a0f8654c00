"""Look verify: finished tables against the models that they name.

Reads every part, compares it with its manifest, scores a random sample of
rows again and compares each row. Writes nothing.
"""

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log, plain
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.score import step as score_stage

STAGE = "verify"


def run(config, workdir: Workdir, dry_run: bool):
  """Verifies all tables of a config.

  Raises:
    UserError: a part is damaged, or a row is not what its model says.
  """
  tables = score_stage.tables_of(config, workdir)
  if dry_run:
    names = ", ".join(source.name for source in tables)
    rows = config.verify.rows
    plain(f"  {STAGE:9} would score {rows} rows of {names} again")
    return
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.models import sharding

  corpus = Corpus(manifest_lib.require(workdir.corpus / MANIFEST))
  mesh = sharding.make_mesh(config.run.data, config.run.fsdp, config.run.tensor)
  for source in tables:
    found = manifest_lib.require(workdir.scores(source.name) / MANIFEST)
    found.check_inputs({"corpus": corpus.manifest})
    _verify(config, source, found, corpus, mesh)


def _verify(config, source, found, corpus, mesh):
  import numpy as np

  from miniplm_jax.score import check, table

  parts = list(table.parts(found))
  columns = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  total = len(columns["row_id"])
  if total != found.counts["rows"]:
    raise UserError(
      f"the table has {total} rows where its manifest says "
      f"{found.counts['rows']}",
      str(found.path),
      table.again(found.directory),
    )
  whole = f"{source.name}: {len(parts)} parts are whole"
  if source.scores:
    log(STAGE, f"{whole}; made elsewhere, so nothing is scored again")
    return
  places = check.sample(total, config.verify.rows, config.verify.seed)
  stored = {name: values[places] for name, values in columns.items()}
  facts = {"weights": found.weights, **found.settings}
  facts["architecture"] = found.details.get("architecture")
  scorer = check.rescorer(config, source, corpus, mesh, facts)
  tolerance = check.tolerance_of(config, facts["dtype"])
  where = str(found.directory)
  off = check.compare(source.name, where, stored, scorer, tolerance)
  log(
    STAGE,
    f"{whole}; of {total:,} rows {len(places)} scored again, off by at most "
    f"{off:.2g} nats per token (tolerance {tolerance:g})",
  )
