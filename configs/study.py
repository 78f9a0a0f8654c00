r"""The studies of docs/results.md: where does selection win, and where not?

  python -m benchmarks.study planted --corpus=CORPUS --teacher=SMOLLM2

writes the text, runs this config and can be stopped and started again.

study.py:planted  Of D a third is clean, a third easy waste, a third noise;
                  SmolLM2-135M chooses for students of 1.4M parameters.
study.py:dose     A third as many rows, of a D with less waste: those that
                  have a number in dose.parquet.
study.py:balanced That D without waste, each domain in its share: is it domains
                  that cost what selection loses there?
study.py:easy     Students of easy waste alone: what the preference of a teacher
                  comes to if none of the clean text is easy for it.
study.py:mess     Of D, 40M tokens, 60 % are unfiltered files of packages, 40 %
                  the ten domains, on which students of 6 × 384 are judged
                  after 20M tokens. For an H100, H200 or a TPU.
study.py:clean    Half as much of eight domains alone, where selection should
                  not win; held out are these, and apart from them two others.

The last two can be rehearsed: `small`, which a --scale below 0.1 takes, has
students of 4 × 128, in float32, that learn as many tokens 8 rows at a time.
"""

from miniplm_jax import config as config_lib
from miniplm_jax import small_config

WORKDIR = "runs/study/{}"
# What benchmarks/study/planted.py plants; it has none of the held-out loss.
WASTE = (
  *("logs", "headers", "tables", "menus", "near_copies"),
  *("shuffled", "mojibake", "base64", "random"),
)
# What benchmarks/study/mess.py finds.
MESS = (
  *("copyright", "changelogs", "translations", "man"),
  *("html", "scripts", "data", "other"),
)
OUTSIDE = ("dialogue", "wiki")  # of `clean`
DOSES = (0, 33, 67)  # percent of D that are waste
_DRAWN = "drawn_{0}=random() + 0 * field('dose_{0}')"
_MINIPLM = "miniplm_{0}=reference - teacher + 0 * field('dose_{0}')"
# By name what is compared beside rows at random, of a study miniplm first.
COMPARED = {
  "planted": (
    *("miniplm=reference - teacher", "difficulty", "teacher_preference"),
    *("middle=band(reference, 0.333, 0.667)", "oracle=field('clean')+random()"),
  ),
  "easy": ("easy=field('easy') + random()",),
  "balanced": (
    _DRAWN.format(0),
    "balanced_0=z(reference - teacher, by=domain) + 0 * field('dose_0')",
  ),
  "dose": tuple(one.format(d) for d in DOSES for one in (_DRAWN, _MINIPLM)),
  # Selected once for all seeds, under the names of methods' own.
  "mess": ("miniplm=mean_diff", "color_filter", "quality=field('quality')"),
  "clean": ("miniplm=mean_diff",),
}


def get_config(which="planted", small=False):
  """See above."""
  if which not in COMPARED:
    raise ValueError(f"study.py:{which} is none of {[*COMPARED]}")
  config = config_lib.default()
  own = which if which in ("mess", "clean") else "planted"
  config.workdir = WORKDIR.format(own)
  config.corpus.source = f"{config.workdir}/text.jsonl"
  config.corpus.split_field = "split"
  config.corpus.reference_share = config.corpus.heldout_share = 0.0
  config.teacher.path = config.corpus.tokenizer = "HuggingFaceTB/SmolLM2-135M"
  config.corpus.max_length = 128
  config.score.lengths = (64,)
  config.student.tokenizer = f"{config.workdir}/vocabulary/corpus/tokenizer"
  config.student.eos_token = "<|endoftext|>"
  config.evaluate.max_rows = 0
  config.compare.criteria = COMPARED[which]
  config.compare.seeds = (11, 12, 13, 14, 15)
  if own == "planted":
    _planted(config, which)
  else:
    _found(config, which, small)
  config.run.remat, config.run.checkpoint_every = "none", config.train.steps
  config.run.eval_every = config.train.steps // 8
  config.run.log_every_seconds = 30.0
  return config


def _planted(config, which):
  """For two cores; doses take a third of the steps."""
  config.corpus.fields = ("clean",)
  # The student's own shape, with the teacher's ids.
  small_config.shape(config.reference.model, 49_152, 128, 384, 4, 4)
  small_config.schedule(config.reference.train, 600, 2e-3)
  config.score.dtype = config.evaluation.dtype = "float32"
  config.score.rows_per_part, config.score.batch_tokens = 512, 8192

  small_config.shape(config.student.model, 4096, 128, 384, 4, 4)
  # One pass over the clean rows that are kept.
  steps = 160 if which in ("dose", "balanced") else 480
  small_config.schedule(config.train, steps, 2e-3)
  # Each seed draws the D that its students select from.
  config.select.share, config.select.ratio = 0.75, 1 / 3
  config.evaluate.ignore_domains, config.run.eval_rows = WASTE, 100
  if which == "planted":
    config.compare.oracle = "oracle"
    return
  config.compare.name, config.compare.seeds = which, (11, 12, 13)
  if which == "easy":
    config.select.columns = (f"easy={config.workdir}/easy.parquet",)
    return
  if which == "balanced":
    config.compare.baseline = "drawn_0"
  config.student.name = config.select.name = "{method}-dose"
  columns = (f"dose_{d}={config.workdir}/dose.parquet" for d in DOSES)
  config.select.columns = tuple(columns)


def _found(config, which, small):
  """For an accelerator, in bfloat16, 128 rows a step; or small, as above."""
  is_mess, models = which == "mess", (config.reference.model, 49_152)
  sizes = (128, 384, 4, 4) if small else (384, 1024, 6, 6)
  for model, vocabulary in (models, (config.student.model, 8192)):
    small_config.shape(model, vocabulary, *sizes)
  dtype, rows = ("float32", 8) if small else ("bfloat16", 128)
  # One pass at most over D_ref, and over the kept half of D. How long and how
  # fast the reference goes on with the target is a guess: twice over it.
  for train, tokens, rate in (
    (config.reference.train, 8e6 if is_mess else 4e6, 2e-3),
    (config.train, 20e6 if is_mess else 10e6, 2e-3),
    (config.conditional.train, 2e6, 5e-4),
  ):
    small_config.schedule(train, round(tokens / (128 * rows)), rate)
    train.batch_size, train.dtype = rows, dtype
  config.score.dtype = config.evaluation.dtype = dtype
  config.score.rows_per_part = 512 if small else 16_384
  config.score.batch_tokens = 8192 if small else 1 << 17
  config.corpus.part_bytes = 1 << 23  # several cores tokenize
  config.select.ratio, config.run.eval_rows = 0.5, 100 if small else 1000
  config.evaluate.ignore_domains = MESS if is_mess else OUTSIDE
  if is_mess:
    config.corpus.fields = ("quality",)
    config.conditional.source = f"{config.workdir}/target.jsonl"
