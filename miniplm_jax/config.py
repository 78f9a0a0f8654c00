"""Every field of the configuration: the paper's constant, and what it may be.

A file in `configs/` starts from `default()` and changes what its run needs.
No JAX and no TensorFlow here: `--help` and `--dry_run` answer at once.
"""

from fractions import Fraction

from ml_collections import ConfigDict

from miniplm_jax import (
  evaluation_config,
  method_config,
  model_config,
  run_config,
)
from miniplm_jax.core import fields
from miniplm_jax.core.fields import (
  Section,
  exact,
  name,
  named_path,
  number,
  parsed,
  path,
  seed,
  several,
  switch,
  text,
  word,
)
from miniplm_jax.methods import DEFINITIONS, METHODS
from miniplm_jax.model_config import mamba, transformer  # noqa: F401

# In the order of the data. A config lists those that it wants.
STAGES = (
  "tokenize",
  "teacher",
  "reference",
  "score",
  "proxy",
  "select",
  "materialize",
  "seqkd",
  "convert",
  "logits",
  "train",
  "evaluate",
  "export",
  "analyse",
  "report",
)
# Look at what is there, or at what would be; nothing depends on them.
LOOKS = ("plan", "verify", "generate")

# How rows become rows of a student's own tokenizer.
CONVERSIONS = ("repack", "one_to_one")
# What `materialize` writes: the functions of select/materialize_writers.py.
FORMATS = ("array_record", "megatron", "tfds")
REMAT = ("none", "full", "dots")


def weight_of(text: str) -> tuple[str, Fraction]:
  """A domain with its weight, exact, of "code=2" or "mail=0.5".

  Raises:
    ValueError: that is not what it says.
  """
  domain, _, weight = text.rpartition("=")
  found = _fraction(weight)
  if not (domain and 0 <= found <= 10**6):
    raise ValueError(text)
  return domain, found


def share_of(quota: str) -> tuple[str, Fraction, Fraction]:
  """A domain with its least and largest share, exact, of "code=0.1:0.3".

  Raises:
    ValueError: that is not what it says.
  """
  domain, _, shares = quota.rpartition("=")
  least, colon, most = shares.partition(":")
  found = domain, _fraction(least or "0"), _fraction(most or "1")
  if not (domain and colon and 0 <= found[1] <= found[2] <= 1):
    raise ValueError(quota)
  return found


def _fraction(written: str) -> Fraction:
  # Not 1e-999999999 as a fraction: that has a billion digits.
  return Fraction(written) if "/" in written else exact(float(written))


_DTYPES = ("float32", "bfloat16")
# A token such as <|endoftext|>, </s> or [EOS]; none that a text has by itself.
_SPECIAL = r"<.+>|\[.+\]"
_SPECIAL_TODO = "give a special token, such as <|endoftext|>"


# Optimization, method.md 2.4. Every field changes the result.
_TRAIN: Section = {
  "steps": number(100_000, "[1, inf)"),
  "batch_size": number(512, "[1, inf)"),  # rows of one step, over all devices
  "learning_rate": number(6e-4, "(0, 1]"),  # at its peak
  # of the peak, at the last step
  "final_learning_rate_ratio": number(0.1, "[0, 1]"),
  # linear from 0; the first step has rate 0
  "warmup_steps": number(2000, "[0, inf)"),
  "weight_decay": number(0.01, "[0, 10]"),  # on all parameters
  "beta1": number(0.9, "[0, 1)"),
  "beta2": number(0.98, "[0, 1)"),
  "epsilon": number(1e-6, "[1e-30, 1]"),
  "clip_norm": number(1.0, "[1e-6, 1e6]", 0),  # global norm; 0 is off
  # weight of log² Z beside the next-token loss, as PaLM
  "z_loss": number(0.0, "[0, 1]"),
  "reduction": word("instance_mean", ("instance_mean", "token_mean")),
  "shuffle": switch(False),  # released code: file order
  # How often a row of a domain is seen, relative to rows of the domains
  # that are not named: "code=2", "mail=0.5"; 0 leaves a domain out. See
  # docs/training.md. () takes the rows as they are, in their order.
  "domain_weights": several(
    parsed("", weight_of, "give DOMAIN=WEIGHT, 0 or more")
  ),
  "seed": seed(10),  # of the initialization and the shuffle
  # of the computation; parameters are float32
  "dtype": word("bfloat16", _DTYPES),
}


