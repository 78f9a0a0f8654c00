"""What a selection did to the corpus: report.html and card.md."""

import dataclasses

import numpy as np
from etils import epath

from miniplm_jax.core import files, page
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.select.cutoff import Cutoff
from miniplm_jax.select.definitions import Definition
from miniplm_jax.select.scored import ScoredRows

_SAMPLE = 20_000  # rows that the pictures are drawn from
_TEXTS = 4  # most and least valued texts that are shown
_SHOWN = 900  # characters of each


@dataclasses.dataclass(frozen=True)
class Summary:
  """A selection in figures.

  Attributes:
    domains: {domain: {"rows", "kept", "share"}}, exact.
    score: float32 [n], of an evenly spaced sample of rows.
    nll: float32 [n], mean NLL per token, by model; of the proxy there is
      none.
    domain: [n] names.
    kept: bool [n].
    best: row ids and scores of the most valued rows, best first.
    worst: of the least valued, worst first.
  """

  domains: dict[str, dict[str, float]]
  score: np.ndarray
  nll: dict[str, np.ndarray]
  domain: np.ndarray
  kept: np.ndarray
  best: list[tuple[int, float]]
  worst: list[tuple[int, float]]


def summarise(corpus: Corpus, scored: ScoredRows, rows: np.ndarray) -> Summary:
  """Reads the score tables once more.

  Args:
    corpus: for domains.
    scored: all rows of D.
    rows: the kept ids, ascending.
  """
  every = max(scored.rows // _SAMPLE, 1)
  sample, ends, start = [], [], 0
  roles = []
  for columns in scored.columns():
    roles = [r for r in ("teacher", "reference") if f"{r}_nll" in columns]
    row_id, score = columns["row_id"], columns["score"]
    here = np.arange(-start % every, len(row_id), every)
    start += len(row_id)
    means = [
      columns[f"{role}_nll"][here] / columns[f"{role}_tokens"][here]
      for role in roles
    ]
    sample.append((row_id[here], score[here], *means))
    order = np.argsort(score, kind="stable")
    order = np.unique(np.concatenate([order[:_TEXTS], order[-_TEXTS:]]))
    ends += [(float(score[i]), int(row_id[i])) for i in order]
  ids, score, *means = map(np.concatenate, zip(*sample))
  ends.sort()
  return Summary(
    domains=_domains(corpus, rows),
    score=score,
    nll=dict(zip(roles, means)),
    domain=corpus.domains(ids),
    kept=np.isin(ids, rows, assume_unique=True),
    best=[(i, s) for s, i in ends[: -_TEXTS - 1 : -1]],
    worst=[(i, s) for s, i in ends[:_TEXTS]],
  )


def _domains(corpus: Corpus, rows: np.ndarray):
  counts = []
  for ids in (corpus.rows_of("train"), rows):
    found = corpus.index["domain"].take(ids).value_counts().to_pylist()
    counts.append({d["values"]: d["counts"] for d in found})
  everything, kept = counts
  return {
    domain: {
      "rows": n,
      "kept": kept.get(domain, 0),
      "share": kept.get(domain, 0) / n,
    }
    for domain, n in sorted(everything.items())
  }


def domain_table(summary: Summary):
  """Header and rows of kept share by domain."""
  rows = [
    (domain, f"{d['rows']:,}", f"{d['kept']:,}", f"{d['share']:.1%}")
    for domain, d in sorted(
      summary.domains.items(), key=lambda pair: -pair[1]["share"]
    )
  ]
  return ("domain", "rows of D", "kept", "share"), rows


def sections(
  summary: Summary, cutoff: Cutoff, definition: Definition, corpus: Corpus
) -> list[page.Section]:
  """The selection's part of a report."""
  share = cutoff.kept / cutoff.rows
  models = []
  if summary.nll:
    caption = (
      "Mean NLL of each row under teacher and reference. Below the diagonal "
      "the teacher finds a row easier than the reference does."
    )
    models = [(page.picture(_scatter_figure(summary)), caption)]
  return [
    page.Section(
      "What was kept",
      [
        f"{cutoff.kept:,} of {cutoff.rows:,} rows ({share:.1%}): those with "
        f"the highest score ({definition.label}), from "
        f"{cutoff.threshold:.4f} on, ties to the lower row id."
      ],
      table=domain_table(summary),
      pictures=[
        (
          page.picture(_share_figure(summary, share)),
          "Share of each domain's rows that was kept; the line is the share "
          "of all rows.",
        ),
        (
          page.picture(_score_figure(summary, cutoff, definition)),
          "Scores of all rows; the line is the cutoff.",
        ),
        *models,
      ],
    ),
    page.Section("Highest scores", texts=_texts(summary.best, corpus)),
    page.Section("Lowest scores", texts=_texts(summary.worst, corpus)),
  ]


def _share_figure(summary: Summary, share: float):
  figure, ax = page.axes("Kept share by domain", "share kept", "")
  names = sorted(summary.domains, key=lambda d: summary.domains[d]["share"])
  values = [summary.domains[d]["share"] for d in names]
  ax.barh(names, values, color=page.COLOURS[0])
  for i, value in enumerate(values):
    ax.text(value, i, f" {value:.0%}", va="center", fontsize=8)
  ax.axvline(share, color=page.GREY, lw=1, ls="--")
  ax.set_xlim(0, 1.08)
  return figure


def _score_figure(summary: Summary, cutoff: Cutoff, definition: Definition):
  figure, ax = page.axes(
    "Distribution of scores",
    definition.label,
    "rows of the sample",
  )
  low, high = np.quantile(summary.score, [0.001, 0.999])
  bins = np.linspace(low, high, 80)
  kept = summary.score[summary.kept], summary.score[~summary.kept]
  ax.hist(
    kept,
    bins=bins,
    stacked=True,
    color=[page.COLOURS[0], page.GREY],
    label=["kept", "left out"],
  )
  ax.axvline(cutoff.threshold, color=page.COLOURS[1], lw=1)
  ax.legend(fontsize=8, frameon=False)
  return figure


def _scatter_figure(summary: Summary):
  figure, ax = page.axes(
    "Teacher against reference",
    "reference NLL (nats per token)",
    "teacher NLL (nats per token)",
  )
  for i, domain in enumerate(sorted(set(summary.domain))):
    here = summary.domain == domain
    ax.scatter(
      summary.nll["reference"][here],
      summary.nll["teacher"][here],
      s=2,
      alpha=0.4,
      color=page.COLOURS[i % len(page.COLOURS)],
      label=domain,
      linewidths=0,
    )
  ends = np.quantile(summary.nll["reference"], [0.001, 0.999])
  ax.plot(ends, ends, color=page.GREY, lw=1, ls="--")
  if len(set(summary.domain)) <= 12:
    ax.legend(fontsize=7, frameon=False, markerscale=4)
  return figure


def _texts(ends, corpus: Corpus):
  tokenizer, found = corpus.tokenizer(), []
  for (row_id, score), instance in zip(ends, corpus.read([i for i, _ in ends])):
    text = tokenizer.decode(instance.ids)
    found.append(
      (f"{instance.domain}, row {row_id}, score {score:+.3f}", text[:_SHOWN])
    )
  return found


def write(
  directory: epath.Path, name: str, body: list[page.Section], summary: Summary
):
  """Writes report.html and card.md of one selection."""
  lead = body[0].text[0]
  page.write(directory / "report.html", f"Selection {name}", lead, body)
  table = page.markdown_table(*domain_table(summary))
  lines = [f"# Selection {name}", "", lead, "", table]
  lines += ["", "`rows.npy`: int64 row ids of the corpus, ascending.", ""]
  files.write_bytes(directory / "card.md", "\n".join(lines).encode())
