"""What the configs of tiny models share; no JAX."""

from ml_collections import ConfigDict


def shape(
  model: ConfigDict,
  vocabulary: int,
  hidden: int,
  ffn: int,
  layers: int,
  heads: int,
):
  """Makes a transformer a tiny one of rows of 128 tokens, as demo.py has it."""
  model.vocab_size = vocabulary
  model.hidden_size, model.intermediate_size = hidden, ffn
  model.num_hidden_layers = layers
  model.num_attention_heads = model.num_key_value_heads = heads
  model.rope_theta, model.max_position_embeddings = 1e4, 128


def schedule(train: ConfigDict, steps: int, learning_rate: float):
  """Many small steps in float32: a tenth of them warm-up, 8 rows each.

  Of other steps the warm-up is a tenth, too, unless it is given itself.
  """
  train.steps, train.learning_rate = steps, learning_rate
  train.batch_size, train.warmup_steps = 8, train.get_ref("steps") // 10
  train.shuffle, train.dtype = True, "float32"
