"""The configuration: what a file in `configs/` starts from, and its check.

`default` gives it as an `ml_collections.ConfigDict`, which config files and
flags change. `from_dict` turns that into a `Config` of frozen dataclasses, one
a section, or refuses it. No JAX and no TensorFlow here: `--help` and
`--dry_run` answer at once.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, config_dict

from miniplm_jax.config.compare import CompareConfig
from miniplm_jax.config.corpus import CorpusConfig
from miniplm_jax.config.methods import (
  ConditionalConfig,
  KDConfig,
  LogitsConfig,
  MiniLLMConfig,
  ProxyConfig,
  SeqKDConfig,
  SparseKDConfig,
  StagedConfig,
  TokenSelectionConfig,
)
from miniplm_jax.config.root import LOOKS, ON_REQUEST, STAGES, Config
from miniplm_jax.config.run import RunConfig
from miniplm_jax.config.sections import (
  DocumentsConfig,
  EvaluateConfig,
  EvaluationConfig,
  ExportConfig,
  GenerateConfig,
  MaterializeConfig,
  PlanConfig,
  ScoreConfig,
  ScorerConfig,
  SelectConfig,
  StudentConfig,
  VerifyConfig,
)
from miniplm_jax.config.training import TrainConfig
from miniplm_jax.core.errors import UserError, did_you_mean
from miniplm_jax.core.fields import (
  FieldError,
  Rule,
  Section,
  rules_of,
  sections_of,
  shown,
)
from miniplm_jax.models.architecture import (
  FAMILIES,
  Architecture,
  Mamba,
  Transformer,
  section_of,
)


def default() -> ConfigDict:
  """All fields. Types are checked and unknown fields refused."""
  fields = {
    field.name: field.default
    if "rule" in field.metadata
    else as_dict(field.default_factory())
    for field in dataclasses.fields(Config)
  }
  return ConfigDict(fields).lock()


def as_dict(section: Section) -> dict[str, Any]:
  """The fields of a section; a shape says its family, too."""
  if isinstance(section, Architecture):
    return section_of(section)
  return {
    name: as_dict(value) if isinstance(value, Section) else value
    for name, value in vars(section).items()
  }


def transformer() -> ConfigDict:
  """Shape of a Qwen or Llama; names as in Hugging Face's config.json."""
  return ConfigDict(section_of(Transformer()))


def mamba() -> ConfigDict:
  """Shape of a Mamba-1. Use: config.student.model = config_lib.mamba()."""
  return ConfigDict(section_of(Mamba()))


def from_dict(config: ConfigDict, where: str) -> Config:
  """Checks what the config file `where` and flags say.

  Returns:
    The same with ~ expanded in everything that names a file or a folder.

  Raises:
    UserError: at the first thing that cannot be meant.
  """
  if not isinstance(config, ConfigDict):
    raise UserError(
      "get_config() does not return a ConfigDict",
      where,
      "start from miniplm_jax.config.default()",
    )
  return _read(Config, config, "config", where)


def _read(kind: type[Section], config: Any, name: str, where: str) -> Section:
  """One section, and those that are in it."""
  kind = _kind(kind, config, name, where)
  values = {
    key: _checked(rule, config, key, f"{name}.{key}", where)
    for key, rule in rules_of(kind).items()
  }
  for key, part in sections_of(kind).items():
    values[key] = _read(part, config[key], f"{name}.{key}", where)
  with naming(name, where):
    return kind(**values)


@contextlib.contextmanager
def naming(name: str, where: str) -> Iterator[None]:
  """Says of a section that is refused where it stands, and in which file."""
  try:
    yield
  except FieldError as e:
    what = f"{name}.{e.field} is {shown(e.value)}"
    raise UserError(what, where, e.hint) from e
  except UserError as e:  # a shape that no model can have
    raise UserError(f"{name}: {e.what}", where, e.hint) from e


def _kind(kind: type[Section], config: Any, name: str, where: str):
  """The class of a section whose fields are all there, and no others.

  Raises:
    UserError: it is no section, has no such family, or other fields.
  """
  names = [field.name for field in dataclasses.fields(kind)]
  if not isinstance(config, ConfigDict):
    hint = f"give it the fields {', '.join(sorted(names))}"
    what = f"{name} is {shown(config)} and not a section"
    raise UserError(what, where, hint)
  if issubclass(kind, Architecture):
    family = str(config.get("family", "missing"))
    if family not in FAMILIES:
      hint = f"choose from {', '.join(FAMILIES)}"
      raise UserError(f"{name}.family is {family!r}", where, hint)
    kind = FAMILIES[family]
    names = ["family", *(field.name for field in dataclasses.fields(kind))]
  for key in names:
    if key not in config:
      hint = "start from miniplm_jax.config.default(), which has them all"
      raise UserError(f"field {name}.{key} is missing", where, hint)
  for key in config:
    if key not in names:
      hint = did_you_mean(key, names, "all are in miniplm_jax/config")
      raise UserError(f"unknown field {name}.{key}", where, hint)
  return kind


def _checked(rule: Rule, config, key: str, name: str, where: str) -> Any:
  """The value of a field, with ~ expanded if it is a path."""
  try:
    value = config[key]
  except config_dict.RequiredValueError as e:
    raise UserError(f"{name} is not set", where, rule.advice) from e
  if (bad := rule.first_bad(value)) is not None:
    raise UserError(f"{name} is {shown(bad[0])}", where, bad[1])
  return rule.expanded(value)


def paths(section: Section) -> Iterator[str]:
  """Yields everything that names a file, a folder or a hub id."""
  for key, rule in rules_of(type(section)).items():
    yield from rule.paths(getattr(section, key))
  for key in sections_of(type(section)):
    yield from paths(getattr(section, key))
