"""Stage select: the best rows of D, once a method, from stored scores."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Mapping

from etils import epy

from miniplm_jax.core import files
from miniplm_jax.core.log import log, warn
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.criteria import CRITERIA

with epy.lazy_imports():  # NumPy and PyArrow
  from miniplm_jax.corpus import store
  from miniplm_jax.select import candidates as candidates_lib
  from miniplm_jax.select import scored, writing

STAGE = "select"


def steps(
  config, workdir: Workdir, check: Callable[[Manifest], None]
) -> list[Step]:
  """One step a selection; two methods may share one.

  Args:
    config: its methods and how they select.
    workdir: of the scores and the selections.
    check: looks, before anything is read, at what else will be asked for;
      takes the manifest of the corpus.
  """
  names = config.names
  by_selection = {n.selection: n for n in names}
  return [_step(config, workdir, n, check) for n in by_selection.values()]


def _step(config, workdir: Workdir, names, check) -> Step:
  directory = workdir.selection(names.selection)
  c, roles = config.select, CRITERIA[names.definition].reads
  settings = {
    "definition": names.definition,
    "ratio": c.ratio,
    "rows": c.rows,
    "tokens": c.tokens,
    "temperature": c.temperature,
    "seed": c.seed,
    "min_length": c.min_length,
    "max_copies": c.max_copies,
    "near_duplicates": c.near_duplicates,
    "quotas": sorted(c.quotas),
    "scores": {role: getattr(config, role).name for role in roles},
  }
  return Step(
    stage=STAGE,
    manifest=directory / MANIFEST,
    settings=settings,
    idle=() if c.temperature or names.definition == "random" else ("seed",),
    inputs={
      "corpus": workdir.corpus / MANIFEST,
      **{
        role: workdir.scores(getattr(config, role).name) / MANIFEST
        for role in roles
      },
    },
    outputs=(directory / "rows.npy",),
    summary=_summary(settings),
    run=lambda inputs: _run(settings, directory, inputs, check),
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


def _run(settings, directory, inputs, check):
  check(inputs["corpus"])
  for role in settings["scores"]:
    details = inputs[role].details
    if details.get("devices", 1) > 1 and "self_check" not in details:
      warn(
        STAGE,
        f"{inputs[role].directory} is of a version that mixed up rows "
        "on most slices of several hosts; if it was made on one, look whether "
        "it is right with --stages=verify",
      )
  corpus = store.Corpus(inputs["corpus"])
  candidates = candidates_lib.Candidates(
    scored.of_selection(settings, inputs), settings
  )
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(
      tempfile.TemporaryDirectory(prefix="miniplm_jax_")
    )
    candidates.leave_out_copies(corpus, pathlib.Path(folder))
    found = candidates.cutoff()
    scratch = stack.enter_context(files.replacing(directory / "rows.npy"))
    counts = writing.write(scratch, candidates, found)
  for line in writing.shortfalls(candidates, found, counts):
    log(STAGE, line)
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "files": {"rows.npy": files.describe(directory / "rows.npy")},
    "counts": {
      "rows": found.rows,
      "kept": found.kept,
      "tokens": counts.tokens,
      "dropped": candidates.dropped,
      "domains": counts.domains,
    },
    "details": {
      "cutoff": dataclasses.asdict(found),
      "select/kept_ratio": found.kept / found.rows,
    },
  }
