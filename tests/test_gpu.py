"""What NVIDIA GPUs run, without one: traced, lowered for CUDA, or by XLA."""

import functools
import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import on_h100
import pytest
from gradients import assert_same_gradients
from helpers import LIMIT, ROOT, environment
from jax._src.cudnn import fused_attention_stablehlo

from miniplm_jax import config
from miniplm_jax.models import attention, cudnn, decoder, sharding
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.training import flops as flops_lib
from miniplm_jax.training import loop
from miniplm_jax.training.objective import NextToken

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

  of_kernel = functools.partial(cudnn.attention, implementation="xla")
  arrays = q, k, v, g
  assert_same_gradients(of_kernel, attention.attention, arrays, 1e-5)


def test_cudnn_is_not_for_every_shape_or_gpu(monkeypatch):
  def fits(size=64, capability=None):
    device = types.SimpleNamespace(compute_capability=capability)
    if capability is None:
      del device.compute_capability
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    return cudnn.fits(33, size)

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
  mesh, on_gpu, monkeypatch, remat, forward
):
  """Lowered for CUDA. With "dots" its results are kept: they have no name."""
  monkeypatch.setitem(decoder.UNROLL, "gpu", 1)  # or each layer would call it
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


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_float32_is_float32_in_every_product_of_a_step(mesh, on_gpu, remat):
  """Left to itself a GPU takes TF32 for it, and TPUs bfloat16."""
  train = config.default().train
  train.batch_size, train.dtype = 2, "float32"
  objective = NextToken(train, 0, remat)
  state = loop.abstract_state(ARCH, train, mesh, objective.new_model)
  batch = {"tokens": jnp.zeros((2, 65), int), "length": jnp.zeros(2, int)}
  step = loop.step_function(state, train, objective, mesh, 1)
  text = step.trace(state, batch).lower(lowering_platforms=("cuda",)).as_text()
  products = [x for x in text.splitlines() if "stablehlo.dot_general" in x]
  assert len(products) > 3 * 7
  assert all("HIGHEST" in x for x in products)


COMPILER = os.environ.get("CUDA_COMPILER", "")


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(
      n,
      marks=[
        pytest.mark.skipif(
          not os.path.isdir(COMPILER),
          reason="see CUDA_COMPILER in the Makefile",
        ),
        *more,
      ],
    )
    for n, *more in (
      ((1, 1),),
      ((8, 2), pytest.mark.long),
      ((8, 1), pytest.mark.long),
    )
  ],
)
def compiled(request):
  """What XLA makes of scoring and of a training step for H100s of a node.

  Their number and the size of `tensor`; the rest is `fsdp`.
  """
  done = subprocess.run(
    [sys.executable, ROOT / "tests" / "on_h100.py", *map(str, request.param)],
    capture_output=True,
    text=True,
    env=environment() | {"PYTHONPATH": f"{COMPILER}{os.pathsep}{ROOT}"},
    check=False,
    timeout=LIMIT,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return *request.param, json.loads(done.stdout)


def test_an_h100_gets_its_own_kernels(compiled):
  devices, tensor, found = compiled
  scoring, training = (found[x]["kernels"] for x in ("scoring", "training"))
  # One GPU has no loop over the layers that a gradient is formed of.
  layers = on_h100.ARCH.num_hidden_layers if devices == 1 else 1
  assert scoring["cudnn$fmhaSoftmax"] == 1
  assert training["cudnn$fmhaSoftmax"] == layers  # once each: dots keeps it
  assert training["cudnn$fmhaSoftmaxBackward"] == layers
  # Each GPU has its own rows and heads, and no others.
  shape = on_h100.ROWS, 8 // tensor, on_h100.LENGTH, 64
  for program in found.values():
    assert program["attention"] == [",".join(map(str, shape))]
  # A layer has 7 weights, of which XLA may take q, k and v at once.
  assert scoring["cublas$lt$matmul"] >= 5
  assert training["cublas$lt$matmul"] >= 3 * 5 * layers
  # Nothing of all layers' activations is kept in a stack, or copied into it.
  kept = (
    f"bf16[{on_h100.ARCH.num_hidden_layers},{on_h100.ROWS * on_h100.LENGTH}"
  )
  stacked = [x for x in found["training"]["shapes"] if x.startswith(kept)]
  assert bool(stacked) == (devices > 1)
  # The maximum and the sum in one kernel; gradients in another.
  assert found["scoring"]["reads_of_logits"] == 1
  assert found["training"]["reads_of_logits"] == 2
  for program in found.values():
    assert "collective-permute" not in program["collectives"]
    assert ("all-gather" in program["collectives"]) == (devices > 1)


def test_what_of_a_step_on_an_h100_is_not_the_same_each_time(compiled):
  """The embedding's gradient alone: its rows are added as they come in.

  What docs/training.md says of the same bits.
  """
  _, _, found = compiled
  assert [found["training"][x] for x in ("scatters", "sorts")] == [1, 0]
  # Sorted by id before, so that each is added in a fixed order.
  assert found["deterministic"]["sorts"] == 1


def test_on_an_h100_no_logits_exist_but_of_a_tile(compiled):
  devices, tensor, found = compiled
  tokens = on_h100.ROWS * on_h100.LENGTH
  vocabulary = on_h100.ARCH.vocab_size // tensor
  tile = 4 * vocabulary * 4096
  for program in found.values():
    shapes = {s.partition("[")[2] for s in program["shapes"]}
    assert f"{vocabulary},4096]" in shapes
    for n in (tokens, devices // tensor * tokens):
      assert not {f"{vocabulary},{n}]", f"{n},{vocabulary}]"} & shapes
  # Beside a tile, activations of a layer: 8,192 tokens in bfloat16.
  activations = 2 * tokens * (4 * 512 + 3 * 1408)
  assert found["scoring"]["temporaries"] < tile + 2 * activations
  training = found["training"]
  # The state is donated: weights and AdamW's two means, float32.
  state = 3 * 4 * on_h100.ARCH.parameters() / devices
  assert training["aliased"] == pytest.approx(state, rel=0.01)
  # And again in bfloat16, what three layers keep, the head and its gradient.
  head = (2 + 4) * vocabulary * 512
  assert training["temporaries"] < 1.5 * tile + 3 * activations + 2 * head


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
    ("NVIDIA A10G", 70e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L40", None),  # is no L4
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ("Tesla T4", None),
    ("TPU v5 lite", 197e12),
    ("cpu", None),
  ],
)
def test_the_peak_is_that_of_the_device_and_no_other(kind, peak):
  assert flops_lib.peak_flops(kind) == peak
