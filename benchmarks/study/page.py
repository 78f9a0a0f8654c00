"""What a study came to: tables and a picture of docs/results.md."""

import base64
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

import miniplm_jax as mp
from benchmarks.study import planted
from miniplm_jax.core import files
from miniplm_jax.report import compare_page, plots
from miniplm_jax.report.table import Table

_PLACES = (planted.CLEAN, "outside", planted.EASY, planted.NOISE, "as D")
LABELS = (planted.CLEAN, planted.EASY, planted.NOISE)
_COLORS = dict(zip(LABELS, (plots.COLORS[2], plots.COLORS[4], plots.PALE)))


def write(study: Any, results: pathlib.Path):
  """Figures and picture into docs/results/, tables into docs/results.md."""
  run = mp.open_artifact(str(study.workdir))
  compared = _compared(study.workdir / "compare")
  made = {
    "compared": compared,
    "kept": _kept(study, run, compared),
    "by_label": _by_label(run, compared),
    "dose": _dose(_compared(study.workdir / "compare" / "dose")),
    "balanced": _compared(study.workdir / "compare" / "balanced")["criteria"][
      "balanced_0"
    ],
    "easy": _compared(study.workdir / "compare" / "easy")["criteria"]["easy"],
    **study.figures,
  }
  text = json.dumps(made, indent=1) + "\n"
  files.write_bytes(results / f"{study.name}.json", text.encode())
  picture = base64.b64decode(_picture(made))
  files.write_bytes(results / f"{study.name}.png", picture)
  page = results.parent / "results.md"
  begin, end = (f"<!-- {end} of {study.name} -->" for end in ("tables", "end"))
  before, rest = page.read_text().split(begin)
  after = rest.split(end)[1]
  text = f"{before}{begin}\n\n{_tables(made)}\n\n{end}{after}"
  files.write_bytes(page, text.encode())


def _compared(folder: pathlib.Path) -> dict[str, Any]:
  return mp.open_artifact(str(folder)).figures


def _label(domain: str) -> str:
  of = (label for label, kinds in planted.KINDS.items() if domain in kinds)
  return next(of, planted.CLEAN)


def _kept(study: Any, run: Any, compared: Mapping[str, Any]):
  """Of each criterion's kept rows, by seed, the share of each label."""
  index = run.corpus.to_arrow()
  label = np.array([_label(d) for d in index["domain"].to_pylist()])
  kept = {}
  for name in compared["criteria"]:
    ids = [
      run.selections[f"{name}-s{seed}"].rows.ids
      for seed in study.config("planted").compare.seeds
    ]
    kept[name] = {
      one: [float((label[i] == one).mean()) for i in ids] for one in LABELS
    }
  return kept


def _by_label(run: Any, compared: Mapping[str, Any]):
  """Held-out losses in nats, mean of seeds, of each label and outside of D."""
  by_name = {}
  for name in compared["criteria"]:
    sums = {label: np.zeros(2) for label in (*LABELS, "outside")}
    for student in run.students.values():
      if student.name.rpartition("-s")[0] != name:
        continue
      for domain, loss in student.evaluation.by_domain.items():
        if domain != "all":
          at = "outside" if domain in planted.OUTSIDE else _label(domain)
          sums[at] += loss["instance_mean"] * loss["rows"], loss["rows"]
    by_name[name] = {k: float(total / n) for k, (total, n) in sums.items()}
    # A third each, as D has them.
    thirds = [by_name[name][label] for label in LABELS]
    by_name[name]["as D"] = float(np.mean(thirds))
  return by_name


def _dose(compared: Mapping[str, Any]):
  """Of each dose the gain of miniplm over rows at random, by seed, in nats."""
  by_name = compared["criteria"]
  doses = sorted(int(n.split("_")[1]) for n in by_name if n.startswith("drawn"))
  return {
    dose: [
      drawn - miniplm
      for drawn, miniplm in zip(
        by_name[f"drawn_{dose}"]["loss_by_seed"],
        by_name[f"miniplm_{dose}"]["loss_by_seed"],
      )
    ]
    for dose in doses
  }


def interval(values: Sequence[float]) -> str:
  """A mean over seeds with its 95 % interval, by Student's t."""
  half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  return f"{np.mean(values):+.3f} ± {half:.3f}"


def _delta(one: Mapping[str, Any]) -> str:
  return "{delta:+.3f} ({delta_low:+.3f} to {delta_high:+.3f}) nats".format(
    **one
  )


