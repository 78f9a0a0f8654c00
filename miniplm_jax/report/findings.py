"""The sentences, tables and pictures of a run's report."""

import json
from collections.abc import Mapping
from typing import Any

from miniplm_jax import config as config_lib
from miniplm_jax.core.groups import ALL
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation import proxy as proxy_lib
from miniplm_jax.evaluation import heldout
from miniplm_jax.evaluation.divergence import Divergence
from miniplm_jax.report import plots
from miniplm_jax.report.inventory import Scored, Student
from miniplm_jax.report.page import Fold, Section, Table
from miniplm_jax.report.selection_tables import flat
from miniplm_jax.scoring import table as table_lib
from miniplm_jax.training import comparable

_MEAN_OF = 20  # steps, where a curve of the training itself has more
# Metrics of training that are drawn: title, unit, caption.
_CURVES = {
  "eval/loss": (
    "Held-out loss",
    "nats per token",
    "Held-out loss of the students during training, on the same rows.",
  ),
  "train/loss": (
    "Training loss",
    "nats per token",
    f"Training loss, each student on its own rows (mean of {_MEAN_OF} steps): "
    "a harder selection has a higher one.",
  ),
  "train/grad_norm": (
    "Gradient norm",
    "global norm",
    f"Norm of the gradient before it is clipped (mean of {_MEAN_OF} steps).",
  ),
  "train/learning_rate": (
    "Learning rate",
    "learning rate",
    f"Learning rate (mean of {_MEAN_OF} steps).",
  ),
}
# Fields of a `Divergence` that are shown, and their titles.
_DIVERGENCES = {
  "reverse_kl": "reverse KL, bits per byte",
  "reverse_kl_per_token": "nats per token",
  "forward_kl": "forward KL, bits per byte",
  "forward_nll": "loss on the teacher's texts",
}
# FLOPs of the proxy, and of what it takes the place of.
_PROXY_STEPS = {
  "full": "teacher and reference score D",
  "sample": "they score the sample that the proxy learns from",
  "train": "the proxy is trained",
  "score": "the proxy scores D",
  "test": "they score rows that only test the proxy",
}


def loss_table(
  students: Mapping[str, Student], scored: Mapping[str, Scored]
) -> Table:
  """A row for each model, a column for each domain.

  Nats per token are left out for models of another tokenizer than the
  students'; bits per byte compare all.

  Args:
    students: by method, the main one first.
    scored: models that score, by role; those that were evaluated are shown.
  """
  counts = {name: each.training.counts for name, each in students.items()}
  evaluations = {name: each.evaluation for name, each in students.items()}
  for name, each in scored.items():
    if each.evaluation:
      counts[name] = {"parameters": each.parameters}
      evaluations[name] = each.evaluation
  losses = {name: heldout.losses(one) for name, one in evaluations.items()}
  first = next(iter(evaluations))

  def mean(key: str, domain: str = ALL):
    return lambda name: (
      losses[name][domain][key]
      if evaluations[name].tokenizer == evaluations[first].tokenizer
      else None
    )

  return Table.of(
    evaluations,
    ("model", "", str),
    ("parameters", ",", lambda name: counts[name]["parameters"]),
    ("steps", ",", lambda name: counts[name].get("steps", "")),
    ("all", ".4f", mean("instance_mean")),
    ("all, per token", ".4f", mean("token_mean")),
    ("all, bits per byte", ".4f", lambda n: losses[n][ALL]["bits_per_byte"]),
    *(
      (domain, ".4f", mean("instance_mean", domain))
      for domain in losses[first]
      if domain != ALL
    ),
  )


def otherwise(students: Mapping[str, Student]) -> list[str]:
  """What sets students apart beside their methods, in words.

  A line for each that differs from the first. Steps are said beside the
  losses, and the warm-up follows them; of what an earlier version did not say
  nothing is known.
  """
  (main, first), *others = ((m, _made_with(s)) for m, s in students.items())
  lines, steps = [], "train.steps"
  for method, other in others:
    known = {steps}
    if first.get(steps) != other.get(steps):
      known.add("train.warmup_steps")
    differing = sorted(
      f"{name} {other[name]} and not {first[name]}"
      for name in first.keys() - known
      if name in other and other[name] != first[name]
    )
    if differing:
      words = f"Beside its method {method} differs from {main}: "
      lines.append(f"{words}{', '.join(differing)}.")
  return lines


def _made_with(student: Student) -> dict[str, Any]:
  """Settings of a student and of what it was trained and measured on."""
  training, selection = student.training, student.selection
  # What the method says, and what has no effect.
  but = "definition", "scores", *selection.details.get("idle", ())
  parts = {
    "student.model": training.settings["model"],
    "train": training.settings["train"],
    "select": {k: v for k, v in selection.settings.items() if k not in but},
    "evaluate": {"dtype": student.evaluation.settings["dtype"]},
    "student": {"init": (student.begins_with or "none")[:12]},
  }
  return {
    f"{part}.{name}": value
    for part, values in parts.items()
    for name, value in values.items()
  }


def steps_in_words(main: str, first: Student, other: Student) -> str:
  """How many steps a student took beside the main one's, and why."""
  ours, steps = (s.training.counts["steps"] for s in (first, other))
  if ours == steps:
    return f"after as many steps, {steps:,}"
  text = f"after {steps:,} step{'s' * (steps != 1)}, {main} after {ours:,}"
  dearer = other.per_step("FLOPs") / first.per_step("FLOPs")
  if steps == max(round(ours / dearer), 1):
    text += (
      f": a step takes {dearer:.2f} × the FLOPs, and config.equal_flops gives "
      "both the same in all"
    )
  return text


