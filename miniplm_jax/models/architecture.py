"""The shapes of decoders: sections of the config, no JAX.

One class for every attention family (Qwen, Llama: the fields tell them
apart) and one for Mamba. Field names are those of Hugging Face's
config.json. Shapes by name are the rows of the paper's model table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import Section, number, switch, word

ROPE_TYPES = ("default", "linear", "llama3")
# Rows of the embedding are a multiple of this, so that every power of two up
# to it may be the `tensor` axis. The paper's vocabularies are multiples of it.
ROW_MULTIPLE = 128
_WHERE = "in the model's configuration"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(Section):
  """What all decoders share: an embedding, layers, a norm and a head."""

  # ids that the softmax runs over; at least the tokenizer's number of ids
  vocab_size: int = number(151_936, "[1, inf)")
  hidden_size: int = number(768, "[1, inf)")  # D
  num_hidden_layers: int = number(12, "[1, 10000]")  # L
  tie_word_embeddings: bool = switch(True)  # the head is the embedding
  rms_norm_eps: float = number(1e-6, "[1e-15, 1)")  # of every RMSNorm
  # standard deviation of the normal initialization
  initializer_range: float = number(0.02, "(0, 10]")

  family: ClassVar[str]
  # Fields without effect on what given weights compute.
  _IDLE: ClassVar[tuple[str, ...]] = (
    "initializer_range",
    "max_position_embeddings",
  )

  @property
  def facts(self) -> dict[str, Any]:
    """What decides, beside the weights, what a model of a family computes."""
    fields = dataclasses.asdict(self)
    return {k: v for k, v in fields.items() if k not in self._IDLE}

  @property
  def fingerprint(self) -> str:
    """sha256 of the family and the facts."""
    from miniplm_jax.core import files  # etils: --help need not wait for it

    return files.digest([self.family, self.facts])

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
  """Attention and SwiGLU: Qwen1.5 to Qwen3, Llama, SmolLM2."""

  intermediate_size: int = number(2112, "[1, inf)")  # F, of the SwiGLU
  num_attention_heads: int = number(12, "[1, inf)")  # N
  # K; fewer than N: N / K queries share a key
  num_key_value_heads: int = number(12, "[1, inf)")
  head_dim: int = number(0, "[0, inf)")  # H; 0 is D / N
  # Biases on queries, keys and values: Qwen1.5 to Qwen2.5; not Qwen3, Llama.
  qkv_bias: bool = switch(True)
  # RMSNorm over each head of queries and keys: Qwen3.
  qk_norm: bool = switch(False)
  rope_theta: float = number(1e6, "(1, 1e15]")  # of the rotary frequencies
  rope_type: str = word("default", ROPE_TYPES)
  # By how much positions are stretched, of linear and llama3.
  rope_factor: float = number(1.0, "[1, 1e6]")
  # llama3: wavelengths above rope_original_length / this are stretched whole,
  rope_low_freq_factor: float = number(1.0, "(0, 1e6]")
  # those below it by this are not.
  rope_high_freq_factor: float = number(4.0, "(0, 1e6]")
  # llama3: positions that the model was trained on.
  rope_original_length: int = number(8192, "[1, inf)")
  # What config.json will say; RoPE needs no table.
  max_position_embeddings: int = number(32_768, "[1, inf)")

  family = "transformer"

  def __post_init__(self):
    super().__post_init__()
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
  """Mamba-1, selective state spaces (arXiv 2312.00752)."""

  vocab_size: int = number(65_024, "[1, inf)")
  num_hidden_layers: int = number(24, "[1, 10000]")
  # E, channels of the state space; a multiple of hidden_size
  intermediate_size: int = number(1536, "[1, inf)")
  state_size: int = number(16, "[1, inf)")  # N, states of a channel
  # positions that the causal convolution sees
  conv_kernel: int = number(4, "[1, 1024]")
  # R, of the projection to the time step; 0 is ⌈D / 16⌉
  time_step_rank: int = number(0, "[0, inf)")
  rms_norm_eps: float = number(1e-5, "[1e-15, 1)")
  initializer_range: float = number(0.1, "(0, 10]")

  family = "mamba"

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


FAMILIES = {kind.family: kind for kind in (Transformer, Mamba)}
# Manifests do not name these, whose fields tell them apart: workdirs that were
# made with no others are known again. Every other family is named.
_UNNAMED = (Transformer, Mamba)


def section_of(arch: Architecture) -> dict[str, Any]:
  """The fields of a `model` section of a ConfigDict."""
  return {"family": arch.family} | dataclasses.asdict(arch)


def settings_of(arch: Architecture) -> dict[str, Any]:
  """The fields as manifests have them, see `of`."""
  fields = section_of(arch)
  if type(arch) in _UNNAMED:
    del fields["family"]
  return fields


def of(fields: Mapping[str, Any]) -> Architecture:
  """The shape whose `settings_of` these are.

  Raises:
    UserError: no family has them, or several have, and they name none.
  """
  values = dict(fields)
  named = FAMILIES.get(values.pop("family", None))
  kinds = [
    kind
    for kind in ([named] if "family" in fields else _UNNAMED)
    if kind and values.keys() <= {f.name for f in dataclasses.fields(kind)}
  ]
  if len(kinds) != 1:
    raise UserError(
      f"{len(kinds) or 'no'} families have the fields {', '.join(fields)}",
      "the manifest of a trained model",
      "use the release that wrote it",
    )
  return kinds[0](**values)


def _qwen(hidden, ffn, layers, heads, **more) -> Transformer:
  """A Qwen2-shaped model, unless `more` says otherwise."""
  fields = {
    "hidden_size": hidden,
    "intermediate_size": ffn,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": heads,
  }
  return Transformer(**fields | more)


# Paper, Table 6 and the released configurations. Parameters in the comments:
# all (without embeddings); "inferred" where the paper does not say.
SHAPES: dict[str, Architecture] = {
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
  "mamba-130m": Mamba(),
}
# The same for a ConfigDict: config.student.model.update(PRESETS["qwen-500m"]).
PRESETS = {name: section_of(arch) for name, arch in SHAPES.items()}
