"""What a study came to: tables and a picture of docs/results.md."""

import base64
import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

import miniplm_jax as mp
from benchmarks.study import mess, planted
from miniplm_jax.core import files
from miniplm_jax.report import compare_page, plots
from miniplm_jax.report.page import Table

_COLORS = {
  planted.CLEAN: plots.COLORS[2],
  planted.EASY: plots.COLORS[4],
  planted.NOISE: plots.PALE,
  mess.MESS: plots.COLORS[4],
}


def write(study: Any, results: pathlib.Path):
  """Figures and picture into a folder, tables into the page beside it."""
  run = mp.open_artifact(str(study.workdir))
  compared = _compared(study.workdir / "compare")
  kept = _kept(study, run, compared)
  made = {"compared": compared, "kept": kept, **study.figures}
  made["by_label"] = _by_label(study, run, kept)
  if "doses" in study.kind.more:
    made["dose"] = _dose(_compared(study.workdir / "compare" / "dose"))
    for name, of in ("balanced", "balanced_0"), ("easy", "easy"):
      more = _compared(study.workdir / "compare" / name)
      made[name] = more["criteria"][of]
  results.mkdir(exist_ok=True)
  text = json.dumps(made, indent=1) + "\n"
  files.write_bytes(results / f"{study.name}.json", text.encode())
  picture = base64.b64decode(_picture(made))
  files.write_bytes(results / f"{study.name}.png", picture)
  page = results.parent / "results.md"
  begin, end = (f"<!-- {end} of {study.name} -->" for end in ("tables", "end"))
  text = page.read_text() if page.exists() else ""
  before, _, rest = text.partition(begin)
  after = rest.partition(end)[2] or "\n"
  text = f"{before}{begin}\n\n{_tables(made)}\n\n{end}{after}"
  files.write_bytes(page, text.encode())


def _compared(folder: pathlib.Path) -> dict[str, Any]:
  return mp.open_artifact(str(folder)).figures


def _names(study: Any, criterion: str) -> list[str]:
  """Of a criterion what is made for each seed."""
  seeds = study.config(study.name).compare.seeds
  return [f"{criterion}-s{seed}" for seed in seeds]


def _kept(study: Any, run: Any, compared: Mapping[str, Any]):
  """Of each criterion's kept rows, by seed, the share of each label of D."""
  index, maker = run.corpus.to_arrow(), study.kind.maker
  label = np.array([maker.label(d) for d in index["domain"].to_pylist()])
  of_d = {*label[index["split"].to_numpy() == "train"]}
  kept = {}
  for name in compared["criteria"]:
    # What does not depend on the seed is one selection of all.
    made = [n if n in run.selections else name for n in _names(study, name)]
    ids = [run.selections[one].rows.ids for one in made]
    kept[name] = {
      one: [float((label[i] == one).mean()) for i in ids]
      for one in maker.LABELS
      if one in of_d
    }
  return kept


def _by_label(study: Any, run: Any, kept: Mapping[str, Any]):
  """Held-out losses in nats, by seed, of each label and outside of D."""
  maker, by_name = study.kind.maker, {}
  inside = {*run.corpus.reader.domains(run.corpus.split("train").ids)}
  for name, labels in kept.items():
    by_name[name] = places = collections.defaultdict(list)
    for student in map(run.students.get, _names(study, name)):
      sums = collections.defaultdict(lambda: np.zeros(2))
      for domain, loss in student.evaluation.by_domain.items():
        if domain != "all":
          at = maker.label(domain) if domain in inside else "outside"
          sums[at] += loss["instance_mean"] * loss["rows"], loss["rows"]
      means = {at: float(total / n) for at, (total, n) in sums.items()}
      shares = [maker.LABELS[label] for label in labels]
      means["as D"] = float(np.average([means[k] for k in labels], 0, shares))
      for at, mean in means.items():
        places[at].append(mean)
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
  base = compared["baseline"]
  labels = [*kept[base]]
  places = [p for p in losses[base] if p not in ("outside", "as D")]
  places[1:1] = ["outside"] * ("outside" in losses[base])
  places.append("as D")
  rows, apart = [], []
  for name in (line["criterion"] for line in lines):
    shares = (f"{np.mean(kept[name][label]):.1%}" for label in labels)
    by_seed = {at: np.array(losses[name][at]) for at in places}
    rows.append([name, *shares])
    rows[-1] += [f"{one.mean():.3f}" for one in by_seed.values()]
    if name != base:
      gains = [one - losses[base][at] for at, one in by_seed.items()]
      apart.append([name, *map(interval, gains)])
  parts = [
    compare_page.section(compared).table.markdown(),
    "\n".join(compare_page.section(compared).notes),
    "### What was kept, and losses by label",
    "Share of the kept rows with each label, mean of seeds; held-out loss in "
    "nats by label, `outside` of two domains that D does not have, `as D` of "
    "all labels by their shares in D.",
    Table.of_texts(
      ["criterion", *(f"kept {label}" for label in labels), *places], rows
    ).markdown(),
    f"These losses less those of {base}, mean of seeds with its 95 % interval "
    "(t).",
    Table.of_texts(["criterion", *places], apart).markdown(),
  ]
  if "dose" in made:
    parts += _dose_tables(made)
  if "agreement" in made:
    parts += _agreement_tables(made["agreement"])
  rates = ", ".join(
    f"{rate} {' / '.join(f'{v:.3f}' for v in of.values())}"
    for rate, of in made["rates"].items()
  )
  hours = sum(made["seconds"].values()) / 3600
  parts.append(
    f"Learning rates, loss of random / miniplm at another seed: {rates}. "
    f"{hours:.1f} hours ({made['device']}), of which other work had a part."
  )
  return "\n\n".join(parts)


