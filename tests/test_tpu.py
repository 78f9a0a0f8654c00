"""The scoring step, compiled for TPUs that are not here."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from miniplm_jax.config import TrainConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.forecast import (
  hlo,
  hlo_text,
  kernel,
  prediction,
  programs,
  topology,
)
from miniplm_jax.forecast.workload import (
  ScoringProgram,
  TrainingProgram,
  next_token,
)
from miniplm_jax.models import generation, ready, sharding
from miniplm_jax.models.architecture import Transformer

ARCH = Transformer(
  vocab_size=32_000,
  hidden_size=256,
  intermediate_size=704,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=4,
  tie_word_embeddings=False,
)
ROWS, LENGTH = 4, 1024  # on each shard of the batch: 4 tiles of the head
_EMBEDDING = ARCH.table_rows * ARCH.hidden_size
_HIDDEN = 2 * ROWS * LENGTH * ARCH.hidden_size
MESHES = {"fsdp": (1, 4, 1), "tensor": (1, 2, 2)}


needs_libtpu = pytest.mark.skipif(
  not topology.is_installed(), reason="no libtpu: see LIBTPU in the Makefile"
)


def scoring(arch, length: int) -> ScoringProgram:
  return ScoringProgram("score", arch, jnp.bfloat16, length, length, 1)


def training(train) -> TrainingProgram:
  flops = 3 * ARCH.forward_flops(LENGTH)
  return TrainingProgram("train", ARCH, train, LENGTH, flops, next_token(train))


def logits_shape(found) -> tuple[int, ...]:
  return hlo_text.arrays(found.logits)[0].shape


def predicted(program, mesh, rows: int, remat: str = "full"):
  """The prediction for v5e:2x2, and the text that it was made from."""
  compiled = program.lower(mesh, rows, remat).compile()
  found = prediction.of_compiled(compiled, program, "v5e:2x2", mesh, rows)
  return found, compiled.as_text()


@pytest.fixture(
  scope="module",
  params=[pytest.param(name, marks=needs_libtpu) for name in MESHES],
)
def compiled(request):
  mesh = topology.mesh("v5e:2x2", *MESHES[request.param])
  return mesh, *predicted(scoring(ARCH, LENGTH), mesh, ROWS)


def test_flops_are_those_of_the_closed_form(compiled):
  _, found, text = compiled
  loops = hlo.Schedule(text).loops.values()
  assert None not in loops and sorted(loops)[-2:] == [2, 4]  # layers, tiles
  assert found.flops == pytest.approx(found.model_flops, rel=0.02)


def test_no_buffer_holds_the_logits_of_all_tokens(compiled):
  mesh, found, text = compiled
  shards, tensor = sharding.batch_shards(mesh), mesh.shape["tensor"]
  shapes_in_text = set(re.findall(r"\[[\d,]+\]", text))
  for rows in (ROWS, ROWS * shards):
    for v in {ARCH.vocab_size, ARCH.vocab_size // tensor}:
      n = rows * LENGTH
      shapes = (rows, LENGTH, v), (n, v), (v, n), (v, rows, LENGTH)
      assert not shapes_in_text & {f"[{','.join(map(str, s))}]" for s in shapes}
  local = ARCH.table_rows // tensor
  assert sorted(logits_shape(found)) == [1024, local]  # one tile


def test_memory_is_a_tile_and_the_weights(compiled):
  mesh, found, _ = compiled
  local = ARCH.table_rows // mesh.shape["tensor"]
  # The tile in float32, all weights gathered, and as much again.
  weights = 2 * ARCH.parameters()
  assert found.peak_bytes < 2 * (4 * 1024 * local + weights)


def test_collectives_are_gathers_of_the_weights(compiled):
  mesh, found, _ = compiled
  assert "collective-permute" not in found.collectives
  tensor = mesh.shape["tensor"]
  weights = 2 * (ARCH.parameters() - _EMBEDDING) / tensor
  _, nbytes = found.collectives["all-gather"]
  assert weights * 0.98 < nbytes < weights * 1.1
  # Embeddings come by all-to-all, from the table's columns to the rows.
  assert found.collectives["all-to-all"] == (1, _HIDDEN)
  reduced = found.collectives["all-reduce"][1]
  if tensor == 1:  # nothing but each row's number and two results
    assert reduced <= 4 * 3 * ROWS * 4
  else:  # of the embedding, and twice of each layer, hidden states
    sums = 1 + 2 * ARCH.num_hidden_layers
    assert reduced == pytest.approx(_HIDDEN * sums, rel=0.02)


@needs_libtpu
def test_a_training_step_gathers_weights_and_forms_no_logits():
  rows = 2
  train = TrainConfig(batch_size=4 * 2 * rows)  # in two turns
  mesh = topology.mesh("v5e:2x2", 1, 4, 1)
  found, text = predicted(training(train), mesh, rows, "none")
  # All that is formed again are scores of attention.
  assert found.flops == pytest.approx(found.model_flops, rel=0.03)
  assert "collective-permute" not in found.collectives
  assert sorted(logits_shape(found)) == [rows * LENGTH, ARCH.table_rows]
  kernels = [o for o in hlo.Schedule(text).operations if o.slowness != 1]
  layers = ARCH.num_hidden_layers
  assert [(o.times, o.flops) for o in kernels] == [
    (2 * layers, products * rows * ARCH.hidden_size * LENGTH**2)
    for products in (2, 5)  # forward, and back with the scores anew
  ]
  weights = 2 * (ARCH.parameters() - _EMBEDDING)
  gathered = found.collectives["all-gather"][1]
  # Once, or in each of two turns; those of the layers also backward.
  assert weights * 0.98 < gathered < weights * 4.1


@needs_libtpu
@pytest.mark.parametrize("fits", [True, False])
def test_generation_gathers_weights_before_its_first_token(monkeypatch, fits):
  if not fits:
    monkeypatch.setattr(ready, "_fits", lambda *_: False)
  mesh = topology.mesh("v5e:2x2", 1, 4, 1)
  rows = sharding.batch_sharding(mesh)
  batch = {
    name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
    for name, shape in (("tokens", (8, 64)), ("first", (8,)), ("row", (8,)))
  }
  program = generation.compiled(
    mesh,
    sampling=generation.Sampling(64),
    seed=0,
    eos_ids=(0,),
    vocabulary=ARCH.vocab_size,
    dtype=jnp.bfloat16,
  )
  with jax.set_mesh(mesh):
    model = programs.weights(ARCH, mesh, jnp.bfloat16)
    text = program.lower(model, batch).compile().as_text()
  # By where it was written: the head's gather is moved into the prompts' loop.
  found = re.findall(r"bf16\S* all-gather.*op_name=\"([^\"]*)\"", text)
  assert found and any("/body/" in name for name in found) != fits


def test_a_kernel_of_unknown_cost_is_refused():
  with pytest.raises(kernel.UnknownKernelError, match="some_kernel"):
    hlo.Schedule(
      _HLO.replace('"x"', '"tpu_custom_call"').replace("pad.1", "some_kernel")
    )


@needs_libtpu
def test_what_does_not_fit_is_said():
  arch = dataclasses.replace(ARCH, vocab_size=32_000_000)
  mesh = topology.mesh("v5e:1x1", 1, 1, 1)
  found = prediction.predict(scoring(arch, 128), "v5e:1x1", mesh, 1)
  assert "does not fit" in found.refusal and not found.fits


@needs_libtpu
@pytest.mark.parametrize(
  "name", ["v5e", "v5e:4", "v9:2x2", "v5e:2x2x2", "4x4", "0*v5e:2x2", "2*"]
)
def test_a_slice_that_does_not_exist_is_an_error(name):
  with pytest.raises(UserError, match="no TPU slice"):
    topology.devices(name)


@needs_libtpu
def test_a_mesh_is_that_of_a_slice():
  """Each slice holds all weights: its devices are one row of the mesh."""
  for name, sizes, shape in (
    ("2*v5e:2x2", (1, -1, 1), (2, 4, 1)),
    ("2*v5e:4x4", (2, -1, 1), (4, 8, 1)),
    ("2*v5e:4x4", (1, 8, 2), (2, 8, 2)),
    ("2*v5p:2x2x2", (2, -1, 1), (4, 4, 1)),
  ):
    mesh = topology.mesh(name, *sizes)
    assert mesh.devices.shape == shape and topology.count(name) == 2
    of_row = [{d.slice_index for d in row.flat} for row in mesh.devices]
    assert all(len(found) == 1 for found in of_row)
  with pytest.raises(UserError, match="4 devices of each of 2 slices"):
    topology.mesh("2*v5e:2x2", 1, 8, 1)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
  monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match="libtpu is not installed"):
    topology.devices("v5e:2x2")


def test_bodies_count_as_often_as_they_run_and_the_costlier_branch_once():
  program = hlo.Schedule(_HLO)
  assert program.loops == {"while.1": 5}
  assert program.flops == 5 * 2 * 8 * 16 * 32
  (found,) = program.collectives
  assert (found.kind, found.times, found.nbytes) == (
    "all-gather",
    5,
    8 * 32 * 2,
  )


_HLO = """HloModule test

