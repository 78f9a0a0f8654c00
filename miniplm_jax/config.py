"""Every field of the configuration, with the paper's constants as defaults.

A file in `configs/` starts from `default()` and changes what its run needs.
No JAX and no TensorFlow here: `--help` and `--dry_run` answer at once.
"""

from fractions import Fraction

from ml_collections import ConfigDict

from miniplm_jax import evaluation_config, method_config, run_config

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


def transformer() -> ConfigDict:
  """Shape of a Qwen or Llama; names as in Hugging Face's config.json."""
  return ConfigDict(
    {
      "family": "transformer",
      "vocab_size": 151_936,  # at least the tokenizer's number of ids
      "hidden_size": 768,
      "intermediate_size": 2112,  # of the SwiGLU
      "num_hidden_layers": 12,
      "num_attention_heads": 12,
      "num_key_value_heads": 12,  # fewer: grouped-query attention
      "head_dim": 0,  # 0 is hidden_size / num_attention_heads
      "tie_word_embeddings": True,  # the head is the embedding
      "qkv_bias": True,  # Qwen1.5 to Qwen2.5; not Qwen3, not Llama
      "qk_norm": False,  # Qwen3
      "rope_theta": 1e6,
      "rope_type": "default",  # or linear, llama3
      "rope_factor": 1.0,  # of linear and llama3, like what follows
      "rope_low_freq_factor": 1.0,
      "rope_high_freq_factor": 4.0,
      "rope_original_length": 8192,
      "rms_norm_eps": 1e-6,
      "max_position_embeddings": 32_768,  # what config.json will say
      "initializer_range": 0.02,
    }
  )


def mamba() -> ConfigDict:
  """Shape of a Mamba-1. Use: config.student.model = config_lib.mamba()."""
  return ConfigDict(
    {
      "family": "mamba",
      "vocab_size": 65_024,  # at least the tokenizer's number of ids
      "hidden_size": 768,
      "intermediate_size": 1536,  # a multiple of hidden_size
      "num_hidden_layers": 24,
      "state_size": 16,  # states of a channel
      "conv_kernel": 4,  # positions that the convolution sees
      "time_step_rank": 0,  # 0 is hidden_size / 16, rounded up
      "tie_word_embeddings": True,  # the head is the embedding
      "rms_norm_eps": 1e-5,
      "initializer_range": 0.1,
    }
  )


MODELS = {"transformer": transformer, "mamba": mamba}


def _small() -> ConfigDict:
  """About 45M parameters, the size of the paper's proxy."""
  model = transformer()
  model.hidden_size, model.intermediate_size = 256, 704
  model.num_hidden_layers = 8
  model.num_attention_heads = model.num_key_value_heads = 4
  return model


def _train(**changes) -> ConfigDict:
  """Optimisation, method.md 2.4. Every field changes the result."""
  return ConfigDict(
    {
      "steps": 100_000,
      "batch_size": 512,  # rows of one step, over all devices
      "learning_rate": 6e-4,  # at its peak
      "final_learning_rate_ratio": 0.1,  # of the peak, at the last step
      "warmup_steps": 2000,  # linear from 0; the first step has rate 0
      "weight_decay": 0.01,  # on all parameters
      "beta1": 0.9,
      "beta2": 0.98,
      "epsilon": 1e-6,
      "clip_norm": 1.0,  # global norm
      "z_loss": 0.0,  # weight of log² Z beside the next-token loss, as PaLM
      "reduction": "instance_mean",  # or token_mean
      "shuffle": False,  # released code: file order
      # How often a row of a domain is seen, relative to rows of the domains
      # that are not named: "code=2", "mail=0.5"; 0 leaves a domain out. See
      # docs/training.md. () takes the rows as they are, in their order.
      "domain_weights": (),
      "seed": 10,  # of the initialisation and the shuffle
      "dtype": "bfloat16",  # of the computation; parameters are float32
    }
    | changes
  )


