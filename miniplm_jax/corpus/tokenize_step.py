"""Stage tokenize: documents → ArrayRecord shards of packed rows."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath, epy

from miniplm_jax.config import ConditionalConfig, CorpusConfig, RunConfig
from miniplm_jax.core import backup, errors, files, manifest
from miniplm_jax.core.code import Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import field_of
from miniplm_jax.core.log import Progress, log, warn
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus import datasets, own_tokenizer, summary
from miniplm_jax.corpus.chunks import (
  Chunk,
  Document,
  Record,
  TokenizedRecord,
)
from miniplm_jax.corpus.own_tokenizer import TRAIN
from miniplm_jax.corpus.sources import CorpusSource

with epy.lazy_imports():
  from miniplm_jax.corpus import (
    columns,
    losses,
    shard,
    store,
    tokenizer,
    workers,
  )
  from miniplm_jax.models import hub

STAGE = "tokenize"
# Told apart by what they hold, in `inputs`: a folder may be moved.
_BY_CONTENT = ("source", "tokenizer")
_CARRIED = ("fields", "id_field", "split_field")  # settings if there are some
_UNNAMED = ("", "auto")  # a corpus.bos_token
_CODE = ("corpus/shard.py", "corpus/sources.py")  # makes a shard


def step(corpus: CorpusConfig, folder: epath.Path, run: RunConfig) -> Step:
  """Returns the step that makes a corpus in a folder."""
  source = CorpusSource(corpus, folder, run.max_broken)
  settings = dataclasses.asdict(corpus)
  held_back = ", ".join(
    f"{split} {share:.3g}" for split, share in _shares(corpus) if share
  )
  if corpus.split_field:
    held_back = f"by {corpus.split_field}, else {held_back or 'nothing'}"
  return Step(
    stage=STAGE,
    manifest=folder / MANIFEST,
    settings={
      k: v for k, v in settings.items() if k not in _BY_CONTENT + _CARRIED
    }
    | corpus.carried,
    inputs={
      "source": source,
      "tokenizer": (lambda: files.digest([TRAIN, corpus.vocab_size]))
      if corpus.tokenizer == TRAIN
      else _given(corpus),
    },
    # Each shard says what it was made from. A tokenizer that is trained
    # here is made from all of them.
    rechecks=() if corpus.tokenizer == TRAIN else ("source",),
    idle=_idle(corpus, source.finished()),
    explain=lambda old: source.changes(old.details.get("parts")),
    outputs=(folder,),
    summary=f"{corpus.source} → rows of up to {corpus.max_length + 1} tokens, "
    f"tokenizer {corpus.tokenizer}, held back from D: {held_back or 'nothing'}",
    code=Version(_CODE, ("tokenizers",), run.any_code),
    run=lambda unused_inputs: tokenize(corpus, folder, run),
    policy=Policy(is_host_only=True),
  )


def target_step(
  target: ConditionalConfig,
  corpus: CorpusConfig,
  of: epath.Path,
  folder: epath.Path,
  run: RunConfig,
) -> Step:
  """Returns the step that makes rows of a target text, as those of a corpus.

  `of` is the corpus's manifest, beside which its tokenizer lies.
  """
  own = corpus.replace(
    source=target.source,
    text_field=target.text_field,
    tokenizer=str(of.parent / "tokenizer"),
    vocab_size=0,
    fields=(),
    id_field="",
    split_field="",
    **{f"{split}_share": 0.0 for split, _ in _shares(corpus)},
  )
  reworded = errors.rewording(
    {
      r"config\.corpus\.": "config.conditional.",
      f"--stages={STAGE}": "--stages=conditional",
    }
  )
  made = step(own, folder, run)
  source = made.inputs["source"]
  return dataclasses.replace(
    made,
    stage="conditional",
    # Of the tokenizer the corpus's manifest speaks.
    inputs={"source": source, "corpus": of},
    checks=(reworded(lambda: source.finished() or source.chunks()),),
    run=reworded(made.run),
  )


def check(corpus: CorpusConfig, folder: epath.Path, run: RunConfig):
  """Raises UserError if a corpus is not what the config says of it.

  Source and tokenizer are not looked at if the config names them as it did
  then: they may be gone, and stage tokenize looks at them. If there is none
  yet there is nothing to refuse.
  """
  finished = manifest.read(folder / MANIFEST)
  if finished is None:
    return
  maker = step(corpus, folder, run)
  maker.refuse(finished, maker.other_settings(finished))
  now = {name: getattr(corpus, name) for name in _BY_CONTENT}
  if now != {k: finished.details.get(k, v) for k, v in now.items()}:
    maker.refuse(
      finished, maker.difference(finished, maker.expected(), rechecked=True)
    )


def _idle(
  corpus: CorpusConfig, old: manifest.Manifest | None
) -> tuple[str, ...]:
  """Settings that decide nothing that the inputs do not say.

  Those of another kind of tokenizer than the one that is used; and the split of
  files: which ones are of it is in the source's fingerprint. A corpus that was
  finished without BOS, before there was one, stays so unless one is named.
  """
  idle = () if datasets.is_named(corpus.source) else ("split",)
  if old and "bos_token" not in old.settings and corpus.bos_token in _UNNAMED:
    idle = (*idle, "bos_token")
  if corpus.tokenizer == TRAIN:
    return (*idle, "tokenizer_revision")
  idle = (*idle, "vocab_size")
  return (*idle, "tokenizer_revision") if _given(corpus).is_folder else idle


def _given(corpus: CorpusConfig) -> "hub.GivenTokenizer":
  return hub.GivenTokenizer(corpus.tokenizer, corpus.tokenizer_revision)


def _shares(corpus: CorpusConfig) -> tuple[tuple[str, float], ...]:
  return (
    ("reference", corpus.reference_share),
    ("heldout", corpus.heldout_share),
    ("teacher", corpus.teacher_share),
  )


def tokenize(
  corpus: CorpusConfig, folder: epath.Path, run: RunConfig
) -> dict[str, Any]:
  """Makes the shards that are missing; returns the fields of the manifest.

  Raises:
    UserError: the source or the tokenizer cannot be used, or no row is of D.
  """
  source = CorpusSource(corpus, folder)
  chunks = source.begin()
  # A tokenizer that was trained here took a pass over all of the text.
  is_costly = corpus.tokenizer == TRAIN
  try:
    encoder = _tokenizer(corpus, source, chunks)
    of_rows = dataclasses.replace(corpus, bos_token=encoder.bos_token)
    recipe = shard.Recipe(of_rows, _shares(corpus), str(folder), run.max_broken)
    made_by = recipe.made_by(encoder)
    _fill(run, source, chunks, recipe, made_by)
    source.refuse_changes(chunks)
    source.note(chunks)
    is_costly = False  # what is refused of all shards will be so again
    return _merge(source, chunks, recipe, encoder)
  except UserError:
    if is_costly and (folder / "tokenizer/tokenizer.json").exists():
      raise
    # Without one row of D there is nothing to go on from, and what was wrong
    # may be a setting. A finished corpus only --force removes.
    indices = folder.glob("index-*.parquet")
    if not (folder / MANIFEST).exists() and not any(
      columns.facts(index)["counts"].get("split train") for index in indices
    ):
      backup.clear([folder])
    raise


def _fill(
  run: RunConfig,
  source: CorpusSource,
  chunks: Sequence[Chunk],
  recipe: "shard.Recipe",
  made_by: Mapping[str, Any],
):
  """Makes all shards that are not there."""
  n, folder = len(chunks), source.directory
  stale = source.stale(chunks, made_by)
  tasks = [(i, n, chunks[i]) for i in stale]
  source.note([chunk for i, chunk in enumerate(chunks) if i not in set(stale)])
  if len(tasks) < n:
    log(STAGE, f"{n - len(tasks)} of {n} shards are there")
  lost = {path.name for path in folder.glob("index-*.parquet")}
  lost -= {store.shard_names(i, n)[1] for i in {*range(n)} - {*stale}}
  if lost:
    why = f"not whole, or not of what the source is now: {min(lost)}"
    log(STAGE, f"{len(lost)} finished shards are made again, {why}")
  if run.beam and tasks:
    log(STAGE, f"{len(tasks)} shards with Beam, {run.beam}")
    workers.make_with_beam(recipe, tasks, run.beam)
    return
  counts, whole = collections.Counter(), sum(chunk.n_bytes for chunk in chunks)

  def on_shard(chunk: Chunk, of_shard: Mapping[str, int]):
    for name in source.corpus.field_names if not counts else ():
      if of_shard.get(f"lacking {name}") == of_shard["documents"] and n > 1:
        warn(STAGE, f"no document of {chunk.name} has a number {name}")
    counts.update(of_shard, read=chunk.n_bytes)
    left = whole - counts["read"]
    where = _tokenizer_field(source.corpus)
    losses.refuse_early(counts, counts["read"], left, where)

  total = sum(chunk.n_bytes for _, _, chunk in tasks) or None
  every = run.log_every_seconds
  with Progress(STAGE, total, "bytes", every=every) as progress:
    n_workers = run.tokenize_workers
    workers.make_here(recipe, tasks, n_workers, progress.update, on_shard)


def _tokenizer_field(corpus: CorpusConfig) -> str:
  return f"config.corpus.tokenizer={corpus.tokenizer}"


def _merge(
  source: CorpusSource,
  chunks: Sequence[Chunk],
  recipe: "shard.Recipe",
  encoder: "tokenizer.Tokenizer",
) -> dict[str, Any]:
  """The fields of the manifest, when every shard is there."""
  corpus, folder, n = source.corpus, source.directory, len(chunks)
  commit = source.commit
  indices = [folder / store.shard_names(i, n)[1] for i in range(n)]
  left_out = columns.keep_apart(indices) if corpus.split_field else {}
  counts, described = store.merge(folder, n, recipe.made_by(encoder))
  if total := sum(left_out.values()):
    counts[f"split {columns.NONE}"] = total
    for name, rows in left_out.items():
      counts[f"split {name}"] -= rows
    line = f"{total:,} rows are equal to a row of heldout, reference or teacher"
    log(STAGE, f"{line}, the first of these keeps it, and they are in no split")
  details = [columns.facts(index)["details"] for index in indices]
  if broken := [r for of_shard in details for r in of_shard["broken"]]:
    path = shard.write_sample(folder, broken)
    shard.refuse_broken(counts["broken"], recipe.max_broken, broken[0])
    log(STAGE, f"{counts['broken']} broken records left out, see {path}")
  _refuse_empty(corpus, n, counts)
  lost = losses.check(counts, STAGE, _tokenizer_field(corpus))
  _say_lacking(corpus, counts)
  summary.say(STAGE, corpus, indices, counts)
  notes = {shard.content_note(folder, i, n).name for i in range(n)}
  for path in folder.iterdir():
    # Of a source that had another number of chunks; all of this one stand.
    is_of_a_shard = path.suffix in (".array_record", ".parquet", ".txt")
    if is_of_a_shard and path.name not in described.keys() | notes:
      path.unlink()
  highest = encoder.vocab_size - 1  # earlier versions noted none
  return {
    "tokenizer": encoder.fingerprint,
    "files": described,
    "counts": counts,
    "details": encoder.details
    | {
      "highest_id": max(one.get("highest_id", highest) for one in details),
      "source": corpus.source,
      "tokenizer": corpus.tokenizer,
      "share_of_bytes_lost": lost,
      "parts": [chunk.name for chunk in chunks],
    }
    | ({"source_commit": commit} if commit else {}),
  }


def _refuse_empty(
  corpus: CorpusConfig, n_chunks: int, counts: Mapping[str, int]
):
  """Raises UserError if there are no rows, or none for D."""
  if not counts.get("rows"):
    raise UserError(
      f"no document with text in {n_chunks} files",
      f"config.corpus.source={corpus.source}",
      "give a corpus that has some text",
    )
  if not counts.get("split train"):
    hint = "lower reference_share, heldout_share and teacher_share, or give "
    hint += "more text"
    if corpus.split_field:
      hint += f", some of it with {corpus.split_field}=train"
    raise UserError(
      f"all {counts['rows']} rows were held back, none is left for D",
      "config.corpus",
      hint,
    )


def _say_lacking(corpus: CorpusConfig, counts: Mapping[str, int]):
  """Says how many documents lack what a field was to have."""
  carried = dict(map(field_of, corpus.fields))
  where = {"a domain": corpus.domain_field, "an id": corpus.id_field}
  where["a split"] = corpus.split_field
  for name, path in (where | carried).items():
    if lacking := counts.get(f"lacking {name}"):
      line = f"{lacking:,} of {counts['documents']:,} documents have no "
      line += f"{name.split()[-1]} in field {path!r}"
      if name == "a domain":
        log(STAGE, f"{line}: they have their folder's or file's")
      else:
        say = warn if lacking == counts["documents"] else log
        why = "they do not count in a row's mean"
        if name == "a split":
          why = "their rows are drawn by the shares"
        say(STAGE, f"{line}: {why}")


def _tokenizer(
  corpus: CorpusConfig, source: CorpusSource, chunks: Sequence[Chunk]
) -> "tokenizer.Tokenizer":
  """The corpus's own tokenizer; one that is trained here is trained first."""
  copy = source.directory / "tokenizer"
  if corpus.tokenizer == TRAIN and not (copy / "tokenizer.json").exists():
    log(STAGE, f"training a byte-level BPE of {corpus.vocab_size:,} tokens")
    texts = _texts(source.read_for_training(chunks), corpus.source)
    trained = tokenizer.train(texts, corpus.vocab_size, corpus.eos_token)
    own_tokenizer.keep(trained, copy, STAGE, "corpus")
  return own_tokenizer.copied(corpus, copy, STAGE, "corpus")


def _texts(records: Iterable[Record], source: str) -> Iterator[str]:
  """Those that a tokenizer is trained on."""
  for record in records:
    if isinstance(record, TokenizedRecord):
      raise UserError(
        "there is no text to train a tokenizer on, but ids",
        f"config.corpus.source={source}",
        "set --config.corpus.tokenizer to the one that they were made with",
      )
    if isinstance(record, Document):
      yield record.text
