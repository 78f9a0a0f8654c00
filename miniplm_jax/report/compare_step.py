"""Stage compare: criteria × seeds beside each other.

The selections, students and losses are steps of their own stages; the last
step, here, reads them.
"""

import base64
import collections
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.config.compare import CompareConfig
from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.log import plain
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import CONVERTED, MANIFEST, Workdir
from miniplm_jax.criteria import criterion
from miniplm_jax.evaluation import divergence, heldout
from miniplm_jax.methods import MethodNames
from miniplm_jax.report.inventory import Student
from miniplm_jax.training import comparable
from miniplm_jax.training.trained import own_corpora

with epy.lazy_imports():  # NumPy, PyArrow and JAX
  import numpy as np

  from miniplm_jax.corpus import store
  from miniplm_jax.report import compare_page, paired
  from miniplm_jax.report.analyses import savings

STAGE = "compare"
FIGURES, TABLE, PICTURE = "compare.json", "table.csv", "compare.png"
_PARTS = "training", "selection", "evaluation"  # of a `Student`
_DIVERGENCE = "divergence"


def step(
  compare: CompareConfig,
  names: Mapping[str, Mapping[int, MethodNames]],
  workdir: Workdir,
  corpus: epath.Path,
  has_divergence: bool = False,
) -> Step:
  """The step that makes compare/[NAME] of what was made by criterion and seed.

  The corpus is its manifest, which may be of another workdir. If students were
  measured beside the teacher, that is shown too.
  """
  folder = workdir.compared(compare.name)
  settings = dataclasses.asdict(compare) | {"criteria": compare.definitions}
  del settings["name"]
  inputs, trained = {"corpus": corpus}, []
  for name, by_seed in names.items():
    for seed, one in by_seed.items():
      student = workdir.student(one.student)
      trained.append(student / MANIFEST)
      chosen = workdir.selection(one.selection) / MANIFEST
      paths = trained[-1], chosen, student / heldout.MANIFEST
      inputs |= {f"{name} {seed} {p}": at for p, at in zip(_PARTS, paths)}
      if has_divergence:
        measured = student / divergence.MANIFEST
        inputs[f"{name} {seed} {_DIVERGENCE}"] = measured
  return Step(
    stage=STAGE,
    manifest=folder / MANIFEST,
    settings=settings,
    inputs=inputs | {"curves": lambda: _curves(trained)},
    outputs=tuple(folder / n for n in (FIGURES, TABLE, PICTURE)),
    summary=f"table of {', '.join(names)} × {len(compare.seeds)} seeds, beside "
    f"{compare.baseline}",
    run=functools.partial(_run, compare, folder),
    policy=Policy(is_view=True, is_host_only=True),
  )


def _curves(trained: Sequence[epath.Path]) -> str:
  """A digest of the learning curves, of which no fingerprint tells."""
  students = [Student(m, None) for m in map(manifest_lib.read, trained) if m]
  return files.digest([[x.tolist() for x in s.curve()] for s in students])


def figures_of(compared: Manifest) -> dict[str, Any]:
  """What compare.json says; UserError unless it is the one that was written."""
  with compared.reading(FIGURES) as path:
    return json.loads(path.read_text())


def _run(
  compare: CompareConfig, folder: epath.Path, inputs: Mapping[str, Manifest]
) -> dict[str, Any]:
  students = {
    name: [
      Student(*(inputs[f"{name} {seed} {part}"] for part in _PARTS))
      for seed in compare.seeds
    ]
    for name in compare.definitions
  }
  figures = _measure(compare, students, inputs["corpus"])
  if f"{compare.baseline} {compare.seeds[0]} {_DIVERGENCE}" in inputs:
    apart = {
      name: [
        divergence.Divergence.of(inputs[f"{name} {seed} {_DIVERGENCE}"])
        for seed in compare.seeds
      ]
      for name in students
    }
    for key in paired.DIVERGENCES:
      by_seed = {
        name: np.array([getattr(one, key).value for one in its])
        for name, its in apart.items()
      }
      for name, made in paired.over_seeds(key, by_seed, compare.baseline):
        figures["criteria"][name] |= made
  shown = compare_page.section(figures)
  plain("\n".join(["", *shown.text, "", shown.table.text(), *shown.notes, ""]))
  content = {
    FIGURES: f"{json.dumps(figures, indent=1)}\n".encode(),
    TABLE: compare_page.to_csv(figures),
    PICTURE: base64.b64decode(shown.pictures[0][0]),
  }
  for name, data in content.items():
    files.write_bytes(folder / name, data)
  return {
    "tokenizer": inputs["corpus"].tokenizer,
    "files": {name: files.describe(folder / name) for name in content},
    "counts": {"criteria": len(students)}
    | {name: figures[name] for name in ("seeds", "heldout_rows")},
  }


