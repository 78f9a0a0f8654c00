r"""A study of docs/results.md: from text and a teacher to its tables.

  python make_corpus.py CORPUS --with-bigbench --cap-mb 4
  python -m benchmarks.study planted --corpus=CORPUS --teacher=SMOLLM2

CORPUS is a folder of JSON lines with `text`, a file for each domain; SMOLLM2
a directory or hub id. Everything is made in --workdir, and what is there is
taken as it is: stop it and start it as you like. With
--scores=docs/results/planted_scores.parquet, for the same text, the teacher
is only asked for its tokenizer. At the end docs/results/ has the figures.
"""

import hashlib
import json
import pathlib
import runpy
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
from absl import app, flags, logging
from ml_collections import ConfigDict

import miniplm_jax as mp
from benchmarks.study import agreement, page, planted
from miniplm_jax.core import files

_CORPUS = flags.DEFINE_string("corpus", None, "Folder of *.jsonl.")
_TEACHER = flags.DEFINE_string("teacher", None, "Directory or hub id.")
_SCORES = flags.DEFINE_string("scores", "", "The teacher's, of the same text.")
_WORKDIR = flags.DEFINE_string("workdir", "", "runs/study/NAME by default.")
_SCALE = flags.DEFINE_float("scale", 1.0, "Of text and steps: 0.02 rehearses.")

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
CONFIG = ROOT / "configs" / "study.py"
TOKENS = {"train": 480_000, "reference": 200_000, "heldout": 40_000}
RATES = (1e-3, 2e-3, 4e-3)
SAMPLES = 64  # of each student, and of the teacher


