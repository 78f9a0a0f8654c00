"""What a configuration may say, no JAX.

What a field may be stands beside it, see `core/fields.py`; here is what
several must be together.
"""

import os
import re
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict, config_dict

from miniplm_jax import method_config
from miniplm_jax.config import FIELDS, share_of, weight_of
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import NAME_TODO, Field, Section, is_name
from miniplm_jax.core.workdir import FOLDERS, UNREADABLE
from miniplm_jax.methods import for_method, methods
from miniplm_jax.model_config import MODELS

# (name, section, key in it, what the value may be)
Leaf = tuple[str, ConfigDict, str, Field]


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
  for name, section, key, field in leaves(config, where):
    try:
      value = section[key]
    except config_dict.RequiredValueError as e:
      raise UserError(f"{name} is not set", where, field.todo) from e
    if (bad := field.first_bad(value)) is not None:
      raise UserError(f"{name} is {_shown(bad[0])}", where, bad[1])
  for name, value, good, todo in _rules(config):
    if not good:
      raise UserError(f"config.{name} is {_shown(value)}", where, todo)


def _shown(value) -> str:
  text = repr(value)
  return text if len(text) <= 200 else f"{text[:200]} …"


def leaves(
  config: ConfigDict,
  where: str = "",
  fields: Section = FIELDS,
  name: str = "config",
) -> Iterator[Leaf]:
  """All fields of a config.

  Raises:
    UserError: one is missing, or is not known.
  """
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"{name} is {_shown(config)} and not a section",
      where,
      f"give it the fields {', '.join(sorted(fields))}",
    )
  if "family" in fields:  # a model's shape: its fields depend on it
    family = str(config.get("family", "missing"))
    if family not in MODELS:
      raise UserError(
        f"{name}.family is {family!r}",
        where,
        f"choose from {', '.join(MODELS)}",
      )
    fields = MODELS[family]
  for key in fields:
    if key not in config:
      raise UserError(
        f"field {name}.{key} is missing",
        where,
        "start from miniplm_jax.config.default(), which has them all",
      )
  for key in config:
    if key not in fields:
      raise UserError(
        f"unknown field {name}.{key}",
        where,
        f"the fields there are {', '.join(sorted(fields))}",
      )
  for key, field in fields.items():
    if isinstance(field, Field):
      yield f"{name}.{key}", config, key, field
    else:
      yield from leaves(config[key], where, field, f"{name}.{key}")


def expand(config: ConfigDict):
  """Replaces ~ in everything that names a file or a folder."""
  for _, section, key, field in leaves(config):
    section[key] = field.expanded(section[key])


def paths(config: ConfigDict) -> Iterator[str]:
  """Everything in a config that names a file, a folder or a hub id."""
  for _, section, key, field in leaves(config):
    yield from field.paths(section[key])