def default() -> ConfigDict:
  """All fields. Types are checked and unknown fields refused."""
  config = ConfigDict(
    {
      # Where everything is written, local or gs://.
      "workdir": "",
      # What runs when --stages is not given.
      "stages": tuple(s for s in STAGES if s != "teacher"),
      # How the student's rows are chosen: miniplm, pretrain (at random),
      # difficulty (high reference loss), teacher_preference (low teacher
      # loss), proxy (miniplm's score as a small model predicts it) or seqkd
      # (pretrain's rows, and the teacher writes the end of each). Or what it
      # minimises on such rows: see docs/training.md for all.
      "method": "miniplm",
      # Further methods to run beside it, for comparison.
      "baselines": (),
      # A student whose step costs more than the next-token loss takes fewer:
      # all train with the FLOPs of train.steps of its steps.
      "equal_flops": True,
      # Text → rows.
      "corpus": {
        # Files (.jsonl and .json, with .gz or .zst; .parquet; .txt, .md; packed
        # rows as .bin with .idx), a folder, a glob; tfds:NAME, hf:ORG/NAME or
        # a folder that either library saved; or "embedded", text that every
        # installation carries.
        "source": "",
        "split": "train",  # of a source that has splits
        # Larger files are cut into parts of so many bytes, small texts are
        # put together: the unit of parallel work and of resuming.
        "part_bytes": 1 << 28,
        "text_field": "text",
        # Dotted path; a document without it is named after its file.
        "domain_field": "domain",
        # A directory or hub id with tokenizer.json, or "train".
        "tokenizer": "Qwen/Qwen1.5-1.8B",
        "tokenizer_revision": "main",  # of a hub id
        "vocab_size": 0,  # of a tokenizer that is trained here
        "eos_token": "<|endoftext|>",
        "max_length": 1024,  # inputs of a row; it holds one id more
        "seed": 10,  # of the split
        "reference_share": 5 / 105,  # D_ref, paper: 5B of 105B tokens
        "heldout_share": 0.001,  # for evaluation, in no other split
        "teacher_share": 0.0,  # for a teacher that is trained here
      },
      # The teacher p.
      "teacher": {
        "name": "teacher",  # scores/<name>
        "path": "Qwen/Qwen1.5-1.8B",  # directory or hub id; "" trains it here
        "revision": "main",  # of a hub id
        "scores": "",  # made elsewhere: see docs/scoring.md
        "model": transformer(),  # if it is trained here
        "train": _train(),
      },
      # The reference p_ref.
      "reference": {
        "name": "reference",
        "path": "",  # "" trains it on D_ref
        "revision": "main",
        "scores": "",
        "model": transformer(),
        "train": _train(),
      },
      "score": {
        "dtype": "bfloat16",  # of the computation
        "rows_per_part": 65_536,  # unit of work and of resuming
        "batch_tokens": 65_536,  # of one batch over all devices, with padding
        # Of D. Less than 1 is for method proxy alone: the rows that it learns
        # from, and some to test it on.
        "share": 1.0,
        "seed": 10,  # of that share and of the proxy's sample
        # Rows are padded to the least of these that fits; max_length is added.
        "lengths": (128, 256, 384, 512, 640, 768, 896),
        # Further models to score with, as NAME=DIRECTORY_OR_HUB_ID: other
        # references, for selections to choose from.
        "more": (),
        # The teacher's layers as int8 weights, if on so many rows its scores
        # rank like those of its own weights.
        "int8_teacher": False,
        "int8_rows": 1024,
        "int8_least_spearman": 0.99,  # rank correlation of the scores
        "int8_least_agreement": 0.97,  # share of the kept rows that agree
      },
      # --stages=plan compiles for TPU slices that are not here.
      "plan": {
        # Generation (v4, v5e, v5p or v6e) and chips along each side; several
        # with commas, as in v5e:4x4,v5p:2x2x2; of two slices, 2*v5e:4x4.
        "topology": "v5e:4x4",
        "price": 0.0,  # of a chip-hour, in whatever currency; 0 is not known
        "rows": 97_656_250,  # of D, while there is no corpus; paper: 100B ids
        "search": False,  # try other meshes, remat and rows a chip
      },
      # --stages=verify scores some rows again and compares.
      "verify": {
        "rows": 256,  # of each table
        "seed": 10,
        "tolerance": 0.0,  # nats per token; 0: 1e-3, in bfloat16 2e-2
      },
      "select": {
        "name": "{method}",  # selection/<name>
        # mean_diff (released code), sum_diff (as the paper writes it),
        # bits_per_byte_diff, zscore_by_domain, difficulty,
        # teacher_preference, random.
        "definition": "mean_diff",
        # How much is kept: one of these, the others are 0.
        "ratio": 0.5,  # alpha, the share of the rows of D
        "rows": 0,
        "tokens": 0,  # ids of the kept rows
        # 0 keeps the highest scores; more draws rows without replacement with
        # weights exp(score / temperature), by Gumbel top-K.
        "temperature": 0.0,
        "seed": 10,  # of what is drawn, and of definition random; 0 or more
        "min_length": 0,  # ids; shorter rows are left out
        # Of equal rows the best are kept, 0 keeps all. Needs 21 bytes of
        # temporary disk ($TMPDIR) a row.
        "max_copies": 0,
        # Jaccard similarity from which rows count as copies, such as 0.8, of
        # which max_copies, or 1, are kept; 0 is off. See duplicates.near for
        # its memory.
        "near_duplicates": 0.0,
        # Least and largest share of the kept rows (tokens) that a domain may
        # have: "code=0.1:0.3", "mail=:0.05", rounded down to whole rows.
        "quotas": (),
        # For the report alone: files or globs of evaluation items (.jsonl,
        # .json, .parquet) that are looked for in the rows.
        "evaluation_sets": (),
        # For the report alone: another selection's name, "" compares none.
        "compare_with": "",
      },
      # selection/<name>/materialized: the kept rows once more, for others.
      # The student reads the corpus by row id and needs no copy.
      "materialize": {
        # none, array_record (as the corpus), megatron (.bin and .idx), tfds
        "format": "none",
      },
      **method_config.sections(_small(), _train),
      # The student q.
      "student": {
        "name": "{method}",  # students/<name>
        "model": transformer(),
        # Directory or hub id of a model of that shape, to go on from its
        # weights; "" draws them from train.seed.
        "init": "",
        "init_revision": "main",  # of a hub id
        # Directory or hub id of a tokenizer of its own; "" is the corpus's.
        "tokenizer": "",
        "tokenizer_revision": "main",  # of a hub id
        "eos_token": "",  # of that tokenizer, what ends a document
        "bos_token": "",  # what every row starts with (Llama 3); "" is none
        # repack loses nothing; one_to_one converts row by row and truncates,
        # as the released code does, for comparison.
        "conversion": "repack",
      },
      "train": _train(),
      "evaluate": {
        "max_rows": 10_000,  # held-out rows; 0 takes them all
        # Domains that are listed but do not count in "all" and in the curve.
        "ignore_domains": (),
      },
      "evaluation": evaluation_config.section(),
      # The student as a Hugging Face directory.
      "export": {
        "dtype": "float32",  # of the stored weights
        "max_shard_size": "5GB",  # more is spread over several files
      },
      # --stages=generate --prompt="Once upon a time"
      "generate": {
        # A directory or hub id; "" is the exported student.
        "model": "",
        "revision": "main",  # of a hub id
        "prompts": (),  # --prompt adds to them
        "samples": 1,  # of each prompt
        "max_new_tokens": 128,
        "temperature": 1.0,  # 0 takes the likeliest token
        "top_k": 0,  # only the k likeliest; 0 is all
        "top_p": 0.95,  # only the likeliest with this probability together
        "seed": 10,
        "dtype": "bfloat16",  # of weights, computation and cache
      },
      "run": run_config.section(),
    }
  )
  return config.lock()