class Study:
  """What the parts of a study have in common."""

  def __init__(self, name: str):
    self.name = name
    self.module = runpy.run_path(str(CONFIG))
    self.workdir = pathlib.Path(_WORKDIR.value or self.module["WORKDIR"])
    self.path = self.workdir / "study.json"
    self.figures = {}
    if self.path.exists():
      self.figures = json.loads(self.path.read_text())

  def config(self, which: str) -> ConfigDict:
    """A config of configs/study.py for this text, teacher and scale."""
    config = self.module["get_config"](which)
    text = config.to_json().replace(config.workdir, str(self.workdir))
    config.update(json.loads(text))
    config.teacher.scores = _SCORES.value
    if _TEACHER.value:
      config.teacher.path = config.corpus.tokenizer = _TEACHER.value
    for train in (config.train, config.reference.train):
      train.steps = max(round(train.steps * _SCALE.value), 20)
      train.warmup_steps = train.steps // 10
      train.learning_rate = self.figures.get("rate", train.learning_rate)
    config.reference.train.learning_rate = 2e-3
    config.run.checkpoint_every = config.train.steps
    config.run.eval_every = max(config.train.steps // 8, 1)
    return config

  def note(self, **figures):
    """Keeps figures of a part that is done."""
    self.figures |= figures
    text = json.dumps(self.figures, indent=1) + "\n"
    files.write_bytes(self.path, text.encode())


def _text(study: Study):
  """The documents, once."""
  path = study.workdir / "text.jsonl"
  if path.exists():
    return
  if not _CORPUS.value:
    raise app.UsageError("--corpus is needed: see --help")
  domains = planted.read(pathlib.Path(_CORPUS.value))
  if not domains:
    raise app.UsageError(f"no *.jsonl in {_CORPUS.value}")
  at = pathlib.Path(_TEACHER.value) / "tokenizer.json"
  encoder = tokenizers.Tokenizer.from_file(str(at))
  sizes = {split: int(n * _SCALE.value) for split, n in TOKENS.items()}
  documents = planted.plant(domains, sizes, lambda t: len(encoder.encode(t)))
  lines = "".join(json.dumps(document) + "\n" for document in documents)
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_bytes(path, lines.encode())


def _vocabulary(study: Study):
  """The students' own tokenizer."""
  mp.tokenize(
    str(study.workdir / "text.jsonl"),
    "train",
    to=str(study.workdir / "vocabulary" / "corpus"),
    vocab_size=4096,
    max_length=128,
    reference_share=0.0,
    heldout_share=0.0,
    split_field="split",
  )


def _keep_scores(study: Study):
  """The teacher's scores as --scores takes them."""
  if _SCORES.value:
    return
  corpus = json.loads((study.workdir / "corpus/manifest.json").read_text())
  folder = study.workdir / "scores" / "teacher"
  parts = [pq.read_table(p) for p in sorted(folder.glob("part-*.parquet"))]
  table = pa.concat_tables(parts).replace_schema_metadata()
  path = study.workdir / f"{study.name}_scores.parquet"
  pq.write_table(table, path, compression="zstd")
  about = {"corpus": corpus["fingerprint"], "nll": "sum"}
  about |= {"model": "SmolLM2-135M, float32"}
  with (study.workdir / "text.jsonl").open("rb") as file:
    about |= {"text_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
  path.with_name(f"{path.name}.json").write_text(json.dumps(about) + "\n")


def _rates(study: Study):
  """The learning rate at which students of both selections lose least."""
  losses = {}
  for rate in RATES:
    config = study.config("rates")
    config.train.learning_rate = rate
    name = f"rate-{rate:g}"
    config.compare.name, config.student.name = name, f"{{method}}-{name}"
    mp.run(config, stages="compare")
    compared = mp.open_artifact(str(study.workdir / "compare" / name)).figures
    criteria = compared["criteria"]
    losses[f"{rate:g}"] = {k: v["loss"] for k, v in criteria.items()}
  best = min(losses, key=lambda rate: sum(losses[rate].values()))
  study.note(rates=losses, rate=float(best))


def _rows_of_d(study: Study):
  corpus = mp.open_artifact(str(study.workdir / "corpus"))
  return corpus.to_arrow().to_pandas().query("split == 'train'")


def _easy_alone(study: Study):
  """Students of easy waste, whose rows have the number 1."""
  path = study.workdir / "easy.parquet"
  if not path.exists():
    of_d = _rows_of_d(study)
    easy = of_d["domain"].isin([*planted.KINDS[planted.EASY]])
    columns = {"row_id": of_d["row_id"].to_numpy()}
    columns["easy"] = easy.to_numpy().astype(np.float32)
    pq.write_table(pa.table(columns), path)
  mp.run(study.config("easy"), stages="compare")


def _doses(study: Study):
  """Numbers for as many rows of each dose, drawn once."""
  path = study.workdir / "dose.parquet"
  if not path.exists():
    of_d = _rows_of_d(study)
    rng, clean = np.random.default_rng(10), of_d["clean"].to_numpy() == 1
    n, columns = clean.sum(), {"row_id": of_d["row_id"].to_numpy()}
    for dose in study.module["DOSES"]:
      waste = round(n * dose / 100)
      kept = [
        rng.choice(np.flatnonzero(is_it), size, replace=False)
        for is_it, size in ((clean, n - waste), (~clean, waste))
      ]
      number = np.full(len(of_d), np.nan, np.float32)
      number[np.concatenate(kept)] = 1.0
      columns[f"dose_{dose}"] = number
    pq.write_table(pa.table(columns), path)
  rows = np.isfinite(pq.read_table(path)["dose_0"].to_numpy()).sum()
  for which in ("dose", "balanced"):
    config = study.config(which)
    config.select.ratio = 0.0
    config.select.rows = int(rows * config.select.share / 3)
    mp.run(config, stages="compare")


def _divergences(study: Study):
  """Of every student of the table from the teacher, by what they write."""
  if not _SCORES.value:
    config = study.config("planted")
    config.evaluation.divergence = SAMPLES
    mp.run(config, stages="compare")


PARTS = {
  "text": _text,
  "vocabulary": _vocabulary,
  "scores": lambda study: mp.run(
    study.config("planted"), stages=["tokenize", "reference", "score"]
  ),
  "kept scores": _keep_scores,
  "learning rates": _rates,
  "table": lambda study: mp.run(study.config("planted"), stages="compare"),
  "doses": _doses,
  "easy alone": _easy_alone,
  "agreement": agreement.measure,
  "divergence": _divergences,
}


def main(argv: list[str]):
  """All of it, in order; the seconds of each part are added up."""
  if argv[1:] != ["planted"]:
    raise app.UsageError("give the study: planted")
  mp.show_log()
  logging.set_verbosity(logging.WARNING)  # of the libraries
  study = Study(argv[1])
  study.workdir.mkdir(parents=True, exist_ok=True)
  for name, part in PARTS.items():
    start = time.monotonic()
    part(study)
    seconds = study.figures.get("seconds", {})
    seconds[name] = round(seconds.get(name, 0) + time.monotonic() - start, 1)
    study.note(seconds=seconds)
    print(f"{name}: {seconds[name]:,.0f} s", flush=True)
  page.write(study, RESULTS)


if __name__ == "__main__":
  app.run(main)
