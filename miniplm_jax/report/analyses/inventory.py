"""What a workdir holds, by manifest, as far as it belongs together."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import CONVERTED, MANIFEST, Workdir
from miniplm_jax.train.step import INIT, OF_SELECTION, own_corpora
from miniplm_jax.training import flops

# Settings of a selection that say how much it keeps.
BUDGET = "ratio", "rows", "tokens"
# By name, what is there and belongs together.
_Named = dict[str, Manifest]


class Skipped(Exception):  # noqa: N818
  """An analysis has no inputs; says which."""


@dataclasses.dataclass(frozen=True)
class Scored:
  """A score table; `evaluation` is of the same model, None without one."""

  made: Manifest
  evaluation: Manifest | None

  @property
  def parameters(self) -> int | None:
    """Of the model; None is not known."""
    return self.made.counts.get("parameters")


@dataclasses.dataclass(frozen=True)
class Student:
  """A trained student.

  Attributes:
    made: its training.
    selection: that it trained on.
    evaluation: None without one.
  """

  made: Manifest
  selection: Manifest
  evaluation: Manifest | None

  @property
  def reads_other_tokens(self) -> bool:
    """It has a tokenizer of its own: losses per token do not compare."""
    return CONVERTED in self.made.inputs

  @property
  def begins_with(self) -> str | None:
    """What fingerprints the weights of student.init; None without them."""
    return self.made.inputs.get(INIT)

  @property
  def offline_flops(self) -> float | None:
    """What was spent before its training; None is not known."""
    spent = self.made.details.get(flops.OFFLINE, {"": None}).values()
    known = None not in spent and not self.begins_with
    return sum(spent) if known else None

  @property
  def warmup(self) -> int:
    """Steps in which the learning rate still rises."""
    return self.made.settings["train"]["warmup_steps"]

  def per_step(self, what: str) -> float:
    """Tokens (positions, padding among them), rows or FLOPs of a step."""
    counts = self.made.counts
    total = {
      "tokens": counts["tokens"],
      "rows": counts["steps"] * self.made.settings["train"]["batch_size"],
      "FLOPs": self.made.details["train_flops"],
    }
    return total[what] / counts["steps"]

  def curve(self) -> tuple[np.ndarray, np.ndarray]:
    """Steps int64 [n] and held-out losses float64 [n] in nats, as trained."""
    from miniplm_jax.training import metrics

    lines = metrics.read(self.made.directory / "metrics")
    steps, losses = metrics.curve(lines, "eval/loss")
    return np.array(steps, np.int64), np.array(losses, np.float64)


@dataclasses.dataclass(frozen=True)
class Inventory:
  """A workdir; tables, selections and students by name, in that order.

  Attributes:
    corpus: its manifest.
    scores: the tables of log-probs.
    selections: of rows of this corpus.
    students: on these selections.
    teachers: tables that were a teacher's, the config's own first.
    references: tables that were a reference's, likewise.
    alpha: the share by which rankings are compared.
    left_out: what is there and was made from something else, with why.
  """

  corpus: Manifest
  scores: dict[str, Scored]
  selections: dict[str, Manifest]
  students: dict[str, Student]
  teachers: list[str]
  references: list[str]
  alpha: float
  left_out: list[str]

  def manifests(self) -> Iterator[Manifest]:
    """All of them, to fingerprint."""
    yield self.corpus
    yield from self.selections.values()
    for found in (*self.scores.values(), *self.students.values()):
      yield found.made
      if found.evaluation:
        yield found.evaluation


def take(config, workdir: Workdir) -> Inventory:
  """Reads the manifests of a workdir.

  Args:
    config: its `select.ratio`, and the names of its models.
    workdir: to look at.

  Raises:
    UserError: there is no corpus.
  """
  corpus = manifest_lib.require(workdir.corpus / MANIFEST)
  left_out: list[str] = []

  def finished(folder: str, others: Callable = lambda _: {}) -> _Named:
    found = {}
    for path in sorted((workdir.root / folder).glob(f"*/{MANIFEST}")):
      made = _read(path, lambda m: {"corpus": corpus, **others(m)}, left_out)
      if made:
        found[path.parent.name] = made
    return found

  def evaluation(made: Manifest) -> Manifest | None:
    path = made.directory / "evaluation.json"
    return _read(path, lambda _: {"model": made}, left_out)

  tables = finished("scores")
  prints = {made.fingerprint for made in tables.values()}
  for name, made in list(tables.items()):
    learned = {
      made.inputs[role]
      for role in ("teacher", "reference")
      # Of a proxy. Scores may be removed when they have been used.
      if role in made.inputs and getattr(config, role).name in tables
    }
    if learned - prints:
      left_out.append(f"{made.directory}: its scores are not there any more")
      del tables[name]

  def ranked_by(selection: Manifest) -> _Named:
    found = {}
    for role, name in selection.settings["scores"].items():
      if (workdir.scores(name) / MANIFEST).exists():
        if name not in tables:
          raise UserError(
            f"scores {name}, by which it ranks, are left out",
            str(selection.path),
            f"make it again with --stages={selection.stage} --force",
          )
        found[role] = tables[name]
    return found

  scores = {
    name: Scored(made, evaluation(made))
    for name, made in tables.items()
    if "nll_sum" in made.counts  # a proxy's are no log-probs
  }
  selections = finished("selection", ranked_by)
  students = {}
  for name, made in finished("students", own_corpora).items():
    selection = selections.get(made.settings["rows"].removeprefix(OF_SELECTION))
    if not selection or selection.fingerprint != made.inputs["selection"]:
      left_out.append(
        f"{made.directory}: its selection is not there or left out"
      )
      continue
    students[name] = Student(made, selection, evaluation(made))
  named = [s.settings["scores"] for s in selections.values()]
  more = [text.partition("=")[0] for text in config.score.more]
  teachers, references = (
    [getattr(config, role).name, *(s[role] for s in named if role in s)]
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
    alpha=config.select.ratio or 0.5,
    left_out=left_out,
  )


def _read(path, made_from, left_out) -> Manifest | None:
  """A manifest, unless it is missing or made from others than it should be."""
  try:
    found = manifest_lib.read(path)
    if found:
      found.check_inputs(made_from(found))
    return found
  except UserError as e:
    left_out.append(f"{e}")
    return None
