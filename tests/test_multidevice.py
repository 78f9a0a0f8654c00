"""A step, scores and tokens on 8 simulated devices, against one."""

import numpy as np
import pytest


@pytest.fixture(
  scope="module",
  params=["transformer", pytest.param("mamba", marks=pytest.mark.long)],
)
def results(request, eight_devices):
  one, *meshes = eight_devices("meshes", request.param)
  assert one["mesh"] == [1, 1, 1] and meshes
  return one, meshes


def test_every_mesh_gives_the_figures_of_one_device(results):
  one, meshes = results
  for found in meshes:
    for name in ("loss", "grad_norm", "nll", "whole_nll"):
      np.testing.assert_allclose(
        found[name], one[name], rtol=1e-5, err_msg=name
      )
    assert found["tokens"] == one["tokens"]
    assert found["generated"] == one["generated"]


def test_rows_are_scored_by_whole_weights(results):
  """Where a device has room; then only results are gathered."""
  for found in results[1]:
    data, fsdp, tensor = found["mesh"]
    assert found["whole_mesh"] == [data * fsdp, 1, tensor]
    if tensor == 1:
      assert set(found["whole_collectives"]) <= {"all-gather", "all-reduce"}


def test_every_gradient_is_that_of_one_device(results):
  _, meshes = results
  for found in meshes:
    assert len(found["gradients_off"]) > 8
    for name, off in found["gradients_off"].items():
      assert off < 1e-5, (found["mesh"], name)


def test_logits_that_are_read_once_have_the_same_sum(eight_devices):
  """As GPUs have it, on every mesh, and where a device has padding alone."""
  found = eight_devices("heads")
  assert len(found) == 5 and max(found) < 1e-3  # of a loss of 8,000


def test_weights_and_optimizer_are_split_as_the_mesh_says(results):
  one, meshes = results
  for found in meshes:
    _, fsdp, tensor = found["mesh"]
    assert found["embed_shard"] == [1024 // tensor, 64 // fsdp]
    # Vectors are copied, Mamba's A too; all else shrinks with fsdp and tensor.
    share = found["argument_bytes"] / one["argument_bytes"]
    assert share == pytest.approx(1 / (fsdp * tensor), rel=0.2), found["mesh"]


def test_every_mesh_reads_weights_shard_by_shard(results):
  one, meshes = results
  assert all(found["loaded"] for found in (one, *meshes))


def test_no_mesh_holds_the_logits_of_all_tokens(results):
  one, meshes = results
  assert [found["logits"] for found in (one, *meshes)] == [[]] * (
    len(meshes) + 1
  )


def test_collectives_are_those_that_the_layout_implies(results):
  one, meshes = results
  assert one["train_collectives"] == one["score_collectives"] == {}
  for found in meshes:
    _, fsdp, tensor = found["mesh"]
    train, score = found["train_collectives"], found["score_collectives"]
    for collective in (train, score):
      assert "collective-permute" not in collective, found["mesh"]
    # Scoring with whole weights on every device only gathers its results.
    if fsdp == tensor == 1:
      assert set(score) <= {"all-gather", "all-reduce"}
      assert set(train) == {"all-reduce"}
    if fsdp > 1:
      assert "all-gather" in train and "all-gather" in score
    if found["family"] == "transformer":
      check_training(set(train), fsdp)


def check_training(found, fsdp):
  """What is split must be put together, and nothing else is sent.

  Copies of the weights (data) add up gradients, and shards of heads, FFN and
  vocabulary (tensor) partial sums: all-reduce. Shards of the weights (fsdp)
  are gathered for each layer, and their gradients reduced to the shards, or
  everywhere if the partitioner finds that cheaper. Embeddings are looked up
  where their columns are: ids are gathered, and all-to-all brings them back.
  """
  if fsdp == 1:
    assert found == {"all-reduce"}
  else:
    assert {"all-gather", "all-to-all"} < found
    assert found <= {"all-gather", "all-reduce", "all-to-all", "reduce-scatter"}


GATHERED = (
  ("untied", 1, 8, 1),
  ("minillm", 2, 2, 2),
  *(
    pytest.param(name, *sizes, marks=pytest.mark.long)
    for name, *sizes in (
      ("tied", 1, 8, 1),
      ("mamba", 1, 8, 1),
      ("int8", 1, 8, 1),
      ("minillm", 1, 8, 1),
      ("untied", 2, 2, 2),
    )
  ),
)


@pytest.mark.parametrize(("name", "data", "fsdp", "tensor"), GATHERED)
def test_weights_are_gathered_once_and_not_for_every_token(
  eight_devices, name, data, fsdp, tensor
):
  """And what is drawn is the same; a token's own gathers are its ids."""
  (wanted, each), (made, once) = eight_devices(
    "generation", name, data, fsdp, tensor
  )
  assert once <= 8 and each >= 1024
  if name == "minillm":
    assert made[0] == wanted[0]
    np.testing.assert_allclose(made[1:], wanted[1:], rtol=1e-5)
  else:
    assert made == wanted
