r"""The method with a real, small teacher: what notebooks/ runs.

  python -m miniplm_jax.main --config=configs/colab.py \
    --config.corpus.source=corpus.jsonl

Teacher: SmolLM2-135M from the hub. Its vocabulary of 49,152 ids is most of
what the reference (3.3M parameters) and the students (7.1M) consist of.
"""

from miniplm_jax import config as config_lib
from miniplm_jax import small_config

TEACHER = "HuggingFaceTB/SmolLM2-135M"


def _schedule(train, learning_rate):
  train.steps, train.warmup_steps = 120, 10
  train.batch_size, train.learning_rate = 8, learning_rate
  train.shuffle, train.dtype = True, "float32"


def get_config():
  """Two students of equal steps: on chosen rows, and on random ones."""
  config = config_lib.default()
  config.workdir = "runs/colab"
  config.baselines = ("pretrain",)
  c = config.corpus
  c.tokenizer, c.max_length = TEACHER, 128
  c.reference_share, c.heldout_share = 0.2, 0.1
  config.teacher.path = TEACHER
  small_config.shape(config.reference.model, 49_152, 64, 192, 2, 2)
  small_config.shape(config.student.model, 49_152, 128, 384, 4, 4)
  _schedule(config.reference.train, 3e-3)
  _schedule(config.train, 2e-3)
  config.score.dtype = "float32"
  config.evaluation.dtype = config.generate.dtype = "float32"
  config.score.rows_per_part = 256
  config.score.batch_tokens, config.score.lengths = 4096, (64,)
  # Planted by corpus/embedded.py.
  config.evaluate.ignore_domains = ("easy", "noise")
  config.generate.max_new_tokens = 48
  config.run.checkpoint_every = config.run.eval_every = 20
  config.run.eval_rows = 100
  config.run.log_every_seconds = 15.0
  return config
