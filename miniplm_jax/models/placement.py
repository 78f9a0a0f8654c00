"""Which rows of a batch lie on which host, and whose results come back.

A batch is an array over the whole mesh, split by rows over its batch axes. On
a TPU slice the devices of one host are no contiguous run of these axes: of
v5e:4x4 the sixteen shards lie on hosts 0 0 1 1 1 1 0 2 3 3 3 3 2 2 2 0. So a
host asks the sharding which rows its devices hold, and reads those; hosts that
share a shard, because the `tensor` axis spans them, read the same rows.

What a program says of its rows comes back with their numbers, so that no
order of devices, hosts or batches can put a result under another row.

B batch.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from miniplm_jax.core import distributed
from miniplm_jax.models.sharding import batch_sharding, batch_shards

# In a batch: the number of each row, int32 [B]; below 0 the row is empty.
ROW = "row"
_AHEAD = 2  # batches under way on the devices while a host prepares the next


@functools.lru_cache(64)
def local_rows(mesh: Mesh, size: int, process: int | None = None) -> np.ndarray:
  """Places in a batch of `size` rows that a process's devices hold.

  int64, ascending, each once. Without a process, of this one.
  """
  process = jax.process_index() if process is None else process
  held = {
    index.indices(size)[:2]
    for device, (index,) in batch_sharding(mesh)
    .devices_indices_map((size,))
    .items()
    if device.process_index == process
  }
  return np.concatenate([np.arange(*ends) for ends in sorted(held)])


def put(batch: Any, mesh: Mesh) -> Any:
  """Arrays of this process's rows → arrays of all rows, split over the mesh.

  The former are of numpy, [b, …], in the order of `local_rows`.
  """
  # Every shard has as many rows, so the batch's size follows from ours.
  shards = batch_shards(mesh)
  own_shards = len(local_rows(mesh, shards))

  def one(x):
    size = len(x) * shards // own_shards
    rows = local_rows(mesh, size)

    def held(index):
      start, stop, _ = index[0].indices(size)
      first = np.searchsorted(rows, start)
      return x[first : first + stop - start]

    shape = size, *x.shape[1:]
    return jax.make_array_from_callback(shape, batch_sharding(mesh), held)

  return jax.tree.map(one, batch)


def own_rows(batch: Any, mesh: Mesh) -> Any:
  """This process's rows of arrays [B, …] that every process has whole."""
  return jax.tree.map(lambda x: x[local_rows(mesh, len(x))], batch)


def put_whole(batch: Any, mesh: Mesh) -> Any:
  """Arrays [B, …] that every process has whole → split over the mesh."""
  return put(own_rows(batch, mesh), mesh)


class Numbered(NamedTuple):
  """What a program says of the rows of a batch."""

  row_B: Any  # the number of each row, int32 [B], as it was given
  values: Any  # a pytree of arrays [B, …]


def program(function: Callable[..., Any], mesh: Mesh, **settings: Any):
  """Jits (model, batch) → arrays [B, …] into (model, batch) → `Numbered`.

  Every device gets the results of all rows. The numbers are those of
  `batch[ROW]`: they go to the devices with the rows, and come back the way
  that the results do. Settings are what else the function takes.
  """

  def rows(model, batch):
    return Numbered(batch[ROW], function(model, batch, **settings))

  return jax.jit(rows, out_shardings=NamedSharding(mesh, P()))


def fetch(result: Numbered, rows: np.ndarray) -> Numbered:
  """The results of a batch on this host, without its empty rows.

  `rows` are the numbers that were sent, in any order, without empty ones.

  Raises:
    RuntimeError: other rows came back than were sent.
  """
  row_B, values = jax.device_get(result)
  real_B = row_B >= 0
  returned = row_B[real_B]
  if not np.array_equal(np.sort(returned), np.sort(rows)):
    lost, extra = np.setdiff1d(rows, returned), np.setdiff1d(returned, rows)
    raise RuntimeError(
      f"a batch of {len(rows)} rows came back as {len(returned)}: without "
      f"{lost[:4]}, with {extra[:4]}; devices or hosts disagree on its rows"
    )
  return Numbered(returned, jax.tree.map(lambda x: x[real_B], values))


def run_rows(
  run: Callable[[Any], Any],
  batches: Iterable[tuple[np.ndarray, Any]],
  mesh: Mesh,
) -> Iterator[Any]:
  """What a program, or several, say of the rows of each batch.

  A result is awaited when the next batches are under way, so the devices have
  work while the host waits or prepares rows.

  Args:
    run: a batch on the mesh → the `Numbered` of a `program`, or a dict of
      them.
    batches: pairs of the real rows' numbers, in any order, and the arrays
      [b, …] of this process's rows, in the order of `local_rows`.

  Yields:
    What `run` gave for each batch, on this host and without empty rows.

  Raises:
    RuntimeError: see `fetch`.
    signals.Stopped: a signal asked to stop.
  """

  def fetched(numbers, results):
    return jax.tree.map(
      lambda result: fetch(result, numbers),
      results,
      is_leaf=lambda x: isinstance(x, Numbered),
    )

  pending = collections.deque()
  for numbers, arrays in batches:
    distributed.raise_if_stopped()
    # Not around the `yield`: what comes between is the caller's.
    with jax.set_mesh(mesh):
      pending.append((numbers, run(put(arrays, mesh))))
    if len(pending) > _AHEAD:
      yield fetched(*pending.popleft())
  while pending:
    yield fetched(*pending.popleft())
