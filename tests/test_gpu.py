"""What NVIDIA GPUs run, without one: traced, lowered for CUDA, or by XLA."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from miniplm_jax.models import attention, cudnn, decoder, sharding
from miniplm_jax.models.architecture import Transformer

ARCH = Transformer(
  vocab_size=61,
  hidden_size=64,
  intermediate_size=24,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
)


@pytest.fixture
def on_gpu(monkeypatch):
  """Programs are traced as for a GPU with cuDNN, which is not here."""
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  monkeypatch.setattr(
    fused_attention_stablehlo, "check_cudnn_version", lambda: 91_400
  )


@pytest.mark.parametrize(("heads", "keys"), [(2, 2), (4, 2), (6, 1)])
def test_attention_of_gpus_is_attention(heads, keys, mesh):
  """What cuDNN is asked for, by XLA in its place: value and gradients."""
  rng = np.random.default_rng(0)
  q, k, v, g = (
    jnp.asarray(rng.normal(size=(2, 33, n, 16)), jnp.float32)
    for n in (heads, keys, keys, heads)
  )

  def both(of):
    def gradients(q, k, v, g):
      out, back = jax.vjp(of, q, k, v)
      return out, *back(g)

    return jax.jit(gradients)(q, k, v, g)

  of_kernel = functools.partial(cudnn.attention, implementation="xla")
  for found, wanted in zip(
    both(of_kernel), both(attention.attention), strict=True
  ):
    top = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, atol=1e-5 * top)


def test_cudnn_is_not_for_every_shape_or_gpu(mesh, monkeypatch):
  def fits(size=64, capability=None, heads=4, keys=2):
    device = types.SimpleNamespace(compute_capability=capability)
    if capability is None:
      del device.compute_capability
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    q, k = (jnp.zeros((2, 33, n, size), jnp.bfloat16) for n in (heads, keys))
    return cudnn.fits(q, k)

  assert fits() and fits(size=256)  # no GPU is here: taken to be a Hopper
  assert fits(capability="8.0") and fits(256, "9.0") and fits(256, "10.0")
  assert not fits(256, "8.9")
  assert not fits(capability="7.5")  # a T4
  assert not fits(capability="gfx942")  # an AMD
  assert not fits(size=60)


# Of the forward pass, of the backward pass: "full" runs the first again.
@pytest.mark.parametrize(
  ("remat", "forward"), [("none", 1), ("dots", 1), ("full", 2)]
)
def test_a_layer_calls_cudnn_as_often_as_remat_says(
  mesh, on_gpu, remat, forward
):
  """Lowered for CUDA. With "dots" its results are kept: they have no name."""
  model = decoder.abstract(ARCH)

  def loss(model, tokens):
    return jnp.sum(model(tokens, dtype=jnp.bfloat16, remat=remat) ** 2)

  traced = jax.jit(jax.grad(loss)).trace(model, jnp.zeros((2, 32), int))
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("@__cudnn$fmhaSoftmax(") == forward
  assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
  assert '"mask_type": "CAUSAL"' in text.replace(r"\22", '"')
  exact = jax.jit(lambda m, t: m(t)).trace(model, jnp.zeros((2, 32), int))
  assert "cudnn" not in exact.lower(lowering_platforms=("cuda",)).as_text()
