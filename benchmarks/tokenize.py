r"""Stage tokenize beside the released algorithm's way, on one core.

  python -m benchmarks.tokenize --texts='corpus/*.jsonl' --tokenizer=DIRECTORY

The released way: one `encode` of transformers for every document, Python
lists as packing buffers, a backward search for the sentence end. Both take
the same documents in turn and must give the same rows. What is quoted is the
ratio of CPU seconds; ours also hashes rows, counts bytes and writes
ArrayRecord with an index, theirs writes nothing. Needs the `parity` extra.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core

import json
import statistics
import tempfile
import time

import numpy as np
from absl import app, flags
from etils import epath

from miniplm_jax.config import CorpusConfig
from miniplm_jax.corpus import columns, shard, sources, store, tokenizer
from miniplm_jax.models import hub

_TEXTS = flags.DEFINE_string("texts", None, "JSON lines.", required=True)
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", None, "A directory or hub id.", required=True
)
_EVERY = flags.DEFINE_integer("every", 6, "Take each n-th document.", 1)
_RUNS = flags.DEFINE_integer("runs", 3, "Paired runs.", 1)
_EOS = "<|endoftext|>"
_SIZE = 1025
_BRACKETS = ("[]", "()", "\\{", "<>")


def released(documents, theirs):
  """Rows as the released code packs them, from lists of ids."""
  eos = theirs.convert_tokens_to_ids(_EOS)
  ends, newline = {eos}, {eos}
  for i in range(len(theirs)):
    text = theirs.decode([i])
    if any(mark in text for mark in ".!?;\n") and not any(
      o in text and c not in text for o, c in _BRACKETS
    ):
      ends.add(i)
      if "\n" in text:
        newline.add(i)

  def run():
    buffers, rows = {}, []
    for document in documents:
      buffer = buffers.setdefault(document.domain, [])
      buffer.extend(
        [*theirs.encode(document.text, add_special_tokens=False), eos]
      )
      while len(buffer) >= _SIZE:
        length = _SIZE
        for i in range(_SIZE - 1, 0, -1):
          token = buffer[i]
          good = token in newline or (
            token in ends
            and i + 1 < _SIZE
            and " " in theirs.decode([token, buffer[i + 1]])
          )
          if good and any(t != eos for t in buffer[:i]):
            length = i + 1
            break
        rows.append((document.domain, buffer[:length]))
        del buffer[:length]
    tails = ((domain, buffers[domain]) for domain in sorted(buffers))
    return rows + [
      (domain, tail) for domain, tail in tails if set(tail[:-1]) - {eos}
    ]

  return run


def main(argv):
  """Prints both ways' figures and the ratio."""
  del argv
  import transformers

  source = sources.list_chunks(CorpusConfig(source=_TEXTS.value))
  documents = [d for part in source for d in part.read()][:: _EVERY.value]
  directory = hub.resolve(_TOKENIZER.value, weights=False)
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  size = sum(len(d.text.encode()) for d in documents)
  domains = len({d.domain for d in documents})
  print(f"{len(documents):,} documents, {domains} domains, {size / 1e6:.1f} MB")

  with tempfile.TemporaryDirectory() as name:
    folder = epath.Path(name)
    (folder / "tokenizer").mkdir()
    made = tokenizer.load(directory, _EOS)
    for file, content in made.to_files().items():
      (folder / "tokenizer" / file).write_bytes(content)
    text = folder / "text.jsonl"
    with text.open("w") as f:
      for d in documents:
        f.write(json.dumps({"text": d.text, "domain": d.domain}) + "\n")
    corpus = CorpusConfig(
      source=str(text),
      part_bytes=1 << 40,
      eos_token=_EOS,
      bos_token="",
      max_length=_SIZE - 1,
    )
    (part,) = sources.list_chunks(corpus)
    recipe = shard.Recipe(corpus, (), name, 0)
    start = time.process_time()
    maker = shard.Maker(recipe, lambda unused: None)
    maker.make(0, 1, part)  # tables and pages are there
    seconds = time.process_time() - start
    print(f"first pass with loading the tokenizer {seconds:.1f} s")
    reference = released(documents, theirs)
    spent = []
    for turn in range(_RUNS.value):
      found = {}
      ways = {"ours": lambda: maker.make(0, 1, part), "released": reference}
      for way in sorted(ways, reverse=bool(turn % 2)):
        start = time.process_time()
        rows = ways[way]()
        found[way] = time.process_time() - start
      spent.append(found)
      print(f"turn {turn}: {found['released'] / found['ours']:.2f} ×")
    names = store.shard_names(0, 1)
    index = folder / names[1]
    _compare(folder, names[0], rows or reference())
    tokens = columns.facts(index)["counts"]["tokens"]
  for way in ("ours", "released"):
    seconds = statistics.median(s[way] for s in spent)
    print(
      f"{way:9} {len(documents) / seconds:8,.0f} documents/s "
      f"{size / seconds / 1e6:6.2f} MB/s {tokens / seconds:10,.0f} tokens/s"
    )
  ratio = statistics.median(s["released"] / s["ours"] for s in spent)
  print(f"ratio {ratio:.2f} × per core (median of {len(spent)})")


def _compare(folder, name, rows):
  """Both must have made the same rows."""
  from array_record.python.array_record_module import ArrayRecordReader

  records = ArrayRecordReader(str(folder / name)).read_all()
  ours = [store.StoredRow.from_bytes(r) for r in records]
  if len(ours) != len(rows):
    raise AssertionError(f"{len(ours)} rows, released {len(rows)}")
  for row, (domain, ids) in zip(ours, rows):
    if row.domain != domain or not np.array_equal(row.ids, ids):
      raise AssertionError(f"{domain}: another row")
  print(f"{len(rows):,} rows, all equal")


if __name__ == "__main__":
  app.run(main)
