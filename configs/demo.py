"""The whole of MiniPLM on the text that every installation carries.

  python -m miniplm_jax.main --config=configs/demo.py      (or: make demo)
  python -m miniplm_jax.main --config=configs/demo.py:all  every method

Corpus: the standard library's source, its documentation, the READMEs and
licenses of the installed packages, and a planted `noise` domain of shuffled
words. Teacher, reference and two students are trained from scratch.
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
  # The teacher needs text of its own: its weights must not have seen D.
  c.teacher_share, c.reference_share, c.heldout_share = 0.45, 0.1, 0.04

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
  small_config.schedule(config.train, 800, 2e-3)

  config.score.dtype = "float32"
  config.evaluation.dtype = config.generate.dtype = "float32"
  config.score.rows_per_part = 2048
  config.score.batch_tokens, config.score.lengths = 8192, (64,)
  config.evaluate.ignore_domains = ("noise",)

  config.run.remat = "full"
  config.run.checkpoint_every = config.run.eval_every = 100
  config.run.eval_rows = 200
  config.run.log_every_seconds = 10.0
  return config
