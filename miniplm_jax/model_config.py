"""The shape of a model, by family: a section of the config.

Names are those of Hugging Face's config.json.
"""

from ml_collections import ConfigDict

from miniplm_jax.core import fields
from miniplm_jax.core.fields import Section, number, switch, word

TRANSFORMER: Section = {
  "family": word("transformer", ("transformer", "mamba")),
  # at least the tokenizer's number of ids
  "vocab_size": number(151_936, "[1, inf)"),
  "hidden_size": number(768, "[1, inf)"),
  "intermediate_size": number(2112, "[1, inf)"),  # of the SwiGLU
  "num_hidden_layers": number(12, "[1, 10000]"),
  "num_attention_heads": number(12, "[1, inf)"),
  # fewer: grouped-query attention
  "num_key_value_heads": number(12, "[1, inf)"),
  # 0 is hidden_size / num_attention_heads
  "head_dim": number(0, "[0, inf)"),
  "tie_word_embeddings": switch(True),  # the head is the embedding
  "qkv_bias": switch(True),  # Qwen1.5 to Qwen2.5; not Qwen3, not Llama
  "qk_norm": switch(False),  # Qwen3
  "rope_theta": number(1e6, "(1, 1e15]"),
  "rope_type": word("default", ("default", "linear", "llama3")),
  # of linear and llama3, like what follows
  "rope_factor": number(1.0, "[1, 1e6]"),
  "rope_low_freq_factor": number(1.0, "(0, 1e6]"),
  "rope_high_freq_factor": number(4.0, "(0, 1e6]"),
  "rope_original_length": number(8192, "[1, inf)"),
  "rms_norm_eps": number(1e-6, "[1e-15, 1)"),
  # what config.json will say
  "max_position_embeddings": number(32_768, "[1, inf)"),
  "initializer_range": number(0.02, "(0, 10]"),
}
MAMBA: Section = {
  "family": word("mamba", ("transformer", "mamba")),
  # at least the tokenizer's number of ids
  "vocab_size": number(65_024, "[1, inf)"),
  "hidden_size": number(768, "[1, inf)"),
  "intermediate_size": number(1536, "[1, inf)"),  # a multiple of hidden_size
  "num_hidden_layers": number(24, "[1, 10000]"),
  "state_size": number(16, "[1, inf)"),  # states of a channel
  # positions that the convolution sees
  "conv_kernel": number(4, "[1, 1024]"),
  # 0 is hidden_size / 16, rounded up
  "time_step_rank": number(0, "[0, inf)"),
  "tie_word_embeddings": switch(True),  # the head is the embedding
  "rms_norm_eps": number(1e-5, "[1e-15, 1)"),
  "initializer_range": number(0.1, "(0, 10]"),
}
MODELS = {"transformer": TRANSFORMER, "mamba": MAMBA}


def transformer() -> ConfigDict:
  """Shape of a Qwen or Llama; names as in Hugging Face's config.json."""
  return ConfigDict(fields.defaults(TRANSFORMER))


def mamba() -> ConfigDict:
  """Shape of a Mamba-1. Use: config.student.model = config_lib.mamba()."""
  return ConfigDict(fields.defaults(MAMBA))


# About 45M parameters, the size of the paper's proxy.
SMALL = fields.changed(
  TRANSFORMER,
  hidden_size=256,
  intermediate_size=704,
  num_hidden_layers=8,
  num_attention_heads=4,
  num_key_value_heads=4,
)
