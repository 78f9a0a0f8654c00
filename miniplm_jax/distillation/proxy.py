"""What the proxy learns from, how well it ranks, and what that costs.

A score is log p − log p_ref as a mean per token, as `select` computes it.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from miniplm_jax.config import ProxyConfig, ScoreConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.scoring import fidelity, table, units
from miniplm_jax.training import flops


def true_scores(
  teacher: Manifest, reference: Manifest
) -> tuple[np.ndarray, np.ndarray]:
  """Rows that both scored, and their scores.

  Returns:
    Row ids int64 [n], ascending; scores float32 [n].

  Raises:
    UserError: the tables hold other rows.
  """
  p, p_ref = (_joined(table.parts(each)) for each in (teacher, reference))
  if not np.array_equal(p["row_id"], p_ref["row_id"]):
    raise UserError(
      "teacher and reference scored different rows",
      f"{teacher.path} and {reference.path}",
      "score both on the same corpus with the same settings",
    )
  n_tokens = p["n_tokens"].astype(np.float32)
  # Term by term as select's mean_diff.
  return p["row_id"], p_ref["nll_sum"] / n_tokens - p["nll_sum"] / n_tokens


def _joined(parts: Iterable[table.Columns]) -> table.Columns:
  """The columns of all parts, in their order."""
  parts = list(parts)
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def in_sample(
  corpus: Corpus, row_ids: np.ndarray, share: float, seed: int
) -> np.ndarray:
  """Which of these rows the proxy learns from, bool [n]; by their content.

  `share` is proxy.sample; score.seed chose the rows that are scored, too.
  """
  return units.point(corpus.hashes[row_ids], seed) < share


def moments(scores: np.ndarray, others: int) -> tuple[float, float]:
  """Mean and standard deviation of the scores to learn.

  Raises:
    UserError: too few rows, or nothing to tell them apart by.
  """
  if len(scores) < 2 or not others:
    raise UserError(
      f"{len(scores)} scored rows to learn from and {others} to test on",
      "config.proxy.sample and config.score.share",
      "let there be some of both: give other shares, or more text",
    )
  scores = np.float64(scores)
  mean, scale = float(scores.mean()), float(scores.std())
  if not scale:
    raise UserError(
      f"all {len(scores)} rows have the score {mean}",
      "scores of teacher and reference",
      "give two models that differ",
    )
  return mean, scale


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Does it rank as the models do, on rows that it did not learn from?

  Of those that both scored: all others, if all of D was scored.
  """

  true: np.ndarray  # float32 [n], log p − log p_ref, nats per token
  predicted: np.ndarray  # float32 [n], the same as the proxy says
  learned: int  # how many rows it did learn from
  of_d: int  # rows of D


def compare(
  corpus: Corpus,
  tables: Mapping[str, Manifest],
  parts: Iterable[table.Columns],
  share: float,
  seed: int,
) -> Comparison:
  """Both scores of those rows.

  Args:
    tables: manifests of "teacher" and "reference".
    parts: of the proxy's table, in row order.
  """
  row_ids, true = true_scores(tables["teacher"], tables["reference"])
  other = ~in_sample(corpus, row_ids, share, seed)
  by_proxy = _joined(parts)
  values = by_proxy["diff_sum"] / by_proxy["n_tokens"].astype(np.float32)
  places = np.searchsorted(by_proxy["row_id"], row_ids[other])
  learned = int(np.count_nonzero(~other))
  return Comparison(true[other], values[places], learned, len(values))


def report(both: Comparison, alpha: float) -> dict[str, Any]:
  """The figures of `fidelity.report`, and Pearson's; of at least one row."""
  true, predicted = np.float64(both.true), np.float64(both.predicted)
  return fidelity.report(true, predicted, alpha=alpha) | {
    "pearson": fidelity.pearson(true, predicted),
    "learned_rows": both.learned,
    "rows_of_d": both.of_d,
  }


def in_words(report: Mapping[str, Any]) -> str:
  """A `report`, for the log."""
  alpha = report["alpha"]
  return (
    f"on {report['rows']:,} rows that it did not learn from: Spearman "
    f"{report['spearman']:.4f}, Pearson {report['pearson']:.4f}, "
    f"{report['agreement'][str(alpha)]:.1%} of the highest {alpha:.0%} "
    f"(chance {alpha:.0%})"
  )


def cost(
  options: ProxyConfig,
  score: ScoreConfig,
  shapes: Sequence[Architecture],
  corpus: Corpus,
  fitted: Manifest,
) -> dict[str, float]:
  """FLOPs of ranking D with and without it; padding in training alone.

  Returns:
    `full`, D by both models; `sample`, what the proxy learns from by both;
    `test`, further rows that were scored and only test it; `train`; `score`,
    D by the proxy; and `share_of_full` of sample, train and score together.
  """

  def both(length: int) -> float:
    return sum(shape.forward_flops(length) for shape in shapes)

  def total(of_token: flops.OfToken, row_ids) -> float:
    return flops.rows(of_token, corpus.lengths[row_ids] - 1)

  of_d, body = corpus.rows_of("train"), options.model.body_flops
  scored = units.sampled_rows(corpus, score.share, score.seed)
  is_learned = in_sample(corpus, scored, options.sample, score.seed)
  parts = {
    "full": total(both, of_d),
    "sample": total(both, scored[is_learned]),
    "test": total(both, scored[~is_learned]),
    "train": 3 * body(corpus.max_length) * fitted.counts["tokens"],
    "score": total(body, of_d),
  }
  way = parts["sample"] + parts["train"] + parts["score"]
  return parts | {"share_of_full": way / parts["full"]}


def cost_in_words(cost: Mapping[str, float]) -> str:
  """`cost`, for the log; none are those of scores that were given."""
  if not cost:
    return "FLOPs are not known: scores were made elsewhere"
  # Whether more than the sample was scored, to test the proxy or for other
  # methods, is another matter.
  only = ", had only the sample been scored" if cost["test"] else ""
  return (
    f"{cost['sample']:.3g} FLOPs of scoring its sample + "
    f"{cost['train']:.3g} of training + {cost['score']:.3g} of scoring D "
    f"are {cost['share_of_full']:.1%} of {cost['full']:.3g} of scoring D "
    f"with both models{only}"
  )
