"""The shape of a decoder: one frozen dataclass, no JAX.

Field names are those of Hugging Face's config.json. Presets are the rows of
the paper's model table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from miniplm_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A Qwen2-shaped decoder.

  Attributes:
    vocab_size: rows of the embedding; at least the tokenizer's length.
    hidden_size: D.
    intermediate_size: F, of the SwiGLU.
    num_hidden_layers: L.
    num_attention_heads: N.
    num_key_value_heads: K; N / K queries share a key.
    tie_word_embeddings: the head is the embedding.
    rope_theta: base of the rotary frequencies.
    rms_norm_eps: epsilon of every RMSNorm.
    max_position_embeddings: written to config.json; RoPE needs no table.
    initializer_range: standard deviation of the normal initialisation.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  tie_word_embeddings: bool = True
  rope_theta: float = 1e6
  rms_norm_eps: float = 1e-6
  max_position_embeddings: int = 32768
  initializer_range: float = 0.02

  def __post_init__(self):
    where = "in the model's configuration"
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not isinstance(value, bool) and value <= 0:
        raise UserError(
          f"{field.name} is {value}", where, "give a positive number"
        )
    if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
      raise UserError(
        f"hidden_size {self.hidden_size} over {self.num_attention_heads} "
        f"heads is not an even head size",
        where,
        "change num_attention_heads or hidden_size",
      )
    if self.num_attention_heads % self.num_key_value_heads:
      raise UserError(
        f"{self.num_attention_heads} heads do not share "
        f"{self.num_key_value_heads} keys evenly",
        where,
        "change num_key_value_heads",
      )

  @property
  def head_dim(self) -> int:
    """H, the size of one head."""
    return self.hidden_size // self.num_attention_heads

  @property
  def key_size(self) -> int:
    """K·H, the width of the key and of the value projection."""
    return self.num_key_value_heads * self.head_dim

  def matmul_parameters(self) -> int:
    """Weights that every token is multiplied with, the head included."""
    d, f, kh = self.hidden_size, self.intermediate_size, self.key_size
    layer = 2 * d * d + 2 * d * kh + 3 * d * f
    return self.num_hidden_layers * layer + self.vocab_size * d

  def parameters(self) -> int:
    """All parameters; a tied embedding counts once."""
    d, kh = self.hidden_size, self.key_size
    vectors = self.num_hidden_layers * (2 * d + d + 2 * kh) + d
    untied = 0 if self.tie_word_embeddings else self.vocab_size * d
    return self.matmul_parameters() + vectors + untied

  def non_embedding_parameters(self) -> int:
    """Parameters without the embedding and an untied head."""
    tables = 1 if self.tie_word_embeddings else 2
    return self.parameters() - tables * self.vocab_size * self.hidden_size

  def forward_flops(self, length: int) -> int:
    """FLOPs of one forward pass over one token of a row of `length`.

    2 per matmul weight, and 4·L·D·length/2 for causal attention.
    """
    attention = 2 * self.num_hidden_layers * self.hidden_size * length
    return 2 * self.matmul_parameters() + attention


def _qwen(hidden, ffn, layers, heads, tied=True) -> dict[str, Any]:
  return dataclasses.asdict(
    Architecture(
      vocab_size=151_936,
      hidden_size=hidden,
      intermediate_size=ffn,
      num_hidden_layers=layers,
      num_attention_heads=heads,
      num_key_value_heads=heads,
      tie_word_embeddings=tied,
    )
  )


# Paper, Table 6 and the released configurations: parameter counts in the
# comments are (all, without embeddings).
PRESETS = {
  "qwen-104m": _qwen(512, 1408, 8, 8),  # 103,502,336 (25,711,104)
  "qwen-200m": _qwen(768, 2112, 12, 12),  # 203,437,824 (86,750,976)
  "qwen-500m": _qwen(1024, 2816, 24, 16),  # 463,987,712 (308,405,248)
  # 1,160,566,272 (693,818,880)
  "qwen-1.2b": _qwen(1536, 4224, 24, 16, tied=False),
  # 1,836,828,672, for planning; its weights come from the hub
  "qwen1.5-1.8b": _qwen(2048, 5504, 24, 16, tied=False),
}

# Keys of config.json whose other values are not implemented. Absent is fine.
_ONLY = {
  "hidden_act": ("silu",),
  "use_sliding_window": (False, None),
  "rope_scaling": (None,),
  "attention_dropout": (0, 0.0, None),
  "mlp_bias": (False, None),
  "attention_bias": (True, None),
}


def from_hugging_face(config: Mapping[str, Any], where: str) -> Architecture:
  """Reads a `Qwen2ForCausalLM` config.json; unknown keys are ignored.

  Args:
    config: the parsed file.
    where: its path, for messages.

  Raises:
    UserError: another architecture, a missing key, or a known key with a
      value that is not implemented.
  """
  if config.get("model_type") != "qwen2":
    raise UserError(
      f"model_type is {config.get('model_type')!r}",
      where,
      "give a Qwen1.5, Qwen2 or Qwen2.5 model (model_type 'qwen2')",
    )
  for key, allowed in _ONLY.items():
    if config.get(key) not in (None, *allowed):
      raise UserError(
        f"{key} = {config[key]!r} is not implemented",
        where,
        f"use a model in which it is {allowed[0]!r}",
      )
  # transformers 5 writes rope_parameters, earlier releases rope_theta.
  rope = config.get("rope_parameters") or {}
  if rope.get("rope_type", "default") != "default":
    raise UserError(
      f"rope_type = {rope['rope_type']!r} is not implemented",
      where,
      "use a model with plain rotary embeddings",
    )
  known = {f.name for f in dataclasses.fields(Architecture)}
  values = {k: v for k, v in config.items() if k in known}
  values.setdefault("rope_theta", rope.get("rope_theta", 1e4))
  values.setdefault("tie_word_embeddings", False)
  heads = values.get("num_attention_heads")
  values.setdefault("num_key_value_heads", heads)
  try:
    return Architecture(**values)
  except TypeError as e:
    raise UserError(
      f"a key is missing ({e})", where, "complete the config.json"
    ) from e


def to_hugging_face(arch: Architecture, eos_id: int) -> dict[str, Any]:
  """The config.json of a `Qwen2ForCausalLM` with this shape, in float32."""
  return dataclasses.asdict(arch) | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "bos_token_id": eos_id,
    "eos_token_id": eos_id,
    "pad_token_id": eos_id,
    "use_cache": True,
    "dtype": "float32",
    # Read by releases before 5, which do not know "dtype".
    "torch_dtype": "float32",
  }