def _dose_tables(made: Mapping[str, Any]) -> list[str]:
  dose = [
    [f"{dose} %", interval(gain), ", ".join(f"{g:+.3f}" for g in gain)]
    for dose, gain in made["dose"].items()
  ]
  return [
    "### Dose",
    "Loss of random rows less that of miniplm's, of the same D, by the share "
    "of waste in it; mean of seeds with its 95 % interval (t), and each.",
    Table.of_texts(["waste", "gain, nats", "by seed"], dose).markdown(),
    "Follow-ups, three seeds: beside rows at random of D without waste, those "
    "of the highest score of each domain in its share are at "
    f"{_delta(made['balanced'])}; beside rows at random of D, easy rows alone "
    f"are at {_delta(made['easy'])}.",
  ]


def _agreement_tables(agreement: Mapping[str, Any]) -> list[str]:
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
  return [
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


def _picture(made: Mapping[str, Any]) -> str:
  compared, kept = made["compared"], made["kept"]
  lines = compare_page.lines(compared)
  names = [line["criterion"] for line in lines]
  figure, ax = plots.axes(
    *("What is kept", "share of the kept rows", "", 10, 7), place=(2, 2, 1)
  )
  left = np.zeros(len(names))
  for label in kept[names[0]]:
    share = [np.mean(kept[name][label]) for name in names]
    ax.barh(names, share, left=left, color=_COLORS[label], label=label)
    left += share
  ax.invert_yaxis()
  above = {"loc": "lower right", "bbox_to_anchor": (1, 0.99)}
  plots.legend(ax, ncols=3, borderpad=0, **above)

  key, title, x = "delta", "Δ to random", "nats per token, held out"
  if has_oracle := bool(compared["oracle"]):
    key, title = "recovered", "Share of the oracle's gain"
    x = "0 random, 1 oracle"
  _, ax = plots.axes(title, x, "", of=figure, place=(2, 2, 2))
  for y, line in enumerate(lines):
    if line[key] is not None:
      ends = [line[f"{key}_low"], line[f"{key}_high"]]
      ax.plot(ends, [y] * 2, lw=2, color=plots.COLORS[0])
      ax.plot(line[key], y, "o", ms=7, color=plots.COLORS[0])
  for at in (0, 1)[: 1 + has_oracle]:
    ax.axvline(at, color=plots.GRAY, lw=0.8)
  ax.set_yticks(range(len(names)), names)
  ax.set_ylim(len(names) - 0.5, -0.5)

  if "dose" in made:
    _picture_of_doses(made["dose"], figure)
  title, y = "Held-out loss of clean documents", "nats per token"
  place = 2, 2, 4 if "dose" in made else (3, 4)
  _, ax = plots.axes(title, "steps", y, of=figure, place=place)
  points, means = compared["points"], {}
  for style, name in zip(plots.LINES, names):
    curves = np.array(compared["criteria"][name]["curves"])
    means[name] = points, curves.mean(0)
    color = style["color"]
    ends = curves.min(0), curves.max(0)
    ax.fill_between(points, *ends, color=color, alpha=0.15, lw=0)
  plots.curves(ax, means, lw=1.5)
  return plots.picture(figure)


def _picture_of_doses(made: Mapping[str, Sequence[float]], figure: Any):
  title, y = "Gain by the share of waste in D", "nats over random rows"
  _, ax = plots.axes(title, "waste, %", y, of=figure, place=(2, 2, 3))
  doses, gains = [*map(int, made)], np.array([*made.values()])
  for dose, gain in zip(doses, gains):
    ax.plot([dose] * len(gain), gain, "_", ms=12, color=plots.INK)
  ax.plot(doses, gains.mean(1), "o-", color=plots.COLORS[0])
  ax.axhline(0, color=plots.GRAY, lw=0.8)
