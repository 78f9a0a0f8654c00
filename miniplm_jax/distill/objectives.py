"""The objectives by name; nothing of JAX is imported before one is made."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from miniplm_jax.core.job import Input
from miniplm_jax.models import architecture
from miniplm_jax.score import stage as score_stage


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a training job needs to know of its objective.

  Attributes:
    make: (corpus, mesh, input manifests) → a `NextToken` or what extends it;
      None is `NextToken` itself.
    settings: what of the config changes the result, for the manifest.
    inputs: what it reads beside corpus and selection, by name.
    token_flops: of training on one input token; 0 is what the student's
      forward and backward pass take.
  """

  make: Callable[..., Any] | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  inputs: Mapping[str, Input] = dataclasses.field(default_factory=dict)
  token_flops: float = 0.0


def _next_token(unused_config, unused_workdir, unused_names) -> Plan:
  return Plan()


def _soft_labels(config, workdir, unused_names) -> Plan:
  source = score_stage.sources(config, workdir)[0]
  kd, train = config.kd, config.train

  def make(corpus, mesh, inputs):
    from miniplm_jax.distill.vanilla_kd import SoftLabels

    if "teacher" in inputs:  # trained here
      inputs["teacher"].check_sizes()
    dtype = kd.dtype or train.dtype
    teacher = score_stage.load_checked(source, corpus, mesh, dtype)
    return SoftLabels(train, corpus.eos_id, config.run.remat, teacher, kd)

  return Plan(
    make,
    settings={
      "objective": "soft_labels",
      "teacher": source.name,
      "kd": {**kd, "dtype": kd.dtype or train.dtype},
    },
    inputs={"teacher": score_stage.weights_input(source)},
    token_flops=_online_flops(config, source),
  )


def _online_flops(config, source) -> float:
  """Of training on a token that the teacher reads too."""
  from miniplm_jax.models import hub

  if source.path:
    found = hub.resolve(source.path, source.revision, weights=False)
    teacher = hub.load_architecture(found)
  else:
    teacher = architecture.make(config.teacher.model)
  student = architecture.make(config.student.model)
  length = config.corpus.max_length
  return 3 * student.forward_flops(length) + teacher.forward_flops(length)


# (config, workdir, names of `config.for_method`) → Plan.
OBJECTIVES: dict[str, Callable[..., Plan]] = {
  "next_token": _next_token,
  "soft_labels": _soft_labels,
}
