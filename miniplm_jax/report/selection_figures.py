"""The pictures of a selection."""

import numpy as np

from miniplm_jax.report import plots
from miniplm_jax.report.selection_tables import SelectionReport

_KEPT, _CUT = plots.COLORS[:2]
# Of the domains with a curve of their own; the threshold's is not among them.
_CURVES = plots.COLORS[:1] + plots.COLORS[2:]


def pictures(selection: SelectionReport) -> list[tuple[str, str]]:
  """(inline PNG, caption) of what there is to show."""
  summary = selection.summary
  n, rows = len(summary.sample.score), summary.total.rows
  has_threshold = selection.threshold is not None
  threshold = "The line is the threshold. " if has_threshold else ""
  of = f"Drawn from {n:,} evenly spaced rows of D." if n < rows else ""
  drawn = [
    (
      _histogram(selection),
      f"Scores, kept rows and rows left out, stacked. {threshold}{of}",
    ),
    (
      _cumulative(selection),
      "Share of rows with at most this score, for all rows and for the largest "
      f"domains. {threshold}{of}",
    ),
  ]
  if summary.has_noise:
    line = "Rows below the solid line reach the threshold. "
    caption = (
      "Mean NLL of a row under reference and teacher; color counts rows, on a "
      "logarithmic scale. Below the dashed diagonal the teacher finds a row "
      f"likelier. {line * _has_line(selection)}{of}"
    )
    drawn.append((_density(selection), caption))
  return [(plots.picture(figure), text.strip()) for figure, text in drawn]


def _has_line(selection: SelectionReport) -> bool:
  """Whether the threshold is a line beside the diagonal of both NLLs."""
  return selection.threshold is not None and selection.definition == "mean_diff"


def _mark_threshold(ax, selection: SelectionReport):
  if selection.threshold is not None:
    ax.axvline(selection.threshold, color=_CUT, lw=1.3)


def _range(values: np.ndarray, most: float = 0.999) -> tuple[float, float]:
  """The ends of a picture: without the few that would make it empty."""
  low, high = (float(v) for v in np.quantile(values, [1 - most, most]))
  return (low, high) if high > low else (low - 0.5, low + 0.5)


def _histogram(selection: SelectionReport):
  figure, ax = plots.axes("Distribution of scores", selection.label, "rows")
  sample = selection.summary.sample
  score, kept = sample.score, sample.kept
  low, high = _range(score)
  count = int(np.clip(np.sqrt(len(score)), 20, 80))
  width, cut = (high - low) / count, selection.threshold
  if cut is not None:  # between two bins: none is on both sides of it
    low = cut - np.ceil((cut - low) / width) * width
  ax.hist(
    (score[kept], score[~kept]),
    bins=low + width * np.arange(count + 2),
    stacked=True,
    color=[_KEPT, plots.PALE],
    label=["kept", "left out"],
  )
  _mark_threshold(ax, selection)
  ax.grid(axis="x", visible=False)
  plots.legend(ax)
  return figure


def _cumulative(selection: SelectionReport):
  from matplotlib import ticker

  figure, ax = plots.axes(
    "Cumulative distribution by domain", selection.label, "share of rows"
  )
  sample = selection.summary.sample
  score, domain = sample.score, sample.domain
  curves = [("all rows", score, plots.INK, 2.2)]
  for group, color in zip(selection.summary.domains, _CURVES):
    curves.append((group.name, score[domain == group.name], color, 1.2))
  drawn = {
    plots.plain(name): ax.ecdf(values, color=color, lw=width)
    for name, values, color, width in curves
    if len(values)
  }
  ax.set_xlim(*_range(score, 0.998))
  _mark_threshold(ax, selection)
  ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
  # By itself it would leave out names that begin with "_".
  plots.legend(ax, handles=list(drawn.values()), labels=list(drawn))
  return figure


def _density(selection: SelectionReport):
  figure, ax = plots.axes(
    "Teacher against reference",
    "reference NLL (nats per token)",
    "teacher NLL (nats per token)",
  )
  sample = selection.summary.sample
  x, y = (sample.means[name] for name in ("reference", "teacher"))
  x_ends, y_ends = _range(x), _range(y)
  low, high = min(x_ends[0], y_ends[0]), max(x_ends[1], y_ends[1])
  inside = (np.minimum(x, y) >= low) & (np.maximum(x, y) <= high)
  cells = plots.density(ax, x[inside], y[inside])
  ends = np.array([low, high])
  ax.plot(ends, ends, color=plots.INK, lw=1, ls="--", label="equal")
  if _has_line(selection):
    ax.plot(
      ends, ends - selection.threshold, color=_CUT, lw=1.3, label="threshold"
    )
  # Each axis its own ends: the rows fill the picture.
  for limit, (a, b) in ((ax.set_xlim, x_ends), (ax.set_ylim, y_ends)):
    limit(a - 0.03 * (b - a), b + 0.03 * (b - a))
  bar = figure.colorbar(cells, ax=ax, pad=0.02)
  bar.set_label("rows", fontsize=9, color=plots.INK)
  bar.ax.tick_params(labelsize=8)
  bar.outline.set_visible(False)
  plots.legend(ax)
  return figure
