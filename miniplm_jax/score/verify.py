"""Look verify: finished tables against the models that they name.

Reads every part, compares it with its manifest, scores a random sample of
rows again and compares each row. Writes nothing.
"""

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.progress import say
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.score import stage as score_stage

STAGE = "verify"


def run(config, workdir: Workdir, dry_run: bool):
  """Verifies all tables of a config.

  Raises:
    UserError: a part is damaged, or a row is not what its model says.
  """
  tables = score_stage.sources(config, workdir)
  if dry_run:
    names = ", ".join(source.name for source in tables)
    rows = config.verify.rows
    print(f"  {STAGE:9} would score {rows} rows of {names} again")
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

  from miniplm_jax.models import huggingface
  from miniplm_jax.score import table

  parts = list(table.parts(found))
  columns = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  total = len(columns["row_id"])
  if total != found.counts["rows"]:
    raise UserError(
      f"the table has {total} rows where its manifest says "
      f"{found.counts['rows']}",
      str(found.path),
      "score again with --stages=score --force",
    )
  whole = f"{source.name}: {len(parts)} parts are whole"
  if source.scores:
    say(STAGE, f"{whole}; made elsewhere, so nothing is scored again")
    return
  rng = np.random.default_rng(config.verify.seed)
  size = min(config.verify.rows, total)
  sample = np.sort(rng.choice(total, size, replace=False, shuffle=False))
  dtype, is_int8 = found.settings["dtype"], found.settings["int8"]
  model = score_stage.load_checked(source, corpus, mesh, dtype)
  weights = huggingface.weights_fingerprint(model)
  if weights != found.weights:
    raise UserError(
      f"{source.name} was scored by weights {found.weights[:12]}, these are "
      f"{weights[:12]}",
      str(found.path),
      "give the model that scored",
    )
  if is_int8:
    from miniplm_jax.models import int8

    model = int8.quantise(model)
  scorer = score_stage.scorer_of(
    config, {source.name: model}, corpus, mesh, dtype
  )
  nll_sum, n_tokens, _ = scorer(columns["row_id"][sample])
  wrong = n_tokens != columns["n_tokens"][sample]
  off = np.abs(nll_sum[source.name] - columns["nll_sum"][sample]) / n_tokens
  wrong |= ~(off <= config.verify.tolerance)  # NaN is wrong
  if wrong.any():
    i = int(np.argmax(np.where(wrong, np.nan_to_num(off, nan=np.inf), -1)))
    row = columns["row_id"][sample[i]]
    raise UserError(
      f"{int(wrong.sum())} of {len(sample)} rows are not what {source.name} "
      f"says: row {row} is off by {off[i]:.2g} nats per token over "
      f"{n_tokens[i]} tokens",
      str(found.directory),
      "score again with --stages=score --force",
    )
  say(
    STAGE,
    f"{whole}; of {total:,} rows "
    f"{len(sample)} scored again, off by at most {off.max():.2g} nats per "
    f"token (tolerance {config.verify.tolerance:g})",
  )
