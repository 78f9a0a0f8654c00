"""The proxy's part of a report."""

from collections.abc import Mapping

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation import proxy as proxy_lib
from miniplm_jax.report import plots
from miniplm_jax.report.page import Section
from miniplm_jax.report.table import Table
from miniplm_jax.score import table

_STEPS = {
  "full": "teacher and reference score D",
  "sample": "they score the sample that the proxy learns from",
  "train": "the proxy is trained",
  "score": "the proxy scores D",
  "test": "they score rows that only test the proxy",
}


def section(config, corpus: Corpus, inputs: Mapping[str, Manifest]) -> Section:
  """How well the proxy ranks, and what it saves.

  Args:
    config: the configuration.
    corpus: of the rows.
    inputs: manifests of "teacher scores", "reference scores", "proxy scores".
  """
  tables = {r: inputs[f"{r} scores"] for r in ("teacher", "reference", "proxy")}
  parts, sample = table.parts(tables["proxy"]), config.proxy.sample
  found = proxy_lib.compare(corpus, tables, parts, sample, config.score.seed)
  # As in its log line: a selection by rows or tokens has no share.
  report = proxy_lib.report(found, config.select.ratio or 0.5)
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
  picture = plots.picture(_figure(found)), caption
  return Section(
    "The proxy",
    text,
    table=Table(("what", ("figure", ">")), rows),
    pictures=[picture],
  )


def _figure(found: proxy_lib.Comparison):
  figure, ax = plots.axes(
    "Predicted and true scores",
    "log p − log p_ref (nats per token)",
    "predicted (nats per token)",
  )
  ax.hexbin(
    found.true,
    found.predicted,
    gridsize=50,
    bins="log",
    cmap="viridis",
    mincnt=1,
    linewidths=0,
  )
  ends = min(found.true), max(found.true)
  ax.plot(ends, ends, color=plots.GRAY, lw=1, ls="--")
  return figure
