"""Stage select: the best rows of D, once a method, from stored scores."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax import criteria
from miniplm_jax.config import SelectConfig
from miniplm_jax.core import contents, files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import warn
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.criteria.nodes import FIELD

with epy.lazy_imports():  # NumPy and PyArrow
  from miniplm_jax.corpus import store
  from miniplm_jax.selection import items, row_fields, selection

STAGE = "select"
_PIECES = "contaminated-*.parquet"  # see overlap.contaminated
_SETS = "exclude_sets"  # an input
_SETTINGS = (
  *("ratio", "rows", "tokens", "temperature", "seed", "min_length"),
  *("max_copies", "near_duplicates"),
)


@dataclasses.dataclass(frozen=True)
class Selecting:
  """The kept rows of one selection."""

  select: SelectConfig
  definition: str  # by what rows are ranked, a key of `CRITERIA` or a formula
  # Folders of score tables by their names in formulas, others among them.
  tables: Mapping[str, epath.Path]
  corpus: epath.Path  # the manifest of what was scored
  folder: epath.Path
  # Looks, before anything is read, at what else will be asked for.
  check: Callable[[Manifest], None] = lambda corpus: None
  # Of the stage that it is for, see `selection.select`; none is all.
  steps: Sequence[int] = ()
  # Manifests of earlier stages' selections.
  before: Mapping[str, epath.Path] = dataclasses.field(default_factory=dict)

  def step(self) -> Step:
    """The step that writes them."""
    select, folder, tables = self.select, self.folder, self.tables
    criterion = criteria.criterion(self.definition)
    fields, sets = criterion.formula.fields, select.exclude_sets
    of_files = {k: v for k, v in select.files.items() if k in fields}
    given = {
      FIELD + name: row_fields.Files(path) for name, path in of_files.items()
    }
    if sets:
      given[_SETS] = _items(sets)
    if not (folder / MANIFEST).exists():
      # What is not there is said now, not when all is scored.
      if sets:
        items.paths(sets, _SETS)
      for name, path in of_files.items():
        row_fields.File(path, name, 0)
    settings = {name: getattr(select, name) for name in _SETTINGS} | {
      "definition": criteria.canonical(self.definition),
      "quotas": sorted(select.quotas),
      "scores": {role: tables[role].name for role in criterion.reads},
    }
    if select.redundancy:
      settings["redundancy"] = select.redundancy
    if select.share < 1:
      settings["share"] = select.share
    inputs = {name: tables[name] / MANIFEST for name in criterion.reads} | given
    if self.steps:
      settings["steps"] = [*self.steps]
      inputs |= self.before
    return Step(
      stage=STAGE,
      manifest=folder / MANIFEST,
      settings=settings,
      idle=() if select.is_drawn(self.definition) else ("seed",),
      inputs={"corpus": self.corpus, **inputs},
      outputs=(folder / "rows.npy", *[folder / _PIECES] * bool(sets)),
      summary=_summary(settings)
      + (f", without items of {', '.join(sets)}" if sets else "")
      + ":",
      subject=f"{folder.name} by {settings['definition']}",
      run=self._run,
      policy=Policy(is_host_only=True),
    )

  def _run(self, inputs: Mapping[str, Manifest]) -> dict[str, Any]:
    select, folder, sets = self.select, self.folder, self.select.exclude_sets
    self.check(inputs["corpus"])
    corpus = store.Corpus(inputs["corpus"])
    for role in criteria.criterion(self.definition).reads:
      table, details = inputs[role], inputs[role].details
      if details.get("devices", 1) > 1 and "self_check" not in details:
        warn(
          STAGE,
          f"{table.directory} is of a version that mixed up rows on most "
          "slices of several hosts; if it was made on one, look whether it is "
          "right with --stages=verify",
        )
    if sets:
      prints = corpus.manifest.fingerprint, _items(sets)()
      _take_pieces(folder, dict(zip(("corpus", _SETS), prints)))
    path = folder / "rows.npy"
    with files.replacing(path) as scratch:
      kept = [kept_rows(inputs[name]) for name in self.before]
      selected = selection.select(
        corpus,
        inputs,
        self.definition,
        select,
        scratch,
        self.steps or (0, 1, 1),
        kept,
        folder,
      )
    for line in selected.shortfalls:
      warn(STAGE, line)
    cutoff, counts = selected.cutoff, selected.counts
    pieces = sorted(folder.glob(_PIECES)) if sets else ()
    return {
      "tokenizer": corpus.manifest.tokenizer,
      "files": {p.name: files.describe(p) for p in (path, *pieces)},
      "counts": {
        "rows": cutoff.rows,
        "kept": cutoff.kept,
        "tokens": counts.tokens,
        "dropped": selected.dropped,
        "domains": counts.domains,
        **({"contaminated": selected.contaminated} if sets else {}),
      },
      "details": {
        "cutoff": dataclasses.asdict(cutoff),
        "select/kept_ratio": cutoff.kept / cutoff.rows,
      },
    }


def _items(sets: Sequence[str]) -> contents.Whole:
  """The files of `select.exclude_sets`, as an input of a step."""
  return contents.Whole(lambda: items.paths(sets, _SETS), ",".join(sets))


def _take_pieces(folder: epath.Path, made_from: Mapping[str, str]):
  """Copies what a selection beside this one has found in the same rows."""
  for path in sorted(folder.parent.glob(f"*/{MANIFEST}")):
    with contextlib.suppress(UserError):  # what is damaged is made here
      other = manifest_lib.require(path)
      if made_from.items() <= other.inputs.items():
        for name in other.files.keys() - {"rows.npy"}:
          with other.reading(name) as piece:
            files.write_bytes(folder / name, piece.read_bytes())
        return


def _summary(s: Mapping) -> str:
  """What is selected, in one line."""
  amount = f"top {s['ratio']:.4g} of D"
  for unit in ("rows", "tokens"):
    if s[unit]:
      amount = f"top {s[unit]:,} {unit} of D"
  words = [f"the {amount}"]
  for name in ("temperature", "min_length", "max_copies", "near_duplicates"):
    if s[name]:
      words.append(f"{name} {s[name]:g}")
  if s["quotas"]:
    words.append(f"quotas {' '.join(s['quotas'])}")
  if "redundancy" in s:
    words.append(f"redundancy {s['redundancy']:g}")
  if "share" in s:
    words.append(f"of rows drawn of D, a share of {s['share']:g}")
  if "steps" in s:
    words.append("for steps {} to {} of {}".format(*s["steps"]))
  return ", ".join(words)


def union(
  first: Step,
  parts: Mapping[str, epath.Path],
  then: Mapping[str, Any],
  folder: epath.Path,
) -> Step:
  """All rows of a training in stages, as a selection.

  Args:
    first: that of the first stage, whose criterion it names as its own.
    parts: manifests of all stages' selections.
    then: the criterion of the others, and when they begin.
  """
  settings = {k: v for k, v in first.settings.items() if k != "steps"}

  def run(inputs):
    corpus, path = store.Corpus(inputs["corpus"]), folder / "rows.npy"
    made = [inputs[name] for name in parts]
    with files.replacing(path) as scratch:
      kept = [kept_rows(manifest) for manifest in made]
      selection.write_union(scratch, corpus, kept)
    counts, by_domain = made[0].counts, collections.Counter()
    for one in made:
      by_domain.update({k: n["kept"] for k, n in one.counts["domains"].items()})
    of_d = counts["domains"].items()
    return {
      "tokenizer": corpus.manifest.tokenizer,
      "files": {path.name: files.describe(path)},
      "counts": counts
      | {k: sum(m.counts[k] for m in made) for k in ("kept", "tokens")}
      | {"kept_by_stage": [m.counts["kept"] for m in made]}
      | {"domains": {k: n | {"kept": by_domain[k]} for k, n in of_d}},
    }

  return dataclasses.replace(
    first,
    manifest=folder / MANIFEST,
    settings=settings | {"staged": then},
    inputs={**first.inputs, **parts},
    outputs=(folder / "rows.npy",),
    summary=f"the rows of all {len(parts)} stages of",
    subject=folder.name,
    run=run,
  )
