"""What a configuration may say: every rule a line, no JAX."""

import re

from ml_collections import ConfigDict

from miniplm_jax import evaluation_config, method_config
from miniplm_jax.config import (
  CONVERSIONS,
  DEFINITIONS,
  FORMATS,
  LOOKS,
  MODELS,
  REMAT,
  STAGES,
  default,
  share_of,
  weight_of,
)
from miniplm_jax.core.errors import UserError
from miniplm_jax.methods import (
  METHODS,
  for_method,
  methods,
)

_DTYPES = ("float32", "bfloat16")
_REDUCTIONS = ("instance_mean", "token_mean")


def check(config: ConfigDict, where: str):
  """Raises UserError at the first thing that cannot be meant.

  Args:
    config: as loaded, overrides applied.
    where: the config file, for messages.
  """
  if not isinstance(config, ConfigDict):
    raise UserError(
      "get_config() does not return a ConfigDict",
      where,
      "start from miniplm_jax.config.default()",
    )
  _same_fields(config, default(), "config", where)
  for name, value, good, todo in _rules(config):
    if not good:
      raise UserError(f"config.{name} is {value!r}", where, todo)
  _check_names(config, where)


def _rules(config):
  """(field, value, whether it is good, what to do)."""

  def among(name, value, allowed):
    return name, value, value in allowed, f"choose from {', '.join(allowed)}"

  def at_least(name, value, least):
    return name, value, value >= least, f"give {least} or more"

  c, run = config.corpus, config.run
  for method in methods(config):
    yield among("method", method, METHODS)
  for stage in config.stages:
    yield among("stages", stage, STAGES + LOOKS)
  yield "workdir", config.workdir, bool(config.workdir), "name a folder"
  yield at_least("corpus.max_length", c.max_length, 2)
  yield at_least("corpus.part_bytes", c.part_bytes, 1)
  if c.tokenizer == "train":
    # 256 bytes and the end of a document
    yield at_least("corpus.vocab_size", c.vocab_size, 257)
  shares = c.reference_share, c.heldout_share, c.teacher_share
  good = min(shares) >= 0 and sum(shares) < 1
  yield "corpus.*_share", shares, good, "let them be ≥ 0 and leave some for D"
  yield from _selection_rules(config.select, among, at_least)
  student = config.student
  yield among("student.conversion", student.conversion, CONVERSIONS)
  good = bool(student.eos_token) == bool(student.tokenizer)
  todo = "give student.tokenizer and its student.eos_token, or neither"
  yield "student.eos_token", student.eos_token, good, todo
  good = bool(student.tokenizer) or not student.bos_token
  todo = "give student.tokenizer too, or no BOS"
  yield "student.bos_token", student.bos_token, good, todo
  yield among(
    "materialize.format", config.materialize.format, ("none", *FORMATS)
  )
  for length in config.score.lengths:
    yield at_least("score.lengths", length, 1)
  yield from method_config.rules(config, among, at_least)
  for name in ("rows_per_part", "batch_tokens", "int8_rows"):
    yield at_least(f"score.{name}", config.score[name], 1)
  yield among("score.dtype", config.score.dtype, _DTYPES)
  taken = {config.teacher.name, config.reference.name}
  for text in config.score.more:
    found = re.fullmatch(r"(\w[\w.-]*)=(.+)", text)
    good = bool(found) and found[1] not in taken
    yield "score.more", text, good, "give NAME=DIRECTORY_OR_HUB_ID, a new name"
    taken.add(found[1])
  good = not (config.score.int8_teacher and config.reference.scores)
  todo = "let the reference be scored here: the ranking is compared"
  yield "score.int8_teacher", config.score.int8_teacher, good, todo
  for name in ("least_spearman", "least_agreement"):
    value = config.score[f"int8_{name}"]
    yield f"score.int8_{name}", value, 0 <= value <= 1, "give 0 to 1"
  name = config.plan.topology
  yield "plan.topology", name, bool(name), "name a slice, such as v5e:4x4"
  yield at_least("plan.price", config.plan.price, 0)
  yield at_least("plan.rows", config.plan.rows, 1)
  yield at_least("run.self_check_rows", config.run.self_check_rows, 0)
  yield at_least("verify.rows", config.verify.rows, 1)
  yield at_least("verify.seed", config.verify.seed, 0)
  yield at_least("verify.tolerance", config.verify.tolerance, 0)
  yield at_least("evaluate.max_rows", config.evaluate.max_rows, 0)
  yield from evaluation_config.rules(config, among, at_least)
  yield among("export.dtype", config.export.dtype, _DTYPES)
  size = config.export.max_shard_size
  good = re.fullmatch(r"[1-9]\d*[KMGT]B", size)
  yield "export.max_shard_size", size, good, "give a size such as 5GB"
  g = config.generate
  for name in ("samples", "max_new_tokens"):
    yield at_least(f"generate.{name}", g[name], 1)
  for name in ("temperature", "top_k", "seed"):
    yield at_least(f"generate.{name}", g[name], 0)
  good = all(isinstance(p, str) for p in g.prompts)
  yield "generate.prompts", g.prompts, good, "give texts"
  yield "generate.top_p", g.top_p, 0 < g.top_p <= 1, "give a number in (0, 1]"
  yield among("generate.dtype", g.dtype, _DTYPES)
  yield among("run.remat", run.remat, REMAT)
  good = run.lease_seconds > 0
  yield "run.lease_seconds", run.lease_seconds, good, "give more than 0"
  yield (
    "run.coordinator",
    run.coordinator,
    run.coordinator in ("", "auto")
    or re.fullmatch(r"\S+:\d+", run.coordinator),
    "give HOST:PORT of the first process, or auto on a TPU pod",
  )
  yield at_least("run.processes", run.processes, 1)
  for name in ("checkpoint_every", "keep_checkpoints", "eval_rows"):
    yield at_least(f"run.{name}", run[name], 1)
  every, odd = run.checkpoint_every, run.keep_every % run.checkpoint_every
  todo = f"give 0 or a multiple of checkpoint_every, {every}"
  yield "run.keep_every", run.keep_every, not odd, todo
  yield at_least("run.profile_first_step", run.profile_first_step, 1)
  good = not set(run.wandb_project) & set("/\\#?%:")
  yield "run.wandb_project", run.wandb_project, good, "leave out /\\#?%:"
  for name in (
    "eval_every",
    "keep_every",
    "export_every",
    "profile_steps",
    "hang_seconds",
    "per_device_batch_size",
    "tokenize_workers",
    "max_broken",
  ):
    yield at_least(f"run.{name}", run[name], 0)
  for name in ("data", "fsdp", "tensor"):
    good = run[name] >= 1 or run[name] == -1
    yield f"run.{name}", run[name], good, "give 1 or more, or -1"
  for name, t in (
    ("train", config.train),
    ("reference.train", config.reference.train),
    ("teacher.train", config.teacher.train),
    ("proxy.train", config.proxy.train),
  ):
    yield at_least(f"{name}.steps", t.steps, 1)
    yield at_least(f"{name}.batch_size", t.batch_size, 1)
    yield at_least(f"{name}.seed", t.seed, 0)
    good = 0 <= t.warmup_steps < t.steps
    yield f"{name}.warmup_steps", t.warmup_steps, good, "give fewer than steps"
    yield among(f"{name}.reduction", t.reduction, _REDUCTIONS)
    yield among(f"{name}.dtype", t.dtype, _DTYPES)
    yield at_least(f"{name}.z_loss", t.z_loss, 0)
    yield from _weight_rules(f"{name}.domain_weights", t.domain_weights)