# How `select` may rank: the functions of select/definitions.py.
DEFINITIONS = (
  "mean_diff",
  "sum_diff",
  "bits_per_byte_diff",
  "zscore_by_domain",
  "difficulty",
  "teacher_preference",
  "random",
  "proxy",
)
# How rows become rows of a student's own tokenizer.
CONVERSIONS = ("repack", "one_to_one")
# What `materialize` writes: the functions of materialize/writers.py.
FORMATS = ("array_record", "megatron", "tfds")
REMAT = ("none", "full", "dots")


def weight_of(text: str) -> tuple[str, Fraction]:
  """A domain with its weight, exact, of "code=2" or "mail=0.5".

  Raises:
    ValueError: that is not what it says.
  """
  domain, _, weight = text.rpartition("=")
  found = Fraction(weight)
  if not domain or found < 0:
    raise ValueError(text)
  return domain, found


def share_of(quota: str) -> tuple[str, Fraction, Fraction]:
  """A domain with its least and largest share, exact, of "code=0.1:0.3".

  Raises:
    ValueError: that is not what it says.
  """
  domain, _, shares = quota.rpartition("=")
  least, colon, most = shares.partition(":")
  found = domain, Fraction(least or 0), Fraction(most or 1)
  if not (domain and colon and 0 <= found[1] <= found[2] <= 1):
    raise ValueError(quota)
  return found