%a (p.0: bf16[8,32]) -> bf16[8,32] {
  ROOT %p.0 = bf16[8,32]{1,0} parameter(0)
}

%b (p.1: bf16[8,32]) -> bf16[8,32] {
  %p.1 = bf16[8,32]{1,0} parameter(0)
  %w.1 = bf16[32,16]{1,0} constant({...})
  %dot.1 = bf16[8,16]{1,0} dot(%p.1, %w.1), lhs_contracting_dims={1}
  ROOT %pad.1 = bf16[8,32]{1,0} custom-call(%dot.1), custom_call_target="x"
}

%body (s.0: (s32[], bf16[8,32])) -> (s32[], bf16[8,32]) {
  %s.0 = (s32[]{:T(128)}, bf16[8,32]{1,0}) parameter(0)
  %i.0 = s32[] get-tuple-element(%s.0), index=0
  %x.0 = bf16[8,32]{1,0} get-tuple-element(%s.0), index=1
  %one.0 = s32[] constant(1)
  %next.0 = s32[] add(%i.0, %one.0)
  %half.0 = bf16[8,16]{1,0} slice(%x.0), slice={[0:8], [0:16]}
  %all.0 = bf16[8,32]{1,0} all-gather(%half.0), channel_id=1, dimensions={1}
  %y.0 = bf16[8] conditional(%i.0, %all.0, %x.0), branch_computations={%a, %b}
  ROOT %out.0 = (s32[], bf16[8,32]{1,0}) tuple(%next.0, %y.0)
}

%less (s.1: (s32[], bf16[8,32])) -> pred[] {
  %s.1 = (s32[], bf16[8,32]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %limit.1 = s32[] constant(7)
  ROOT %less.1 = pred[] compare(%i.1, %limit.1), direction=LT
}

ENTRY %main (x.2: bf16[8,32]) -> bf16[8,32] {
  %x.2 = bf16[8,32]{1,0} parameter(0)
  %two.2 = s32[] constant(2)
  %init.2 = (s32[], bf16[8,32]{1,0}) tuple(%two.2, %x.2)
  %while.1 = (s32[], bf16[8,32]) while(%init.2), condition=%less, body=%body
  ROOT %done.2 = bf16[8,32]{1,0} get-tuple-element(%while.1), index=1
}
"""
