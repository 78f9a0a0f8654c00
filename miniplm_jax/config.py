"""Every field of the configuration, with the paper's constants as defaults.

A file in `configs/` starts from `default()` and changes what its run needs.
No JAX and no TensorFlow here: `--help` and `--dry_run` answer at once.
"""

import types

import ml_collections
from ml_collections import ConfigDict

from miniplm_jax.core.errors import UserError

# In the order of the data. A config lists those that it wants.
STAGES = (
  "tokenize",
  "teacher",
  "reference",
  "score",
  "select",
  "train",
  "evaluate",
  "export",
  "report",
)


def _model() -> ConfigDict:
  """A model's shape; names as in Hugging Face's config.json."""
  return ConfigDict(
    {
      "vocab_size": 151_936,  # at least the tokenizer's number of ids
      "hidden_size": 768,
      "intermediate_size": 2112,  # of the SwiGLU
      "num_hidden_layers": 12,
      "num_attention_heads": 12,
      "num_key_value_heads": 12,  # fewer: grouped-query attention
      "tie_word_embeddings": True,  # the head is the embedding
      "rope_theta": 1e6,
      "rms_norm_eps": 1e-6,
      "max_position_embeddings": 32_768,  # what config.json will say
      "initializer_range": 0.02,
    }
  )


def _train() -> ConfigDict:
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
      "reduction": "instance_mean",  # or token_mean
      "shuffle": False,  # released code: file order
      "seed": 10,  # of the initialisation and the shuffle
      "dtype": "bfloat16",  # of the computation; parameters are float32
    }
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
      # difficulty (high reference loss) or teacher_preference (low teacher
      # loss).
      "method": "miniplm",
      # Further methods to run beside it, for comparison.
      "baselines": (),
      # Text → rows.
      "corpus": {
        # Files (.jsonl, .json, with .gz or .zst, .parquet), a folder, a glob;
        # or "embedded", text that every installation carries.
        "source": "",
        "text_field": "text",
        "domain_field": "domain",  # dotted path; "" names domains after files
        # A directory or hub id with tokenizer.json, or "train".
        "tokenizer": "Qwen/Qwen1.5-1.8B",
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
        "model": _model(),  # if it is trained here
        "train": _train(),
      },
      # The reference p_ref.
      "reference": {
        "name": "reference",
        "path": "",  # "" trains it on D_ref
        "revision": "main",
        "model": _model(),
        "train": _train(),
      },
      "score": {
        "dtype": "bfloat16",  # of the computation
        "rows_per_part": 65_536,  # unit of work and of resuming
        "batch_tokens": 65_536,  # of one batch over all devices, with padding
        # Rows are padded to the least of these that fits; max_length is added.
        "lengths": (256, 512),
      },
      "select": {
        "name": "{method}",  # selection/<name>
        # mean_diff (released code), sum_diff (as the paper writes it).
        "definition": "mean_diff",
        "ratio": 0.5,  # alpha, the share of D that is kept
        "seed": 10,  # of the random rows of method pretrain
      },
      # The student q.
      "student": {
        "name": "{method}",  # students/<name>
        "model": _model(),
      },
      "train": _train(),
      "evaluate": {
        "max_rows": 10_000,  # held-out rows; 0 takes them all
        # Domains that are listed but do not count in "all" and in the curve.
        "ignore_domains": (),
      },
      # How it runs, not what comes out: none of this is part of a fingerprint.
      "run": {
        "data": 1,  # mesh: copies of the weights
        "fsdp": -1,  # mesh: shards of weights and batch; -1, what is left
        "tensor": 1,  # mesh: shards of heads, FFN and vocabulary
        # Rows of a device at a time; 0 is all, fewer accumulates gradients.
        "per_device_batch_size": 0,
        "remat": "full",  # what the backward pass keeps: none, dots, full
        "checkpoint_every": 1000,  # steps
        "keep_checkpoints": 2,
        "eval_every": 1000,  # steps between held-out losses; 0 is never
        "eval_rows": 512,  # held-out rows of the learning curve
        "log_every_seconds": 30.0,
      },
    }
  )
  return config.lock()


