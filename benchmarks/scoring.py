r"""Scoring against transformers: the same weights, the same rows, paired.

  python -m benchmarks.scoring [--model=DIRECTORY_OR_HUB_ID] [--texts=my.jsonl]

Every contender runs in a process of its own, loads the model, scores all rows
once to warm up, and then again --runs times, in turns and in both orders.
What is quoted is the ratio within a turn. Without --model: a Qwen2 with
random weights, hidden 512, 8 layers and a vocabulary of 151,936. Rows are
paragraphs of 32 words or more, or with --whole texts, cut at --max_length.
Needs the `parity` extra.

transformers: batches of --batch_size rows in the order of the texts, padded
to the longest, F.cross_entropy on the logits. `sorted`: rows of like length
together. `compiled`: torch.compile. Peak memory is that of the process, with
its imports and weights. Threads: as many as there are cores. Their NLL, for the
difference, is taken from their float32 logits in float64: F.cross_entropy in
float32 is itself 2e-5 off for the mean of a row.
"""

import itertools
import multiprocessing
import statistics
import sys
import tempfile
import zlib

import numpy as np
from absl import app, flags
from etils import epath

from benchmarks.accelerator import contest, models

_MODEL = flags.DEFINE_string("model", "", "A directory or hub id.")
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", "", "A directory; by default the model's own, or words."
)
_TEXTS = flags.DEFINE_string("texts", "embedded", "Files with texts.")
_WHOLE = flags.DEFINE_bool("whole", False, "Texts and not their paragraphs.")
_ROWS = flags.DEFINE_integer("rows", 96, "How many rows.", 1)
_LENGTH = flags.DEFINE_integer("max_length", 512, "Inputs of a row.", 2)
_BATCH = flags.DEFINE_integer("batch_size", 4, "Rows of transformers.", 1)
_TOKENS = flags.DEFINE_integer("batch_tokens", 512, "Of ours.", 1)
_RUNS = flags.DEFINE_integer("runs", 5, "Turns.", 1)
_AGAINST = flags.DEFINE_list(
  "against",
  ["transformers", "sorted", "compiled"],
  "Contenders.",
)
_SHAPE = {
  "vocab_size": 151_936,
  "hidden_size": 512,
  "num_hidden_layers": 8,
  "num_attention_heads": 8,
  "num_key_value_heads": 8,
  "intermediate_size": 1408,
  "tie_word_embeddings": True,
}


def _texts(count: int) -> list[str]:
  from miniplm_jax.config import CorpusConfig
  from miniplm_jax.corpus import sources

  parts = sources.list_chunks(CorpusConfig(source=_TEXTS.value))

  def rows_of(part):
    for document in part.read():
      whole = [document.text]
      for text in whole if _WHOLE.value else document.text.split("\n\n"):
        if len(text.split()) >= 32:
          yield text

  # In turn from every file: files are often of one kind. Of a file every
  # fifth: neighbors are often alike.
  streams = [itertools.islice(rows_of(part), 0, None, 5) for part in parts]
  mixed = itertools.chain.from_iterable(itertools.zip_longest(*streams))
  return list(itertools.islice(filter(None, mixed), count))


def _rows(encode) -> list[np.ndarray]:
  """The ids of the rows."""
  rows = [encode(t)[: _LENGTH.value + 1] for t in _texts(_ROWS.value)]
  return [np.asarray(r, np.int32) for r in rows if len(r) > 1]


def _ours(model: str, corpus: str, lengths: list[int]):
  import jax

  from miniplm_jax.config import ScoreConfig
  from miniplm_jax.core import manifest
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.scoring.scorer import Scorer

  rows = Corpus(manifest.require(epath.Path(corpus) / "manifest.json"))
  mesh = sharding.make_mesh(1, 1, jax.device_count())
  how = ScoreConfig(
    dtype="float32", lengths=tuple(lengths), batch_tokens=_TOKENS.value
  )
  loaded = huggingface.load(epath.Path(model), mesh)
  scorer = Scorer(how, {"model": loaded}, rows, mesh)

  def run(is_exact=False):
    del is_exact
    nll, n_tokens, _ = scorer(np.arange(len(rows)))
    return nll["model"] / n_tokens

  return run


