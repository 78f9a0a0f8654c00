"""Stage tokenize: documents → ArrayRecord shards of packed rows."""

import collections
import dataclasses

from miniplm_jax.core import files, former, manifest
from miniplm_jax.core.code import Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress, log, warn
from miniplm_jax.core.step import Input, Step
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus.chunks import BrokenRecord, Document, PackedIds
from miniplm_jax.corpus.sources import CorpusSource

STAGE = "tokenize"
TRAIN = "train"  # a corpus.tokenizer
# Told apart by what they hold, in `inputs`: a folder may be moved.
_BY_CONTENT = ("source", "tokenizer")
_MANY_DOMAINS = 1000
_UNNAMED = ("", "auto")  # a corpus.bos_token
_CODE = ("corpus/shard.py", "corpus/sources.py")  # makes a shard


def steps(config, workdir: Workdir) -> list[Step]:
  """One step: the whole corpus."""
  c = config.corpus
  directory = workdir.corpus
  source = CorpusSource(c, directory)
  shares = ", ".join(f"{s} {share:.3g}" for s, share in _shares(c) if share)
  return [
    Step(
      stage=STAGE,
      manifest=directory / "manifest.json",
      settings={
        k: v for k, v in dataclasses.asdict(c).items() if k not in _BY_CONTENT
      },
      inputs={
        "source": source,
        "tokenizer": _tokenizer_input(c),
      },
      # Each shard says what it was made from. A tokenizer that is trained
      # here is made from all of them.
      rechecks=() if c.tokenizer == TRAIN else ("source",),
      idle=_idle(c, source.finished()),
      explain=lambda old: source.changes(old.details.get("parts")),
      outputs=(directory,),
      summary=f"{c.source} → rows of up to {c.max_length + 1} tokens, "
      f"tokenizer {c.tokenizer}, held back from D: {shares}",
      code=Version(_CODE, ("tokenizers",), config.run.any_code),
      run=lambda unused_inputs: _run(config, source),
      is_host_only=True,
    )
  ]


def check(config, workdir: Workdir):
  """Raises UserError if the corpus is not what the config says of it.

  Source and tokenizer are not looked at if the config names them as it did
  then: they may be gone, and stage tokenize looks at them.
  """
  made = manifest.read(workdir.corpus / "manifest.json")
  if made is None:
    return
  (step,) = steps(config, workdir)
  step.refuse(made, step.other_settings(made))
  named = {name: getattr(config.corpus, name) for name in _BY_CONTENT}
  if named != {k: made.details.get(k, v) for k, v in named.items()}:
    step.refuse(made, step.difference(made, step.wanted(), rechecked=True))


def _idle(c, old) -> tuple[str, ...]:
  """Settings that decide nothing that the inputs do not say.

  Those of another kind of tokenizer than the one that is used; and the split of
  files: which ones are of it is in the source's fingerprint. A corpus that was
  finished without BOS, before there was one, stays so unless one is named.
  """
  from miniplm_jax.corpus import datasets

  found = () if datasets.is_named(c.source) else ("split",)
  if old and "bos_token" not in old.settings and c.bos_token in _UNNAMED:
    found = (*found, "bos_token")
  if c.tokenizer == TRAIN:
    return (*found, "tokenizer_revision")
  found = (*found, "vocab_size")
  is_local = _given(c).is_here
  return (*found, "tokenizer_revision") if is_local else found


def _given(c):
  from miniplm_jax.models import hub

  return hub.GivenTokenizer(c.tokenizer, c.tokenizer_revision)


def _shares(c) -> tuple[tuple[str, float], ...]:
  return (
    ("reference", c.reference_share),
    ("heldout", c.heldout_share),
    ("teacher", c.teacher_share),
  )


def _tokenizer_input(c) -> Input:
  if c.tokenizer == TRAIN:
    return lambda: files.digest([TRAIN, c.vocab_size])
  return _given(c)