METHODS = {
  # method: the definition by which `select` ranks; None is select.definition
  "miniplm": None,
  "pretrain": "random",
  "difficulty": "difficulty",
  "teacher_preference": "teacher_preference",
}
# In the contract, not here yet.
_LATER = ("vanilla_kd", "seqkd", "minillm", "miniplm_kd", "proxy")


def check(config: ConfigDict, where: str):
  """Raises UserError at the first thing that cannot be meant.

  Args:
    config: as loaded, overrides applied.
    where: the config file, for messages.
  """
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      "get_config() does not return a ConfigDict",
      where,
      "start from miniplm_jax.config.default()",
    )
  _same_fields(config, default(), "config", where)
  for method in (config.method, *config.baselines):
    if method not in METHODS:
      known = ", ".join(METHODS)
      later = ", which is not implemented yet" if method in _LATER else ""
      raise UserError(
        f"method {method!r}{later}", where, f"choose one of {known}"
      )
  for stage in config.stages:
    if stage not in STAGES:
      raise UserError(
        f"unknown stage {stage!r}", where, f"choose from {', '.join(STAGES)}"
      )
  c = config.corpus
  shares = c.reference_share, c.heldout_share, c.teacher_share
  rules = [
    ("workdir", config.workdir, bool(config.workdir), "name a folder"),
    (
      "select.ratio",
      config.select.ratio,
      0 < config.select.ratio <= 1,
      "give a number in (0, 1]",
    ),
    ("corpus.max_length", c.max_length, c.max_length >= 2, "give 2 or more"),
    (
      "corpus.*_share",
      shares,
      min(shares) >= 0 and sum(shares) < 1,
      "give shares of at least 0 that leave something for D",
    ),
    (
      "score.lengths",
      tuple(config.score.lengths),
      all(n > 0 for n in config.score.lengths),
      "give positive lengths",
    ),
  ]
  for name in ("train", "reference.train", "teacher.train"):
    t = config[name] if "." not in name else config[name[:-6]].train
    rules += [
      (f"{name}.steps", t.steps, t.steps > 0, "give 1 or more"),
      (f"{name}.batch_size", t.batch_size, t.batch_size > 0, "give 1 or more"),
      (
        f"{name}.warmup_steps",
        t.warmup_steps,
        0 <= t.warmup_steps < t.steps,
        "give fewer than steps",
      ),
      (
        f"{name}.reduction",
        t.reduction,
        t.reduction in ("instance_mean", "token_mean"),
        "choose instance_mean or token_mean",
      ),
    ]
  for name, value, good, todo in rules:
    if not good:
      raise UserError(f"config.{name} is {value!r}", where, todo)


def _same_fields(config, known, name, where):
  for field in known:
    if field not in config:
      raise UserError(
        f"field {name}.{field} is missing",
        where,
        "start from miniplm_jax.config.default(), which has them all",
      )
    if isinstance(known[field], ConfigDict):
      _same_fields(config[field], known[field], f"{name}.{field}", where)
  for field in config:
    if field not in known:
      raise UserError(
        f"unknown field {name}.{field}",
        where,
        f"the fields there are {', '.join(sorted(known))}",
      )


def for_method(config: ConfigDict, method: str) -> types.SimpleNamespace:
  """Names and ranking of one method: `selection`, `student`, `definition`."""
  return types.SimpleNamespace(
    selection=config.select.name.format(method=method),
    student=config.student.name.format(method=method),
    definition=METHODS[method] or config.select.definition,
  )


def methods(config: ConfigDict) -> tuple[str, ...]:
  """All methods of a run, the main one first."""
  return tuple(dict.fromkeys((config.method, *config.baselines)))