def _theirs(model: str, rows, eos_id: int, kind: str):
  import torch
  import transformers
  from torch.nn import functional

  torch.set_num_threads(multiprocessing.cpu_count())
  decoder = transformers.AutoModelForCausalLM.from_pretrained(
    model, dtype=torch.float32
  ).eval()
  forward = torch.compile(decoder) if kind == "compiled" else decoder
  order = np.arange(len(rows))
  if kind == "sorted":
    order = np.argsort([-len(r) for r in rows], kind="stable")

  def exact_nll(logits, targets):
    # A few positions at a time: the peak of memory is to be that of the runs.
    pieces = zip(logits.split(8), targets.split(8))
    nll = [
      functional.cross_entropy(x.double(), y, reduction="none")
      for x, y in pieces
    ]
    return torch.cat(nll)

  @torch.no_grad()
  def run(is_exact=False):
    found = np.zeros(len(rows))
    for start in range(0, len(rows), _BATCH.value):
      here = order[start : start + _BATCH.value]
      length = max(len(rows[i]) for i in here)
      ids = torch.full((len(here), length), eos_id)
      real = torch.zeros((len(here), length), dtype=torch.long)
      for k, i in enumerate(here):
        ids[k, : len(rows[i])] = torch.as_tensor(rows[i])
        real[k, : len(rows[i])] = 1
      logits = forward(ids[:, :-1], attention_mask=real[:, :-1]).logits
      logits, targets = logits.flatten(0, 1), ids[:, 1:].flatten()
      if is_exact:
        nll = exact_nll(logits, targets)
      else:
        nll = functional.cross_entropy(
          logits.float(), targets, reduction="none"
        )
      nll = nll.view(len(here), -1)
      mask = (real[:, 1:] == 1) & (ids[:, :-1] != eos_id)
      found[here] = ((nll * mask).sum(1) / mask.sum(1)).numpy()
      del logits
    return found

  return run


def _make(command_line, make, arguments):
  """A contender, in its own process: runs when it is told to."""
  flags.FLAGS(command_line)

  def prepare():
    run = make(*arguments)
    first = run(is_exact=True)
    run()
    return contest.Entrant(first, run, lambda: contest.process_gib("VmHWM"))

  return prepare


def main(argv: list[str]):
  """Prints a line for each contender."""
  del argv
  import tokenizers

  with tempfile.TemporaryDirectory() as scratch:
    model, eos_id = _MODEL.value, 0
    if not model:
      model = f"{scratch}/model"
      import transformers

      config = transformers.Qwen2Config(**_SHAPE)
      transformers.Qwen2ForCausalLM(config).save_pretrained(model)
    if source := _TOKENIZER.value or _MODEL.value:
      engine = tokenizers.Tokenizer.from_file(f"{source}/tokenizer.json")

    def encode(text):
      if source:
        return engine.encode(text).ids
      # Random weights do not care: an id for every word.
      return [1 + zlib.crc32(w.encode()) % 151_000 for w in text.split()]

    rows = _rows(encode)
    corpus = epath.Path(scratch) / "corpus"
    models.write_corpus(corpus, rows, _LENGTH.value, eos_id)
    _compare(model, scratch, rows, eos_id)


def _compare(model, scratch, rows, eos_id):
  lengths = list(range(32, _LENGTH.value, 32))
  made = {"ours": (_ours, (model, f"{scratch}/corpus", lengths))}
  for kind in _AGAINST.value:
    made[kind] = (_theirs, (model, rows, eos_id, kind))
  found = contest.hold(
    [
      contest.Contender(name, _make, (sys.argv, *what))
      for name, what in made.items()
    ],
    _RUNS.value,
  )
  for name, why in found.failed.items():
    print(f"{name}: does not work here, {why[:200]}")
  tokens = sum(len(r) - 1 for r in rows)
  print(
    f"{len(rows)} rows of {min(map(len, rows)) - 1} to "
    f"{max(map(len, rows)) - 1} inputs, {tokens:,} in all, float32, "
    f"{multiprocessing.cpu_count()} cores, {_RUNS.value} turns"
  )
  for name, memory in found.ended.items():
    ratio, least, most = found.ratio("ours", name)
    off = np.abs(found.first[name] - found.first["ours"]).max()
    print(
      f"{name:12} {tokens / statistics.median(found.seconds(name)):7.0f} "
      f"tokens/s, {memory:5.2f} GiB; ours is {ratio:.2f} × as "
      f"fast ({least:.2f} to {most:.2f}) in "
      f"{found.ended['ours'] / memory:.2f} × the memory; mean NLL of a row "
      f"differs by {off:.1e} at most"
    )


if __name__ == "__main__":
  app.run(main)
