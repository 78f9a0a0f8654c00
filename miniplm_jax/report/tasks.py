"""What came out of the tasks, beside what the paper reports."""

from collections.abc import Mapping
from typing import Any

from miniplm_jax.config.sections import GROUP
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.evaluation.results import average, error, score, scores
from miniplm_jax.report.page import Section
from miniplm_jax.report.table import Table

# Averages of the nine in per cent: arXiv 2410.17215.
PAPER_MODELS = ("Qwen 200M", "500M", "1.2B", "Llama 212M", "Mamba 130M")
PAPER = {
  "pretrain": (39.9, 43.2, 44.9, 41.0, 41.6),
  "vanilla_kd": (39.9, 43.6, 45.4, None, None),
  "minillm": (39.0, 41.5, 43.6, None, None),
  "seqkd": (39.7, 42.3, 44.3, 40.8, 41.0),
  "miniplm": (41.3, 44.8, 46.6, 41.8, 42.6),
  "miniplm_kd": (40.7, 44.9, 48.1, None, None),
  "difficulty": (39.9, None, None, None, None),
  "teacher_preference": (37.6, None, None, None, None),
  "proxy": (40.9, None, None, None, None),
}


def _is_cut(n: Mapping[str, int]) -> bool:
  return n["effective"] < n["original"]


def table(
  by_model: Mapping[str, Mapping[str, Mapping[str, Any]]],
  samples: Mapping[str, Mapping[str, int]],
) -> Table:
  """A row for each model, in per cent; the paper's figures beside it.

  Args:
    by_model: lm_eval's "results" of each, by method or role.
    samples: lm_eval's "n-samples". A column of which not all documents were
      read says so, and then no figure of the paper's stands beside it.
  """
  whole = not any(map(_is_cut, samples.values()))

  def read(name: str) -> str:
    if whole or (name in samples and not _is_cut(samples[name])):
      return ""
    if n := samples.get(name):
      return f" ({n['effective']:,} of {n['original']:,})"
    return " (in part)"  # of a group, or of the average

  tasks = [t for t in next(iter(by_model.values())) if t != GROUP]
  columns = {}  # how its numbers are written, and the numbers, by title
  for task in tasks:
    metrics = [results[task] for results in by_model.values()]
    chosen = score(metrics[0])
    if chosen:
      values = [
        f"{score(m)[1]:.1%}" + (f" ± {e:.1%}" if (e := error(m)) else "")
        for m in metrics
      ]
      columns[f"{task} {chosen[0]}{read(task)}"] = ">", values
      continue
    for name, value in metrics[0].items():
      if isinstance(value, float) and "_stderr" not in name:
        title = f"{task} {name.partition(',')[0]}{read(task)}"
        columns[title] = ".4g", [m[name] for m in metrics]
  means = [average(scores(results)) for results in by_model.values()]
  if means[0] is not None:
    columns[f"average{read(GROUP)}"] = ".1%", means
  if means[0] is not None and whole:
    for i, model in enumerate(PAPER_MODELS):
      averages = (PAPER.get(name, (None,) * 5)[i] for name in by_model)
      averages = [x if x is None else f"{x}%" for x in averages]
      columns[f"paper's {model}"] = ">", averages
  rows = [
    [name, *(values[i] for _, values in columns.values())]
    for i, name in enumerate(by_model)
  ]
  titles = ((title, form) for title, (form, _) in columns.items())
  return Table(["model", *titles], rows)


def notes(
  asked: Mapping[str, Mapping[str, Any]],
  samples: Mapping[str, Mapping[str, int]],
) -> list[str]:
  """Of each task how much was asked, what guessing gives, and what was cut."""
  lines = []
  for task, n in asked.items():
    line = f"{task}: {samples[task]['effective']:,} documents"
    line += f", chance {n['chance']:.1%}" if n["chance"] else ""
    if n["cut"]:
      line += f"; {n['cut']:,} of {n['requests']:,} requests lost their "
      line += "beginning, see evaluation.max_length"
    lines.append(f"{line}.")
  return lines


def section(measured: Manifest) -> Section:
  """The table of zero-shot tasks."""
  return Section(
    "Zero-shot tasks",
    [
      "lm-evaluation-harness; acc_norm where a task has it, else acc, and the "
      "plain mean of the paper's nine. The paper's columns are the averages "
      "that it reports for its models by the same method. In brackets: how "
      "many of a task's documents were read, where it was not all. ± is one "
      "standard error over documents."
    ],
    notes=measured.details.get("asked", ()),
    table=Table.of_texts(measured.details["header"], measured.details["rows"]),
  )