def _measure(
  compare: CompareConfig,
  students: Mapping[str, Sequence[Student]],
  corpus: Manifest,
) -> dict[str, Any]:
  """What compare.json says."""
  baseline, definitions = compare.baseline, compare.definitions
  loss, curves, steps, rows = {}, {}, set(), set()
  for name, its in students.items():
    loss[name] = np.stack([_row_losses(one, corpus) for one in its])
    every = [one.curve() for one in its]
    steps |= {tuple(at.tolist()) for at, _ in every}
    rows |= {comparable.rows_of(one.training) for one in its}
    curves[name] = [values for _, values in every]
  where = f"corpus {corpus.directory}"
  criteria = paired.losses(loss, baseline, compare.oracle, where)
  points = steps.pop() if len(steps) == len(rows) == 1 else ()
  points = points if len(points) >= savings.LEAST_POINTS else ()
  reached = paired.to_target(points, curves, baseline) if points else {}
  for name, its in students.items():
    criteria[name] |= reached.get(name, {}) | {
      "curves": [values.tolist() for values in curves[name]],
      "formula": criterion(definitions[name]).text,
      "kept_rows": its[0].selection.counts["kept"],
      "kept_tokens": its[0].selection.counts["tokens"],
      "kept_of": _kept_of(its),
      "made_of": [
        {part: getattr(one, part).fingerprint for part in _PARTS} for one in its
      ],
    }
  settings, counts = its[0].training.settings, its[0].training.counts
  model, train = settings["model"], settings["train"] | {"seed": None}
  sizes = f"{model['num_hidden_layers']}×{model['hidden_size']}"
  return {
    "name": compare.name,
    "baseline": baseline,
    "oracle": compare.oracle,
    "corpus": corpus.fingerprint[:12],
    "student": f"{model.get('family', 'transformer')} {sizes}",
    "trained_tokens": counts["tokens"],
    **{name: counts[name] for name in ("parameters", "steps")},
    "seeds": len(compare.seeds),
    "heldout_rows": loss[baseline].shape[1],
    "draws": paired.DRAWS,
    "made_with": {"model": model, "train": train},
    "points": list(points),
    "unequal": compare_page.unequal(criteria),
    "criteria": criteria,
  }


def _kept_of(students: Sequence[Student]) -> dict[str, float]:
  """The share that is kept of rows that count, and of each ignored domain.

  Of all seeds together; {} if all domains count, or many do not.
  """
  ignored = students[0].evaluation.settings["ignore_domains"]
  if len(ignored) not in (1, 2, 3):
    return {}
  of_d, kept = collections.Counter(), collections.Counter()
  for one in students:
    for name, n in one.selection.counts["domains"].items():
      group = name if name in ignored else compare_page.COUNTED
      of_d[group] += n["rows"]
      kept[group] += n["kept"]
  # Of domains that are held out alone D has none.
  return {group: kept[group] / n for group, n in sorted(of_d.items()) if n}


def _row_losses(student: Student, corpus: Manifest):
  """The mean NLL of each held-out row that counts, float64 [rows], in nats."""
  row_ids, loss = heldout.row_means(student.evaluation)
  own = own_corpora(student.training).get(CONVERTED, corpus)
  domains = store.Corpus(own).domains(row_ids)
  counts = ~np.isin(domains, student.evaluation.settings["ignore_domains"])
  return loss[counts]
