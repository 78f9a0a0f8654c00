"""The shape of a decoder: one frozen dataclass, no JAX.

Field names are those of Hugging Face's config.json. Presets are the rows of
the paper's model table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from miniplm_jax.core.errors import UserError

ROPE_TYPES = ("default", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A decoder of the Qwen and Llama families; the fields tell them apart.

  Attributes:
    vocab_size: rows of the embedding; at least the tokenizer's length.
    hidden_size: D.
    intermediate_size: F, of the SwiGLU.
    num_hidden_layers: L.
    num_attention_heads: N.
    num_key_value_heads: K; N / K queries share a key.
    head_dim: H; 0 is D / N.
    tie_word_embeddings: the head is the embedding.
    qkv_bias: biases on queries, keys and values (Qwen1.5, Qwen2, Qwen2.5).
    qk_norm: RMSNorm over each head of queries and keys (Qwen3).
    rope_theta: base of the rotary frequencies.
    rope_type: "default", "linear" or "llama3".
    rope_factor: by how much positions are stretched.
    rope_low_freq_factor: llama3: wavelengths above
      rope_original_length / this are stretched whole.
    rope_high_freq_factor: llama3: those below it by this are not.
    rope_original_length: llama3: positions that the model was trained on.
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
  head_dim: int = 0
  tie_word_embeddings: bool = True
  qkv_bias: bool = True
  qk_norm: bool = False
  rope_theta: float = 1e6
  rope_type: str = "default"
  rope_factor: float = 1.0
  rope_low_freq_factor: float = 1.0
  rope_high_freq_factor: float = 4.0
  rope_original_length: int = 8192
  rms_norm_eps: float = 1e-6
  max_position_embeddings: int = 32768
  initializer_range: float = 0.02

  def __post_init__(self):
    where = "in the model's configuration"
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      least = 0 if field.name == "head_dim" else 1e-30
      if not isinstance(value, bool | str) and value < least:
        raise UserError(
          f"{field.name} is {value}", where, "give a positive number"
        )
    if self.rope_type not in ROPE_TYPES:
      raise UserError(
        f"rope_type = {self.rope_type!r} is not implemented",
        where,
        f"use a model with one of {', '.join(ROPE_TYPES)}",
      )
    even = self.head_dim or self.hidden_size % self.num_attention_heads == 0
    if not even or self.head_size % 2:
      raise UserError(
        f"hidden_size {self.hidden_size} over {self.num_attention_heads} "
        f"heads is not an even head size",
        where,
        "change num_attention_heads or hidden_size, or give head_dim",
      )
    if self.num_attention_heads % self.num_key_value_heads:
      raise UserError(
        f"{self.num_attention_heads} heads do not share "
        f"{self.num_key_value_heads} keys evenly",
        where,
        "change num_key_value_heads",
      )

  @property
  def head_size(self) -> int:
    """H, the size of one head."""
    return self.head_dim or self.hidden_size // self.num_attention_heads

  @property
  def query_size(self) -> int:
    """N·H, the width of the query projection."""
    return self.num_attention_heads * self.head_size

  @property
  def key_size(self) -> int:
    """K·H, the width of the key and of the value projection."""
    return self.num_key_value_heads * self.head_size

  def matmul_parameters(self) -> int:
    """Weights that every token is multiplied with, the head included."""
    d, f = self.hidden_size, self.intermediate_size
    nh, kh = self.query_size, self.key_size
    layer = 2 * d * nh + 2 * d * kh + 3 * d * f
    return self.num_hidden_layers * layer + self.vocab_size * d

  def parameters(self) -> int:
    """All parameters; a tied embedding counts once."""
    d = self.hidden_size
    vectors = 2 * d
    if self.qkv_bias:
      vectors += self.query_size + 2 * self.key_size
    if self.qk_norm:
      vectors += 2 * self.head_size
    untied = 0 if self.tie_word_embeddings else self.vocab_size * d
    vectors = self.num_hidden_layers * vectors + d
    return self.matmul_parameters() + vectors + untied

  def non_embedding_parameters(self) -> int:
    """Parameters without the embedding and an untied head."""
    tables = 1 if self.tie_word_embeddings else 2
    return self.parameters() - tables * self.vocab_size * self.hidden_size

  def forward_flops(self, length: int) -> int:
    """FLOPs of one forward pass over one token of a row of `length`.

    2 per matmul weight, and 4·L·N·H·length/2 for causal attention.
    """
    attention = 2 * self.num_hidden_layers * self.query_size * length
    return 2 * self.matmul_parameters() + attention


def _preset(hidden, ffn, layers, heads, **more) -> dict[str, Any]:
  """Fields of a Qwen2-shaped model, unless `more` says otherwise."""
  fields = {
    "vocab_size": 151_936,
    "hidden_size": hidden,
    "intermediate_size": ffn,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": heads,
  }
  return dataclasses.asdict(Architecture(**fields | more))


# Paper, Table 6 and the released configurations. Parameters in the comments:
# all (without embeddings); "inferred" where the paper does not say.
PRESETS = {
  "qwen-45m": _preset(256, 704, 8, 4),  # reference ablation, inferred
  "qwen-104m": _preset(512, 1408, 8, 8),  # 103,502,336 (25,711,104)
  "qwen-200m": _preset(768, 2112, 12, 12),  # 203,437,824 (86,750,976)
  "qwen-300m": _preset(768, 2112, 18, 12),  # teacher ablation, tied inferred
  "qwen-500m": _preset(1024, 2816, 24, 16),  # 463,987,712 (308,405,248)
  # 1,160,566,272 (693,818,880)
  "qwen-1.2b": _preset(1536, 4224, 24, 16, tie_word_embeddings=False),
  # The teachers; their weights come from the hub. 1,836,828,672
  "qwen1.5-1.8b": _preset(2048, 5504, 24, 16, tie_word_embeddings=False),
  # 3,950,369,280
  "qwen1.5-4b": _preset(
    2560, 6912, 40, 20, tie_word_embeddings=False, rope_theta=5e6
  ),
  # 211,766,016; rope scaling inferred
  "llama3.1-212m": _preset(
    768,
    3072,
    12,
    12,
    vocab_size=128_256,
    qkv_bias=False,
    rope_theta=5e5,
    rope_type="llama3",
    rope_factor=8.0,
    rms_norm_eps=1e-5,
    max_position_embeddings=131_072,
  ),
}

# model_type of config.json: (qkv_bias, qk_norm).
_FAMILIES = {
  "qwen2": (True, False),
  "qwen3": (False, True),
  "llama": (False, False),
}
_CLASSES = {
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "llama": "LlamaForCausalLM",
}

# Keys of config.json whose other values are not implemented. Absent is fine.
_ONLY = {
  "hidden_act": ("silu",),
  "use_sliding_window": (False,),
  "attention_dropout": (0,),
  "mlp_bias": (False,),
  "attention_bias": (False,),
  "pretraining_tp": (1,),
  "partial_rotary_factor": (1,),
}

# Ours: theirs, in rope_parameters or rope_scaling.
_ROPE = {
  "rope_type": "rope_type",
  "rope_factor": "factor",
  "rope_low_freq_factor": "low_freq_factor",
  "rope_high_freq_factor": "high_freq_factor",
  "rope_original_length": "original_max_position_embeddings",
}


def from_hugging_face(config: Mapping[str, Any], where: str) -> Architecture:
  """Reads the config.json of a Qwen2, Qwen3 or Llama; ignores unknown keys.

  Args:
    config: the parsed file.
    where: its path, for messages.

  Raises:
    UserError: another family, a missing key, or a known key with a value
      that is not implemented.
  """
  family = config.get("model_type")
  if family not in _FAMILIES:
    raise UserError(
      f"model_type is {family!r}",
      where,
      "give a Qwen1.5, Qwen2, Qwen2.5, Qwen3 or Llama model (model_type "
      f"{', '.join(_FAMILIES)})",
    )
  for key, allowed in _ONLY.items():
    if config.get(key) not in (None, *allowed):
      raise UserError(
        f"{key} = {config[key]!r} is not implemented",
        where,
        f"use a model in which it is {allowed[0]!r}",
      )
  known = {f.name for f in dataclasses.fields(Architecture)} - _ROPE.keys()
  values = {k: v for k, v in config.items() if k in known and v is not None}
  # transformers 5 writes rope_parameters; before, rope_theta stood alone.
  rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
  if "type" in rope:
    rope = rope | {"rope_type": rope["type"]}
  values |= {k: rope[theirs] for k, theirs in _ROPE.items() if theirs in rope}
  values.setdefault("rope_theta", rope.get("rope_theta", 1e4))
  values.setdefault("tie_word_embeddings", False)
  values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
  values["qkv_bias"], values["qk_norm"] = _FAMILIES[family]
  try:
    arch = Architecture(**values)
  except TypeError as e:
    raise UserError(
      f"a key is missing ({e})", where, "complete the config.json"
    ) from e
  except UserError as e:
    raise UserError(e.what, where, e.todo) from e
  if arch.query_size == arch.hidden_size:  # the default, spelled out
    arch = dataclasses.replace(arch, head_dim=0)
  return arch


def to_hugging_face(arch: Architecture, eos_id: int) -> dict[str, Any]:
  """The config.json of a model with this shape, in float32.

  Raises:
    UserError: no family has this combination of biases and norms.
  """
  kind = arch.qkv_bias, arch.qk_norm
  family = {kind: name for name, kind in _FAMILIES.items()}.get(kind)
  if family is None:
    raise UserError(
      "qkv_bias and qk_norm together are no model of Hugging Face",
      "in the model's configuration",
      "turn one of them off",
    )
  fields = dataclasses.asdict(arch)
  rope = {theirs: fields.pop(ours) for ours, theirs in _ROPE.items()}
  wanted = {"default": 1, "linear": 2, "llama3": 5}[arch.rope_type]
  rope = dict(list(rope.items())[:wanted])
  del fields["qkv_bias"], fields["qk_norm"]
  return fields | {
    "architectures": [_CLASSES[family]],
    "model_type": family,
    "head_dim": arch.head_size,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "bos_token_id": eos_id,
    "eos_token_id": eos_id,
    "pad_token_id": eos_id,
    "use_cache": True,
    "rope_parameters": rope | {"rope_theta": arch.rope_theta},
    # Read by releases before 5, which do not know the above.
    "rope_scaling": None if arch.rope_type == "default" else rope,
    "dtype": "float32",
    "torch_dtype": "float32",
  }
