r"""The study of docs/results.md: from text and a teacher to its tables.

  python /shared/assets/make_corpus.py CORPUS --with-bigbench
  python -m benchmarks.smollm2_study --corpus=CORPUS --teacher=SMOLLM2

CORPUS is a folder of JSON lines with `text`, a file for each domain; SMOLLM2
a directory or hub id of SmolLM2-135M. Everything is made in --workdir, and
whatever is there already is taken as it is: stop it and start it as you like.
At the end docs/results.md has the tables of the runs.
"""

import hashlib
import itertools
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags, logging

from miniplm_jax.report.analyses import seeds
from miniplm_jax.report.table import Table

_CORPUS = flags.DEFINE_string("corpus", None, "Folder of *.jsonl.")
_TEACHER = flags.DEFINE_string("teacher", None, "Directory or hub id.")
_SCORES = flags.DEFINE_string(
  "scores",
  None,
  "docs/results/teacher_scores.parquet, for the same text; not for kd.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/smollm2_study", "For all of it."
)
_SEEDS = flags.DEFINE_list("seeds", ["11", "12", "13"], "One student each.")
_VARIANTS = flags.DEFINE_list(
  "variants", ["small", "kd", "zscore"], "Of the config."
)
_BYTES = flags.DEFINE_integer("bytes", 300_000, "Of each domain.")

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "smollm2_study.py"
DOCS = pathlib.Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- tables of the runs -->", "<!-- end of the tables -->"
_COPIES = 4  # of a duplicated document
_FRAGMENT = 300  # characters of a truncated one, about


def plant(
  domains: dict[str, list[str]], size: int, seed: int = 10
) -> Iterator[tuple[str, str]]:
  """Clean documents, and others that were damaged.

  Each document is taken once, as it is or damaged, so that what is held out
  was never read in another form.

  Args:
    domains: documents by domain.
    size: UTF-8 bytes of a domain that are kept clean, and of each damage.
    seed: of the order and of what is damaged.

  Yields:
    (domain, text); a damaged text's domain is the damage.
  """
  rng = random.Random(seed)
  left = []
  for domain in sorted(domains):
    texts = sorted(domains[domain])
    rng.shuffle(texts)
    spent = 0
    for text in texts:
      if spent < size:
        yield domain, text
        spent += len(text.encode())
      else:
        left.append(text)
  rng.shuffle(left)
  for damage, damaged in DAMAGES.items():
    spent = 0
    while spent < size and left:
      for text in damaged(left.pop(), rng):
        yield damage, text
        spent += len(text.encode())


def _shuffled(text: str, rng: random.Random) -> list[str]:
  """Its words in another order."""
  words = text.split()
  rng.shuffle(words)
  return [" ".join(words)]


