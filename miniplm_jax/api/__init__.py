"""The library: what the command line does, as functions of values.

`import miniplm_jax as mp` has all of it; see docs/api.md. Each function makes
the same artifacts as its stage, with the same fingerprints: what is there and
was made alike is opened, what was stopped is gone on with, what was made
otherwise is refused. Lines go to the logger "miniplm_jax", progress to tqdm,
errors are `UserError`s.
"""

from miniplm_jax.api.artifacts import Corpus, Rows, ScoreTable, Selection
from miniplm_jax.api.compare import Comparison, compare
from miniplm_jax.api.models import (
  Model,
  divergence,
  generate,
  load_model,
  ngram,
  nll,
  score_documents,
)
from miniplm_jax.api.scores import Scores, select
from miniplm_jax.api.steps import (
  evaluate,
  export,
  presets,
  publish,
  run,
  score,
  take,
  tokenize,
  train,
)
from miniplm_jax.api.students import (
  DocumentScores,
  Evaluation,
  Run,
  Student,
  open_artifact,
)
from miniplm_jax.config import RunConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import show as show_log
