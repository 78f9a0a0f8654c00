r"""The study of docs/results.md: from text and a teacher to its tables.

  python /shared/assets/make_corpus.py CORPUS --with-bigbench
  python -m benchmarks.smollm2_study --corpus=CORPUS --teacher=SMOLLM2

CORPUS is a folder of JSON lines with `text`, a file for each domain; SMOLLM2
a directory or hub id of SmolLM2-135M. Everything is made in --workdir, and
whatever is there already is taken as it is: stop it and start it as you like.
At the end docs/results.md has the tables of the runs.
"""

import itertools
import json
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator

from absl import app, flags, logging

_CORPUS = flags.DEFINE_string("corpus", None, "Folder of *.jsonl.")
_TEACHER = flags.DEFINE_string("teacher", None, "Directory or hub id.")
_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/smollm2_study", "For all of it."
)
_SEEDS = flags.DEFINE_list("seeds", ["11", "12", "13"], "One student each.")
_VARIANTS = flags.DEFINE_list("variants", ["small", "kd"], "Of the config.")
_BYTES = flags.DEFINE_integer("bytes", 300_000, "Of each domain.")

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "smollm2_study.py"
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
  if variant == "small":
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


def main(argv):
  """All of it, in order."""
  del argv
  workdir = pathlib.Path(_WORKDIR.value)
  if not (workdir / "text.jsonl").exists():
    _write_text(workdir / "text.jsonl")
  # The students' own tokenizer is that of a corpus of the same text.
  small = [f"--config.workdir={workdir / 'small'}"]
  small += [
    "--config.corpus.tokenizer=train",
    "--config.corpus.vocab_size=4096",
  ]
  _run(workdir, "kd", *small, "--stages=tokenize")
  _run(workdir, "kd", "--stages=tokenize,reference,score")
  for variant in _VARIANTS.value:
    for seed in _SEEDS.value:
      _run(
        workdir,
        variant,
        "--stages=select,convert,train,evaluate",
        f"--config.train.seed={seed}",
        f"--config.select.seed={seed}",
        f"--config.select.name={{method}}-{seed}",
        f"--config.student.name={{method}}-{variant}-{seed}",
      )


if __name__ == "__main__":
  app.run(main)