def _run(config, source: CorpusSource):
  from miniplm_jax.corpus import shard, store

  c, chunks, directory = config.corpus, source.begin(), source.directory
  # A tokenizer that was trained here took a pass over all of the text.
  is_costly = c.tokenizer == TRAIN
  try:
    encoder = _tokenizer(source, chunks)
    recipe = shard.Recipe(
      directory=str(directory),
      eos_token=c.eos_token,
      max_length=c.max_length,
      seed=c.seed,
      shares=_shares(c),
      max_broken=config.run.max_broken,
      bos_token=encoder.bos_token,
      text_field=c.text_field,
      domain_field=c.domain_field,
    )
    made_by = recipe.made_by(encoder)
    _fill(config, chunks, source, recipe, made_by)
    source.refuse_changes(chunks)
    source.note(chunks)
    is_costly = False  # what is refused of all shards will be so again
    return _merge(config, chunks, directory, encoder, made_by)
  except UserError:
    if is_costly and (directory / "tokenizer/tokenizer.json").exists():
      raise
    # Without one row of D there is nothing to go on from, and what was wrong
    # may be a setting. A finished corpus only --force removes.
    indices = directory.glob("index-*.parquet")
    if not (directory / "manifest.json").exists() and not any(
      store.read_counts(index)["split train"] for index in indices
    ):
      former.clear([directory])
    raise


def _fill(config, chunks, source, recipe, made_by):
  """Makes all shards that are not there."""
  from miniplm_jax.corpus import losses, store, workers

  c, run, directory = config.corpus, config.run, source.directory
  stale = source.stale(chunks, made_by)
  tasks = [(i, len(chunks), chunks[i]) for i in stale]
  source.note([chunk for i, chunk in enumerate(chunks) if i not in set(stale)])
  if len(tasks) < len(chunks):
    log(STAGE, f"{len(chunks) - len(tasks)} of {len(chunks)} shards are there")
  n, lost = len(chunks), {p.name for p in directory.glob("index-*.parquet")}
  lost -= {store.shard_names(i, n)[1] for i in {*range(n)} - {*stale}}
  if lost:
    why = f"not whole, or not of what the source is now: {min(lost)}"
    log(STAGE, f"{len(lost)} finished shards are made again, {why}")
  if run.beam and tasks:
    log(STAGE, f"{len(tasks)} shards with Beam, {run.beam}")
    workers.make_with_beam(recipe, tasks, run.beam)
    return
  counts, whole = collections.Counter(), sum(chunk.n_bytes for chunk in chunks)

  def on_shard(chunk, of_shard):
    counts.update(of_shard, read=chunk.n_bytes)
    left = whole - counts["read"]
    losses.refuse_early(counts, counts["read"], left, _where(c))

  total = sum(chunk.n_bytes for _, _, chunk in tasks) or None
  every = run.log_every_seconds
  with Progress(STAGE, total, "bytes", every=every) as progress:
    n = run.tokenize_workers
    workers.make_here(recipe, tasks, n, progress.update, on_shard)


