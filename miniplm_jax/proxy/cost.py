"""FLOPs of ranking D through the proxy, and without it."""

from collections.abc import Callable, Mapping

import numpy as np

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import architecture, hub
from miniplm_jax.proxy import training
from miniplm_jax.score import sample
from miniplm_jax.score import stage as score_stage


def flops(
  config, workdir: Workdir, corpus: Corpus, inputs: Mapping[str, Manifest]
) -> dict[str, float]:
  """FLOPs of each step, counted from shapes; padding only in training.

  Returns:
    `full`, D by both models; `sample`, what the proxy learns from by both;
    `test`, further rows that were scored and only test it; `train`; `score`,
    D by the proxy; and `share_of_full` of sample, train and score together.
    Nothing if a model is not known, because its scores were given.
  """
  sources = score_stage.sources(config, workdir)[: len(score_stage.ROLES)]
  if any(source.scores for source in sources):
    return {}
  archs = [_arch(config, s, r) for s, r in zip(sources, score_stage.ROLES)]

  def both(length: int) -> float:
    return sum(arch.forward_flops(length) for arch in archs)

  c, length = config.proxy, corpus.max_length
  proxy, every = architecture.make(c.model), corpus.rows_of("train")
  scored = sample.rows(corpus, config.score.share, config.score.seed)
  mine = training.in_sample(config, corpus, scored)
  found = {
    "full": _total(both, corpus, every),
    "sample": _total(both, corpus, scored[mine]),
    "test": _total(both, corpus, scored[~mine]),
    "train": 3 * proxy.body_flops(length) * inputs["model"].counts["tokens"],
    "score": _total(proxy.body_flops, corpus, every),
  }
  way = found["sample"] + found["train"] + found["score"]
  return found | {"share_of_full": way / found["full"]}


def _arch(config, source: score_stage.Source, role: str):
  if source.path:
    return hub.load_architecture(hub.resolve(source.path, source.revision))
  return architecture.make(config[role].model)


def _total(
  of_token: Callable[[int], float], corpus: Corpus, row_ids: np.ndarray
) -> float:
  """FLOPs of a forward pass over rows."""
  lengths, counts = np.unique(corpus.lengths[row_ids] - 1, return_counts=True)
  by_row = [int(n) * of_token(int(n)) for n in lengths]
  return float(np.dot(by_row, counts))


def in_words(found: Mapping[str, float]) -> str:
  """`flops`, for the log."""
  if not found:
    return "FLOPs are not known: scores were made elsewhere"
  # Whether more than the sample was scored, to test the proxy or for other
  # methods, is another matter.
  told = ", had only the sample been scored" if found["test"] else ""
  return (
    f"{found['sample']:.3g} FLOPs of scoring its sample + "
    f"{found['train']:.3g} of training + {found['score']:.3g} of scoring D "
    f"are {found['share_of_full']:.1%} of {found['full']:.3g} of scoring D "
    f"with both models{told}"
  )
