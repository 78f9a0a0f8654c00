"""The sections of the config: what a run may be told, and the paper's values.

In the order of the data. The comment of a field is its documentation, its
default the paper's constant, its rule what it may be.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from miniplm_jax.config.corpus import (
  SPECIAL,
  SPECIAL_ADVICE,
  bos_rule,
  revision,
)
from miniplm_jax.config.training import DTYPES, TrainConfig
from miniplm_jax.core import fields as f
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import Section
from miniplm_jax.criteria import criterion
from miniplm_jax.models.architecture import Architecture, Transformer

# How rows become rows of a student's own tokenizer.
CONVERSIONS = ("repack", "one_to_one")
# What `materialize` writes: the functions of selection/materialize_writers.py.
FORMATS = ("array_record", "megatron", "tfds")
# Inputs of a batch of scoring over all devices, where nothing is said.
BATCH_TOKENS = 65_536
# The same of each shard on TPUs. 4 rows of 1,024 tokens of the 1.8B a chip
# are within 2 % of the best of 1 to 32, per token, on v4, v5e, v5p and v6e: of
# more, activations leave VMEM (docs/tpu_scoring.md; predicted).
TPU_BATCH_TOKENS = 4096
# On CPUs. Of SmolLM2-135M 512 to 4,096 took 6.4 to 10.3 s for 64 rows of 128
# tokens (four turns on two busy cores: 1,024 6.4 to 8.2, 4,096 7.9 to 10.3);
# parts of few rows do not fill larger ones.
CPU_BATCH_TOKENS = 1024
# The group of lm_eval that is the paper's nine. acc_norm where a task has it,
# else acc; their plain mean.
GROUP = "miniplm"
PAPER_TASKS = (
  "hellaswag",
  "lambada_openai",
  "winogrande",
  "openbookqa",
  "arc_easy",
  "arc_challenge",
  "piqa",
  "social_iqa",
  "storycloze_2018",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerConfig(Section):
  """A model that scores D: the teacher p, or the reference p_ref."""

  name: str = f.name("teacher")  # scores/<name>
  # directory or hub id; "" trains it here
  path: str = f.path("Qwen/Qwen1.5-1.8B")
  revision: str = revision()  # of a hub id
  scores: str = f.path("")  # made elsewhere: see docs/scoring.md
  model: Architecture = f.section(Transformer)  # if it is trained here
  train: TrainConfig = f.section(TrainConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(Section):
  """The log-probs of every row of D."""

  dtype: str = f.word("bfloat16", DTYPES)  # of the computation
  # Unit of work and of resuming; 0 is a 64th of the corpus, but a batch or
  # more, and 65,536 at most. What was begun goes on in parts of its size.
  rows_per_part: int = f.number(0, "[0, inf)")
  # Of one batch over all devices, with padding; 0 is 65,536, on TPUs 4,096 for
  # each shard, and on CPUs 1,024.
  batch_tokens: int = f.number(0, "[0, inf)")
  # Of D. Less than 1 is for method proxy alone: the rows that it learns
  # from, and some to test it on.
  share: float = f.number(1.0, "(0, 1]")
  seed: int = f.seed(10, 63)  # of that share and of the proxy's sample
  # Rows are padded to the least of these that fits; max_length is added.
  lengths: tuple[int, ...] = f.several(
    f.number(1, "[1, 2^24]"), 128, 256, 384, 512, 640, 768, 896
  )
  # Further models to score with, as NAME=DIRECTORY_OR_HUB_ID: other
  # references, for selections to choose from. NAME=ngram:TEXT counts hashed
  # n-grams of a split (reference, train) or of files, as corpus.source names.
  # NAME=table:FILE_OR_FOLDER has scores from elsewhere, as teacher.scores.
  more: tuple[str, ...] = f.several(
    f.named_path("DIRECTORY_OR_HUB_ID, NAME=ngram:TEXT or NAME=table:FILE")
  )
  ngram_buckets: int = f.number(10_000, "[2, 2^24]")  # as DSIR's
  # The teacher's layers as int8 weights, if on so many rows its scores
  # rank like those of its own weights.
  int8_teacher: bool = f.switch(False)
  int8_rows: int = f.number(1024, "[1, inf)")
  # rank correlation of the scores
  int8_least_spearman: float = f.number(0.99, "[0, 1]")
  # share of the kept rows that agree
  int8_least_agreement: float = f.number(0.97, "[0, 1]")

  # How a table is computed and cut: by rounding apart, its readers find the
  # same.
  LAYOUT: ClassVar[tuple[str, ...]] = "rows_per_part", "lengths", "batch_tokens"

  @property
  def of_table(self) -> dict[str, Any]:
    """What decides a table, by whatever model."""
    layout = {name: getattr(self, name) for name in self.LAYOUT}
    layout |= {"lengths": list(self.lengths), "batch_tokens": self.most_tokens}
    return {"dtype": self.dtype, **layout}

  @staticmethod
  def effect(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished table is compared by: any batches will do.

    Of 0, automatic, a manifest does not say what a device made of it.
    """
    return {k: v for k, v in settings.items() if k != "batch_tokens"}

  @property
  def most_tokens(self) -> int:
    """Those of a batch, as manifests say it: no device is asked."""
    return self.batch_tokens or BATCH_TOKENS


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentsConfig(Section):
  """--stages=score_documents: whole documents of corpus.source.

  Each model reads them by its own tokenizer, as score.dtype and
  score.batch_tokens say.
  """

  # Which of teacher, reference and score.more; () is all language models.
  models: tuple[str, ...] = f.several(f.name("model"))
  # inputs of a window of a longer document; 0 is what the model says
  max_length: int = f.number(0, "[0, 2^24]")
  # The share of a window that is context alone: the window before scores it.
  # 0 are the rolling windows of lm_eval; 0.5 takes twice the time.
  overlap: float = f.number(0.5, "[0, 1)")
  # unit of work and of resuming, in UTF-8 bytes of text
  part_bytes: int = f.number(1 << 24, "[1, 2^63)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig(Section):
  """--stages=plan compiles for TPU slices that are not here."""

  # Generation (v4, v5e, v5p or v6e) and chips along each side; several
  # with commas, as in v5e:4x4,v5p:2x2x2; of two slices, 2*v5e:4x4.
  topology: str = f.text("v5e:4x4", advice="name a slice, such as v5e:4x4")
  # of a chip-hour, in whatever currency; 0 is not known
  price: float = f.number(0.0, "[0, 1e9]")
  # of D, while there is no corpus; paper: 100B ids
  rows: int = f.number(97_656_250, "[1, 2^53]")
  search: bool = f.switch(False)  # try other meshes, remat and rows a chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig(Section):
  """--stages=verify scores some rows again and compares."""

  rows: int = f.number(256, "[1, inf)")  # of each table
  seed: int = f.seed(10, 63)
  # nats per token; 0: 1e-3, in bfloat16 2e-2
  tolerance: float = f.number(0.0, "[0, 100]")


def definition_rule(definition: str) -> tuple[str, bool, str]:
  """The rule of a field `definition`, a criterion."""
  try:
    good, hint = definition != "proxy", "say --config.method=proxy"
    criterion(definition)
  except UserError as e:
    good, hint = False, f"{e.what}; {e.hint}"
  return "definition", good, hint


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(Section):
  """Which rows are kept."""

  name: str = f.name("{method}")  # selection/<name>
  # What rows are ranked by: mean_diff (released code), sum_diff (as the
  # paper writes it), bits_per_byte_diff, zscore_by_domain, difficulty,
  # teacher_preference, random, or a formula over score tables, such as
  # "reference - teacher": see docs/selection.md.
  definition: str = f.text("mean_diff")
  # What field("NAME") reads in it beside corpus.fields: NAME=FILE.parquet, a
  # folder of such or a glob, of columns NAME and row_id or doc_id (see
  # corpus.id_field). What no formula reads is not looked at.
  columns: tuple[str, ...] = f.several(f.named_path("FILE.parquet"))
  # Of D, drawn by seed: only these rows can be kept; 1 is all.
  share: float = f.number(1.0, "(0, 1]")
  # How much is kept: one of these, the others are 0.
  # alpha, of the rows of D, or of those that are drawn of it
  ratio: float = f.number(0.5, "[0, 1]")
  rows: int = f.number(0, "[0, 2^63)")
  tokens: int = f.number(0, "[0, 2^63)")  # ids of the kept rows
  # 0 keeps the highest scores; more draws rows without replacement with
  # weights exp(score / temperature), by Gumbel top-K.
  temperature: float = f.number(0.0, "[0, 1e6]")
  # of what is drawn, and of random() in a definition
  seed: int = f.seed(10, 63)
  min_length: int = f.number(0, "[0, inf)")  # ids; shorter rows are left out
  # Of equal rows the best are kept, 0 keeps all. Needs 21 bytes of
  # temporary disk ($TMPDIR) a row.
  max_copies: int = f.number(0, "[0, inf)")
  # Jaccard similarity from which rows count as copies, such as 0.8, of
  # which max_copies, or 1, are kept; 0 is off. See duplicates.near for
  # its memory.
  near_duplicates: float = f.number(0.0, "[0, 1]")
  # What a score loses, if kept rows have all of the row, in part by part; 0 is
  # off. See docs/selection.md. Needs 0.4 GB, and 8 bytes of $TMPDIR a row.
  redundancy: float = f.number(0.0, "[0, 1e6]")
  # Least and largest share of the kept rows (tokens) that a domain may
  # have: "code=0.1:0.3", "mail=:0.05", rounded down to whole rows.
  quotas: tuple[str, ...] = f.several(
    f.parsed("", f.share_of, "give DOMAIN=LEAST:LARGEST, shares in 0 to 1")
  )
  # Files or globs of evaluation items (.jsonl, .json, .parquet): rows with
  # 13 words of one are left out. All rows of D are read for it.
  exclude_sets: tuple[str, ...] = f.several(f.path("", is_needed=True))
  # For the report alone: such files that are looked for in the rows.
  evaluation_sets: tuple[str, ...] = f.several(f.path("", is_needed=True))
  # For the report alone: another selection's name, "" compares none.
  compare_with: str = f.name("")

  def _rules(self):
    good = sum(map(bool, (self.ratio, self.rows, self.tokens))) == 1
    hint = "give one, and 0 for the others; a ratio is in (0, 1]"
    yield "ratio, rows, tokens", good, hint
    shares = list(map(f.share_of, self.quotas))
    good = f.differ(domain for domain, *_ in shares)
    yield "quotas", good, "name each domain once"
    good = sum(least for _, least, _ in shares) <= 1
    hint = "lower the least shares: together they are more than 1"
    yield "quotas", good, hint
    hint = "give none, or no redundancy: it has one ranking of all domains"
    yield "quotas", not (self.redundancy and self.quotas), hint
    yield definition_rule(self.definition)
    good = len(self.files) == len(self.columns)
    yield "columns", good, "give each name once"

  @property
  def files(self) -> dict[str, str]:
    """The paths of `columns` by their names."""
    named = (text.partition("=") for text in self.columns)
    return {name: path for name, _, path in named}

  def is_drawn(self, definition: str) -> bool:
    """Whether the seed decides, if rows are ranked by this."""
    is_random = criterion(definition).formula.is_random
    return is_random or bool(self.temperature) or self.share < 1

  def budget(self, rows: int) -> int:
    """Rows or tokens that are to be kept of a D, or its draw, of so many."""
    return self.tokens or self.rows or f.of(self.ratio, rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaterializeConfig(Section):
  """selection/<name>/materialized: the kept rows once more, for others.

  The student reads the corpus by row id and needs no copy.
  """

  # none, array_record (as the corpus), megatron (.bin and .idx), tfds
  format: str = f.word("none", ("none", *FORMATS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig(Section):
  """The student q."""

  name: str = f.name("{method}")  # students/<name>
  model: Architecture = f.section(Transformer)
  # Directory or hub id of a model of that shape, to go on from its
  # weights; "" draws them from train.seed.
  init: str = f.path("")
  init_revision: str = revision()  # of a hub id
  # Directory or hub id of a tokenizer of its own; "" is the corpus's.
  tokenizer: str = f.path("")
  tokenizer_revision: str = revision()  # of a hub id
  # of that tokenizer, what ends a document
  eos_token: str = f.text("", f"({SPECIAL})?", SPECIAL_ADVICE)
  # as corpus.bos_token; "" is none
  bos_token: str = f.text("", f"(auto|{SPECIAL})?", SPECIAL_ADVICE)
  # repack loses nothing; one_to_one converts row by row and truncates,
  # as the released code does, for comparison.
  conversion: str = f.word("repack", CONVERSIONS)

  def _rules(self):
    good = bool(self.eos_token) == bool(self.tokenizer)
    hint = "give student.tokenizer and its student.eos_token, or neither"
    yield "eos_token", good, hint
    good = bool(self.tokenizer) or not self.bos_token
    yield "bos_token", good, "give student.tokenizer too, or no BOS"
    yield bos_rule(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Section):
  """Held-out loss by domain."""

  # held-out rows; 0 takes them all
  max_rows: int = f.number(10_000, "[0, 2^63)")
  # Domains that are listed but do not count in "all" and in the curve.
  ignore_domains: tuple[str, ...] = f.several(f.text(""))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
  """Zero-shot tasks and the divergence from the teacher."""

  # Names of lm-evaluation-harness, which the extra `eval` brings; "miniplm"
  # is the paper's nine, () is none.
  # Each becomes a file's name.
  tasks: tuple[str, ...] = f.several(
    f.text("", r"\w[\w.-]*", "give names of tasks of lm_eval")
  )
  # A folder with a folder of files for each task that is read from there
  # and not from the hub, as docs/evaluation.md says.
  task_data: str = f.path("")
  # ask no hub: local files, and what was fetched before
  offline: bool = f.switch(False)
  # the first so many of each task; 0 is all
  documents: int = f.number(0, "[0, inf)")
  scorers: bool = f.switch(False)  # the teacher and the reference too
  # Inputs of a request, of which the beginning is lost if it is longer; 0 is
  # those of the corpus's rows, which students are trained on.
  max_length: int = f.number(0, "[0, 2^24]")
  # How many samples of each student, and of the teacher, tell how far the two
  # are apart; 0 measures it of none. See docs/evaluation.md.
  divergence: int = f.number(0, "[0, 2^24]")
  dtype: str = f.word("bfloat16", DTYPES)  # of the computation

  def _rules(self):
    hint = "give 2 or more: of one there is no interval"
    yield "divergence", self.divergence != 1, hint


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Section):
  """The student as a Hugging Face directory."""

  dtype: str = f.word("float32", DTYPES)  # of the stored weights
  # more is spread over several files
  max_shard_size: str = f.text(
    "5GB", r"[1-9]\d{0,5}[KMGT]B", "give a size such as 5GB"
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig(Section):
  """--stages=generate --prompt="Once upon a time"."""

  # A directory or hub id; "" is the exported student.
  model: str = f.path("")
  revision: str = revision()  # of a hub id
  prompts: tuple[str, ...] = f.several(f.text(""))  # --prompt adds to them
  samples: int = f.number(1, "[1, inf)")  # of each prompt
  max_new_tokens: int = f.number(128, "[1, inf)")
  temperature: float = f.number(1.0, "[0, 1e6]")  # 0 takes the likeliest token
  top_k: int = f.number(0, "[0, inf)")  # only the k likeliest; 0 is all
  # only the likeliest with this probability together
  top_p: float = f.number(0.95, "(0, 1]")
  seed: int = f.seed(10)
  # of weights, computation and cache
  dtype: str = f.word("bfloat16", DTYPES)