def _merge(config, chunks, directory, encoder, made_by):
  """The fields of the manifest, when every shard is there."""
  from miniplm_jax.corpus import columns, losses, shard, store

  c = config.corpus
  commit = CorpusSource(c, directory).commit
  counts, described = store.merge(directory, len(chunks), made_by)
  indices = [store.shard_names(i, len(chunks))[1] for i in range(len(chunks))]
  made = [columns.facts(directory / name)["details"] for name in indices]
  broken = [record for of_shard in made for record in of_shard["broken"]]
  if broken:
    path = shard.write_sample(directory, broken)
    shard.refuse_broken(
      counts["broken"], config.run.max_broken, BrokenRecord.from_json(broken[0])
    )
    log(STAGE, f"{counts['broken']} broken records left out, see {path}")
  if not counts.get("rows"):
    raise UserError(
      f"no document with text in {len(chunks)} files",
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
  lost = losses.check(counts, STAGE, _where(c))
  if lacking := counts.get("lacking a domain"):
    log(
      STAGE,
      f"{lacking:,} of {counts['documents']:,} documents have no domain in "
      f"field {c.domain_field!r}: they have their folder's or file's",
    )
  _tell_domains(directory, indices)
  n = len(chunks)
  notes = {shard.content_note(directory, i, n).name for i in range(n)}
  for path in directory.iterdir():
    # Of a source that had another number of chunks; all of this one stand.
    is_of_a_shard = path.suffix in (".array_record", ".parquet", ".txt")
    if is_of_a_shard and path.name not in described.keys() | notes:
      path.unlink()
  return {
    "tokenizer": encoder.fingerprint,
    "files": described,
    "counts": counts,
    "details": {
      "eos_id": encoder.eos_id,
      "bos_id": encoder.bos_id,
      "bos_token": encoder.bos_token,
      "vocab_size": encoder.vocab_size,
      "highest_id": max(
        of_shard.get("highest_id", encoder.vocab_size - 1) for of_shard in made
      ),
      "source": c.source,
      "tokenizer": c.tokenizer,
      "share_of_bytes_lost": lost,
      "parts": [chunk.name for chunk in chunks],
    }
    | ({"source_commit": commit} if commit else {}),
  }


def _where(c) -> str:
  return f"config.corpus.tokenizer={c.tokenizer}"


def _tell_domains(directory, indices):
  """Says which domains there are, and if they are too many to be any."""
  import pyarrow.parquet as pq

  names = set()
  for index in indices:
    with (directory / index).open("rb") as f:
      names.update(pq.read_table(f, columns=["domain"])[0].unique().to_pylist())
  first = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
  log(STAGE, f"{len(names):,} domains: {first}")
  if len(names) > _MANY_DOMAINS:
    warn(
      STAGE,
      "evaluations and reports hold and list every domain by itself; "
      "set --config.corpus.domain_field to a field with few values, or ''",
    )


def _tokenizer(source, chunks):
  from miniplm_jax.corpus import tokenizer

  c, directory = source.c, source.directory / "tokenizer"
  if c.tokenizer == TRAIN and not (directory / "tokenizer.json").exists():
    log(STAGE, f"training a byte-level BPE of {c.vocab_size:,} tokens")
    texts = _texts(source.read_for_training(chunks), c)
    found = tokenizer.train(texts, c.vocab_size, c.eos_token)
    tokenizer.keep(found, directory, STAGE, "corpus")
  return own_tokenizer(c, directory, STAGE, "corpus")


def own_tokenizer(c, directory, stage: str, section: str):
  """A corpus's own copy of the tokenizer that `c`, a section, names.

  Raises:
    UserError: it is there, and no copy of the folder that is named.
  """
  from miniplm_jax.corpus import tokenizer
  from miniplm_jax.models import hub

  path, tokens = directory / "tokenizer.json", (c.eos_token, c.bos_token)
  is_there, is_local = path.exists(), _given(c).is_here
  if not is_there or (is_local and c.tokenizer != TRAIN):
    folder = hub.resolve(c.tokenizer, c.tokenizer_revision, weights=False)
    found = tokenizer.load(folder, *tokens, section)
    if not is_there:
      tokenizer.keep(found, directory, stage, section)
    elif path.read_bytes() != found.to_files()[path.name]:
      raise UserError(
        f"this is no copy of config.{section}.tokenizer={c.tokenizer}",
        f"{path}",
        "restore it, or remove it: it is copied again",
      )
  return tokenizer.load(directory, *tokens, section)


def _texts(records, c):
  """Those that a tokenizer is trained on."""
  for record in records:
    if isinstance(record, PackedIds):
      raise UserError(
        "there is no text to train a tokenizer on, but ids",
        f"config.corpus.source={c.source}",
        "set --config.corpus.tokenizer to the one that they were made with",
      )
    if isinstance(record, Document):
      yield record.text
