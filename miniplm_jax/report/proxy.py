"""The proxy's part of a report."""

from collections.abc import Mapping

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation import proxy as proxy_lib
from miniplm_jax.report import plots
from miniplm_jax.report.page import Section
from miniplm_jax.report.table import Table
from miniplm_jax.scoring import table

_STEPS = {
  "full": "teacher and reference score D",
  "sample": "they score the sample that the proxy learns from",
  "train": "the proxy is trained",
  "score": "the proxy scores D",
  "test": "they score rows that only test the proxy",
}


def section(
  sample: float,
  seed: int,
  alpha: float,
  corpus: Corpus,
  tables: Mapping[str, Manifest],
) -> Section:
  """How well the proxy that learned from a share of D ranks, and what it saves.

  Args:
    tables: manifests of the scores by "teacher", "reference" and "proxy".
  """
  parts = table.parts(tables["proxy"])
  comparison = proxy_lib.compare(corpus, tables, parts, sample, seed)
  report = proxy_lib.report(comparison, alpha)
  flops = tables["proxy"].details["flops_compared"]
  others = "other rows that were scored: what follows is of these"
  rows = [
    ("rows of D", f"{report['rows_of_d']:,}"),
    ("rows that it learned from", f"{report['learned_rows']:,}"),
    (others, f"{report['rows']:,}"),
    ("Spearman", f"{report['spearman']:.4f}"),
    ("Pearson", f"{report['pearson']:.4f}"),
  ]
  rows += [
    (f"of the highest {float(ratio):.0%}, both agree on", f"{share:.1%}")
    for ratio, share in report["agreement"].items()
  ]
  rows += [
    (f"FLOPs: {what}", f"{flops[name]:.3g}")
    for name, what in _STEPS.items()
    if flops
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
  picture = plots.picture(_figure(comparison)), caption
  return Section(
    "The proxy",
    text,
    table=Table(("what", ("figure", ">")), rows),
    pictures=[picture],
  )


def _figure(comparison: proxy_lib.Comparison):
  figure, ax = plots.axes(
    "Predicted and true scores",
    "log p − log p_ref (nats per token)",
    "predicted (nats per token)",
  )
  ax.hexbin(
    comparison.true,
    comparison.predicted,
    gridsize=50,
    bins="log",
    cmap="viridis",
    mincnt=1,
    linewidths=0,
  )
  ends = min(comparison.true), max(comparison.true)
  ax.plot(ends, ends, color=plots.GRAY, lw=1, ls="--")
  return figure
