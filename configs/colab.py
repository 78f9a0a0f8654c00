"""MiniPLM in minutes: a small real teacher, on whatever device there is.

  python -m miniplm_jax.main --config=configs/colab.py \
    --config.corpus.source=text.jsonl --config.workdir=runs/colab

For notebooks/miniplm_tpu_demo.ipynb. Teacher: SmolLM2-135M from the Hugging
Face hub, with its tokenizer. Reference and students are trained from scratch.
"""

from miniplm_jax import config as config_lib

TEACHER = "HuggingFaceTB/SmolLM2-135M"
_LENGTH = 128


def _shape(model, hidden, ffn, layers, heads):
  model.vocab_size = 49_152
  model.hidden_size, model.intermediate_size = hidden, ffn
  model.num_hidden_layers = layers
  model.num_attention_heads = model.num_key_value_heads = heads
  model.rope_theta, model.max_position_embeddings = 1e4, _LENGTH
  model.tie_word_embeddings = True


def _schedule(train, steps, learning_rate):
  train.steps, train.learning_rate = steps, learning_rate
  train.batch_size, train.warmup_steps = 16, 10
  train.shuffle = True


def get_config():
  """Shapes for a minute of training on one chip, or several on two cores."""
  config = config_lib.default()
  config.workdir = "runs/colab"
  config.stages = config_lib.STAGES
  config.baselines = ("pretrain",)

  c = config.corpus
  c.source, c.domain_field = "text.jsonl", "domain"
  c.tokenizer, c.max_length = TEACHER, _LENGTH
  c.reference_share, c.heldout_share = 0.15, 0.05

  config.teacher.path = TEACHER
  _shape(config.reference.model, 32, 96, 2, 2)
  _shape(config.student.model, 128, 352, 4, 4)
  _schedule(config.reference.train, 100, 3e-3)
  _schedule(config.train, 100, 3e-3)

  config.score.rows_per_part = 1024
  config.score.batch_tokens = 8192
  config.evaluate.ignore_domains = ("noise",)

  config.run.checkpoint_every = config.run.eval_every = 20
  config.run.eval_rows = 100
  config.run.log_every_seconds = 20.0
  return config
