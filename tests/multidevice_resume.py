"""On 8 CPU devices, in the process of eight_devices.py.

12 steps on a mesh of 8 devices; and 12 steps of which the first 5 are on that
mesh, 4 on one of 4 devices, and the rest on 8 again, on a corpus.
"""

import contextlib
import pathlib
import tempfile

import jax
import trainers
from etils import epath

from miniplm_jax.core import manifest
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import sharding
from miniplm_jax.training import loop
from miniplm_jax.training.checkpoints import Checkpoints


def restored(folder, step, made, mesh):
  """The state of a checkpoint on a mesh, as the loop reads it."""
  with jax.set_mesh(mesh):
    abstract = loop.abstract_state(made.spec.shape, made.spec.train, mesh)
    path = epath.Path(folder) / "checkpoints"
    with contextlib.closing(Checkpoints(path, keep=None)) as checkpoints:
      return checkpoints.restore(step, abstract)


def main(folder):
  corpus = Corpus(manifest.require(pathlib.Path(folder, "manifest.json")))
  eight = sharding.make_mesh(2, 2, 2)
  four = sharding.make_mesh(1, 4, 1, devices=jax.devices()[:4])
  results = []
  for parts in ([(eight, 0)], [(eight, 5), (four, 9), (eight, 0)]):
    result = {"row_ids": [], "devices": [], "shards": []}
    with tempfile.TemporaryDirectory() as folder:
      first = 0
      for mesh, stop in parts:
        objective = {"stop_at": stop and stop - first}
        made = trainers.spec(
          corpus, folder, objective, steps=12, learning_rate=1e-3
        )
        if stop:
          trainers.stopped(made, mesh)
        else:
          loop.train(made, mesh)
        embed = restored(folder, stop or 12, made, mesh).model.embed[...]
        result["row_ids"] += made.objective.row_ids
        result["devices"].append(len(embed.sharding.device_set))
        result["shards"].append(list(embed.addressable_shards[0].data.shape))
        first = stop
      result["loss"] = [m["train/loss"] for m in trainers.lines(folder)]
    results.append(result)
  return results
