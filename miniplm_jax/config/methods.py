"""What methods beyond a choice of rows can be told."""

import dataclasses

from miniplm_jax.config.sections import definition_rule
from miniplm_jax.config.training import DTYPES, TrainConfig
from miniplm_jax.core import fields as f
from miniplm_jax.core.fields import Section
from miniplm_jax.models.architecture import Architecture, Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyConfig(Section):
  """Method proxy, Appendix E: a small model learns the score on a sample.

  It predicts the score for all of D. The paper does not give the recipe.
  """

  name: str = f.name("proxy")  # scores/<name>
  # Share of D to learn from; it is tested on all other rows that were
  # scored. Keep it small: both models score these rows.
  sample: float = f.number(0.01, "(0, 1)")
  # Begin with the reference's weights; the shapes must be equal.
  from_reference: bool = f.switch(False)
  # about 45M parameters, the size of the paper's
  model: Architecture = f.section(
    Transformer,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=4,
  )
  train: TrainConfig = f.section(
    TrainConfig, steps=2000, warmup_steps=200, shuffle=True
  )

  def _rules(self):
    tied, hint = self.model.tie_word_embeddings, "say True: it has no such head"
    yield "model.tie_word_embeddings", tied, hint
    yield "train.z_loss", not self.train.z_loss, "give 0: it has no logits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagedConfig(Section):
  """Method staged: rows are selected again while the student is trained.

  The first stage has rows by select.definition.
  """

  # What the later ones have rows by: a formula, in which `student` is the
  # student as it is then.
  definition: str = f.text("student - teacher")
  # Steps after which the rest of D is selected from; () makes `stages` of one
  # length.
  at: tuple[int, ...] = f.several(f.number(1, "[1, inf)"))
  stages: int = f.number(3, "[1, 1000]")  # each scores the rest of D

  def _rules(self):
    good = list(self.at) == sorted(set(self.at))
    yield "at", good, "give ascending steps"
    yield definition_rule(self.definition)

  def ends(self, steps: int) -> tuple[int, ...]:
    """The step that each stage ends with, of so many in all."""
    equal = (steps * i // self.stages for i in range(1, self.stages))
    return (*(self.at or equal), steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqKDConfig(Section):
  """Method seqkd: the teacher goes on after the first tokens of a row.

  The paper has 768 of 1024, and does not say how it samples.
  """

  # of max_length; the teacher fills up the row
  prompt_share: float = f.number(0.75, "(0, 1]")
  temperature: float = f.number(1.0, "[0, 1e6]")  # 0 takes the likeliest token
  # only the likeliest with this probability together
  top_p: float = f.number(1.0, "(0, 1]")
  seed: int = f.seed(10)
  # at most so many; 0 is as many as training takes
  rows: int = f.number(0, "[0, 2^63)")
  # rows at a time, over all devices
  batch_size: int = f.number(128, "[1, inf)")
  rows_per_part: int = f.number(8192, "[1, inf)")  # unit of resuming
  dtype: str = f.word("bfloat16", DTYPES)  # of weights, computation and cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class KDConfig(Section):
  """Soft labels, of methods vanilla_kd and miniplm_kd.

  (1 - weight) of the next-token loss and weight of the teacher's soft labels,
  over the whole vocabulary.
  """

  weight: float = f.number(0.5, "[0, 1]")
  # Of the teacher's and the student's soft labels; their loss is
  # multiplied by its square (Hinton et al. 2015). The paper's is 1.
  temperature: float = f.number(1.0, "[0.01, 100]")
  # the teacher's weights and computation; "" is train's
  dtype: str = f.word("", ("", *DTYPES))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiniLLMConfig(Section):
  """Method minillm, arXiv 2306.08543: the student continues rows."""

  # Of max_length: the prompt. The paper has 768 + 256 tokens.
  prompt_share: float = f.number(0.75, "(0, 1)")
  # the teacher's share in what is drawn from
  teacher_mix: float = f.number(0.2, "[0, 1)")
  # of the next-token loss of the rows
  lm_weight: float = f.number(1.0, "[0, 1e6]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsConfig(Section):
  """Stage logits, for the two methods that follow.

  It computes as `score` does: score.dtype, lengths, batch_tokens.
  """

  # Unit of resuming, held in memory: 4 to 6 bytes a token and id.
  rows_per_part: int = f.number(1024, "[1, inf)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseKDConfig(Section):
  """Method sparse_kd: the teacher's words at each token, but few of them."""

  # sampling: drawn from p, unbiased (arXiv 2503.16870); top_k: the
  # likeliest, biased.
  kind: str = f.word("sampling", ("sampling", "top_k"))
  ids: int = f.number(50, "[1, inf)")  # of a token: samples, or k
  seed: int = f.seed(10)  # of the samples
  # of the teacher's words; the label has the rest
  weight: float = f.number(0.5, "(0, 1]")
  # of top_k: let the probabilities sum up to 1
  normalise: bool = f.switch(False)

  def _rules(self):
    good = not self.normalise or self.kind == "top_k"
    yield "normalise", good, "say False: counts of samples sum up to 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSelectionConfig(Section):
  """Method token_selection, arXiv 2404.07965.

  It trains on the tokens of a batch whose loss is most above a frozen
  model's.
  """

  # the frozen model, or teacher
  model: str = f.word("reference", ("reference", "teacher"))
  ratio: float = f.number(0.6, "[0.01, 1]")  # of the tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionalConfig(Section):
  """The reference, trained on: scores/conditional, as CoLoR-Filter has it."""

  # Target text, as corpus.source; "" is off. Its rows are made as the
  # corpus's, with its tokenizer; those that the corpus has too are left out.
  source: str = f.path("")
  text_field: str = f.text("text")
  # How the reference goes on [inferred: 2406.10670 gives no such numbers].
  train: TrainConfig = f.section(
    TrainConfig,
    steps=500,
    warmup_steps=50,
    batch_size=64,
    learning_rate=1e-4,
    shuffle=True,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSections(Section):
  """The sections of methods, as the config has them."""

  conditional: ConditionalConfig = f.section(ConditionalConfig)
  proxy: ProxyConfig = f.section(ProxyConfig)
  staged: StagedConfig = f.section(StagedConfig)
  seqkd: SeqKDConfig = f.section(SeqKDConfig)
  kd: KDConfig = f.section(KDConfig)
  minillm: MiniLLMConfig = f.section(MiniLLMConfig)
  logits: LogitsConfig = f.section(LogitsConfig)
  sparse_kd: SparseKDConfig = f.section(SparseKDConfig)
  token_selection: TokenSelectionConfig = f.section(TokenSelectionConfig)
