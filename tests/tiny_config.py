"""A run of seconds, for the tests."""

from miniplm_jax import config as config_lib


def get_config(student: str = "transformer"):
  """Every stage, on whatever corpus is given."""
  config = config_lib.default()
  config.stages = config_lib.STAGES
  c = config.corpus
  c.tokenizer, c.vocab_size, c.max_length = "train", 512, 32
  c.domain_field = "meta.set"
  c.bos_token = ""  # rows as the paper's, whatever the tokenizer
  c.teacher_share, c.reference_share, c.heldout_share = 0.3, 0.2, 0.1
  config.teacher.path = ""
  if student == "mamba":
    config.student.model = config_lib.mamba()
  for model, hidden in (
    (config.teacher.model, 32),
    (config.reference.model, 16),
    (config.student.model, 16),
    (config.proxy.model, 16),
  ):
    model.vocab_size, model.hidden_size = 512, hidden
    model.intermediate_size, model.num_hidden_layers = 2 * hidden, 2
    if model.family == "transformer":
      model.num_attention_heads, model.num_key_value_heads = 2, 1
  for train in (
    config.teacher.train,
    config.reference.train,
    config.proxy.train,
    config.train,
  ):
    train.steps, train.batch_size, train.warmup_steps = 8, 8, 2
    train.learning_rate, train.dtype = 1e-2, "float32"
    train.shuffle = True
  config.score.dtype = "float32"
  config.evaluation.dtype = config.generate.dtype = "float32"
  config.score.rows_per_part, config.score.batch_tokens = 64, 256
  config.score.lengths = (16,)
  config.proxy.sample = 0.5
  config.seqkd.dtype = "float32"
  config.seqkd.batch_size, config.seqkd.rows_per_part = 8, 16
  config.logits.rows_per_part, config.sparse_kd.ids = 16, 8
  config.run.checkpoint_every = config.run.eval_every = 4
  config.run.eval_rows = 16
  config.run.log_every_seconds = 0.0
  return config
