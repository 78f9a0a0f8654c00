"""The teacher with int8 weights, if it still ranks rows as it did.

Stage score asks for it once, before the first part: a sample of D is scored
with the teacher's own weights, with the rounded ones and with the reference,
and the two rankings are compared.
"""

from jax.sharding import Mesh

from miniplm_jax.config import ScoreConfig
from miniplm_jax.core import distributed, files
from miniplm_jax.core.log import log
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import int8
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.scoring import check, fidelity, table
from miniplm_jax.scoring.scorer import Scorer

_STAGE = "score"
REPORT = "int8_fidelity.json"


def rounded(
  score: ScoreConfig,
  teacher: ModelRef,
  model: Decoder,
  reference: ModelRef,
  corpus: Corpus,
  mesh: Mesh,
  made_by: dict[str, str],
  alpha: float,
) -> Decoder:
  """The teacher in int8, its report written beside its scores.

  Args:
    model: what was loaded of it; it is given up.
    corpus: its rows of D are the sample.
    made_by: what the parts will say they are made by.
    alpha: the share of the rows that a selection keeps.

  Raises:
    UserError: it ranks too differently.
  """
  path, seed = teacher.table / REPORT, corpus.manifest.settings["seed"]
  least = score.int8_least_spearman, score.int8_least_agreement, str(path)
  # All that the report depends on.
  key = files.digest(
    [
      made_by,
      corpus.manifest.fingerprint,
      reference.fingerprint(),
      [score.int8_rows, alpha, seed],
    ]
  )
  known = distributed.agree(lambda: files.read_json(path))
  if known.get("made_from") == key:
    fidelity.check(known, *least)
    return int8.quantize(model)
  rows = corpus.rows_of("train")
  sample = rows[check.sample(len(rows), score.int8_rows, seed)]
  log(_STAGE, f"int8: {len(sample)} rows with both kinds of weights")
  other = reference.load(corpus, mesh, score.dtype)
  models = {"exact": model, "reference": other}
  scorer = Scorer(score, models, corpus, mesh)
  nll, n_tokens, _ = scorer(sample)
  del models, other, scorer
  model = int8.quantize(model)
  nll |= Scorer(score, {"int8": model}, corpus, mesh)(sample)[0]
  for name, sums in nll.items():
    columns = {"row_id": sample, "nll_sum": sums, "n_tokens": n_tokens}
    table.check_rows(name, columns)
  exact, in_int8 = (
    (nll["reference"] - nll[name]) / n_tokens for name in ("exact", "int8")
  )
  report = fidelity.report(exact, in_int8, alpha=alpha)
  if distributed.is_first():
    files.write_json(path, report | {"made_from": key})
  log(_STAGE, f"int8: {fidelity.in_words(report)}")
  fidelity.check(report, *least)
  return model
