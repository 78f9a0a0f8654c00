"""Rows on the hosts that hold them, and results under their rows' numbers."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import tiny_config
from helpers import edited

from benchmarks import meshes
from miniplm_jax import pipeline
from miniplm_jax.core.errors import UserError
from miniplm_jax.forecast import topology
from miniplm_jax.models import placement, sharding

needs_libtpu = pytest.mark.skipif(
  not topology.is_installed(), reason="needs libtpu"
)


@needs_libtpu
@pytest.mark.parametrize("name", meshes.SLICES)
def test_every_mesh_is_made_and_every_device_gets_its_rows(name):
  devices = topology.devices(name)
  hosts = {d.process_index for d in devices}
  for sizes in meshes.splits(len(devices) // topology.count(name)):
    mesh = sharding.make_mesh(*sizes, devices)
    assert sorted(d.id for d in mesh.devices.flat) == sorted(
      d.id for d in devices
    )
    size = 3 * sharding.batch_shards(mesh)
    own = {host: placement.local_rows(mesh, size, host) for host in hosts}
    assert set(np.concatenate(list(own.values()))) == set(range(size))
    # The axes as they are written down: data, then fsdp, over the rows.
    by_shard = mesh.devices.reshape(-1, sizes[2])
    for shard, replicas in enumerate(by_shard):
      for device in replicas:
        rows = {3 * shard, 3 * shard + 1, 3 * shard + 2}
        assert rows <= set(own[device.process_index])
    # No host reads a row that none of its devices holds.
    for host, rows in own.items():
      shards = [host in {d.process_index for d in r} for r in by_shard]
      assert len(rows) == 3 * sum(shards)


@needs_libtpu
def test_the_orders_of_the_simulated_hosts_are_those_of_libtpu():
  kept = meshes.ORDERS.read_text()
  assert kept == meshes.orders({n: meshes.meshes(n) for n in meshes.SIMULATED})


def test_a_mesh_that_jax_does_not_make_is_one_line(monkeypatch):
  def refuse(*unused, **also_unused):
    raise NotImplementedError("Failed to find assignment")

  monkeypatch.setattr(
    sharding.mesh_utils, "create_device_mesh", refuse, raising=True
  )
  with pytest.raises(UserError, match=r"no mesh data=1 .*config\.run"):
    sharding.make_mesh(1, 1, 1)


def numbered(rows, values):
  return placement.Numbered(np.array(rows, np.int32), np.array(values))


def test_results_are_those_of_their_numbers_whatever_the_order():
  made = numbered([7, -1, 3, 5], [0.7, 9.9, 0.3, 0.5])
  rows, values = placement.fetch(made, np.array([3, 5, 7]))
  assert dict(zip(rows.tolist(), values.tolist())) == {7: 0.7, 3: 0.3, 5: 0.5}


@pytest.mark.parametrize("rows", [[3, 5], [3, 5, 5, 7], [3, 5, 8]])
def test_other_rows_than_were_sent_are_an_error(rows):
  with pytest.raises(RuntimeError, match="devices or hosts disagree"):
    placement.fetch(numbered(rows, rows), np.array([3, 5, 7]))


@pytest.mark.bits
def test_numbers_go_through_the_program_with_their_rows(mesh):
  program = placement.program(lambda scale, batch: scale * batch["x"], mesh)
  rows = np.array([4, -1, 2], np.int32)
  batch = {"x": np.array([40.0, 0.0, 20.0], np.float32), "row": rows}
  made = program(np.float32(2), placement.put_whole(batch, mesh))
  found = placement.fetch(made, np.array([2, 4]))
  assert found.row_B.tolist() == [4, 2]
  assert found.values.tolist() == [80, 40]


def test_results_come_a_few_batches_later_and_in_order(mesh):
  """So the devices have work; programs share a batch."""
  double = placement.program(lambda scale, batch: scale * batch["x"], mesh)
  sent = []

  def batches():
    for i in range(6):
      row = np.array([2 * i + 1, 2 * i, -1], np.int32)
      sent.append(i)
      yield row[:2], {"x": row.astype(np.float32), "row": row}

  def run(batch):
    return {scale: double(np.float32(scale), batch) for scale in (2, 3)}

  for i, by_scale in enumerate(placement.run_rows(run, batches(), mesh)):
    assert len(sent) == min(i + 3, 6)
    for scale, (rows, values) in by_scale.items():
      assert rows.tolist() == [2 * i + 1, 2 * i]
      assert values.tolist() == [scale * row for row in rows]
  assert i == 5


# The self-check of a score table.


def score(folder, stages=("score",), **run):
  """Stages in this process, over what is there."""
  config = tiny_config.get_config()
  config.workdir = str(folder / "run")
  config.corpus.source = str(folder / "text.jsonl")
  config.run.update(run)
  pipeline.run(config, "tiny_config.py", stages, force=False, dry_run=False)


def checked(folder, model="teacher"):
  path = folder / "run" / "scores" / model / "manifest.json"
  return json.loads(path.read_text())["details"]["self_check"]


@pytest.mark.bits
def test_a_table_says_what_was_scored_again(finished, copy):
  found = checked(finished)
  assert found["rows"] == 64 and not found["devices_reordered"]
  assert found["max_difference"] <= 1e-5 < found["tolerance"]
  shutil.rmtree(copy / "run" / "scores")
  score(copy, self_check_rows=0)
  assert checked(copy) == {"rows": 0}


def test_a_selection_from_an_unchecked_table_is_warned_of(copy, capsys):
  path = copy / "run" / "scores" / "teacher" / "manifest.json"
  with edited(path) as body:
    del body["details"]["self_check"]
    body["details"]["devices"] = 16
  shutil.rmtree(copy / "run" / "selection")
  score(copy, stages=["select"])
  told = capsys.readouterr().out
  assert told.count("warning: ") == 1 and "with --stages=verify" in told
  assert "scores/teacher is of a version that mixed up rows" in told


def test_a_permuted_table_is_refused(copy, monkeypatch):
  """Numbers that a wrong order of devices would put under other rows."""
  fetch = placement.fetch

  def permuted(made, rows):
    found = fetch(made, rows)
    rolled = jax.tree.map(lambda x: np.roll(x, 1, 0), found.values)
    return found._replace(values=rolled)

  shutil.rmtree(copy / "run" / "scores")
  monkeypatch.setattr(placement, "fetch", permuted)
  # The second look may be as wrong as the first: a row stands beside others.
  with pytest.raises(UserError) as refused:
    score(copy)
  monkeypatch.setattr(placement, "fetch", fetch)
  with pytest.raises(UserError) as again:
    score(copy)  # the parts are still there
  for error in (refused, again):
    text = str(error.value)
    assert re.search(r"\d+ of 64 rows are not what teacher says: row \d+", text)
    assert " nats over " in text and " are allowed" in text
  assert not (copy / "run" / "scores" / "teacher" / "manifest.json").exists()
