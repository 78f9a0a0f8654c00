"""How a model is trained."""

import dataclasses

from miniplm_jax.core import fields as f
from miniplm_jax.core.fields import Section

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
  """AdamW and its schedule. Every field changes the result."""

  steps: int = f.number(100_000, "[1, inf)")
  # rows of one step, over all devices
  batch_size: int = f.number(512, "[1, inf)")
  learning_rate: float = f.number(6e-4, "(0, 1]")  # at its peak
  # what the cosine ends at, as a share of the peak
  final_learning_rate_ratio: float = f.number(0.1, "[0, 1]")
  # linear from 0, the rate of the first step; 0 begins at the peak
  warmup_steps: int = f.number(2000, "[0, inf)")
  weight_decay: float = f.number(0.01, "[0, 10]")  # on all parameters
  beta1: float = f.number(0.9, "[0, 1)")
  beta2: float = f.number(0.98, "[0, 1)")
  epsilon: float = f.number(1e-6, "[1e-30, 1]")
  clip_norm: float = f.number(1.0, "[1e-6, 1e6]", 0)  # global norm; 0 is off
  # weight of log² Z beside the next-token loss, as PaLM
  z_loss: float = f.number(0.0, "[0, 1]")
  reduction: str = f.word("instance_mean", ("instance_mean", "token_mean"))
  shuffle: bool = f.switch(False)  # released code: file order
  # How often a row of a domain is seen, relative to rows of the domains
  # that are not named: "code=2", "mail=0.5"; 0 leaves a domain out. See
  # docs/training.md. () takes the rows as they are, in their order.
  domain_weights: tuple[str, ...] = f.several(
    f.parsed("", f.weight_of, "give DOMAIN=WEIGHT, 0 or more")
  )
  seed: int = f.seed(10)  # of the initialization and the shuffle
  # of the computation; parameters are float32
  dtype: str = f.word("bfloat16", DTYPES)

  def _rules(self):
    good = self.warmup_steps < self.steps
    yield "warmup_steps", good, "give fewer than steps"
    weights = map(f.weight_of, self.domain_weights)
    good = f.differ(domain for domain, _ in weights)
    yield "domain_weights", good, "name each domain once"
