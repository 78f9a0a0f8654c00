"""Selecting with a penalty on what is kept already: rows a second, memory.

  python -m benchmarks.redundancy [--rows=60000] [--length=1024]

Writes a synthetic corpus to a temporary folder: Zipf ids, of which the first
half at most is one of a thousand beginnings, and normal scores. Then half of
the rows are kept by `select.redundancy=1`, as stage select does it. Seconds are
of this process's CPU, for it may not be alone.
"""

import itertools
import pathlib
import tempfile
import threading
import time

import numpy as np
from absl import app, flags
from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus import store
from miniplm_jax.selection import redundancy

_ROWS = flags.DEFINE_integer("rows", 60_000, "Rows of D.")
_LENGTH = flags.DEFINE_integer("length", 1024, "Ids of a row.")
_SHARDS = 8
_MOST = 450  # MB of anonymous memory, beside the corpus's index


def _corpus(folder: epath.Path, rows: int, length: int) -> store.Corpus:
  rng = np.random.default_rng(0)
  known = (rng.zipf(1.3, (1000, length)) % 32_000).astype(np.int32)
  ends, described = np.linspace(0, rows, _SHARDS + 1).astype(int), {}
  for part, (first, end) in enumerate(itertools.pairwise(ends)):
    made = []
    for _ in range(first, end):
      ids = (rng.zipf(1.3, length) % 32_000).astype(np.int32)
      copied = int(rng.integers(length // 2))
      ids[:copied] = known[rng.integers(len(known)), :copied]
      made.append(
        store.StoredRow(
          ids=ids,
          domain="synthetic",
          split="train",
          part=part,
          documents=(0,),
          offset=0,
          n_bytes=length,
          hash=store.hash_of(ids, 0),
        )
      )
    names = store.shard_names(part, _SHARDS)
    store.write_shard(folder, names, made, {})
    described |= {name: files.describe(folder / name) for name in names}
  counts = {"rows": rows, "parts": _SHARDS, "split train": rows}
  counts["rows_by_part"] = np.diff(ends).tolist()
  settings = {"max_length": length - 1}
  path = folder / "manifest.json"
  return store.Corpus(
    Manifest(path, "tokenize", settings, {}, counts=counts, files=described)
  )


def _anonymous() -> float:
  """MB."""
  text = pathlib.Path("/proc/self/smaps_rollup").read_text()
  (line,) = (x for x in text.splitlines() if x.startswith("Anonymous:"))
  return int(line.split()[1]) / 1024


def main(_):
  """Measures it."""
  rows, length = _ROWS.value, _LENGTH.value
  score = np.random.default_rng(1).normal(size=rows).astype(np.float32)
  with tempfile.TemporaryDirectory() as name:
    folder = epath.Path(name)
    corpus = _corpus(folder / "corpus", rows, length)
    corpus.read([0])
    before, peak, is_done = _anonymous(), [0.0], threading.Event()

    def watch():
      while not is_done.wait(0.1):
        peak[0] = max(peak[0], _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    ranked = redundancy.rank(
      lambda: [{"row_id": np.arange(rows), "value": score}],
      corpus,
      1.0,
      rows // 2,
      in_tokens=False,
      before=(),
      folder=pathlib.Path(name),
    )
    seconds = time.process_time() - start
    is_done.set()
    watcher.join()
  assert ranked.kept == rows // 2
  by_score = set(np.argsort(-score)[: rows // 2].tolist())
  kept = set(np.flatnonzero(ranked.values >= ranked.last).tolist())
  used = peak[0] - before
  print(
    f"{rows:,} rows of {length:,} ids: {rows / seconds:,.0f} rows/s of one "
    f"core, {used:.0f} MB; {len(kept - by_score) / len(kept):.1%} of the kept "
    "rows would not be among the best by score alone"
  )
  assert used < _MOST


if __name__ == "__main__":
  app.run(main)
