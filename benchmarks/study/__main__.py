r"""A study of docs/results.md: from text and a teacher to its tables.

  python -m benchmarks.study planted --corpus=CORPUS --teacher=SMOLLM2
  python -m benchmarks.study mess --corpus=CORPUS --teacher=SMOLLM2 \
    --packages=PACKAGES
  python -m benchmarks.study clean --corpus=CORPUS --teacher=SMOLLM2

CORPUS is a folder of JSON lines with `text`, a file for each domain; SMOLLM2
a Hugging Face directory; PACKAGES a folder of what other packages than those of
CORPUS have in them, such as /usr/share, for --scale=1 with 75 MB of text.

Everything is made in --workdir, and what is there is taken as it is: stop it
and start it as you like, or take what needs no accelerator, text and
vocabulary, to where one is. With --scores=docs/results/planted_scores.parquet,
for the same text, the teacher is only asked for its tokenizer. At the end
docs/results/ has the figures and docs/results.md the tables; those of a
rehearsal stay in the workdir.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import runpy
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
from absl import app, flags, logging
from ml_collections import ConfigDict

import miniplm_jax as mp
from benchmarks.study import agreement, mess, page, planted
from miniplm_jax.core import files

_CORPUS = flags.DEFINE_string("corpus", None, "Folder of *.jsonl.")
_TEACHER = flags.DEFINE_string("teacher", None, "Hugging Face directory.")
_PACKAGES = flags.DEFINE_string("packages", None, "Folder of unpacked ones.")
_SCORES = flags.DEFINE_string("scores", "", "The teacher's, of the same text.")
_WORKDIR = flags.DEFINE_string("workdir", "", "runs/study/NAME by default.")
_SCALE = flags.DEFINE_float("scale", 1.0, "Of text and steps: 0.02 rehearses.")

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
CONFIG = ROOT / "configs" / "study.py"
RATES = (1e-3, 2e-3, 4e-3)
SAMPLES = 64  # of each student, and of the teacher
LEAST = 40_000  # tokens that are held out, or target, in a rehearsal too
SMALL = 0.1  # a scale below it takes the small shape, if there are two


@dataclasses.dataclass(frozen=True)
class Kind:
  """What one study has of its own.

  `documents` takes clean documents by domain, `tokens`, scaled, and what counts
  them; `maker` is its module, with `LABELS` and `label`.
  """

  maker: ModuleType
  documents: Callable[..., Iterator[dict[str, Any]]]
  tokens: dict[str, int]
  more: tuple[str, ...] = ()  # of `PARTS`, after those of all


KINDS = {
  "planted": Kind(
    planted,
    planted.plant,
    {"train": 480_000, "reference": 200_000, "heldout": 40_000},
    ("doses", "easy alone", "agreement"),
  ),
  "mess": Kind(
    mess,
    lambda *given: mess.collect(*given, _packages()),
    {"train": 40_000_000, "reference": 8_000_000}
    | {"heldout": 1_000_000, mess.TARGET: 1_000_000},
  ),
  "clean": Kind(
    mess,
    mess.collect,
    {"train": 20_000_000, "reference": 4_000_000, "heldout": 400_000},
  ),
}


def _packages() -> pathlib.Path:
  if not _PACKAGES.value or not pathlib.Path(_PACKAGES.value).is_dir():
    raise app.UsageError("--packages is needed, a folder: see --help")
  return pathlib.Path(_PACKAGES.value)


class Study:
  """What the parts of a study have in common."""

  def __init__(self, name: str):
    self.name, self.kind = name, KINDS[name]
    self.module = runpy.run_path(str(CONFIG))
    default = self.module["WORKDIR"].format(name)
    self.workdir = pathlib.Path(_WORKDIR.value or default)
    self.path = self.workdir / "study.json"
    self.figures = {}
    if self.path.exists():
      self.figures = json.loads(self.path.read_text())

  def config(self, which: str) -> ConfigDict:
    """A config of configs/study.py for this text, teacher and scale."""
    config = self.module["get_config"](which, _SCALE.value < SMALL)
    text = config.to_json().replace(config.workdir, str(self.workdir))
    config.update(json.loads(text))
    config.teacher.scores = _SCORES.value
    if _TEACHER.value:
      config.teacher.path = config.corpus.tokenizer = _TEACHER.value
    trains = [config.train, config.reference.train]
    trains += [config.conditional.train] * bool(config.conditional.source)
    for train in trains:
      train.steps = max(round(train.steps * _SCALE.value), 20)
      train.warmup_steps = train.steps // 10
    rate = self.figures.get("rate", config.train.learning_rate)
    config.train.learning_rate = rate
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
  at = pathlib.Path(_TEACHER.value or "") / "tokenizer.json"
  if not at.exists():
    raise app.UsageError(f"no {at}: give a directory as --teacher")
  encoder = tokenizers.Tokenizer.from_file(str(at))
  sizes = {}
  for split, n in study.kind.tokens.items():
    least = 0 if split in ("train", "reference") else min(n, LEAST)
    sizes[split] = max(int(n * _SCALE.value), least)
  count = lambda text: len(encoder.encode(text))  # noqa: E731
  documents = study.kind.documents(domains, sizes, count)
  lines = {mess.TARGET: [], "text": []}
  for document in documents:
    own = mess.TARGET if document["split"] == mess.TARGET else "text"
    lines[own].append(json.dumps(document) + "\n")
  for own, texts in lines.items():  # the text, which is looked for, at last
    if texts:
      files.write_bytes(path.with_stem(own), "".join(texts).encode())


def _vocabulary(study: Study):
  """The students' own tokenizer."""
  mp.tokenize(
    str(study.workdir / "text.jsonl"),
    "train",
    to=str(study.workdir / "vocabulary" / "corpus"),
    vocab_size=study.config(study.name).student.model.vocab_size,
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
  dtype = study.config(study.name).score.dtype
  about |= {"model": f"SmolLM2-135M, {dtype}"}
  with (study.workdir / "text.jsonl").open("rb") as file:
    about |= {"text_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
  path.with_name(f"{path.name}.json").write_text(json.dumps(about) + "\n")


def _rates(study: Study):
  """The learning rate at which students of both selections lose least."""
  losses = {}
  for rate in RATES:
    config = study.config(study.name)
    config.compare.criteria = config.compare.criteria[:1]  # miniplm
    # A seed that no table has.
    config.compare.seeds, config.compare.oracle = (10,), ""
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
    config = study.config(study.name)
    config.evaluation.divergence = SAMPLES
    mp.run(config, stages="compare")


PARTS = {
  "text": _text,
  "vocabulary": _vocabulary,
  "scores": lambda study: mp.run(
    study.config(study.name),
    stages=["tokenize", "reference", "conditional", "score"],
  ),
  "kept scores": _keep_scores,
  "learning rates": _rates,
  "table": lambda study: mp.run(study.config(study.name), stages="compare"),
  "doses": _doses,
  "easy alone": _easy_alone,
  "agreement": agreement.measure,
  "divergence": _divergences,
}
_SOME = ("doses", "easy alone", "agreement")  # of a study that names them


def main(argv: list[str]):
  """All of it, in order; the seconds of each part are added up."""
  if len(argv) != 2 or argv[1] not in KINDS:
    raise app.UsageError(f"give the study: {', '.join(KINDS)}")
  mp.show_log()
  logging.set_verbosity(logging.WARNING)  # of the libraries
  study = Study(argv[1])
  study.workdir.mkdir(parents=True, exist_ok=True)
  kind = jax.devices()[0].device_kind
  study.note(device=f"{kind}, {os.cpu_count()} cores")
  for name, part in PARTS.items():
    if name in _SOME and name not in study.kind.more:
      continue
    start = time.monotonic()
    part(study)
    seconds = study.figures.get("seconds", {})
    seconds[name] = round(seconds.get(name, 0) + time.monotonic() - start, 1)
    study.note(seconds=seconds)
    print(f"{name}: {seconds[name]:,.0f} s", flush=True)
  is_whole = _SCALE.value == 1
  page.write(study, RESULTS if is_whole else study.workdir / "results")


if __name__ == "__main__":
  app.run(main)
