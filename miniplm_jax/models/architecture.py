"""The shapes of decoders: frozen dataclasses, no JAX.

One class for every attention family (Qwen, Llama: the fields tell them
apart) and one for Mamba. Field names are those of Hugging Face's
config.json. Presets are the rows of the paper's model table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from miniplm_jax.core.errors import UserError

ROPE_TYPES = ("default", "linear", "llama3")
# Rows of the embedding are a multiple of this, so that every power of two up
# to it may be the `tensor` axis. The paper's vocabularies are multiples of it.
ROW_MULTIPLE = 128
_WHERE = "in the model's configuration"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
  """What all decoders share: an embedding, layers, a norm and a head.

  Attributes:
    vocab_size: ids that the softmax runs over; at least the tokenizer's.
    hidden_size: D.
    num_hidden_layers: L.
    tie_word_embeddings: the head is the embedding.
    rms_norm_eps: epsilon of every RMSNorm.
    initializer_range: standard deviation of the normal initialization.
  """

  vocab_size: int
  hidden_size: int
  num_hidden_layers: int
  tie_word_embeddings: bool = True
  rms_norm_eps: float = 1e-6
  initializer_range: float = 0.02

  family: ClassVar[str]
  # Fields without effect on what given weights compute.
  _IDLE: ClassVar[tuple[str, ...]] = (
    "initializer_range",
    "max_position_embeddings",
  )
  # Numeric fields in which 0 means "derived from the others".
  _DERIVED: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      least = 0 if field.name in self._DERIVED else 1e-30
      if not isinstance(value, bool | str) and not value >= least:
        raise UserError(
          f"{field.name} is {value}", _WHERE, "give a positive number"
        )

  @property
  def fingerprint(self) -> str:
    """sha256 of what decides, beside the weights, what is computed."""
    from miniplm_jax.core import files  # etils: --help need not wait for it

    fields = dataclasses.asdict(self)
    kept = {k: v for k, v in fields.items() if k not in self._IDLE}
    return files.digest([self.family, kept])

  @property
  def table_rows(self) -> int:
    """Rows of the embedding in memory: vocab_size and padding.

    The padding is zero, takes no probability and is not in any file.
    """
    return -(-self.vocab_size // ROW_MULTIPLE) * ROW_MULTIPLE

  def layer_matmul_parameters(self) -> int:
    """Weights of one layer that every token is multiplied with."""
    raise NotImplementedError

  def layer_other_parameters(self) -> int:
    """All other parameters of one layer."""
    raise NotImplementedError

  def mixing_flops(self, length: int) -> int:
    """FLOPs a token and layer by which positions of a row meet."""
    raise NotImplementedError

  def matmul_parameters(self) -> int:
    """Weights that every token is multiplied with, the head included."""
    layers = self.num_hidden_layers * self.layer_matmul_parameters()
    return layers + self.vocab_size * self.hidden_size

  def non_embedding_parameters(self) -> int:
    """Parameters without the embedding and an untied head."""
    layer = self.layer_matmul_parameters() + self.layer_other_parameters()
    return self.num_hidden_layers * layer + self.hidden_size

  def parameters(self) -> int:
    """All parameters; a tied embedding counts once."""
    tables = 1 if self.tie_word_embeddings else 2
    embeddings = tables * self.vocab_size * self.hidden_size
    return self.non_embedding_parameters() + embeddings

  def forward_flops(self, length: int) -> int:
    """FLOPs of one forward pass over one token of a row of `length`.

    2 per matmul weight, and what mixes the positions.
    """
    mixing = self.num_hidden_layers * self.mixing_flops(length)
    return 2 * self.matmul_parameters() + mixing

  def body_flops(self, length: int) -> int:
    """`forward_flops` up to the hidden states, without the head."""
    return self.forward_flops(length) - 2 * self.vocab_size * self.hidden_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer(Architecture):
  """Attention and SwiGLU: Qwen1.5 to Qwen3, Llama, SmolLM2.

  Attributes:
    intermediate_size: F, of the SwiGLU.
    num_attention_heads: N.
    num_key_value_heads: K; N / K queries share a key.
    head_dim: H; 0 is D / N.
    qkv_bias: biases on queries, keys and values (Qwen1.5, Qwen2, Qwen2.5).
    qk_norm: RMSNorm over each head of queries and keys (Qwen3).
    rope_theta: base of the rotary frequencies.
    rope_type: "default", "linear" or "llama3".
    rope_factor: by how much positions are stretched.
    rope_low_freq_factor: llama3: wavelengths above
      rope_original_length / this are stretched whole.
    rope_high_freq_factor: llama3: those below it by this are not.
    rope_original_length: llama3: positions that the model was trained on.
    max_position_embeddings: written to config.json; RoPE needs no table.
  """

  intermediate_size: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int = 0
  qkv_bias: bool = True
  qk_norm: bool = False
  rope_theta: float = 1e6
  rope_type: str = "default"
  rope_factor: float = 1.0
  rope_low_freq_factor: float = 1.0
  rope_high_freq_factor: float = 4.0
  rope_original_length: int = 8192
  max_position_embeddings: int = 32768

  family = "transformer"
  _DERIVED = ("head_dim",)

  def __post_init__(self):
    super().__post_init__()
    if self.rope_type not in ROPE_TYPES:
      raise UserError(
        f"rope_type = {self.rope_type!r} is not implemented",
        _WHERE,
        f"use a model with one of {', '.join(ROPE_TYPES)}",
      )
    even = self.head_dim or self.hidden_size % self.num_attention_heads == 0
    if not even or self.head_size % 2:
      raise UserError(
        f"hidden_size {self.hidden_size} over {self.num_attention_heads} "
        f"heads is not an even head size",
        _WHERE,
        "change num_attention_heads or hidden_size, or give head_dim",
      )
    if self.num_attention_heads % self.num_key_value_heads:
      raise UserError(
        f"{self.num_attention_heads} heads do not share "
        f"{self.num_key_value_heads} keys evenly",
        _WHERE,
        "change num_key_value_heads",
      )
    if not (self.qkv_bias or self.qk_norm):
      self.check_llama()

  def check_llama(self):
    """Raises UserError unless transformers takes its sizes for a Llama's."""
    if self.hidden_size % self.num_attention_heads:
      raise UserError(
        f"hidden_size {self.hidden_size} of a Llama is no multiple of its "
        f"{self.num_attention_heads} heads",
        _WHERE,
        "change num_attention_heads or hidden_size; transformers refuses it",
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

  def layer_matmul_parameters(self) -> int:
    """Projections and SwiGLU."""
    attention = 2 * self.hidden_size * (self.query_size + self.key_size)
    return attention + 3 * self.hidden_size * self.intermediate_size

  def layer_other_parameters(self) -> int:
    """Norms and biases."""
    vectors = 2 * self.hidden_size
    if self.qkv_bias:
      vectors += self.query_size + 2 * self.key_size
    if self.qk_norm:
      vectors += 2 * self.head_size
    return vectors

  def mixing_flops(self, length: int) -> int:
    """Causal attention: 4·N·H over length / 2 positions."""
    return 2 * self.query_size * length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba(Architecture):
  """Mamba-1, selective state spaces (arXiv 2312.00752).

  Attributes:
    intermediate_size: E, channels of the state space.
    state_size: N, states of a channel.
    conv_kernel: positions that the causal convolution sees.
    time_step_rank: R, of the projection to the time step; 0 is ⌈D / 16⌉.
  """

  intermediate_size: int
  state_size: int = 16
  conv_kernel: int = 4
  time_step_rank: int = 0
  rms_norm_eps: float = 1e-5
  initializer_range: float = 0.1

  family = "mamba"
  _DERIVED = ("time_step_rank",)

  def __post_init__(self):
    super().__post_init__()
    if self.intermediate_size % self.hidden_size:
      raise UserError(
        f"intermediate_size {self.intermediate_size} is no multiple of "
        f"hidden_size {self.hidden_size}",
        _WHERE,
        "let it be twice hidden_size; config.json stores the quotient",
      )

  @property
  def rank(self) -> int:
    """R, the rank of the projection to the time step."""
    return self.time_step_rank or -(-self.hidden_size // 16)

  def layer_matmul_parameters(self) -> int:
    """Projections in, to time step and states, and out."""
    d, e = self.hidden_size, self.intermediate_size
    return 3 * d * e + e * (2 * self.rank + 2 * self.state_size)

  def layer_other_parameters(self) -> int:
    """Norm, convolution and its bias, time step's bias, A and D."""
    e = self.intermediate_size
    return self.hidden_size + e * (self.conv_kernel + self.state_size + 3)

  def mixing_flops(self, length: int) -> int:
    """Convolution; per state: discretize (3), update (2), read out (2)."""
    del length  # linear in it, so constant for a token
    e = self.intermediate_size
    return 2 * e * self.conv_kernel + 7 * e * self.state_size


_FAMILIES = {kind.family: kind for kind in (Transformer, Mamba)}


def make(section: Mapping[str, Any]) -> Architecture:
  """The shape that a `model` section of the config describes.

  Raises:
    UserError: a value that no model can have.
  """
  fields = dict(section)
  return _FAMILIES[fields.pop("family")](**fields)


def of(fields: Mapping[str, Any]) -> Architecture:
  """The shape whose `dataclasses.asdict` these are, as manifests have it."""
  for kind in _FAMILIES.values():
    if fields.keys() <= {field.name for field in dataclasses.fields(kind)}:
      return kind(**fields)
  raise UserError(
    f"no model has the fields {', '.join(fields)}",
    "the manifest of a trained model",
    "use the release that wrote it",
  )


def _preset(arch: Architecture) -> dict[str, Any]:
  """Fields of a `model` section."""
  return {"family": arch.family} | dataclasses.asdict(arch)


def _qwen(hidden, ffn, layers, heads, **more) -> dict[str, Any]:
  """A Qwen2-shaped model, unless `more` says otherwise."""
  fields = {
    "vocab_size": 151_936,
    "hidden_size": hidden,
    "intermediate_size": ffn,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": heads,
  }
  return _preset(Transformer(**fields | more))


# Paper, Table 6 and the released configurations. Parameters in the comments:
# all (without embeddings); "inferred" where the paper does not say.
PRESETS = {
  "qwen-45m": _qwen(256, 704, 8, 4),  # reference ablation, inferred
  "qwen-104m": _qwen(512, 1408, 8, 8),  # 103,502,336 (25,711,104)
  "qwen-200m": _qwen(768, 2112, 12, 12),  # 203,437,824 (86,750,976)
  "qwen-300m": _qwen(768, 2112, 18, 12),  # teacher ablation, tied inferred
  "qwen-500m": _qwen(1024, 2816, 24, 16),  # 463,987,712 (308,405,248)
  # 1,160,566,272 (693,818,880)
  "qwen-1.2b": _qwen(1536, 4224, 24, 16, tie_word_embeddings=False),
  # The teachers; their weights come from the hub. 1,836,828,672
  "qwen1.5-1.8b": _qwen(2048, 5504, 24, 16, tie_word_embeddings=False),
  # 3,950,369,280
  "qwen1.5-4b": _qwen(
    2560, 6912, 40, 20, tie_word_embeddings=False, rope_theta=5e6
  ),
  # 211,766,016; rope scaling inferred
  "llama3.1-212m": _qwen(
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
  # 140,458,752; Falcon's vocabulary
  "mamba-130m": _preset(
    Mamba(
      vocab_size=65_024,
      hidden_size=768,
      intermediate_size=1536,
      num_hidden_layers=24,
    )
  ),
}