def _truncated(text: str, rng: random.Random) -> list[str]:
  """Every second piece of it, begun and broken off anywhere."""
  cuts = [0]
  while cuts[-1] < len(text):
    cuts.append(cuts[-1] + rng.randint(_FRAGMENT // 2, 3 * _FRAGMENT // 2))
  return [text[a:b] for a, b in itertools.pairwise(cuts)][1::2]


def _duplicated(text: str, rng: random.Random) -> list[str]:
  """The same again and again."""
  del rng
  return [text] * _COPIES


DAMAGES = {
  "shuffled": _shuffled,
  "truncated": _truncated,
  "duplicated": _duplicated,
}


def _write_text(path: pathlib.Path):
  if not _CORPUS.value:
    raise app.UsageError("--corpus is needed: see --help")
  domains = {}
  for file in sorted(pathlib.Path(_CORPUS.value).glob("*.jsonl")):
    with file.open() as f:
      domains[file.stem] = [json.loads(line)["text"] for line in f]
  if not domains:
    raise app.UsageError(f"no *.jsonl in {_CORPUS.value}")
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(".partial")
  with partial.open("w") as f:
    for domain, text in plant(domains, _BYTES.value):
      f.write(json.dumps({"text": text, "domain": domain}) + "\n")
  partial.rename(path)


def _run(workdir: pathlib.Path, variant: str, *arguments: str):
  """One command of the pipeline; its seconds go to seconds.jsonl."""
  which = "" if variant == "small" else f":{variant}"
  command = [sys.executable, "-m", "miniplm_jax.main"]
  command += [f"--config={CONFIG}{which}", f"--config.workdir={workdir}"]
  command += [f"--config.corpus.source={workdir / 'text.jsonl'}"]
  if _TEACHER.value:
    command += [f"--config.teacher.path={_TEACHER.value}"]
    command += [f"--config.corpus.tokenizer={_TEACHER.value}"]
  if _SCORES.value:
    command += [f"--config.teacher.scores={_SCORES.value}"]
  if variant != "kd":
    tokenizer = workdir / "small" / "corpus" / "tokenizer"
    command += [f"--config.student.tokenizer={tokenizer}"]
  command += arguments
  logging.info("%s", " ".join(command))
  start = time.monotonic()
  subprocess.run(command, check=True)
  line = {"arguments": arguments, "variant": variant}
  line["seconds"] = round(time.monotonic() - start, 1)
  with (workdir / "seconds.jsonl").open("a") as f:
    f.write(json.dumps(line) + "\n")


def _of_seed(variant: str, seed: str) -> list[str]:
  """Of a student with its selection, which kd shares with small."""
  chosen = "{method}" if variant in ("small", "kd") else f"{{method}}-{variant}"
  return [
    f"--config.train.seed={seed}",
    f"--config.select.seed={seed}",
    f"--config.select.name={chosen}-{seed}",
    f"--config.student.name={{method}}-{variant}-{seed}",
  ]


def _results(workdir: pathlib.Path) -> str:
  """The tables of the runs, in Markdown."""
  analysis = workdir / "analysis"
  groups = json.loads((analysis / "seeds.json").read_text())["groups"]
  kept = json.loads((analysis / "domains.json").read_text())["selections"]
  counts = json.loads((workdir / "corpus/manifest.json").read_text())["counts"]
  lines = (workdir / "seconds.jsonl").read_text().splitlines()
  hours = sum(json.loads(line)["seconds"] for line in lines) / 3600
  pictures = _pictures(workdir)
  first = _SEEDS.value[0]
  chosen = {
    n.removesuffix(f"-{first}"): s
    for n, s in kept.items()
    if n.endswith(f"-{first}")
  }
  names = list(next(iter(chosen.values())))
  domains = sorted({d for group in groups.values() for d in group["domains"]})
  table = seeds.ANALYSIS.render({"groups": groups}).table
  by_domain = [
    [d, *(seeds.spread(g["domains"][d]) for g in groups.values())]
    for d in domains
  ]
  shares = [
    [
      d,
      next(iter(chosen.values()))[d]["rows"],
      *(f"{s[d]['share']:.1%}" for s in chosen.values()),
    ]
    for d in names
  ]
  parts = [
    f"D: {counts['split train']:,} rows of up to 128 tokens, beside "
    f"{counts['split reference']:,} of D_ref and {counts['split heldout']:,} "
    f"held out. Seeds {', '.join(_SEEDS.value)}. {hours:.1f} hours of commands "
    "on 2 cores, of which some ran beside other work.",
    "### Held-out loss",
    seeds.ANALYSIS.definition,
    table.markdown(),
    *(f"![Learning curves](results/{name})" for name in pictures[:-1]),
    "### By domain, held-out bits per byte",
    f"{', '.join(DAMAGES)} are what was planted; the loss above is without "
    "them.",
    Table(["domain", *groups], by_domain).markdown(),
    f"![By domain](results/{pictures[-1]})",
    f"### What was kept, seed {first}",
    Table(["domain", "rows of D", *chosen], shares).markdown(),
  ]
  return "\n\n".join(parts)


def _pictures(workdir: pathlib.Path) -> list[str]:
  """Curves, one for each shape, and the domains."""
  return sorted(p.name for p in (workdir / "analysis").glob("seeds*.png"))


def _keep_scores(workdir: pathlib.Path):
  """The teacher's scores as --scores takes them."""
  corpus = json.loads((workdir / "corpus/manifest.json").read_text())
  folder = workdir / "scores" / "teacher"
  path = DOCS / "results" / "teacher_scores.parquet"
  parts = [pq.read_table(p) for p in sorted(folder.glob("part-*.parquet"))]
  table = pa.concat_tables(parts).replace_schema_metadata()
  pq.write_table(table, path, compression="zstd")
  about = {"corpus": corpus["fingerprint"], "nll": "sum"}
  about |= {"model": "SmolLM2-135M, float32"}
  with (workdir / "text.jsonl").open("rb") as f:
    about |= {"text_sha256": hashlib.file_digest(f, "sha256").hexdigest()}
  path.with_name(f"{path.name}.json").write_text(json.dumps(about) + "\n")


def _write_docs(workdir: pathlib.Path):
  """Tables and pictures into docs/; what stands around the tables stays."""
  (DOCS / "results").mkdir(exist_ok=True)
  if not _SCORES.value:
    _keep_scores(workdir)
  for name in _pictures(workdir):
    shutil.copy(workdir / "analysis" / name, DOCS / "results" / name)
  path = DOCS / "results.md"
  text = path.read_text() if path.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
  before, after = text.split(BEGIN)[0], text.split(END)[1]
  path.write_text(f"{before}{BEGIN}\n\n{_results(workdir)}\n\n{END}{after}")


def main(argv):
  """All of it, in order."""
  del argv
  if len(_SEEDS.value) < 2:
    raise app.UsageError("--seeds: a spread takes two")
  workdir = pathlib.Path(_WORKDIR.value)
  if not (workdir / "text.jsonl").exists():
    _write_text(workdir / "text.jsonl")
  # The students' own tokenizer is that of a corpus of the same text.
  small = [f"--config.workdir={workdir / 'small'}"]
  small += [
    "--config.corpus.tokenizer=train",
    "--config.corpus.vocab_size=4096",
  ]
  _run(workdir, "small", *small, "--stages=tokenize")
  _run(workdir, "small", "--stages=tokenize,reference,score")
  variants = [v for v in _VARIANTS.value if v != "kd" or not _SCORES.value]
  for variant in variants:
    for seed in _SEEDS.value:
      _run(
        workdir,
        variant,
        "--stages=select,convert,train,evaluate",
        *_of_seed(variant, seed),
      )
  variant = variants[0]
  _run(
    workdir,
    variant,
    "--stages=analyze,report",
    "--force",
    *_of_seed(variant, _SEEDS.value[0]),
  )
  _write_docs(workdir)


if __name__ == "__main__":
  app.run(main)
