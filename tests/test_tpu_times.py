"""Predicted times of small programs beside closed forms."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_tpu import _HLO, needs_libtpu

from miniplm_jax.forecast import estimate, hlo, links, outlook, topology
from miniplm_jax.training import flops as flops_lib

V5E = estimate.CHIPS["TPU v5 lite"]
LINK = V5E.link_bandwidth


def schedule(function, mesh, spec, *arguments):
  """The program of a function on a slice, and the slice's devices."""
  arguments = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    for shape, dtype in arguments
  ]
  compiled = jax.jit(function).lower(*arguments).compile()
  return hlo.Schedule(compiled.as_text()), list(mesh.devices.flat)


def predicted(function, *arguments) -> estimate.Range:
  chip = topology.mesh("v5e:1x1", 1, 1, 1)
  return estimate.estimate(*schedule(function, chip, P(), *arguments)).seconds


@needs_libtpu
@pytest.mark.parametrize(
  ("name", "size"),
  [
    ("v5e:1x1", 4096),
    *(
      pytest.param(name, size, marks=pytest.mark.long)
      for name in ("v5e:1x1", "v5p:1x1x1", "v4:1x1x1")
      for size in (4096, 8192)[name == "v5e:1x1" :]
    ),
  ],
)
def test_a_product_takes_its_flops_at_the_peak(name, size):
  square = (size, size), jnp.bfloat16
  mesh = topology.mesh(name, 1, 1, 1)
  program, devices = schedule(jnp.matmul, mesh, P(), square, square)
  assert program.flops == 2 * size**3
  at_peak = program.flops / flops_lib.peak_flops(devices[0].device_kind)
  found = estimate.estimate(program, devices).seconds
  assert found.optimistic == pytest.approx(at_peak, rel=1e-3)
  assert at_peak < found.middle < found.pessimistic < 1.15 * at_peak


def _normed(x, scale, bias):
  x = x.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  x *= jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  return (x * scale[None] + bias[None]).astype(jnp.bfloat16)


def _softmax(x):
  return jax.nn.softmax(x.astype(jnp.float32), -1).astype(jnp.bfloat16)


@needs_libtpu
@pytest.mark.parametrize(
  ("function", "shape", "vectors", "bounds"),
  [
    # Mean and variance may read it again; the compiler's cycles of both are
    # what the range is there for.
    (_normed, (8192, 2048), 2, (1.6, 2, 7)),
    (_softmax, (64, 1024, 1024), 0, (1.6, 2, 7)),
  ],
)
def test_what_is_no_product_takes_its_bytes_or_longer(
  function, shape, vectors, bounds
):
  arrays = [(shape, jnp.bfloat16)] + [(shape[-1:], jnp.float32)] * vectors
  found = predicted(function, *arrays)
  # It is read and written once at least.
  ideal = 2 * 2 * np.prod(shape) / V5E.hbm_bandwidth
  assert list(found) == sorted(found)
  for seconds, bound in zip(found, bounds):
    assert 0.99 * ideal < seconds < bound * ideal