def _rules(config):
  """(fields, value, whether it is good, what to do)."""
  c, s, run = config.corpus, config.select, config.run
  path = config.workdir
  good = path.startswith("gs://") or not re.match(r"\w+:/", path)
  yield "workdir", path, good, "give a folder of this machine or gs://BUCKET/…"
  good = not UNREADABLE.intersection(os.path.abspath(path))
  todo = "give one without any of " + " ".join(sorted(UNREADABLE))
  yield "workdir", path, good, todo
  yield "stages", config.stages, bool(config.stages), "name what is to run"
  good = c.tokenizer != "train" or c.vocab_size >= 257
  todo = "give 257 or more: 256 bytes and the end of a document"
  yield "corpus.vocab_size", c.vocab_size, good, todo
  shares = c.reference_share, c.heldout_share, c.teacher_share
  yield "corpus.*_share", shares, sum(shares) < 1, "leave some for D"
  budget = s.ratio, s.rows, s.tokens
  todo = "give one, and 0 for the others; a ratio is in (0, 1]"
  yield "select.ratio, rows, tokens", budget, sum(map(bool, budget)) == 1, todo
  shares = list(map(share_of, s.quotas))
  good = _differ(domain for domain, *_ in shares)
  yield "select.quotas", s.quotas, good, "name each domain once"
  todo = "lower the least shares: together they are more than 1"
  good = sum(least for _, least, _ in shares) <= 1
  yield "select.quotas", s.quotas, good, todo
  student = config.student
  good = bool(student.eos_token) == bool(student.tokenizer)
  todo = "give student.tokenizer and its student.eos_token, or neither"
  yield "student.eos_token", student.eos_token, good, todo
  good = bool(student.tokenizer) or not student.bos_token
  todo = "give student.tokenizer too, or no BOS"
  yield "student.bos_token", student.bos_token, good, todo
  for name, section in (("corpus", c), ("student", student)):
    token = section.bos_token
    good = not token or token != section.eos_token
    todo = "give none: a text follows the end of another"
    yield f"{name}.bos_token", token, good, todo
  yield from method_config.rules(config)
  good = not (config.score.int8_teacher and config.reference.scores)
  todo = "let the reference be scored here: the ranking is compared"
  yield "score.int8_teacher", config.score.int8_teacher, good, todo
  mesh = run.data, run.fsdp, run.tensor
  todo = "let one be -1, what is left"
  yield "run.data, fsdp, tensor", mesh, mesh.count(-1) <= 1, todo
  every, odd = run.checkpoint_every, run.keep_every % run.checkpoint_every
  todo = f"give 0 or a multiple of checkpoint_every, {every}"
  yield "run.keep_every", run.keep_every, not odd, todo
  good = run.process_id < run.processes or run.coordinator == "auto"
  yield "run.process_id", run.process_id, good, "give less than run.processes"
  cache = run.compilation_cache
  if "://" not in cache:
    cache = os.path.join(config.workdir, cache)
  root, cache = map(os.path.realpath, (config.workdir, cache))
  good = os.path.relpath(cache, root).partition("/")[0] not in FOLDERS
  todo = "name a folder that nothing else is in"
  yield "run.compilation_cache", run.compilation_cache, good, todo
  for name, t in (
    ("train", config.train),
    ("reference.train", config.reference.train),
    ("teacher.train", config.teacher.train),
    ("proxy.train", config.proxy.train),
  ):
    good = t.warmup_steps < t.steps
    yield f"{name}.warmup_steps", t.warmup_steps, good, "give fewer than steps"
    good = _differ(domain for domain, _ in map(weight_of, t.domain_weights))
    todo = "name each domain once"
    yield f"{name}.domain_weights", t.domain_weights, good, todo
  yield from _name_rules(config)


def _name_rules(config):
  """Nothing may be written over something else."""
  tables = [
    ("teacher.name", config.teacher.name),
    ("reference.name", config.reference.name),
    ("proxy.name", config.proxy.name),
    *(("score.more", text.partition("=")[0]) for text in config.score.more),
  ]
  for i, (name, value) in enumerate(tables):
    others = [other for _, other in tables[:i]]
    good = _folders_differ([value, *others]) or not _folders_differ(others)
    yield name, value, good, "give a name that no other table of scores has"
  # Scores that are there would be read for the other model's.
  roles = "teacher", "reference", "proxy"
  for role in roles:
    value = config[role].name
    good = value.casefold() not in set(roles) - {role}
    yield f"{role}.name", value, good, "give a name that is not another's role"
  made = [for_method(config, method) for method in methods(config)]
  for key in "student", "selection":
    names = [getattr(n, key) for n in made]
    section = "select" if key == "selection" else key
    todo = f"it is a folder's: {NAME_TODO}"
    yield f"{section}.name", names, all(map(is_name, names)), todo
  good = _folders_differ([n.student for n in made])
  todo = "put {method} into it: two methods have one"
  yield "student.name", config.student.name, good, todo
  # One selection may serve two methods that rank alike.
  ranked = {(n.selection, n.definition): n.selection for n in made}
  good = _folders_differ(ranked.values())
  todo = "put {method} into it: two methods that rank differently have one"
  yield "select.name", config.select.name, good, todo


def _differ(names: Iterable[str]) -> bool:
  names = list(names)
  return len(set(names)) == len(names)


def _folders_differ(names: Iterable[str]) -> bool:
  """Whether all differ, also where folders do not tell A from a."""
  return _differ(name.casefold() for name in names)