_REVISION = text("main", r"\S+", "give a branch, a tag or a commit")
FIELDS: Section = {
  # Where everything is written, local or gs://.
  "workdir": path("", is_needed=True),
  # What runs when --stages is not given.
  "stages": several(
    word("", STAGES + LOOKS), *(s for s in STAGES if s != "teacher")
  ),
  # How the student's rows are chosen: miniplm, pretrain (at random),
  # difficulty (high reference loss), teacher_preference (low teacher
  # loss), proxy (miniplm's score as a small model predicts it) or seqkd
  # (pretrain's rows, and the teacher writes the end of each). Or what it
  # minimizes on such rows: see docs/training.md for all.
  "method": word("miniplm", METHODS),
  # Further methods to run beside it, for comparison.
  "baselines": several(word("", METHODS)),
  # A student whose step costs more than the next-token loss takes fewer:
  # all train with the FLOPs of train.steps of its steps.
  "equal_flops": switch(True),
  # Text → rows.
  "corpus": {
    # Files (.jsonl and .json, with .gz, .zst, .bz2 or .xz; .parquet; .txt,
    # .md; ids as .bin with .idx), a folder, a glob; tfds:NAME, hf:ORG/NAME
    # or a folder that either library saved; or "embedded", text that every
    # installation carries.
    "source": path(""),
    "split": text("train"),  # of a source that has splits
    # Larger files are cut into parts of so many bytes, small texts are
    # put together: the unit of parallel work and of resuming. Each is three
    # files that take milliseconds; of single lines they would take hours.
    "part_bytes": number(1 << 28, "[16, 2^63)"),
    "text_field": text("text"),
    # Dotted path; a document without it has that of its folder or file.
    "domain_field": text("domain", ".*"),
    # A directory or hub id with tokenizer.json, or "train".
    "tokenizer": path("Qwen/Qwen1.5-1.8B", is_needed=True),
    "tokenizer_revision": _REVISION,  # of a hub id
    "vocab_size": number(0, "[0, inf)"),  # of a tokenizer that is trained here
    "eos_token": text("<|endoftext|>", _SPECIAL, _SPECIAL_TODO),
    # What rows begin with, and each document in them: "auto" is what the
    # tokenizer puts before a text (Llama, Gemma, Mistral; Qwen: nothing).
    "bos_token": text("auto", f"(auto|{_SPECIAL})?", _SPECIAL_TODO),
    # inputs of a row; it holds one id more
    "max_length": number(1024, "[2, 2^24]"),
    "seed": number(10, "[-2^63, 2^63)"),  # of the split
    # D_ref, paper: 5B of 105B tokens
    "reference_share": number(5 / 105, "[0, 1)"),
    # for evaluation, in no other split
    "heldout_share": number(0.001, "[0, 1)"),
    # for a teacher that is trained here
    "teacher_share": number(0.0, "[0, 1)"),
  },
  # The teacher p.
  "teacher": {
    "name": name("teacher"),  # scores/<name>
    # directory or hub id; "" trains it here
    "path": path("Qwen/Qwen1.5-1.8B"),
    "revision": _REVISION,  # of a hub id
    "scores": path(""),  # made elsewhere: see docs/scoring.md
    "model": model_config.TRANSFORMER,  # if it is trained here
    "train": _TRAIN,
  },
  # The reference p_ref.
  "reference": {
    "name": name("reference"),
    "path": path(""),  # "" trains it on D_ref
    "revision": _REVISION,
    "scores": path(""),
    "model": model_config.TRANSFORMER,
    "train": _TRAIN,
  },
  "score": {
    "dtype": word("bfloat16", _DTYPES),  # of the computation
    # unit of work and of resuming
    "rows_per_part": number(65_536, "[1, inf)"),
    # of one batch over all devices, with padding
    "batch_tokens": number(65_536, "[1, inf)"),
    # Of D. Less than 1 is for method proxy alone: the rows that it learns
    # from, and some to test it on.
    "share": number(1.0, "(0, 1]"),
    "seed": seed(10, 63),  # of that share and of the proxy's sample
    # Rows are padded to the least of these that fits; max_length is added.
    "lengths": several(
      number(1, "[1, 2^24]"), 128, 256, 384, 512, 640, 768, 896
    ),
    # Further models to score with, as NAME=DIRECTORY_OR_HUB_ID: other
    # references, for selections to choose from.
    "more": several(named_path()),
    # The teacher's layers as int8 weights, if on so many rows its scores
    # rank like those of its own weights.
    "int8_teacher": switch(False),
    "int8_rows": number(1024, "[1, inf)"),
    # rank correlation of the scores
    "int8_least_spearman": number(0.99, "[0, 1]"),
    # share of the kept rows that agree
    "int8_least_agreement": number(0.97, "[0, 1]"),
  },
  # --stages=plan compiles for TPU slices that are not here.
  "plan": {
    # Generation (v4, v5e, v5p or v6e) and chips along each side; several
    # with commas, as in v5e:4x4,v5p:2x2x2; of two slices, 2*v5e:4x4.
    "topology": text("v5e:4x4", todo="name a slice, such as v5e:4x4"),
    # of a chip-hour, in whatever currency; 0 is not known
    "price": number(0.0, "[0, 1e9]"),
    # of D, while there is no corpus; paper: 100B ids
    "rows": number(97_656_250, "[1, 2^53]"),
    "search": switch(False),  # try other meshes, remat and rows a chip
  },
  # --stages=verify scores some rows again and compares.
  "verify": {
    "rows": number(256, "[1, inf)"),  # of each table
    "seed": seed(10, 63),
    # nats per token; 0: 1e-3, in bfloat16 2e-2
    "tolerance": number(0.0, "[0, 100]"),
  },
  "select": {
    "name": name("{method}"),  # selection/<name>
    # mean_diff (released code), sum_diff (as the paper writes it),
    # bits_per_byte_diff, zscore_by_domain, difficulty,
    # teacher_preference, random.
    "definition": word("mean_diff", DEFINITIONS),
    # How much is kept: one of these, the others are 0.
    "ratio": number(0.5, "[0, 1]"),  # alpha, the share of the rows of D
    "rows": number(0, "[0, 2^63)"),
    "tokens": number(0, "[0, 2^63)"),  # ids of the kept rows
    # 0 keeps the highest scores; more draws rows without replacement with
    # weights exp(score / temperature), by Gumbel top-K.
    "temperature": number(0.0, "[0, 1e6]"),
    # of what is drawn, and of definition random
    "seed": seed(10, 63),
    "min_length": number(0, "[0, inf)"),  # ids; shorter rows are left out
    # Of equal rows the best are kept, 0 keeps all. Needs 21 bytes of
    # temporary disk ($TMPDIR) a row.
    "max_copies": number(0, "[0, inf)"),
    # Jaccard similarity from which rows count as copies, such as 0.8, of
    # which max_copies, or 1, are kept; 0 is off. See duplicates.near for
    # its memory.
    "near_duplicates": number(0.0, "[0, 1]"),
    # Least and largest share of the kept rows (tokens) that a domain may
    # have: "code=0.1:0.3", "mail=:0.05", rounded down to whole rows.
    "quotas": several(
      parsed("", share_of, "give DOMAIN=LEAST:LARGEST, shares in 0 to 1")
    ),
    # For the report alone: files or globs of evaluation items (.jsonl,
    # .json, .parquet) that are looked for in the rows.
    "evaluation_sets": several(path("", is_needed=True)),
    # For the report alone: another selection's name, "" compares none.
    "compare_with": name(""),
  },
  # selection/<name>/materialized: the kept rows once more, for others.
  # The student reads the corpus by row id and needs no copy.
  "materialize": {
    # none, array_record (as the corpus), megatron (.bin and .idx), tfds
    "format": word("none", ("none", *FORMATS)),
  },
  **method_config.sections(model_config.SMALL, _TRAIN),
  # The student q.
  "student": {
    "name": name("{method}"),  # students/<name>
    "model": model_config.TRANSFORMER,
    # Directory or hub id of a model of that shape, to go on from its
    # weights; "" draws them from train.seed.
    "init": path(""),
    "init_revision": _REVISION,  # of a hub id
    # Directory or hub id of a tokenizer of its own; "" is the corpus's.
    "tokenizer": path(""),
    "tokenizer_revision": _REVISION,  # of a hub id
    # of that tokenizer, what ends a document
    "eos_token": text("", f"({_SPECIAL})?", _SPECIAL_TODO),
    # as corpus.bos_token; "" is none
    "bos_token": text("", f"(auto|{_SPECIAL})?", _SPECIAL_TODO),
    # repack loses nothing; one_to_one converts row by row and truncates,
    # as the released code does, for comparison.
    "conversion": word("repack", CONVERSIONS),
  },
  "train": _TRAIN,
  "evaluate": {
    # held-out rows; 0 takes them all
    "max_rows": number(10_000, "[0, 2^63)"),
    # Domains that are listed but do not count in "all" and in the curve.
    "ignore_domains": several(text("")),
  },
  "evaluation": evaluation_config.section(),
  # The student as a Hugging Face directory.
  "export": {
    "dtype": word("float32", _DTYPES),  # of the stored weights
    # more is spread over several files
    "max_shard_size": text(
      "5GB", r"[1-9]\d{0,5}[KMGT]B", "give a size such as 5GB"
    ),
  },
  # --stages=generate --prompt="Once upon a time"
  "generate": {
    # A directory or hub id; "" is the exported student.
    "model": path(""),
    "revision": _REVISION,  # of a hub id
    "prompts": several(text("")),  # --prompt adds to them
    "samples": number(1, "[1, inf)"),  # of each prompt
    "max_new_tokens": number(128, "[1, inf)"),
    "temperature": number(1.0, "[0, 1e6]"),  # 0 takes the likeliest token
    "top_k": number(0, "[0, inf)"),  # only the k likeliest; 0 is all
    # only the likeliest with this probability together
    "top_p": number(0.95, "(0, 1]"),
    "seed": seed(10),
    # of weights, computation and cache
    "dtype": word("bfloat16", _DTYPES),
  },
  "run": run_config.section(),
}


def default() -> ConfigDict:
  """All fields. Types are checked and unknown fields refused."""
  return ConfigDict(fields.defaults(FIELDS)).lock()
