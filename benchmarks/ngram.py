r"""n-gram scores beside the package `data-selection`, on one core.

  pip install --no-deps --target=FOLDER data-selection  # and nltk, joblib
  PYTHONPATH=FOLDER python -m benchmarks.ngram --texts='corpus/*.jsonl' \
    --target=target.jsonl --tokenizer=DIRECTORY

Both score the same rows by what the target and D_ref are like (DSIR), in turns;
what is quoted is the ratio of CPU seconds. Ours reads ids of a corpus, theirs
texts that are in memory. The rankings are compared twice: with ids as their
words, which is the same model but for the hashes, and with words. What it would
take to go from ids to words is measured, too.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core

import json
import statistics
import tempfile
import time

import numpy as np
from absl import app, flags
from data_selection import HashedNgramDSIR
from data_selection.hashed_ngram_dsir import get_ngram_counts
from etils import epath

import miniplm_jax as mp
from miniplm_jax.scoring import fidelity
from miniplm_jax.scoring.ngram import NgramRef, NgramScorer

_TEXTS = flags.DEFINE_string("texts", None, "A source.", required=True)
_TARGET = flags.DEFINE_string("target", None, "JSON lines.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", "train", "Directory or hub id.")
_RUNS = flags.DEFINE_integer("runs", 3, "Paired runs.", 1)
_BUCKETS = flags.DEFINE_integer("buckets", 10_000, "Of n-grams.", 2)


def timed(run):
  """The CPU seconds of a call, and what it returns."""
  start = time.process_time()
  result = run()
  return time.process_time() - start, result


def theirs(generic, target, rows, folder, split=None):
  """(fit, score) of their package, for one process; rows are documents."""
  dsir = HashedNgramDSIR([], [], folder, num_buckets=_BUCKETS.value)
  dsir.tokenizer = split or dsir.tokenizer

  def log_shares(texts):
    total = np.zeros(dsir.num_buckets, int)
    for text in texts:
      get_ngram_counts(text, 2, dsir.num_buckets, total, dsir.tokenizer)
    return np.log(total / total.sum() + 1e-8)

  def fit():
    documents = (text for row in generic for text in row)
    dsir.log_diff = log_shares(target) - log_shares(documents)

  def score():
    return [
      sum(dsir.importance_estimator(dsir.featurizer(text)) for text in row)
      for row in rows
    ]

  return fit, score


def main(_):
  """Prints the ratios."""
  with tempfile.TemporaryDirectory() as folder:
    corpus = mp.tokenize(
      _TEXTS.value,
      _TOKENIZER.value,
      to=f"{folder}/corpus",
      reference_share=0.2,
      vocab_size=16_384 if _TOKENIZER.value == "train" else 0,
    )
    reader, tokenizer = corpus.reader, corpus.tokenizer
    row_ids = corpus.split("train").ids

    def documents_of(split):
      """Of each row the ids of its documents."""
      for row in reader.read(corpus.split(split).ids):
        ends = np.flatnonzero(row.ids == reader.eos_id) + 1
        several = np.split(row.ids, ends)
        yield [
          [i for i in ids.tolist() if i != reader.eos_id]
          for ids in several
          if len(ids) > 1
        ]

    def written(row, how):
      return [how(ids) for ids in row]

    rows, generic = map(list, map(documents_of, ("train", "reference")))
    lines = epath.Path(_TARGET.value).read_text().splitlines()
    target = [json.loads(line)["text"] for line in lines]
    n_bytes = int(corpus.split("train").to_arrow()["n_bytes"].to_numpy().sum())
    print(f"{len(rows):,} rows, {n_bytes / 1e6:.1f} MB, D_ref {len(generic):,}")
    decode = tokenizer.decode
    decoding, texts = timed(lambda: [written(row, decode) for row in rows])
    words = [written(row, decode) for row in generic]
    fit, score = theirs(words, target, texts, folder)

    def models_of(run):
      """New ones each time, so that they are counted again."""
      made, table = corpus.path / "manifest.json", epath.Path(folder) / run
      named = {"generic": "reference", "target": _TARGET.value}
      return {
        NgramRef(name, path, table / name, made): run
        for name, path in named.items()
      }

    seconds = []
    for i in range(_RUNS.value):
      models = models_of(f"run {i}")
      theirs_fit, _ = timed(fit)
      ours_fit, scorer = timed(
        lambda models=models: NgramScorer(models, reader, _BUCKETS.value, 0)
      )
      theirs_score, by_words = timed(score)
      ours_score, (sums, _, _) = timed(lambda s=scorer: s(row_ids))
      seconds.append((theirs_fit, ours_fit, theirs_score, ours_score))
      print(
        f"fit {theirs_fit:.2f} s, ours {ours_fit:.2f} s with tokenizing the "
        f"target; score {theirs_score:.2f} s, ours {ours_score:.3f} s, "
        f"{n_bytes / 1e6 / ours_score:.0f} MB/s under two models"
      )
    for name, a, b in (("fit", 0, 1), ("score", 2, 3)):
      ratio = statistics.median(s[a] / s[b] for s in seconds)
      print(f"{name}: {ratio:.1f} × as fast, median of {len(seconds)}")
    ratio = decoding / statistics.median(s[3] for s in seconds)
    print(
      f"ids to words: decoding alone takes {ratio:.1f} × as long as scoring"
    )

    def as_words(ids):
      return " ".join(map(str, ids))

    ids_of = tokenizer.encode(target)
    fit, score = theirs(
      [written(row, as_words) for row in generic],
      [as_words(ids.tolist()) for ids in ids_of],
      [written(row, as_words) for row in rows],
      folder,
      str.split,
    )
    fit()
    ours = sums["generic"] - sums["target"]
    for name, found in (("ids", score()), ("words", by_words)):
      found = np.array(found)
      rank = fidelity.spearman(found, ours)
      kept = fidelity.agreement(found, ours, 0.1)
      print(
        f"{name} in their package: Spearman {rank:.4f}, {kept:.1%} of the "
        "highest 10 % are ours"
      )


if __name__ == "__main__":
  app.run(main)
