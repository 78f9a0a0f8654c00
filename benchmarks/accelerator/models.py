"""Random models and random rows, the same for both sides.

  python -m benchmarks.accelerator.models SCRATCH SIZE NAME…

Models are drawn on the device and saved as transformers saves them, each under
a lock of its own: who wants it waits until it is whole.
"""

import contextlib
import fcntl
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.accelerator import program, sizes

EXACT = "exact"
EOS = 0  # in no row


def ready(settings, name: str) -> str:
  """The folder of a model; makes it if nobody has.

  Raises:
    RuntimeError: it could not be made.
  """
  scratch = pathlib.Path(settings.scratch)
  with _locked(scratch, name):
    made = (scratch / name / "made").exists()
  if not made:
    done = subprocess.run(
      command(settings.scratch, settings.size, [name]),
      capture_output=True,
      text=True,
      check=False,
    )
    if done.returncode:
      raise RuntimeError(f"{name} was not made: {done.stderr[-600:]}")
  return str(scratch / name)


def command(scratch: str, size: str, names: Sequence[str]) -> list[str]:
  """What makes models."""
  return program.command("benchmarks.accelerator.models", scratch, size, *names)


@contextlib.contextmanager
def _locked(scratch: pathlib.Path, name: str) -> Iterator[None]:
  with (scratch / f"{name}.lock").open("w") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    yield


def batches(vocabulary: int, rows: int, length: int) -> Iterator[Any]:
  """Rows of random ids without an end in them, int32 [B, T + 1]."""
  import numpy as np

  rng = np.random.default_rng(0)
  while True:
    yield rng.integers(1, vocabulary, (rows, length + 1), np.int32)


def write_corpus(directory: Any, rows: Sequence[Any], length: int, eos_id: int):
  """A corpus of these rows, as the stage tokenize leaves one."""
  from miniplm_jax.core import files
  from miniplm_jax.core.manifest import Manifest
  from miniplm_jax.corpus import store

  names = store.shard_names(0, 1)
  instances = [
    store.StoredRow(row, "text", "train", 0, (i,), 0, 0, i)
    for i, row in enumerate(rows)
  ]
  store.write_shard(directory, names, instances, {})
  Manifest(
    directory / "manifest.json",
    "tokenize",
    {"max_length": length},
    {},
    counts={"rows": len(rows), "rows_by_part": [len(rows)], "parts": 1},
    files={n: files.describe(directory / n) for n in names},
    details={"eos_id": eos_id},
  ).write()


def _make(directory, arch):
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from miniplm_jax.models import huggingface
  from miniplm_jax.models.decoder import Decoder
  from miniplm_jax.models.sharding import name_of

  def new(key):
    model = Decoder(arch, nnx.Rngs(key), jnp.bfloat16)

    # Biases of 0 and norms of 1 would hide that one of them is left out.
    def moved(path, leaf):
      name = name_of(path)
      if not name.endswith(("_bias", "norm")):
        return leaf
      own = jax.random.fold_in(key, sum(name.encode()))
      return leaf + 0.1 * jax.random.normal(own, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(moved, model)

  model = jax.jit(new)(jax.random.key(0))
  huggingface.save(directory, model, EOS, {}, dtype=jnp.bfloat16)
  (directory / "made").touch()


def main(argv: list[str]):
  """Makes models in their order."""
  from etils import epath

  size = sizes.SIZES[argv[2]]
  shapes = {**size.shapes, EXACT: size.exact[0]}
  for name in argv[3:]:
    directory = epath.Path(argv[1]) / name
    with _locked(pathlib.Path(argv[1]), name):
      if not (directory / "made").exists():
        _make(directory, shapes[name])


if __name__ == "__main__":
  main(sys.argv)
