"""What a workdir holds, by manifest, as far as it belongs together."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath, epy

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import CONVERTED, MANIFEST, Workdir
from miniplm_jax.methods import INIT
from miniplm_jax.training import comparable, flops
from miniplm_jax.training.trained import OF_SELECTION, own_corpora

with epy.lazy_imports():  # it imports JAX
  from miniplm_jax.training import metrics

# Settings of a selection that say how much it keeps.
BUDGET = "ratio", "rows", "tokens"
# Inputs of a student that follow its seed; settings without an objective's own.
BY_SEED = "selection", CONVERTED
_PLAIN = {"model", "train", "rows"}
# By name, what lies there and belongs together.
_Named = dict[str, Manifest]


@dataclasses.dataclass(frozen=True)
class Scored:
  """A score table, and what else is known of the model that made it."""

  table: Manifest
  evaluation: Manifest | None = None  # of the same model

  @property
  def parameters(self) -> int | None:
    """How many the model has; None is not known."""
    return self.table.counts.get("parameters")


@dataclasses.dataclass(frozen=True)
class Student:
  """A trained student."""

  training: Manifest
  selection: Manifest  # that it trained on
  evaluation: Manifest | None = None

  @property
  def reads_other_tokens(self) -> bool:
    """It has a tokenizer of its own: losses per token do not compare."""
    return CONVERTED in self.training.inputs

  @property
  def begins_with(self) -> str | None:
    """What fingerprints the weights of student.init; None without them."""
    return self.training.inputs.get(INIT)

  @property
  def is_baseline(self) -> bool:
    """It is of rows at random, with the plain loss."""
    read = {*self.training.inputs} - {"corpus", "tokenizer", INIT, *BY_SEED}
    is_plain = {*self.training.settings} <= _PLAIN and not read
    return is_plain and self.selection.settings["definition"] == "random"

  @property
  def offline_by_part(self) -> dict[str, float | None]:
    """FLOPs that were spent before its training; None is not known."""
    # A version that did not count them says nothing.
    return self.training.details.get(flops.OFFLINE, {"offline": None})

  @property
  def offline_flops(self) -> float | None:
    """All of them; None if a part is not known, or what it began with."""
    spent = self.offline_by_part.values()
    return None if None in spent or self.begins_with else sum(spent)

  @property
  def warmup(self) -> int:
    """Steps in which the learning rate still rises."""
    return self.training.settings["train"]["warmup_steps"]

  def per_step(self, what: str) -> float:
    """Tokens (positions, padding among them), rows or FLOPs of a step."""
    counts = self.training.counts
    total = {
      "tokens": counts["tokens"],
      "rows": counts["steps"] * self.training.settings["train"]["batch_size"],
      "FLOPs": self.training.details["train_flops"],
    }
    return total[what] / counts["steps"]

  def curve(self, key: str = "eval/loss") -> tuple[np.ndarray, np.ndarray]:
    """Steps int64 [n] and values float64 [n] of a metric of its training.

    By default its held-out losses in nats, as it was trained.
    """
    lines = metrics.read(self.training.directory / "metrics")
    steps, values = metrics.curve(lines, key)
    return np.array(steps, np.int64), np.array(values, np.float64)


def same_rows(
  students: Mapping[str, Student], measured_by: str
) -> tuple[dict[str, Student], list[str]]:
  """The students whose losses compare, and the names of those left out.

  Losses compare if they are means over the same held-out rows.

  Args:
    measured_by: "training" or "evaluation", whose manifest says which rows
      those are; a student that has none is in neither result.
  """
  manifests = {
    name: manifest
    for name, student in students.items()
    if (manifest := getattr(student, measured_by))
  }
  left_out = comparable.left_out(manifests)
  alike = {n: students[n] for n in manifests if n not in left_out}
  return alike, left_out


@dataclasses.dataclass(frozen=True)
class Inventory:
  """A workdir; tables, selections and students by name, in that order."""

  corpus: Manifest
  scores: dict[str, Scored]  # the tables of log-probs
  selections: dict[str, Manifest]  # of rows of this corpus
  students: dict[str, Student]  # on these selections
  teachers: list[str]  # tables of a teacher, the config's own first
  references: list[str]  # tables of a reference, likewise
  alpha: float  # the share by which rankings are compared
  left_out: list[str]  # what was made from something else, with why

  def manifests(self) -> Iterator[Manifest]:
    """All of them, to fingerprint."""
    yield self.corpus
    yield from self.selections.values()
    for scored in self.scores.values():
      yield scored.table
      if scored.evaluation:
        yield scored.evaluation
    for student in self.students.values():
      yield student.training
      if student.evaluation:
        yield student.evaluation


def take(
  workdir: Workdir,
  models: Mapping[str, str],
  more: Sequence[str] = (),
  alpha: float = 0.5,
) -> Inventory:
  """Reads the manifests of a workdir.

  Args:
    models: names of the config's own "teacher" and "reference".
    more: names of further models that score.

  Raises:
    UserError: there is no corpus.
  """
  corpus = manifest_lib.require(workdir.corpus / MANIFEST)
  left_out: list[str] = []

  def read(path: epath.Path, made_from: Callable) -> Manifest | None:
    """A manifest, unless it is missing or made from others than it should."""
    try:
      manifest = manifest_lib.read(path)
      if manifest:
        manifest.check_inputs(made_from(manifest))
      return manifest
    except UserError as e:
      left_out.append(f"{e}")
      return None

  def finished(folder: str, others: Callable = lambda _: {}) -> _Named:
    made = {
      path.parent.name: read(path, lambda m: {"corpus": corpus, **others(m)})
      for path in sorted((workdir.root / folder).glob(f"*/{MANIFEST}"))
    }
    return {name: manifest for name, manifest in made.items() if manifest}

  def evaluation(model: Manifest) -> Manifest | None:
    path = model.directory / "evaluation.json"
    return read(path, lambda _: {"model": model})

  tables = finished("scores")
  prints = {table.fingerprint for table in tables.values()}
  for name, table in list(tables.items()):
    learned = {
      table.inputs[role]
      for role, model in models.items()
      # Of a proxy. Scores may be removed when they have been used.
      if role in table.inputs and model in tables
    }
    if learned - prints:
      left_out.append(f"{table.directory}: its scores are not there any more")
      del tables[name]

  def ranked_by(selection: Manifest) -> _Named:
    scores = {}
    for role, name in selection.settings["scores"].items():
      if (workdir.scores(name) / MANIFEST).exists():
        if name not in tables:
          raise UserError(
            f"scores {name}, by which it ranks, are left out",
            str(selection.path),
            f"make it again with --stages={selection.remade_by} --force",
          )
        scores[role] = tables[name]
    return scores

  scores = {
    name: Scored(table, evaluation(table))
    for name, table in tables.items()
    if "nll_sum" in table.counts  # a proxy's are no log-probs
  }
  selections = finished("selection", ranked_by)
  students = {}
  for name, training in finished("students", own_corpora).items():
    rows = training.settings["rows"].removeprefix(OF_SELECTION)
    selection = selections.get(rows)
    if not selection or selection.fingerprint != training.inputs["selection"]:
      left_out.append(
        f"{training.directory}: its selection is not there or left out"
      )
      continue
    students[name] = Student(training, selection, evaluation(training))
  named = [s.settings["scores"] for s in selections.values()]
  teachers, references = (
    [models[role], *(s[role] for s in named if role in s)]
    for role in ("teacher", "reference")
  )
  references += [name for name in more if name not in teachers]
  return Inventory(
    corpus,
    scores,
    selections,
    students,
    *(
      [name for name in dict.fromkeys(names) if name in scores]
      for names in (teachers, references)
    ),
    alpha=alpha,
    left_out=left_out,
  )
