"""The methods side by side: what each cost, and what it reached."""

import dataclasses
from collections.abc import Mapping, Sequence

from miniplm_jax.core.groups import ALL
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.evaluate.heldout import losses
from miniplm_jax.report import page
from miniplm_jax.training import flops, metrics

_LAST = 20  # steps over which the last training loss is a mean


@dataclasses.dataclass(frozen=True)
class Line:
  """A method.

  Attributes:
    rows_from: the selection that it trained on.
    objective: what it minimized.
    steps: of its training.
    train_flops: of its training.
    offline_flops: spent before, by part; None is not known.
    loss: on held-out rows, mean over rows of the mean per token, nats.
    bits_per_byte: on held-out rows.
    seconds: of the last run of its training.
    first_loss: training loss of the first step; None without a record.
    last_loss: of the last 20 steps, a mean.
  """

  rows_from: str
  objective: str
  steps: int
  train_flops: float
  offline_flops: dict[str, float | None]
  loss: float
  bits_per_byte: float
  seconds: float
  first_loss: float | None
  last_loss: float | None

  @property
  def offline(self) -> float | None:
    """All that was spent before, or None if a part is not known."""
    parts = self.offline_flops.values()
    return None if None in parts else float(sum(parts))


def lines(
  config, workdir: Workdir, inputs: Mapping[str, Manifest]
) -> dict[str, Line]:
  """By method, from the manifests of training and evaluation."""
  found = {}
  for method in config.methods:
    names = config.names_of(method)
    trained = inputs[f"{method} training"]
    loss = losses(inputs[f"{method} evaluation"])[ALL]
    folder = workdir.student(names.student) / "metrics"
    training = metrics.curve(metrics.read(folder), "train/loss")[1]
    last = training[-_LAST:]
    found[method] = Line(
      rows_from=names.selection,
      objective=names.objective,
      steps=trained.counts["steps"],
      train_flops=trained.details["train_flops"],
      # Those of a version that did not count them are not known.
      offline_flops=trained.details.get(flops.OFFLINE, {"offline": None}),
      loss=loss["instance_mean"],
      bits_per_byte=loss["bits_per_byte"],
      seconds=trained.details["seconds"],
      first_loss=training[0] if training else None,
      last_loss=sum(last) / len(last) if last else None,
    )
  return found


def table(found: Mapping[str, Line]):
  """Header and rows."""
  header = ["method", "rows from", "objective", "steps", "training FLOPs"]
  header += ["offline FLOPs", "held-out loss", "bits per byte", "seconds"]
  header += ["training loss"]
  rows = [
    [
      method,
      line.rows_from,
      line.objective,
      f"{line.steps:,}",
      f"{line.train_flops:.3g}",
      "not known" if line.offline is None else f"{line.offline:.3g}",
      f"{line.loss:.4f}",
      f"{line.bits_per_byte:.4f}",
      f"{line.seconds:,.1f}",
      "–"
      if line.first_loss is None
      else f"{line.first_loss:.3f} → {line.last_loss:.3f}",
    ]
    for method, line in found.items()
  ]
  return header, rows


def section(
  config,
  workdir: Workdir,
  found: Mapping[str, Line],
  left_out: Sequence[str] = (),
  notes: Sequence[str] = (),
) -> page.Section:
  """The table, what it means, and the curves by FLOPs, but for `left_out`."""
  return page.Section(
    "Methods",
    [
      "Held-out loss in nats, mean over rows of the mean per token. Training "
      "FLOPs hold the teacher's passes where it reads along, and padding; what "
      "rematerialization computes again does not count. "
      "Offline FLOPs are what came before: scoring, the reference, the proxy, "
      "what the teacher wrote; parts that several methods share count whole "
      "for each, the teacher's own training does not count. Training loss: "
      f"first step → mean of the last {_LAST}; those of different objectives "
      "do not compare."
    ],
    table=table(found),
    left=3,
    notes=[
      *notes,
      *(
        f"{method}, offline: {flops.in_words(line.offline_flops)}."
        for method, line in found.items()
        if line.offline_flops
      ),
    ],
    pictures=[_picture(config, workdir, found, left_out)],
  )


def _picture(config, workdir: Workdir, found: Mapping[str, Line], left_out):
  """Held-out loss by training FLOPs, of curves on the same rows."""
  figure, ax = page.axes(
    "Held-out loss by cost", "FLOPs of training", "nats per token"
  )
  for style, (method, line) in zip(page.LINES, found.items()):
    folder = workdir.student(config.names_of(method).student) / "metrics"
    steps, values = metrics.curve(metrics.read(folder), "eval/loss")
    if not steps or method in left_out:
      continue
    of_step = line.train_flops / line.steps
    spent = [step * of_step for step in steps]
    ax.plot(spent, values, **style, label=method, lw=1.5, marker="o", ms=3)
  page.legend(ax)
  return page.picture(figure), (
    "The same curves as below by what training has cost so far; offline FLOPs "
    "are not in it."
  )
