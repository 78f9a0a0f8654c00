"""AdamW and its schedule, exactly as the released code of MiniPLM has them."""

import jax
import jax.numpy as jnp
import optax

from miniplm_jax.config import TrainConfig


def learning_rate_schedule(train: TrainConfig) -> optax.Schedule:
  """Linear warm-up from 0, then cosine to a share of the peak.

  A function of t, the steps already taken, W of warm-up, T in all. While t < W
  it is peak·t/W; after that least + ½(peak − least)(1 + cos(π(t − W)/(T − W))).
  """
  peak, warmup, steps = train.learning_rate, train.warmup_steps, train.steps
  least = peak * train.final_learning_rate_ratio

  def schedule(t):
    t = jnp.asarray(t, jnp.float32)
    rising = peak * t / max(warmup, 1)
    angle = jnp.pi * (t - warmup) / (steps - warmup)
    falling = least + 0.5 * (peak - least) * (1 + jnp.cos(angle))
    return jnp.where(t < warmup, rising, falling)

  return schedule


def make(train: TrainConfig) -> optax.GradientTransformation:
  """Clip by global norm, then AdamW with decay on every parameter.

  A clip_norm of 0 clips nothing.
  """
  return optax.chain(
    _clip(train.clip_norm) if train.clip_norm else optax.identity(),
    optax.adamw(
      learning_rate_schedule(train),
      b1=train.beta1,
      b2=train.beta2,
      eps=train.epsilon,
      weight_decay=train.weight_decay,
    ),
  )


def _clip(most: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm` as one product, like PyTorch's.

  A division of every gradient is not fused with what follows: the clipped
  gradients were a copy of the model in memory.
  """

  def clipped(grads, unused_params):
    norm = optax.global_norm(grads)
    scale = jnp.where(norm < most, 1.0, most / norm)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)

  return optax.stateless(clipped)
