"""The objectives by name; nothing of JAX is imported before one is made."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from miniplm_jax.core.job import Input
from miniplm_jax.models import architecture, hub
from miniplm_jax.score import stage as score_stage
from miniplm_jax.trainer import flops


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


def _minillm(config, workdir, unused_names) -> Plan:
  source = score_stage.sources(config, workdir)[0]
  length = config.corpus.max_length
  prompt = int(config.minillm.prompt_share * length)

  def make(corpus, mesh, inputs):
    from miniplm_jax.distill.minillm import MiniLLM

    if "teacher" in inputs:
      inputs["teacher"].check_sizes()
    train, run = config.train, config.run
    teacher = score_stage.load_checked(source, corpus, mesh, train.dtype)
    return MiniLLM(train, corpus.eos_id, run.remat, teacher, config.minillm)

  return Plan(
    make=make,
    settings={"minillm": dict(config.minillm)},
    inputs={"teacher": score_stage.weights_input(source)},
    token_flops=flops.minillm(
      architecture.make(config.student.model),
      hub.shape_of(config.teacher),
      prompt,
      length - prompt,
    ),
  )


# (config, workdir, names of `config.for_method`) → Plan.
OBJECTIVES: dict[str, Callable[..., Plan]] = {
  "next_token": _next_token,
  "minillm": _minillm,
}
