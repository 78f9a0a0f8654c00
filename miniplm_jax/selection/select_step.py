"""Stage select: the best rows of D, once a method, from stored scores."""

import dataclasses
from collections.abc import Callable, Mapping

from etils import epath, epy

from miniplm_jax import criteria
from miniplm_jax.config import SelectConfig
from miniplm_jax.core import files
from miniplm_jax.core.log import warn
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST

with epy.lazy_imports():  # NumPy and PyArrow
  from miniplm_jax.corpus import store
  from miniplm_jax.selection import selection

STAGE = "select"


def step(
  select: SelectConfig,
  definition: str,
  tables: Mapping[str, epath.Path],
  corpus: epath.Path,
  folder: epath.Path,
  check: Callable[[Manifest], None] = lambda corpus: None,
) -> Step:
  """The kept rows of one selection.

  Args:
    select: how much is kept, and of what.
    definition: by what rows are ranked, a key of `CRITERIA` or a formula.
    tables: folders of score tables by their names in formulas; others may be
      among them.
    corpus: the manifest of what was scored.
    folder: of the selection.
    check: looks, before anything is read, at what else will be asked for.
  """
  criterion = criteria.criterion(definition)
  settings = {
    "definition": criteria.canonical(definition),
    "ratio": select.ratio,
    "rows": select.rows,
    "tokens": select.tokens,
    "temperature": select.temperature,
    "seed": select.seed,
    "min_length": select.min_length,
    "max_copies": select.max_copies,
    "near_duplicates": select.near_duplicates,
    "quotas": sorted(select.quotas),
    "scores": {role: tables[role].name for role in criterion.reads},
  }
  return Step(
    stage=STAGE,
    manifest=folder / MANIFEST,
    settings=settings,
    idle=() if select.temperature or criterion.formula.is_random else ("seed",),
    inputs={"corpus": corpus}
    | {name: tables[name] / MANIFEST for name in criterion.reads},
    outputs=(folder / "rows.npy",),
    summary=_summary(settings),
    run=lambda inputs: _run(select, definition, folder, inputs, check),
    policy=Policy(is_host_only=True),
  )


def _summary(s: Mapping) -> str:
  """What is selected, in one line."""
  amount = f"top {s['ratio']:.4g} of D"
  for unit in ("rows", "tokens"):
    if s[unit]:
      amount = f"top {s[unit]:,} {unit} of D"
  words = [f"the {amount} by {s['definition']}"]
  for name in ("temperature", "min_length", "max_copies", "near_duplicates"):
    if s[name]:
      words.append(f"{name} {s[name]:g}")
  if s["quotas"]:
    words.append(f"quotas {' '.join(s['quotas'])}")
  return ", ".join(words)


def _run(
  select: SelectConfig,
  definition: str,
  folder: epath.Path,
  inputs: Mapping[str, Manifest],
  check: Callable[[Manifest], None],
):
  check(inputs["corpus"])
  corpus = store.Corpus(inputs["corpus"])
  for role in criteria.criterion(definition).reads:
    table, details = inputs[role], inputs[role].details
    if details.get("devices", 1) > 1 and "self_check" not in details:
      warn(
        STAGE,
        f"{table.directory} is of a version that mixed up rows "
        "on most slices of several hosts; if it was made on one, look whether "
        "it is right with --stages=verify",
      )
  path = folder / "rows.npy"
  with files.replacing(path) as scratch:
    selected = selection.select(corpus, inputs, definition, select, scratch)
  for line in selected.shortfalls:
    warn(STAGE, line)
  cutoff, counts = selected.cutoff, selected.counts
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "files": {path.name: files.describe(path)},
    "counts": {
      "rows": cutoff.rows,
      "kept": cutoff.kept,
      "tokens": counts.tokens,
      "dropped": selected.dropped,
      "domains": counts.domains,
    },
    "details": {
      "cutoff": dataclasses.asdict(cutoff),
      "select/kept_ratio": cutoff.kept / cutoff.rows,
    },
  }