def pictures(students: Mapping[str, Student]) -> list[tuple[str, str]]:
  """The learning curves: losses, and how the optimizer fared, by step."""
  left_out = comparable.left_out({m: s.training for m, s in students.items()})
  drawn = []
  for key, (title, unit, caption) in _CURVES.items():
    is_heldout = key == "eval/loss"
    lines = {}
    for method, student in students.items():
      steps, values = student.curve(key)
      if is_heldout and method in left_out:
        steps, values = (), ()
      elif not is_heldout and len(values) > _MEAN_OF:
        n = len(values) // _MEAN_OF * _MEAN_OF
        steps = steps[:n].reshape(-1, _MEAN_OF).max(1)
        values = values[:n].reshape(-1, _MEAN_OF).mean(1)
      lines[method] = steps, values
    figure, ax = plots.axes(title, "steps", unit)
    marker = "o" if is_heldout else None
    plots.curves(ax, lines, lw=1.5, marker=marker, ms=3)
    words = [caption, *(comparable.in_words(left_out) if is_heldout else ())]
    drawn.append((plots.picture(figure), " ".join(words)))
  return drawn


def divergences(of: Mapping[str, Divergence]) -> Section:
  """A row for each method, the lowest reverse KL first."""

  def column(name: str):
    def shown(method: str) -> str | None:
      one = getattr(of[method], name)
      return one and "{:.4f} ({:.4f} to {:.4f})".format(*one)

    return _DIVERGENCES[name], ">", shown

  samples = max(each.samples for each in of.values())
  return Section(
    "Divergence from the teacher",
    [
      "Reverse KL, which MiniPLM is derived to minimize: the mean of log q − "
      "log p over what the student q writes; forward: of log p − log q over "
      "what the teacher p writes, as is the student's loss, in bits per byte. "
      f"{samples:,} samples of each, which go on from first words of held-out "
      "rows. In brackets intervals of 95 %, over samples and not over seeds. "
      "Per token only where ids mean the same to both; if not, both read the "
      "texts, each by its own ids: see docs/evaluation.md."
    ],
    table=Table.of(
      sorted(of, key=lambda method: of[method].reverse_kl),
      ("method", "", str),
      *map(column, _DIVERGENCES),
      ("ended", ".0%", lambda method: of[method].ended),
      ("by other ids", ".0%", lambda method: of[method].not_canonical),
    ),
  )


def of_proxy(
  sample: float,
  seed: int,
  alpha: float,
  corpus: Corpus,
  tables: Mapping[str, Manifest],
) -> Section:
  """How well the proxy that learned from a share of D ranks, and what it saves.

  Tables are of "teacher", "reference" and "proxy".
  """
  parts = table_lib.parts(tables["proxy"])
  comparison = proxy_lib.compare(corpus, tables, parts, sample, seed)
  report = proxy_lib.report(comparison, alpha)
  flops = tables["proxy"].details["flops_compared"]
  rows = [
    ("rows of D", f"{report['rows_of_d']:,}"),
    ("rows that it learned from", f"{report['learned_rows']:,}"),
    (
      "other rows that were scored: what follows is of these",
      f"{report['rows']:,}",
    ),
    ("Spearman", f"{report['spearman']:.4f}"),
    ("Pearson", f"{report['pearson']:.4f}"),
    *(
      (f"of the highest {float(ratio):.0%}, both agree on", f"{share:.1%}")
      for ratio, share in report["agreement"].items()
    ),
    *(
      (f"FLOPs: {what}", f"{flops[name]:.3g}")
      for name, what in _PROXY_STEPS.items()
      if flops
    ),
  ]
  text = [
    "MiniPLM-proxy (Appendix E): a small model learns log p − log p_ref from "
    "a sample and ranks all of D. The paper does not give its recipe; this "
    "one is inferred. By chance, two rankings agree on α of the highest α.",
    f"Measured {proxy_lib.in_words(report)}.",
    f"Its cost: {proxy_lib.cost_in_words(flops)}.",
  ]
  caption = (
    "Each row's score by teacher and reference, and as predicted; color is "
    "the number of rows, on a logarithmic scale."
  )
  return Section(
    "The proxy",
    text,
    table=Table(("what", ("figure", ">")), rows),
    pictures=[(_proxy_picture(comparison), caption)],
  )


def _proxy_picture(comparison: proxy_lib.Comparison) -> str:
  figure, ax = plots.axes(
    "Predicted and true scores",
    "log p − log p_ref (nats per token)",
    "predicted (nats per token)",
  )
  plots.density(ax, comparison.true, comparison.predicted)
  ends = min(comparison.true), max(comparison.true)
  ax.plot(ends, ends, color=plots.GRAY, lw=1, ls="--")
  return plots.picture(figure)


def provenance(inputs: Mapping[str, Manifest], selection: str) -> Section:
  """Where every figure comes from, and where there are more."""
  table = Table.of(
    inputs,
    ("what", "", str),
    ("stage", "", lambda name: inputs[name].stage),
    ("fingerprint", "", lambda name: inputs[name].fingerprint[:12]),
    ("code", "", lambda name: inputs[name].code_version),
    ("seconds", ",.1f", lambda name: inputs[name].details.get("seconds", 0)),
  )
  words = f"More on the selection: selection/{selection}/report.html."
  return Section("Made from", [words], table=table)


def settings(config: Mapping[str, Any]) -> Section:
  """What the config says, and what no default is."""
  default = dict(flat(config_lib.default().to_dict()))
  own = [
    (name, value, default.get(name, ""))
    for name, value in flat(config)
    if value != default.get(name)
  ]
  everything = json.dumps(config, indent=1, sort_keys=True)
  return Section(
    "Config",
    ["Fields that are not as by default; config.json in the workdir has all."],
    table=Table(("field", "value", "default"), own),
    folds=[Fold("All fields", [("config.json", everything)])],
  )
