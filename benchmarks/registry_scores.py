r"""Scores of a whole text corpus under one model, as far as time allows.

  python ASSETS/make_corpus.py CORPUS --with-bigbench
  python -m benchmarks.registry_scores --corpus=CORPUS --model=SMOLLM2 \
    --minutes=60

CORPUS is a folder of JSON lines with `text`, a file for each domain; SMOLLM2 a
Hugging Face directory. Every row is scored, none is held out. What is in
--workdir is taken as it is: stop it as you like, kill -9 included, and start it
again; a part at most is scored twice. Several may run at a time. With
--minutes it ends by itself, and begins no part that would not be done by then
(tokenizing is not cut short: two minutes a length, once).

Parts are taken in an order in which each domain is as far as every other, so
that what is done is a sample of them all. At the end of each run what is there
goes to --out: registry_scores.parquet, and its card registry_scores.md, which
says what the columns are and how to finish it on a GPU. A table is of one
dtype and one kind of device: others take another --workdir.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Sequence

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags
from etils import epath

from benchmarks import registry_card
from miniplm_jax import config as config_lib
from miniplm_jax import pipeline
from miniplm_jax.core import (
  distributed,
  errors,
  execute,
  files,
  manifest,
  signals,
)
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import duration, log, show
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.corpus import tokenize_step
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import sharding
from miniplm_jax.models.ref import TEACHER, Identity, ModelRef
from miniplm_jax.scoring import check, score_step, table, units, worker
from miniplm_jax.scoring.scorer import Scorer

_CORPUS = flags.DEFINE_string("corpus", None, "Folder of *.jsonl.")
_MODEL = flags.DEFINE_string("model", None, "Hugging Face directory.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/registry_scores", "For it all.")
_OUT = flags.DEFINE_string("out", "docs/results", "Of the table and its card.")
_MINUTES = flags.DEFINE_float("minutes", math.inf, "0 writes what is there.")
_LENGTHS = flags.DEFINE_list("lengths", ["128", "512"], "Inputs of a row.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of the computation."
)
_PART = flags.DEFINE_integer(
  "part_tokens", 0, "Of a part, about; 0 is what suits the device."
)
_ANY_CODE = flags.DEFINE_bool(
  "any_code", False, "Go on with parts of other versions of the code."
)

# Tokens of a part and of a batch. On two cores a part is 15 seconds; a GPU
# needs large batches, and seconds of them to hide what comes between parts.
_SIZES = {"cpu": (1 << 14, 1 << 10)}
_LARGE = (1 << 19, 1 << 15)


class OutOfTime(Exception):  # noqa: N818
  """Parts are missing, and the time is up; what is there can be gone on with.

  No UserError: those say that there is something to be mended.
  """


def _config(length: int):
  """The package's configuration for rows of one length."""
  config = config_lib.default()
  config.stages = ("tokenize", "score")
  config.workdir = str(pathlib.Path(_WORKDIR.value) / str(length))
  c, s = config.corpus, config.score
  c.source, c.max_length = _CORPUS.value, length
  c.tokenizer = config.teacher.path = _MODEL.value
  c.reference_share = c.heldout_share = c.teacher_share = 0.0
  part_tokens, s.batch_tokens = _SIZES.get(jax.default_backend(), _LARGE)
  s.rows_per_part = max((_PART.value or part_tokens) // length, 1)
  s.dtype = _DTYPE.value
  # Rows end at sentence ends: on average they are 93 % full at 128.
  s.lengths = (length * 7 // 8, length * 15 // 16)
  config.run.any_code = _ANY_CODE.value
  return config_lib.from_dict(config, f"--lengths={length}")


def in_fair_order(found: Sequence[units.Unit], corpus: Corpus):
  """Units so that each domain is as far as every other, at any time.

  Of a domain they are in the order of a hash of their names; the k-th of n
  stands at k / n. So the first ones are one of each domain.
  """
  domains = corpus.domains(np.array([unit.rows[0] for unit in found]))
  by_domain: dict[str, list[tuple[str, units.Unit]]] = {}
  for domain, unit in zip(domains, found):
    hashed = hashlib.sha256(unit.name.encode()).hexdigest()
    by_domain.setdefault(domain, []).append((hashed, unit))
  placed = [
    (k / len(own), hashed, unit)
    for own in by_domain.values()
    for k, (hashed, unit) in enumerate(sorted(own, key=lambda pair: pair[0]))
  ]
  return [unit for *_, unit in sorted(placed, key=lambda place: place[:2])]


class _TimedWorker(worker.Worker):
  """Begins no part that would end after a deadline, of time.monotonic().

  A part takes as long as the slowest of the last three; until one was scored
  here, as all of a table have in the mean.
  """

  def __init__(self, deadline: float, *of_worker):
    super().__init__(*of_worker)
    self._deadline, self._took = deadline, collections.deque(maxlen=3)

  def _open(self, stack):
    super()._open(stack)
    for filled, names in zip(self._tables, self._finished):
      seconds = worker.summary(filled.directory).get("seconds", 0)
      self._took.append(seconds / max(len(names), 1))

  def _choose(self):
    if time.monotonic() + max(self._took, default=0) >= self._deadline:
      return None
    return super()._choose()

  def _score(self, unit: units.Unit, chosen: Sequence[int]):
    start = time.monotonic()
    super()._score(unit, chosen)
    self._took.append(time.monotonic() - start)


def _score_step(config, workdir: Workdir, deadline: float) -> Step:
  """The package's own step, but with parts in another order, and a deadline."""
  source = ModelRef.of_role(TEACHER, config.teacher, workdir)
  (made,) = (
    step
    for step in pipeline.Stages(config, workdir).score()
    if step.name == config.teacher.name
  )
  run = functools.partial(_score, config, workdir, source, deadline)
  return dataclasses.replace(made, shared_pass=None, run=run)


def _score(config, workdir: Workdir, source: ModelRef, deadline, inputs):
  """Scores until the deadline; the manifest's fields if nothing is missing."""
  if time.monotonic() >= deadline:
    raise OutOfTime
  corpus = Corpus(inputs["corpus"])
  run, dtype = config.run, config.score.dtype
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  model = source.load(corpus, mesh, dtype)
  facts = worker.made_by(config.score, corpus, model, False)
  facts |= {"dtype": dtype, "device": jax.devices()[0].device_kind}
  filled = worker.TableSpec(
    source.name, source.table, workdir.claims_of(source.table), facts
  )
  score = config.score
  rows = units.sampled_rows(corpus, score.share, score.seed)
  found = units.units_of(corpus, score.rows_per_part, rows)
  models = {source.name: model}
  scorer = Scorer(config.score, models, corpus, mesh)
  in_order = in_fair_order(found, corpus)
  _TimedWorker(deadline, scorer, in_order, [filled], run).fill()
  del scorer, models, model
  # The self-check at the end takes its time too.
  if time.monotonic() >= deadline or not _is_whole(filled, found):
    raise OutOfTime
  expected = Identity(facts["weights"], dtype, facts["architecture"])

  scorer_on = functools.partial(
    check.rescorer, config.score, source, corpus, expected, False
  )
  return check.merge(
    filled, corpus, found, config.run, config.verify, scorer_on
  )


def _is_whole(filled: worker.TableSpec, found: Sequence[units.Unit]) -> bool:
  return len(table.check_names(filled.directory, found)) == len(found)


def _read(workdir: Workdir, length: int) -> tuple[pa.Table, dict] | None:
  """What is scored of one length, and what is known of it."""
  corpus = Corpus(manifest.require(workdir.corpus / MANIFEST))
  directory = workdir.scores("teacher")
  parts = [table.read_part(p) for p in sorted(directory.glob("*.parquet"))]
  if not parts:
    return None
  made_by = parts[0].made_by
  for part in parts:
    # Of another version of the code they may be, by --any_code.
    if {**part.made_by, "code": ""} != {**made_by, "code": ""}:
      raise UserError(
        "these parts were not scored alike",
        f"{part.path} and {parts[0].path}",
        "remove those of one kind, or choose another --workdir",
      )
  columns = {
    name: np.concatenate([part.columns[name] for part in parts])
    for name in parts[0].columns
  }
  row_ids = columns["row_id"]
  documents = [row.documents for row in corpus.read(row_ids)]
  hashed = corpus.index["hash"].to_numpy()
  made = pa.table(
    {
      "length": pa.array(np.full(len(row_ids), length), pa.int16()),
      "row_id": pa.array(row_ids, pa.int32()),
      "domain": pa.array(corpus.domains(row_ids)),
      "document": pa.array([d[0] for d in documents], pa.int32()),
      "documents": pa.array([len(d) for d in documents], pa.int16()),
      "nll_sum": pa.array(columns["nll_sum"], pa.float32()),
      "n_tokens": pa.array(columns["n_tokens"], pa.int16()),
      "row_hash": pa.array(hashed[row_ids] >> 32, pa.uint32()),
    }
  )
  finished = manifest.read(directory / MANIFEST)
  facts = {
    "made_by": dict(made_by),
    "code": sorted({part.made_by["code"] for part in parts}),
    "corpus": corpus.manifest.fingerprint,
    "rows_sha256": hashlib.sha256(hashed.astype("<u8").tobytes()).hexdigest(),
    "rows": _counted(corpus.domains()),
    "tokens": int(corpus.lengths.sum()) - len(corpus),
    "work": worker.summary(directory),
    "self_check": finished and finished.details["self_check"],
  }
  return made, facts


def _counted(domains: Iterable[str]) -> dict[str, int]:
  names, counts = np.unique(np.asarray(domains, str), return_counts=True)
  return dict(zip(names.tolist(), counts.tolist()))


def _publish(workdirs: dict[int, Workdir]):
  """Writes the table and its card, and says what is left to do."""
  read = {n: found for n, w in workdirs.items() if (found := _read(w, n))}
  if not read:
    log(score_step.STAGE, "nothing is scored yet, so nothing is written")
    return
  lengths = {str(n): facts for n, (_, facts) in read.items()}
  same = ("weights", "tokenizer", "dtype", "device")
  kinds = [[f["made_by"][name] for name in same] for f in lengths.values()]
  if any(kind != kinds[0] for kind in kinds):
    raise UserError(
      f"the lengths were not scored alike: {kinds}",
      _WORKDIR.value,
      "publish them apart, with --lengths and --out",
    )
  made = pa.concat_tables([made for made, _ in read.values()])
  about = dict(zip(same, kinds[0])) | {
    "jax": jax.__version__,
    "cores": os.cpu_count(),
    "lengths": lengths,
  }
  out = pathlib.Path(_OUT.value)
  path = out / "registry_scores.parquet"
  if path.exists():
    about["compared"] = registry_card.compare(path, made, about)
  text = {"registry_scores": json.dumps(about, sort_keys=True)}
  with files.replacing(epath.Path(path)) as scratch:
    pq.write_table(
      made.replace_schema_metadata(text),
      scratch,
      compression="zstd",
      compression_level=19,
      use_dictionary=["length", "domain"],
      column_encoding={
        "row_id": "DELTA_BINARY_PACKED",
        "document": "DELTA_BINARY_PACKED",
        "documents": "DELTA_BINARY_PACKED",
        "n_tokens": "DELTA_BINARY_PACKED",
        "nll_sum": "BYTE_STREAM_SPLIT",
        "row_hash": "PLAIN",
      },
    )
  registry_card.write(out / "registry_scores.md", made, about)
  for length, facts in lengths.items():
    log(score_step.STAGE, registry_card.left(made, length, facts))
  log(score_step.STAGE, f"{made.num_rows:,} rows in {path}")


def _run():
  if not (_CORPUS.value and _MODEL.value):
    raise UserError("no corpus or no model", "flags", "see --help")
  start = time.monotonic()
  deadline = start + 60 * _MINUTES.value
  try:
    lengths = sorted({int(n) for n in _LENGTHS.value})
  except ValueError as e:
    raise UserError(str(e), "--lengths", "give numbers, as 128,512") from e
  configs = {n: _config(n) for n in lengths}
  workdirs = {n: Workdir(epath.Path(c.workdir)) for n, c in configs.items()}
  for n in lengths:
    c, folder = configs[n], workdirs[n].corpus
    execute.execute([tokenize_step.step(c.corpus, folder, c.run)])
  for i, n in enumerate(lengths):
    now = time.monotonic()
    own = now + (deadline - now) / (len(lengths) - i)
    with contextlib.suppress(OutOfTime):
      execute.execute([_score_step(configs[n], workdirs[n], own)])
  _publish(workdirs)
  log(score_step.STAGE, f"ended after {duration(time.monotonic() - start)}")


def main(argv):
  """All of it, in order."""
  del argv
  signals.handle(distributed.leave)
  show()
  try:
    _run()
  except UserError as e:
    sys.exit(f"error: {errors.one_line(e)}")
  except signals.Stopped as e:
    print(f"stopped by {e}; goes on from here", file=sys.stderr)
    sys.exit(e.exit_code)


if __name__ == "__main__":
  app.run(main)
