"""The objectives by name; nothing of JAX is imported before one is made."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from miniplm_jax.core.job import Input


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


# (config, workdir, names of `config.for_method`) → Plan.
OBJECTIVES: dict[str, Callable[..., Plan]] = {"next_token": _next_token}
