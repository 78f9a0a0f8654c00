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
import resource
import statistics
import sys
import tempfile
import time
import zlib

import numpy as np
from absl import app, flags
from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.manifest import Manifest

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
  from miniplm_jax.corpus import readers

  parts = readers.list_parts(_TEXTS.value, readers.Fields())

  def rows_of(part):
    for document in part.read():
      whole = [document.text]
      for text in whole if _WHOLE.value else document.text.split("\n\n"):
        if len(text.split()) >= 32:
          yield text

  # In turn from every file: files are often of one kind. Of a file every
  # fifth: neighbours are often alike.
  streams = [itertools.islice(rows_of(part), 0, None, 5) for part in parts]
  mixed = itertools.chain.from_iterable(itertools.zip_longest(*streams))
  return list(itertools.islice(filter(None, mixed), count))


def _corpus(directory: epath.Path, encode, eos_id: int) -> list[np.ndarray]:
  """Writes the rows as a corpus; returns their ids."""
  from miniplm_jax.corpus import store

  rows = [encode(t)[: _LENGTH.value + 1] for t in _texts(_ROWS.value)]
  rows = [np.asarray(r, np.int32) for r in rows if len(r) > 1]
  names = store.shard_names(0, 1)
  instances = [
    store.Instance(row, "text", "train", 0, (i,), 0, 0, i)
    for i, row in enumerate(rows)
  ]
  store.write_shard(directory, names, instances, {})
  Manifest(
    directory / "manifest.json",
    "tokenize",
    {"max_length": _LENGTH.value},
    {},
    counts={"rows": len(rows), "rows_by_part": [len(rows)], "parts": 1},
    files={n: files.describe(directory / n) for n in names},
    details={"eos_id": eos_id},
  ).write()
  return rows


def _ours(model: str, corpus: str, lengths: list[int]):
  import jax

  from miniplm_jax.core import manifest
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.score.scorer import Scorer

  rows = Corpus(manifest.require(epath.Path(corpus) / "manifest.json"))
  mesh = sharding.make_mesh(1, 1, jax.device_count())
  scorer = Scorer(
    {"model": huggingface.load(epath.Path(model), mesh)},
    rows,
    mesh,
    dtype="float32",
    lengths=lengths,
    batch_tokens=_TOKENS.value,
  )

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


def _serve(pipe, command_line, make, arguments):
  """A contender's process: runs when it is told to."""
  flags.FLAGS(command_line)
  try:
    run = make(*arguments)
    first = run(is_exact=True)
    run()
  except Exception as e:  # a contender that does not work is reported
    pipe.send(f"{type(e).__name__}: {str(e).splitlines()[0][:200]}")
    return
  pipe.send(first)
  while pipe.recv():
    start = time.perf_counter()
    run()
    pipe.send(time.perf_counter() - start)
  pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


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

    rows = _corpus(epath.Path(scratch) / "corpus", encode, eos_id)
    _compare(model, scratch, rows, eos_id)


def _compare(model, scratch, rows, eos_id):
  lengths = list(range(32, _LENGTH.value, 32))
  made = {"ours": (_ours, (model, f"{scratch}/corpus", lengths))}
  for kind in _AGAINST.value:
    made[kind] = (_theirs, (model, rows, eos_id, kind))
  context = multiprocessing.get_context("spawn")
  pipes, first = {}, {}
  for name, (make, arguments) in made.items():
    pipe, theirs = context.Pipe()
    context.Process(
      target=_serve, args=(theirs, sys.argv, make, arguments), daemon=True
    ).start()
    theirs.close()  # or recv would wait for one that died
    found = pipe.recv()
    if isinstance(found, str):
      print(f"{name}: does not work here, {found}")
    else:
      pipes[name], first[name] = pipe, found
  seconds = {name: [] for name in pipes}
  for turn in range(_RUNS.value):
    for name in list(pipes)[:: 1 if turn % 2 else -1]:
      pipes[name].send(True)
      seconds[name].append(pipes[name].recv())
  memory = {}
  for name, pipe in pipes.items():
    pipe.send(False)
    memory[name] = pipe.recv()
  tokens = sum(len(r) - 1 for r in rows)
  print(
    f"{len(rows)} rows of {min(map(len, rows)) - 1} to "
    f"{max(map(len, rows)) - 1} inputs, {tokens:,} in all, float32, "
    f"{multiprocessing.cpu_count()} cores, {_RUNS.value} turns"
  )
  for name in pipes:
    ratios = [b / a for a, b in zip(seconds["ours"], seconds[name])]
    off = np.abs(first[name] - first["ours"]).max()
    print(
      f"{name:12} {tokens / statistics.median(seconds[name]):7.0f} tokens/s, "
      f"{memory[name]:5.2f} GiB; ours is {statistics.median(ratios):.2f} × as "
      f"fast ({min(ratios):.2f} to {max(ratios):.2f}) in "
      f"{memory['ours'] / memory[name]:.2f} × the memory; mean NLL of a row "
      f"differs by {off:.1e} at most"
    )


if __name__ == "__main__":
  app.run(main)
