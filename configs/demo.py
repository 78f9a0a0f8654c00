"""The whole of MiniPLM on the text that every installation carries.

  python -m miniplm_jax.main --config=configs/demo.py      (or: make demo)
  python -m miniplm_jax.main --config=configs/demo.py:all  every method

Corpus: the standard library's source, its documentation and the READMEs of the
installed packages, which are a third of D; a third is planted text that is
easier (`easy`: templates, tables, near copies), a third none (`noise`: shuffled
words). Held out are whole clean documents. Teacher, reference and students are
trained from scratch: one for each method, and for each criterion that is
compared three.
"""

from miniplm_jax import config as config_lib
from miniplm_jax import small_config
from miniplm_jax.methods import METHODS


def get_config(which=""):
  """See above; "all" adds a student of every other method."""
  config = config_lib.default()
  config.workdir = "runs/demo"
  config.stages = config_lib.STAGES
  config.baselines = ("pretrain",)
  if which == "all":
    config.baselines = tuple(m for m in METHODS if m != config.method)
  elif which:
    raise ValueError(f"demo.py:{which} is neither demo.py nor demo.py:all")

  c = config.corpus
  c.source, c.tokenizer, c.vocab_size = "embedded", "train", 4096
  c.max_length = 128
  # Documents say whose they are; no weights that score may have seen D.
  c.split_field, c.fields = "split", ("clean",)
  # Of other sources, whose documents do not say it.
  c.teacher_share, c.reference_share, c.heldout_share = 0.45, 0.1, 0.04
  config.select.ratio = 0.31  # as much as is clean

  small_config.shape(config.teacher.model, 4096, 160, 448, 4, 4)
  small_config.shape(config.reference.model, 4096, 32, 96, 2, 2)
  small_config.shape(config.student.model, 4096, 96, 256, 3, 3)
  config.teacher.path = ""
  # For --config.baselines=pretrain,proxy. From new weights it ranks
  # worse: Spearman 0.60 where the reference's give 0.72.
  small_config.shape(config.proxy.model, 4096, 32, 96, 2, 2)
  small_config.schedule(config.proxy.train, 400, 3e-3)
  config.proxy.sample, config.proxy.from_reference = 0.25, True
  small_config.schedule(config.teacher.train, 1200, 2e-3)
  small_config.schedule(config.reference.train, 600, 3e-3)
  small_config.schedule(config.train, 250, 2e-3)

  config.score.dtype = "float32"
  config.evaluation.dtype = config.generate.dtype = "float32"
  config.score.rows_per_part = 2048
  config.score.batch_tokens, config.score.lengths = 8192, (64,)
  config.evaluate.ignore_domains = ("easy", "noise")
  # The oracle, which reads the labels, shows how much there is to gain.
  config.compare.criteria = (
    "miniplm=mean_diff",
    "difficulty",
    "oracle=field('clean') + random()",
  )
  config.compare.oracle = "oracle"

  config.run.remat = "full"
  config.run.checkpoint_every, config.run.eval_every = 100, 50
  config.run.eval_rows = 100
  config.run.log_every_seconds = 10.0
  return config