@needs_libtpu
def test_collectives_take_what_passes_along_their_links():
  n, side, nbytes = 16, 4, 64 * 10**6
  rows = nbytes // 4 // n // 1000  # of a shard

  mesh = topology.mesh("v5e:4x4", 1, n, 1)

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=P("fsdp"),
    out_specs=P("fsdp"),
    check_vma=False,
  )
  def exchange(x):  # [n · rows, 1000]
    x *= jax.lax.psum(x, "fsdp")
    x *= jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True)
    x = x[:rows]
    return jax.lax.all_gather(x * x, "fsdp", tiled=True)

  program, devices = schedule(
    exchange, mesh, P("fsdp"), ((n * n * rows, 1000), jnp.float32)
  )
  network = links.Network.of(devices, LINK)
  found = {
    c.kind: network.seconds(c.kind, c.nbytes, c.members)
    for c in program.collectives
  }
  hops = 2 * (side - 1) * 1e-6
  share = (n - 1) / n
  wanted = {
    # Of a ring in both directions: 0.667 ms, and twice.
    "all-gather": share * nbytes / (2 * LINK),
    "all-reduce": 2 * share * nbytes / (2 * LINK),
    # Half of what one half has goes through the 4 links between the two.
    "all-to-all": (n / 2 * nbytes / 2) / (side * LINK),
  }
  assert found == pytest.approx({k: v + hops for k, v in wanted.items()}, 0.01)
  # The compiler makes a sum and a slice of it here.
  scattered = network.seconds("reduce-scatter", nbytes // n, range(n))
  assert scattered == pytest.approx(found["all-gather"])
  # Nothing else is to be done, so all of it is waited for.
  time = estimate.estimate(program, devices)
  assert time.collective == pytest.approx(sum(found.values()))
  assert time.seconds.middle > time.exposed > 0


def _grid(*sides: int) -> links.Network:
  return links.Network(np.argwhere(np.ones(sides)), LINK)


@pytest.mark.parametrize(
  ("sides", "members", "ways"),
  [
    ((1, 1, 1), None, None),  # alone
    ((1, 2, 1), None, 1),
    ((1, 4, 1), None, 1),
    ((4, 4, 1), None, 2),
    ((16, 16, 1), None, 4),  # a torus
    ((16, 16, 1), range(0, 256, 16), 2),  # one axis of it, closed
    ((16, 16, 1), (0, 1), 1),
    ((2, 2, 2), None, 3),
    ((4, 4, 4), None, 6),
    ((4, 4, 8), None, 6),
  ],
)
def test_a_slice_has_as_many_links_as_axes_and_joined_ends(
  sides, members, ways
):
  members = tuple(members or ())
  n = len(members) or int(np.prod(sides))
  found = _grid(*sides).seconds("all-gather", 10**9, members)
  wanted = (n - 1) / n * 10**9 / LINK / ways if ways else 0
  assert found == pytest.approx(wanted, rel=0.01)


def test_what_is_waited_for_comes_on_top():
  """Of a loop of 5 rounds of a product and an all-gather, on two chips."""
  text = _HLO.replace("bf16[8,32]", "bf16[8000,3200]")
  program = hlo.Schedule(text)
  chips = [
    types.SimpleNamespace(device_kind="TPU v5 lite", coords=(i, 0, 0))
    for i in range(2)
  ]
  found = estimate.estimate(program, chips)
  waiting = 5 * (8000 * 3200 * 2 / 2 / LINK + 1e-6)
  assert found.exposed == found.collective == pytest.approx(waiting)
  steps = sum(
    o.times * np.array(estimate.operation_seconds(o, "TPU v5 lite"))
    for o in program.operations
  )
  assert steps.min() > waiting / 100
  assert np.array(found.seconds) == pytest.approx(steps + waiting)


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("replica_groups={{0,2},{1,3}}, dimensions={0}", (0, 2)),
    ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0), channel_id=1", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add", (0, 1, 2, 3)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
    ("source_target_pairs={{3,1},{1,0}}", (3, 1)),
    ("channel_id=1", ()),
  ],
)
def test_who_takes_part_in_a_collective_is_read(text, wanted):
  assert links.members(text) == wanted


def test_a_plan_of_before_has_no_range(tmp_path):
  figures = {
    "slice": "v5e:2x2",
    "mesh": [1, 4, 1],
    "hbm_bytes": 10**9,
    "rows": 2,
    "seconds": 0.5,
  }
  line = {"name": "score", "figures": figures, "remat": "", "runs": 1}
  file = epath.Path(tmp_path / "plan.json")
  file.write_text(json.dumps({"price": 0.0, "lines": [line]}))
  (found,), _, notes = outlook.read(file)
  assert found.prediction.spread == (1, 1) and not notes
