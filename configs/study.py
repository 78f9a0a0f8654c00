r"""The studies of docs/results.md: where does selection win, and where not?

  python -m benchmarks.study planted --corpus=CORPUS --teacher=SMOLLM2

writes the text, runs this config and can be stopped and started again.

study.py:planted  Of D a third is clean, a third easy waste, a third noise;
                  SmolLM2-135M chooses for students of 1.4M parameters.
study.py:rates    Its learning rate, by a seed that no table has.
study.py:dose     A third as many rows, of a D with less waste: those that
                  have a number in dose.parquet.
study.py:balanced That D without waste, each domain in its share: is it domains
                  that cost what selection loses there?
study.py:easy     Students of easy waste alone: what the preference of a teacher
                  comes to if none of the clean text is easy for it.
"""

from miniplm_jax import config as config_lib
from miniplm_jax import small_config

WORKDIR = "runs/study/planted"
# What benchmarks/study/planted.py plants; it has none of the held-out loss.
WASTE = (
  *("logs", "headers", "tables", "menus", "near_copies"),
  *("shuffled", "mojibake", "base64", "random"),
)
DOSES = (0, 33, 67)  # percent of D that are waste
_DRAWN = "drawn_{0}=random() + 0 * field('dose_{0}')"
_MINIPLM = "miniplm_{0}=reference - teacher + 0 * field('dose_{0}')"
# By name what is compared, beside rows at random.
COMPARED = {
  "planted": (
    *("miniplm=reference - teacher", "difficulty", "teacher_preference"),
    *("middle=band(reference, 0.333, 0.667)", "oracle=field('clean')+random()"),
  ),
  "rates": ("miniplm=reference - teacher",),
  "easy": ("easy=field('easy') + random()",),
  "balanced": (
    _DRAWN.format(0),
    "balanced_0=z(reference - teacher, by=domain) + 0 * field('dose_0')",
  ),
  "dose": tuple(one.format(d) for d in DOSES for one in (_DRAWN, _MINIPLM)),
}


def get_config(which="planted"):
  """See above."""
  if which not in COMPARED:
    raise ValueError(f"study.py:{which} is none of {[*COMPARED]}")
  config = config_lib.default()
  config.workdir = WORKDIR
  config.corpus.source = f"{WORKDIR}/text.jsonl"
  config.corpus.split_field, config.corpus.fields = "split", ("clean",)
  config.corpus.reference_share = config.corpus.heldout_share = 0.0
  config.teacher.path = config.corpus.tokenizer = "HuggingFaceTB/SmolLM2-135M"
  config.corpus.max_length = 128
  # The student's own shape, with the teacher's ids.
  small_config.shape(config.reference.model, 49_152, 128, 384, 4, 4)
  small_config.schedule(config.reference.train, 600, 2e-3)
  config.score.dtype = config.evaluation.dtype = "float32"
  config.score.rows_per_part = 512
  config.score.batch_tokens, config.score.lengths = 8192, (64,)

  small_config.shape(config.student.model, 4096, 128, 384, 4, 4)
  # One pass over the clean rows that are kept.
  small_config.schedule(config.train, 480, 2e-3)
  config.student.tokenizer = f"{WORKDIR}/vocabulary/corpus/tokenizer"
  config.student.eos_token = "<|endoftext|>"
  # Each seed draws the D that its students select from.
  config.select.share, config.select.ratio = 0.75, 1 / 3
  config.evaluate.ignore_domains, config.evaluate.max_rows = WASTE, 0

  compare, config.compare.criteria = config.compare, COMPARED[which]
  compare.seeds = (11, 12, 13, 14, 15)
  if which == "planted":
    compare.oracle = "oracle"
  elif which == "rates":
    compare.seeds = (10,)
  elif which == "easy":
    compare.name, compare.seeds = "easy", (11, 12, 13)
    config.select.columns = (f"easy={WORKDIR}/easy.parquet",)
  else:
    compare.name, compare.seeds = which, (11, 12, 13)
    if which == "balanced":
      compare.baseline = "drawn_0"
    config.student.name = config.select.name = "{method}-dose"
    columns = (f"dose_{d}={WORKDIR}/dose.parquet" for d in DOSES)
    config.select.columns = tuple(columns)
    small_config.schedule(config.train, 160, 2e-3)
  config.run.remat, config.run.checkpoint_every = "none", config.train.steps
  config.run.eval_every, config.run.eval_rows = config.train.steps // 8, 100
  config.run.log_every_seconds = 30.0
  return config
