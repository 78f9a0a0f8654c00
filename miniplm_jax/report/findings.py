"""The sentences, tables and pictures of a report."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from miniplm_jax.core.groups import ALL
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.evaluate import heldout
from miniplm_jax.report import page
from miniplm_jax.training import comparable, metrics

Inputs = Mapping[str, Manifest]


def loss_table(config, inputs: Inputs):
  """Header and rows: one row a model, one column a domain.

  Nats per token are left out for models of another tokenizer than the
  students'; bits per byte compare all.
  """
  names = [*config.methods, *config.roles_with_model]
  losses = {n: heldout.losses(inputs[f"{n} evaluation"]) for n in names}
  domains = [d for d in losses[names[0]] if d != ALL]
  header = ["model", "parameters", "steps", "all", "all, per token"]
  header += ["all, bits per byte", *domains]
  rows = []
  tokenizer = inputs[f"{names[0]} evaluation"].tokenizer
  for name in names:
    counts = _training(inputs, name)
    mean = [f"{losses[name][d]['instance_mean']:.4f}" for d in (ALL, *domains)]
    mean.insert(1, f"{losses[name][ALL]['token_mean']:.4f}")
    if inputs[f"{name} evaluation"].tokenizer != tokenizer:
      mean = ["–"] * len(mean)
    mean.insert(2, f"{losses[name][ALL]['bits_per_byte']:.4f}")
    rows.append([name, *counts, *mean])
  return header, rows


def _training(inputs: Inputs, name: str) -> tuple[str, str]:
  training = inputs.get(f"{name} training")
  if training is None:
    return "", ""
  counts = training.counts
  return f"{counts['parameters']:,}", f"{counts['steps']:,}"


def as_text(table) -> str:
  """A table for the terminal, columns aligned."""
  header, rows = table
  cells = [header, *rows]
  widths = [max(len(str(row[i])) for row in cells) for i in range(len(header))]
  lines = []
  for row in cells:
    first, *others = (str(c) for c in row)
    line = [first.ljust(widths[0])]
    line += [c.rjust(w) for c, w in zip(others, widths[1:])]
    lines.append("  ".join(line))
  lines.insert(1, "─" * len(lines[0]))
  return "\n".join(lines)


def verdict(config, inputs: Inputs) -> str:
  """Which student won, and by how much."""
  made = {m: inputs[f"{m} evaluation"] for m in config.methods}
  loss = {
    method: heldout.losses(one)[ALL]["instance_mean"]
    for method, one in made.items()
    if one.tokenizer == made[config.method].tokenizer
  }
  if len(loss) == 1:
    return f"{config.method}: held-out loss {loss[config.method]:.4f}."
  ranked = sorted(loss, key=loss.__getitem__)
  best, second = ranked[:2]
  gap = loss[second] - loss[best]
  told = (
    f"{best} won: held-out loss {loss[best]:.4f} against "
    f"{loss[second]:.4f} of {second}, {gap:.4f} nats "
    f"({gap / loss[second]:.2%}) lower {_at_equal(inputs, best, second)}"
  )
  small = "One seed: a difference this small says little by itself."
  told += f". {small}" if gap < 0.01 else " (one seed)."
  return " ".join([told, *otherwise(config, inputs)])


def otherwise(config, inputs: Inputs) -> list[str]:
  """What sets students apart beside their methods, in words.

  A line for each that differs from the first. Steps are said beside the
  losses, and the warm-up follows them; of what an earlier version did not say
  nothing is known.
  """
  first, *others = (_made_with(inputs, method) for method in config.methods)
  found = []
  steps = "train.steps"
  for method, other in zip(config.methods[1:], others):
    said = {steps}
    if first.get(steps) != other.get(steps):
      said.add("train.warmup_steps")
    differing = [
      f"{name} {other[name]} and not {first[name]}"
      for name in first.keys() - said
      if name in other and other[name] != first[name]
    ]
    if differing:
      found.append(
        f"Beside its method {method} differs from {config.method}: "
        f"{', '.join(sorted(differing))}."
      )
  return found


def _made_with(inputs: Inputs, method: str) -> dict[str, Any]:
  """Settings of a student and of what it was trained and measured on."""
  trained, selection = (
    inputs[f"{method} training"],
    inputs[f"{method} selection"],
  )
  parts = {
    "student.model": trained.settings["model"],
    "train": trained.settings["train"],
    "select": {
      name: value
      for name, value in selection.settings.items()
      if name
      not in ("definition", "scores", *selection.details.get("idle", ()))
    },
    "evaluate": {"dtype": inputs[f"{method} evaluation"].settings["dtype"]},
    "student": {"init": trained.inputs.get("init", "none")[:12]},
  }
  return {
    f"{part}.{name}": value
    for part, values in parts.items()
    for name, value in values.items()
  }


def _at_equal(inputs: Inputs, best: str, second: str) -> str:
  """What the two have in common: steps, FLOPs, or nothing."""
  pair = [inputs[f"{method} training"] for method in (best, second)]
  steps = [made.counts["steps"] for made in pair]
  spent = [made.details["train_flops"] for made in pair]
  both = f"{steps[0]:,} and {steps[1]:,} steps"
  if max(spent) <= 1.01 * min(spent):
    if steps[0] == steps[1]:
      return f"at {steps[0]:,} equal steps"
    return f"at equal FLOPs of training ({both})"
  return f"at {both}, {spent[0]:.3g} and {spent[1]:.3g} FLOPs of training"


def unlike(config, inputs: Inputs) -> list[str]:
  """Methods whose learning curves are of other rows than most."""
  made = {method: inputs[f"{method} training"] for method in config.methods}
  return comparable.left_out(made)


def pictures(config, workdir: Workdir, inputs: Inputs) -> list[tuple[str, str]]:
  """The learning curves: losses, and how the optimizer fared, by step."""
  found, lines = [], {}
  left_out = unlike(config, inputs)
  for method in config.methods:
    folder = workdir.student(config.names_of(method).student) / "metrics"
    lines[method] = metrics.read(folder)
  for key, title, unit, caption in (
    (
      "eval/loss",
      "Held-out loss",
      "nats per token",
      " ".join(
        [
          "Held-out loss of the students during training, on the same rows.",
          *comparable.in_words(left_out),
        ]
      ),
    ),
    (
      "train/loss",
      "Training loss",
      "nats per token",
      "Training loss, each student on its own rows (mean of 20 steps): a "
      "harder selection has a higher one.",
    ),
    (
      "train/grad_norm",
      "Gradient norm",
      "global norm",
      "Norm of the gradient before it is clipped (mean of 20 steps).",
    ),
    (
      "train/learning_rate",
      "Learning rate",
      "learning rate",
      "Learning rate (mean of 20 steps).",
    ),
  ):
    figure, ax = page.axes(title, "steps", unit)
    for line, method in zip(page.LINES, lines):
      steps, values = map(np.array, metrics.curve(lines[method], key))
      if not len(steps) or (key == "eval/loss" and method in left_out):
        continue
      if key != "eval/loss" and len(values) > 20:
        n = len(values) // 20 * 20
        steps = steps[:n].reshape(-1, 20).max(1)
        values = values[:n].reshape(-1, 20).mean(1)
      ax.plot(
        steps,
        values,
        **line,
        label=method,
        lw=1.5,
        marker="o" if key == "eval/loss" else None,
        ms=3,
      )
    page.legend(ax)
    found.append((page.picture(figure), caption))
  return found


def provenance(inputs: Inputs, selection: str) -> page.Section:
  """Where every figure comes from, and where there are more."""
  rows = [
    (
      name,
      found.stage,
      found.fingerprint[:12],
      found.code_version,
      f"{found.details.get('seconds', 0):,.1f}",
    )
    for name, found in inputs.items()
  ]
  return page.Section(
    "Made from",
    [f"More on the selection: selection/{selection}/report.html."],
    table=(("what", "stage", "fingerprint", "code", "seconds"), rows),
    left=4,
  )