def _weight_rules(name, weights):
  """Those of a section's domain_weights."""
  seen = set()
  for text in weights:
    try:
      domain, _ = weight_of(text)
      good = domain not in seen
      seen.add(domain)
    except (ValueError, ArithmeticError):
      good = False
    yield name, text, good, "give DOMAIN=WEIGHT, each once, 0 or more"


def _selection_rules(s, among, at_least):
  """Those of section select."""
  yield among("select.definition", s.definition, DEFINITIONS)
  budget = s.ratio, s.rows, s.tokens
  good = 0 <= s.ratio <= 1 and sum(map(bool, budget)) == 1
  todo = "give one, and 0 for the others; a ratio is in (0, 1]"
  yield "select.ratio, rows, tokens", budget, good, todo
  for pattern in s.evaluation_sets:
    good = isinstance(pattern, str) and bool(pattern)
    yield "select.evaluation_sets", pattern, good, "give files or globs"
  good = "/" not in s.compare_with
  yield "select.compare_with", s.compare_with, good, "name a selection"
  for name in ("rows", "tokens", "min_length", "max_copies"):
    yield at_least(f"select.{name}", s[name], 0)
  value = s.temperature
  yield "select.temperature", value, 0 <= value <= 1e6, "give 0 to 1e6"
  # Both ends fit into the 64 bits that the noise is drawn from.
  yield "select.seed", s.seed, 0 <= s.seed < 2**63, "give 0 to 2^63 - 1"
  value = s.near_duplicates
  yield "select.near_duplicates", value, 0 <= value <= 1, "give 0 to 1"
  least, seen = 0, set()
  for text in s.quotas:
    try:
      domain, share, _ = share_of(text)
      good = domain not in seen
      seen.add(domain)
      least += share
    except (ValueError, ArithmeticError):
      good = False
    todo = "give DOMAIN=LEAST:LARGEST, each once, shares in 0 to 1"
    yield "select.quotas", text, good, todo
  todo = "lower the least shares: together they are more than 1"
  yield "select.quotas", s.quotas, least <= 1, todo


def _check_names(config, where):
  """No two methods may write to one folder, unless it is the same thing."""
  try:
    names = [for_method(config, method) for method in methods(config)]
  except (KeyError, IndexError, ValueError) as e:
    raise UserError(
      f"a name cannot be filled in ({e})",
      f"{where}, select.name or student.name",
      "use {method} and no other field",
    ) from e
  students = {n.student for n in names}
  selections = {n.selection for n in names}
  if len(students) < len(names):
    raise UserError(
      "two methods have one student name",
      f"{where}, student.name",
      "put {method} into it",
    )
  if len(selections) < len({(n.selection, n.definition) for n in names}):
    raise UserError(
      "two methods that rank differently have one selection name",
      f"{where}, select.name",
      "put {method} into it",
    )


def _same_fields(config, known, name, where):
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"{name} is {config!r} and not a section",
      where,
      f"give it the fields {', '.join(sorted(known))}",
    )
  if "family" in known:  # a model's shape: its fields depend on it
    family = config.get("family", "missing")
    if family not in MODELS:
      raise UserError(
        f"{name}.family is {family!r}",
        where,
        f"choose from {', '.join(MODELS)}",
      )
    known = MODELS[family]()
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
