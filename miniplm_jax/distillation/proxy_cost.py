"""FLOPs of ranking D through the proxy, and without it."""

from collections.abc import Mapping

from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation import proxy_training as training
from miniplm_jax.models.ref import ModelRef
from miniplm_jax.score import units
from miniplm_jax.training import flops as flops_lib


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
  models = [
    ModelRef.of_role(role, section, workdir)
    for role, section in config.roles.items()
  ]
  if any(model.scores for model in models):
    return {}
  archs = [model.shape() for model in models]

  def both(length: int) -> float:
    return sum(arch.forward_flops(length) for arch in archs)

  def total(of_token: flops_lib.OfToken, row_ids) -> float:
    return flops_lib.rows(of_token, corpus.lengths[row_ids] - 1)

  c, length = config.proxy, corpus.max_length
  proxy, every = c.model, corpus.rows_of("train")
  scored = units.sampled_rows(corpus, config.score.share, config.score.seed)
  mine = training.in_sample(config, corpus, scored)
  found = {
    "full": total(both, every),
    "sample": total(both, scored[mine]),
    "test": total(both, scored[~mine]),
    "train": 3 * proxy.body_flops(length) * inputs["model"].counts["tokens"],
    "score": total(proxy.body_flops, every),
  }
  way = found["sample"] + found["train"] + found["score"]
  return found | {"share_of_full": way / found["full"]}


def parts(found: Mapping[str, float]) -> dict[str, float | None]:
  """`flops` of method proxy, as other stages say what they took."""
  names = {
    "sample": "scoring of the proxy's sample",
    "train": "training of proxy",
    "score": "scoring by proxy",
  }
  return {told: found.get(name) for name, told in names.items()}


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
