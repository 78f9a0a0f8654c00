"""The teacher with int8 weights, if it still ranks rows as it did.

Stage score asks for it once, before the first part: a sample of D is scored
with the teacher's own weights, with the rounded ones and with the reference,
and the two rankings are compared.
"""

import json

from miniplm_jax.core import files, hosts
from miniplm_jax.core.log import log
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.models import int8
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.score import check, fidelity, table, uses
from miniplm_jax.score import step as score_stage

REPORT = "int8_fidelity.json"


def _report_of(path, key: str):
  """The report that is there, if it is of the same models and rows."""
  if not path.exists():
    return None
  try:
    found = json.loads(path.read_text())
    return found if found["made_from"] == key else None
  except (ValueError, KeyError, TypeError, RecursionError):
    return None  # damaged: it is made again


def rounded(config, workdir: Workdir, model: Decoder, corpus, mesh, facts):
  """The teacher in int8, its report written beside its scores.

  Args:
    config: the configuration.
    workdir: of the run.
    model: the teacher; it is given up.
    corpus: its rows of D are the sample.
    mesh: of the models.
    facts: what the parts will say they are made by.

  Raises:
    UserError: it ranks too differently.
  """
  c = config.score
  # A selection by rows or tokens has no share of its own.
  alpha = config.select.ratio or 0.5
  teacher, reference, *_ = score_stage.sources(config, workdir)
  path = workdir.scores(teacher.name) / REPORT
  least = c.int8_least_spearman, c.int8_least_agreement, str(path)
  # All that the report depends on.
  key = files.digest(
    [
      facts,
      corpus.manifest.fingerprint,
      uses.fingerprint(reference, None),
      [c.int8_rows, alpha, config.corpus.seed],
    ]
  )
  known = hosts.agree(lambda: _report_of(path, key))
  if known:
    fidelity.check(known, *least)
    return int8.quantize(model)
  rows = corpus.rows_of("train")
  sample = rows[check.sample(len(rows), c.int8_rows, config.corpus.seed)]
  log(score_stage.STAGE, f"int8: {len(sample)} rows with both kinds of weights")
  other = score_stage.load_checked(reference, corpus, mesh, c.dtype)
  models = {"exact": model, "reference": other}
  nll, n_tokens, _ = score_stage.scorer_of(config, models, corpus, mesh)(sample)
  del models, other
  model = int8.quantize(model)
  scorer = score_stage.scorer_of(config, {"int8": model}, corpus, mesh)
  nll |= scorer(sample)[0]
  for name, sums in nll.items():
    columns = {"row_id": sample, "nll_sum": sums, "n_tokens": n_tokens}
    table.check_rows(name, columns)
  exact, found = (
    (nll["reference"] - nll[name]) / n_tokens for name in ("exact", "int8")
  )
  report = fidelity.report(exact, found, alpha=alpha)
  if hosts.is_first():
    files.write_json(path, report | {"made_from": key})
  log(score_stage.STAGE, f"int8: {fidelity.in_words(report)}")
  fidelity.check(report, *least)
  return model
