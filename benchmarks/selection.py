"""Exact top half of very many scores: seconds and anonymous memory.

  python -m benchmarks.selection [--rows=1000000000] [--tables]

Writes synthetic float32 scores to a temporary file (4 bytes a row), then
finds the cutoff and writes rows.npy by the functions that stage select uses.
Reading score tables is not part of it. The result is compared with a full
sort at 10⁷ rows, the time with that of a stable argsort at 10⁸.

With --tables there are three synthetic tables (12 bytes a row), and rows are
ranked by each of `_FORMULAS`, evaluated as stage select does; those of 10⁷ are
compared with a sort of what NumPy says of all rows at once.
"""

import pathlib
import tempfile
import threading
import time
from collections.abc import Iterator

import numpy as np
from absl import app, flags

from miniplm_jax import criteria
from miniplm_jax.criteria import formula
from miniplm_jax.selection import cutoff, selection

_TABLES = flags.DEFINE_bool("tables", False, "Rank by formulas over tables.")
_ROWS = flags.DEFINE_integer("rows", 10**9, "Scores to select from.")
_PART = 1 << 16  # rows at a time, as score.rows_per_part
_MOST, _MOST_OF_FORMULAS = 300, 400  # MB of anonymous memory
_LEAST_RATIO = 15  # that a stable argsort takes longer
_EQUAL, _TIMED = 10**7, 10**8


class _Scores:
  """What `selection.write` wants of `Candidates`, from a file of scores."""

  quotas = ()

  def __init__(self, path: pathlib.Path, rows: int):
    self.path, self.rows = path, rows
    self.rows_by_domain = {"synthetic": rows}

  def columns(self) -> Iterator[dict[str, np.ndarray]]:
    value = np.memmap(self.path, np.float32, "r", shape=self.rows)
    tokens, domain = np.full(_PART, 1025, np.int32), np.zeros(_PART, np.int32)
    for first in range(0, self.rows, _PART):
      part = np.asarray(value[first : first + _PART])
      row_id = np.arange(first, first + len(part))
      yield {
        "row_id": row_id,
        "value": part,
        "tokens": tokens[: len(part)],
        "domain": domain[: len(part)],
      }


def _rank(x: np.ndarray) -> np.ndarray:
  """The share of values that are lower, ties half."""
  ordered = np.sort(x)
  sides = (np.searchsorted(ordered, x, side) for side in ("left", "right"))
  return sum(sides) / (2 * len(x))


def _z(x: np.ndarray, group: np.ndarray) -> np.ndarray:
  """Standard deviations from the mean of the group."""
  x, n = x.astype(np.float64), np.bincount(group)
  mean = np.bincount(group, x) / n
  std = np.sqrt(np.bincount(group, (x - mean[group]) ** 2) / n)
  return (x - mean[group]) / std[group]


# Means of teacher, reference and a third, float32 [n], and domains → values.
_FORMULAS = {
  "reference - teacher + 0.25 * other": lambda t, r, o, d: r - t + 0.25 * o,
  "z(reference - teacher, by=domain) + rank(other)": lambda t, r, o, d: (
    _z(r - t, d) + _rank(o)
  ),
}