def _tables(made: Mapping[str, Any]) -> str:
  compared, kept, losses = made["compared"], made["kept"], made["by_label"]
  lines = compare_page.lines(compared)
  rows = [
    [
      line["criterion"],
      *(f"{np.mean(kept[line['criterion']][label]):.1%}" for label in LABELS),
      *(f"{losses[line['criterion']][at]:.3f}" for at in _PLACES),
    ]
    for line in lines
  ]
  columns = ["criterion", *LABELS, *_PLACES]
  dose = [
    [f"{dose} %", interval(gain), ", ".join(f"{g:+.3f}" for g in gain)]
    for dose, gain in made["dose"].items()
  ]
  agreement = made["agreement"]
  ranked = [
    [
      one["name"],
      f"{one['parameters'] / 1e6:.2f}M",
      f"{one['tokens'] / 1e6:.2f}M",
      *(f"{one[key]:.3f}" for key in ("pearson", "spearman")),
      *(f"{one[key]:.1%}" for key in ("agreement", "clean_kept")),
    ]
    for one in agreement["references"]
  ]
  other = agreement["students"]
  ranked.append(
    [
      "another student",
      "",
      "",
      *(f"{other[key]:.3f}" for key in ("pearson", "spearman")),
      f"{other['agreement']:.1%}",
      "",
    ]
  )
  parts = [
    compare_page.section(compared).table.markdown(),
    "\n".join(compare_page.section(compared).notes),
    "### What was kept, and losses by label",
    "Share of the kept rows with each label, mean of seeds; held-out loss in "
    "nats by label, `outside` of two domains that D does not have, `as D` a "
    "third of each.",
    Table.of_texts(columns, rows).markdown(),
    "### Dose",
    "Loss of random rows less that of miniplm's, of the same D, by the share "
    "of waste in it; mean of seeds with its 95 % interval (t), and each.",
    Table.of_texts(["waste", "gain, nats", "by seed"], dose).markdown(),
    "Follow-ups, three seeds: beside rows at random of D without waste, those "
    "of the highest score of each domain in its share are at "
    f"{_delta(made['balanced'])}; beside rows at random of D, easy rows alone "
    f"are at {_delta(made['easy'])}.",
    "### Does the reference rank as the student would?",
    f"{other['rows']:,} rows of D that none of them has read, α = 0.5, by "
    f"chance {other['chance']:.0%}; mean over two students of the study's "
    "shape on other rows of D. `clean kept` is at α = ⅓, from the same rows.",
    Table.of_texts(
      [
        *("reference", "parameters", "tokens", "Pearson", "Spearman"),
        *("agreement", "clean kept"),
      ],
      ranked,
    ).markdown(),
  ]
  rates = ", ".join(
    f"{rate} {' / '.join(f'{v:.3f}' for v in of.values())}"
    for rate, of in made["rates"].items()
  )
  hours = sum(made["seconds"].values()) / 3600
  parts.append(
    f"Learning rates, loss of random / miniplm at another seed: {rates}. "
    f"{hours:.1f} hours on 2 cores that other work used too."
  )
  return "\n\n".join(parts)


def _picture(made: Mapping[str, Any]) -> str:
  compared, kept = made["compared"], made["kept"]
  lines = compare_page.lines(compared)
  names = [line["criterion"] for line in lines]
  figure, ax = plots.axes(
    *("What is kept", "share of the kept rows", "", 10, 7), place=(2, 2, 1)
  )
  left = np.zeros(len(names))
  for label in LABELS:
    share = [np.mean(kept[name][label]) for name in names]
    ax.barh(names, share, left=left, color=_COLORS[label], label=label)
    left += share
  ax.invert_yaxis()
  plots.legend(ax, loc="lower right")

  title, x = "Share of the oracle's gain", "0 random, 1 oracle"
  _, ax = plots.axes(title, x, "", of=figure, place=(2, 2, 2))
  for y, line in enumerate(lines):
    if line["recovered"] is not None:
      ends = [line["recovered_low"], line["recovered_high"]]
      ax.plot(ends, [y] * 2, lw=2, color=plots.COLORS[0])
      ax.plot(line["recovered"], y, "o", ms=7, color=plots.COLORS[0])
  for at in (0, 1):
    ax.axvline(at, color=plots.GRAY, lw=0.8)
  ax.set_yticks(range(len(names)), names)
  ax.set_ylim(len(names) - 0.5, -0.5)

  title, y = "Gain by the share of waste in D", "nats over random rows"
  _, ax = plots.axes(title, "waste, %", y, of=figure, place=(2, 2, 3))
  doses = [*map(int, made["dose"])]
  gains = np.array([*made["dose"].values()])
  for dose, gain in zip(doses, gains):
    ax.plot([dose] * len(gain), gain, "_", ms=12, color=plots.INK)
  ax.plot(doses, gains.mean(1), "o-", color=plots.COLORS[0])
  ax.axhline(0, color=plots.GRAY, lw=0.8)

  title, y = "Held-out loss of clean documents", "nats per token"
  _, ax = plots.axes(title, "steps", y, of=figure, place=(2, 2, 4))
  points, means = compared["points"], {}
  for style, name in zip(plots.LINES, names):
    curves = np.array(compared["criteria"][name]["curves"])
    means[name] = points, curves.mean(0)
    color = style["color"]
    ends = curves.min(0), curves.max(0)
    ax.fill_between(points, *ends, color=color, alpha=0.15, lw=0)
  plots.curves(ax, means, lw=1.5)
  return plots.picture(figure)
