"""Stage tokenize: documents → ArrayRecord shards of packed rows."""

import collections
import itertools
from collections.abc import Iterator

from miniplm_jax.core import files
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.job import Job
from miniplm_jax.core.progress import Progress, say
from miniplm_jax.core.workdir import Workdir

STAGE = "tokenize"
# Told apart by what they hold, in `inputs`: a folder may be moved.
_BY_CONTENT = ("source", "tokenizer")
_BATCH = 256  # documents that are encoded at a time
TRAIN = "train"  # a corpus.tokenizer


def jobs(config, workdir: Workdir) -> list[Job]:
  """One job: the whole corpus."""
  c = config.corpus
  directory = workdir.corpus
  shares = ", ".join(f"{s} {share:.3g}" for s, share in _shares(c) if share)
  return [
    Job(
      stage=STAGE,
      manifest=directory / "manifest.json",
      settings={k: v for k, v in c.items() if k not in _BY_CONTENT},
      inputs={
        "source": lambda: _parts(c)[1](),
        "tokenizer": lambda: _tokenizer_fingerprint(c),
      },
      outputs=(directory,),
      summary=f"{c.source} → rows of up to {c.max_length + 1} tokens, "
      f"tokenizer {c.tokenizer}, held back from D: {shares}",
      run=lambda unused_inputs: _run_or_leave_nothing(config, directory),
    )
  ]


def _shares(c) -> list[tuple[str, float]]:
  return [
    ("reference", c.reference_share),
    ("heldout", c.heldout_share),
    ("teacher", c.teacher_share),
  ]


def _parts(c):
  from miniplm_jax.corpus import readers

  return readers.list_parts(c.source, c.text_field, c.domain_field)


def _tokenizer_fingerprint(c) -> str:
  """What is known of the tokenizer before anything is fetched or trained."""
  from etils import epath

  if c.tokenizer == TRAIN:
    return files.digest([TRAIN, c.vocab_size])
  local = epath.Path(c.tokenizer) / "tokenizer.json"
  if local.exists():
    return files.sha256(local)
  return files.digest([c.tokenizer, c.tokenizer_revision])


def _run_or_leave_nothing(config, directory):
  # What to mend is the text, and mended text is another corpus: shards of the
  # old one would be in the way.
  try:
    return _run(config, directory)
  except UserError:
    directory.rmtree()
    raise


def _run(config, directory):
  from miniplm_jax.corpus import store
  from miniplm_jax.corpus.pack import SentenceEnds

  c = config.corpus
  parts, _ = _parts(c)
  encoder = _tokenizer(c, parts, directory / "tokenizer")
  ends = SentenceEnds(encoder)
  counts, rows_by_part, described = collections.Counter(), [], {}
  every = config.run.log_every_seconds
  with Progress(STAGE, None, "documents", every=every) as progress:
    for number, part in enumerate(parts):
      names = store.shard_names(number, len(parts))
      if not (directory / names[1]).exists():
        seen = collections.Counter()
        counted = _counted(part, f"in file {number + 1}/{len(parts)}", progress)
        rows = _pack(c, number, counted, encoder, ends, seen)
        store.write_shard(directory, names, rows, seen)
      seen = store.read_counts(directory / names[1])
      rows_by_part.append(seen["rows"])
      counts.update(seen)
      described |= {n: files.describe(directory / n) for n in names}
  if not counts["rows"]:
    raise UserError(
      f"no document with text in {len(parts)} files",
      f"config.corpus.source={c.source}",
      "give a corpus that has some text",
    )
  shares = {name[6:]: n for name, n in counts.items() if name[:6] == "split "}
  if not shares.get("train"):
    raise UserError(
      f"all {counts['rows']} rows were held back, none is left for D",
      "config.corpus",
      "lower reference_share, heldout_share and teacher_share, or give "
      "more text",
    )
  return {
    "tokenizer": encoder.fingerprint,
    "files": described,
    "counts": dict(counts)
    | {"parts": len(parts), "rows_by_part": rows_by_part},
    "details": {
      "eos_id": encoder.eos_id,
      "vocab_size": encoder.vocab_size,
      "source": c.source,
      "tokenizer": c.tokenizer,
    },
  }


def _tokenizer(c, parts, directory):
  """The corpus's own copy of the tokenizer, made at the first call."""
  from miniplm_jax.corpus import tokenizer
  from miniplm_jax.models import hub

  if not (directory / "tokenizer.json").exists():
    if c.tokenizer == TRAIN:
      say(STAGE, f"training a byte-level BPE of {c.vocab_size:,} tokens")
      texts = (d.text for part in parts for d in part.read())
      found = tokenizer.train(texts, c.vocab_size, c.eos_token)
    else:
      folder = hub.resolve(c.tokenizer, c.tokenizer_revision, weights=False)
      found = tokenizer.load(folder, c.eos_token)
    # tokenizer.json last: its presence says that the folder is whole.
    for name, content in sorted(found.to_files().items(), reverse=True):
      files.write_bytes(directory / name, content)
  return tokenizer.load(directory, c.eos_token)


def _counted(part, note, progress) -> Iterator:
  """The documents of a part, with a word of progress."""
  for document in part.read():
    yield document
    progress.update(1, note)


def _pack(c, number, documents, encoder, ends, seen) -> Iterator:
  """Instances of one part's documents; counts what it sees."""
  from miniplm_jax.corpus import store
  from miniplm_jax.corpus.pack import Packer

  packers, n_bytes = {}, encoder.byte_lengths

  def instance(domain, row):
    hashed = store.hash_of(row.ids, c.seed)
    split = store.split_of(hashed, _shares(c))
    scored = row.ids[1:][row.ids[:-1] != encoder.eos_id]
    seen.update({"rows": 1, "tokens": len(row.ids), f"split {split}": 1})
    return store.Instance(
      ids=row.ids,
      domain=domain,
      split=split,
      part=number,
      documents=row.documents,
      offset=row.offset,
      n_bytes=int(n_bytes[scored].sum()),
      hash=hashed,
    )

  documents = enumerate(documents)
  while batch := list(itertools.islice(documents, _BATCH)):
    seen["documents"] += len(batch)
    batch = [(i, d) for i, d in batch if d.text]
    ids = encoder.encode([d.text for _, d in batch])
    for (i, document), ids_of in zip(batch, ids):
      domain = document.domain
      if domain not in packers:
        packers[domain] = Packer(ends, encoder.eos_id, c.max_length)
      for row in packers[domain].add(ids_of, i):
        yield instance(domain, row)
  # The tails, in an order that does not depend on the text's.
  for domain in sorted(packers):
    for row in packers[domain].flush():
      yield instance(domain, row)