class _Ranked(_Scores):
  """Rows by a formula over three tables, each a file of Σ NLL."""

  def __init__(self, path: pathlib.Path, rows: int, definition: str):
    super().__init__(path, rows)
    found = criteria.criterion(definition).formula
    self._evaluate = formula.Evaluator(found, seed=0)

  def columns(self):
    for columns in self._evaluate.over(self._tables, self.rows):
      yield columns | {"value": columns["score"]}

  def _tables(self):
    files = {
      name: np.memmap(f"{self.path}-{name}", np.float32, "r", shape=self.rows)
      for name in _NAMES
    }
    for columns in super().columns():
      row_id = columns["row_id"]
      columns["tokens"] = (512 + row_id % 512).astype(np.int32)
      columns["domain"] = (row_id // 7 % 23).astype(np.int32)
      for name, values in files.items():
        columns[f"{name}_nll"] = np.asarray(values[row_id[0] : row_id[-1] + 1])
        columns[f"{name}_tokens"] = columns["tokens"]
      yield columns


_NAMES = "teacher", "reference", "other"


def _tables(folder: pathlib.Path):
  """Ranks by each formula; fails beyond the memory, or at another result."""
  path, rows = folder / "scores", _ROWS.value
  _write_scores(path, rows)
  for i, name in enumerate(_NAMES):
    _write_scores(folder / f"scores-{name}", rows, seed=i)
  for definition, of_all in _FORMULAS.items():
    ranked = _Ranked(path, rows, definition)
    _measured(ranked, folder, f"rows by {definition}", _MOST_OF_FORMULAS)
    _compare(_Ranked(path, min(rows, _EQUAL), definition), of_all, folder)


def _compare(ranked: _Ranked, of_all, folder: pathlib.Path):
  """With a sort of what NumPy says of all rows at once."""
  row_id = np.arange(ranked.rows)
  lengths = (512 + row_id % 512).astype(np.float32)
  means = [
    np.fromfile(f"{ranked.path}-{name}", np.float32, ranked.rows) / lengths
    for name in _NAMES
  ]
  found = np.load(_select(ranked, folder))
  value = of_all(*means, row_id // 7 % 23).astype(np.float32)
  best = np.sort(np.argsort(-value, kind="stable")[: ranked.rows // 2])
  if not np.array_equal(found, best):
    wrong = len(np.setdiff1d(found, best))
    raise AssertionError(f"{wrong} rows are not those of a full sort")
  print(f"{ranked.rows:,} rows: equal to a full sort", flush=True)


def _write_scores(path: pathlib.Path, rows: int, seed: int = 0):
  rng = np.random.default_rng(seed)
  with path.open("wb") as f:
    for first in range(0, rows, _PART):
      part = min(_PART, rows - first)
      f.write(rng.standard_normal(part, np.float32).tobytes())


def _select(scores: _Scores, folder: pathlib.Path) -> pathlib.Path:
  rows, kept = scores.rows, scores.rows // 2
  (cut,) = cutoff.find(scores.columns, [kept])
  found = cutoff.Cutoff(cut.threshold, cut.last_tie, cut.kept, rows)
  path = folder / "rows.npy"
  selection.write(path, scores, found)
  return path


def _measured(scores: _Scores, folder: pathlib.Path, what: str, most: int):
  """Selects, and prints what it took; fails beyond so many MB."""
  with _Peak() as peak:
    start, cpu = time.monotonic(), time.process_time()
    _select(scores, folder)
    seconds = time.monotonic() - start
    cpu = time.process_time() - cpu
  print(
    f"{scores.rows:,} {what}: {seconds:.1f} s, {cpu:.1f} s of CPU, "
    f"{peak.megabytes:.0f} MB anonymous at most",
    flush=True,
  )
  if peak.megabytes > most:
    raise app.UsageError(f"more than {most} MB")


def _anonymous() -> float:
  """MB that this process holds and no file backs."""
  status = pathlib.Path("/proc/self/status").read_text()
  line = next(x for x in status.splitlines() if x.startswith("RssAnon"))
  return int(line.split()[1]) / 1024


class _Peak(threading.Thread):
  """The most anonymous memory, looked at 20 times a second."""

  def __init__(self):
    super().__init__(daemon=True)
    self.megabytes, self._stop_now = 0.0, threading.Event()

  def run(self):
    while not self._stop_now.wait(0.05):
      self.megabytes = max(self.megabytes, _anonymous())

  def __enter__(self):
    self.start()
    return self

  def __exit__(self, *unused):
    self._stop_now.set()
    self.join()


def main(unused_argv):
  """Prints the figures; fails beyond the memory, or at another result."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if _TABLES.value:
      _tables(folder)
      return
    scores = _Scores(folder / "scores", _ROWS.value)
    _write_scores(scores.path, scores.rows)
    _measured(scores, folder, "rows", _MOST)
    if scores.rows < _TIMED:
      return
    equal = _Scores(scores.path, _EQUAL)
    found = np.load(_select(equal, folder))
    value = np.fromfile(scores.path, np.float32, _TIMED)
    best = np.argsort(-value[:_EQUAL], kind="stable")[: _EQUAL // 2]
    if not np.array_equal(found, np.sort(best)):
      raise AssertionError("not the rows of a full sort")
    print(f"{_EQUAL:,} rows: equal to a full sort", flush=True)
    # CPU time, as others may use the machine; both are one thread.
    start = time.process_time()
    _select(_Scores(scores.path, _TIMED), folder)
    middle = time.process_time()
    np.argsort(-value, kind="stable")
    end = time.process_time()
    ratio = (end - middle) / (middle - start)
    print(
      f"{_TIMED:,} rows: {middle - start:.1f} s of CPU, stable argsort "
      f"{end - middle:.1f} s, {ratio:.1f} times (aim {_LEAST_RATIO})"
    )


if __name__ == "__main__":
  app.run(main)
