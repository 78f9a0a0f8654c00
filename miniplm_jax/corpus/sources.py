"""Where documents come from: the chunks of any source, and what it was.

Before it is read a source is known by the names, the sizes and both ends of its
files. Beside each shard is a digest of all that it was made from. That is
compared with what is there now if a file has another identity than was noted
(see `core.contents`): one that was copied is read once, an edit is seen.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

from etils import epath, epy

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import contents, distributed, files, gs, manifest
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.corpus import columns, datasets, embedded, folders, megatron
from miniplm_jax.corpus.chunks import (
  BrokenRecord,
  Chunk,
  Document,
  Probe,
  Reading,
  Record,
  TextChunk,
  cuts,
)
from miniplm_jax.corpus.formats import JsonChunk, ParquetChunk, RecordChunk

with epy.lazy_imports():
  from miniplm_jax.corpus import shard

EMBEDDED = "embedded"  # the text that every installation carries
_LOOKED_AT = 20  # files, before they are read
_SEEN = "source_seen.json"  # identities, by the chunks' names
_TRAINED_ON = "trained_on.json"  # content, likewise
_BEGUN = "source_begun.json"  # a name, and the commit that it stands for


def list_chunks(
  corpus: CorpusConfig, workdir: epath.PathLike = "", commit: str = ""
) -> list[Chunk]:
  """Returns the chunks of a source, in the order of the corpus.

  Args:
    corpus: how its text is read.
    workdir: what the stages wrote into it is no part of a folder or glob.
    commit: of the hub; "" is today's.

  Raises:
    UserError: nothing matches, or a file of an unknown format.
  """
  source = corpus.source
  if source == EMBEDDED:
    return embedded.list_chunks(corpus)
  if not source:
    raise UserError(
      "no corpus is given", "config.corpus.source", "name a file or folder"
    )
  if not datasets.is_named(source):
    # Folders above it name domains, however it is written.
    source = os.fspath(gs.absolute(source))
  path = epath.Path(source)
  if source.startswith(datasets.TFDS) or datasets.is_tfds(path):
    return list(datasets.tfds_chunks(source, corpus))
  if source.startswith(datasets.HF) or datasets.is_saved(path):
    return datasets.hf_chunks(source, corpus, commit)
  ours = gs.absolute(workdir) if workdir else None
  paths = folders.match(path, source, corpus.split, ours)
  root = folders.root_of(path)
  if folders.is_of(paths[0], folders.MEGATRON):
    return list(_megatron_chunks(root, paths, corpus.domain_field))
  texts = [file for file in paths if folders.is_of(file, folders.TEXT)]
  chunks: list[Chunk] = []
  for file in paths:
    if not folders.is_of(file, folders.TEXT):
      chunks += _record_chunks(root, file, corpus)
  return [*chunks, *_text_chunks(root, texts, corpus)]


def _record_chunks(
  root: epath.Path, file: epath.Path, corpus: CorpusConfig
) -> Iterator[Chunk]:
  """A file of records; what can be cut is cut into runs of so many bytes."""
  name, stem = folders.name_below(root, file), folders.stem(file)
  domain = folders.domain_of(root, file, corpus.domain_field, stem)
  probe = Probe((file,), () if domain == stem else (domain,))
  kind = ParquetChunk if folders.is_of(file, (".parquet",)) else JsonChunk
  ranges = kind.cuts(file, corpus.part_bytes)
  for start, end, n_bytes in ranges:
    yield kind(
      name=name if len(ranges) == 1 else f"{name} [{start}:{end}]",
      n_bytes=n_bytes,
      probe=probe,
      path=file,
      start=start,
      end=end,
      corpus=corpus,
      domain=domain,
    )


def _text_chunks(
  root: epath.Path, texts: list[epath.Path], corpus: CorpusConfig
) -> Iterator[TextChunk]:
  """Plain texts, many of them in a chunk."""
  sizes = [file.stat().length for file in texts]
  for start, end, n_bytes in cuts(sizes, corpus.part_bytes):
    paths = tuple(texts[start:end])
    domains = tuple(
      folders.domain_of(root, file, corpus.domain_field, file.parent.name)
      for file in paths
    )
    first, last = (folders.name_below(root, p) for p in (paths[0], paths[-1]))
    yield TextChunk(
      name=f"{first} to {last}",
      n_bytes=n_bytes,
      probe=Probe(paths, domains),
      domains=domains,
    )


def _megatron_chunks(
  root: epath.Path, paths: list[epath.Path], field: str
) -> Iterator[megatron.MegatronChunk]:
  """What was tokenized elsewhere: data_0.bin and .idx, or others' names."""
  prefixes = {os.fspath(file.with_suffix("")) for file in paths}
  for prefix in sorted(prefixes, key=lambda p: (len(p), p)):  # 2 before 10
    data, index = (epath.Path(f"{prefix}{end}") for end in folders.MEGATRON)
    for half in (data, index):
      if not half.exists():
        what = f"{half.name} is missing"
        raise UserError(what, str(half.parent), "fetch it: shards are pairs")
    domain = folders.domain_of(root, data, field, data.parent.name)
    yield megatron.MegatronChunk(
      name=folders.name_below(root, data),
      n_bytes=data.stat().length,
      probe=Probe((data, index), (domain,)),
      prefix=prefix,
      domain=domain,
    )


def fingerprint(chunks: Sequence[Chunk], domains: bool = True) -> str:
  """Returns that of a whole source; in schema version 1 without `domains`."""
  probes = [
    [
      chunk.short_name,
      chunk.probe.fingerprint if domains else chunk.probe.of_files,
    ]
    for chunk in chunks
  ]
  return files.digest(probes)


@dataclasses.dataclass(frozen=True)
class CorpusSource:
  """The source of a corpus, as an input of its step: is it what it was?"""

  corpus: CorpusConfig
  directory: epath.Path  # of the corpus
  max_broken: int = 0  # records that are put up with

  @property
  def path(self) -> str:
    """The name that the config has for it."""
    return self.corpus.source

  def chunks(self) -> list[Chunk]:
    """Returns its chunks, see `list_chunks`."""
    return list_chunks(self.corpus, self.directory.parent, self.commit)

  def check(self) -> list[str]:
    """Reads the first document of some files, and returns doubts of them.

    Of what is not on this disk, or needs a data set's library, none.

    Raises:
      UserError: stage tokenize would refuse what was read.
    """
    corpus, by_file = self.corpus, {}
    if datasets.is_named(corpus.source) or not gs.is_local(corpus.source):
      return []
    for chunk in self.chunks():
      if isinstance(chunk, RecordChunk | TextChunk):
        by_file.setdefault(chunk.probe.paths, chunk)
    some = list(by_file.values())[:: len(by_file) // _LOOKED_AT + 1]
    first = [d for chunk in some for d in itertools.islice(chunk.read(), 1)]
    broken = [d for d in first if isinstance(d, BrokenRecord)]
    if broken:
      record = broken[0].to_json()
      shard.refuse_broken(len(broken), self.max_broken, record)
    texts = [d for d in first if isinstance(d, Document)]
    if texts and all(d.lacks_domain for d in texts):
      what = f"no domain in field {corpus.domain_field!r} of the first document"
      return [f"{what} of {len(texts)} files: it has its folder's or file's"]
    return []

  def begin(self) -> list[Chunk]:
    """Returns the chunks; those of a name are of one commit until all are read.

    Work of another name or revision is refused.
    """
    if renamed := self._renamed():
      raise UserError(
        renamed,
        f"config.corpus.source={self.corpus.source}",
        "put that back, or start over with --stages=tokenize --force",
      )
    chunks = self.chunks()
    if datasets.is_named(self.corpus.source):
      begun = {"source": self.corpus.source, "commit": self.commit}
      files.write_json(self.directory / _BEGUN, begun)
    return chunks

  @property
  def commit(self) -> str:
    """The commit of the hub that the corpus was begun with, else today's."""
    if old := self.finished():
      return old.details.get("source_commit", "")
    return self._read(_BEGUN).get("commit") or datasets.commit(
      self.corpus.source
    )

  def finished(self) -> manifest.Manifest | None:
    """Returns the corpus's manifest; None also if it cannot be read."""
    try:
      return manifest.read(self.directory / "manifest.json")
    except UserError:
      return None  # said where it is read

  def __call__(self) -> str:
    """Returns the fingerprint; nothing is fetched for it."""
    old = self.finished()
    is_first = old is not None and old.schema_version == 1
    if datasets.is_named(self.corpus.source):
      if is_first and old.details["source"] == self.corpus.source:
        return old.inputs["source"]  # which says no more than the name
      return datasets.identity(
        self.corpus.source, self.corpus.split, self.commit
      )
    chunks = self.chunks()
    if is_first:
      first = fingerprint(chunks, domains=False)
      if first == old.inputs["source"]:
        return first
    return fingerprint(chunks)

  def changed(self, old: manifest.Manifest) -> bool:
    """Returns whether a step had another, by the content of its files."""
    if datasets.is_named(self.corpus.source) or old.schema_version == 1:
      return False
    try:
      chunks = self.chunks()
    except GoneError:  # with its text; what was made of it stands
      return False
    if old.path != self.directory / "manifest.json":
      return bool(self._untrained(chunks))
    if not any(self._moved(chunks)):
      return False
    if self.stale(chunks):
      return True
    with contextlib.suppress(OSError):  # a disk that can only be read
      self.note(chunks)
    return False

  def changes(self, before: Sequence[str] | None) -> str:
    """Returns in words which chunks are not those that shards were made from.

    `before` are the names of those, if they are known.
    """
    if before is None or datasets.is_named(self.corpus.source):
      return self._renamed()
    chunks = self.chunks()
    now = [chunk.name for chunk in chunks]
    for what, names in (
      ("new in the source", [n for n in now if n not in before]),
      ("gone from the source", [n for n in before if n not in now]),
      ("changed", [now[i] for i in self.stale(chunks)]),
    ):
      if names:
        more = f" and {len(names) - 1} more" if names[1:] else ""
        return f"{what}: {names[0]}{more}"
    return ""

  def refuse_changes(self, chunks: Sequence[Chunk]):
    """Raises UserError if these are not what is there any more."""
    changes = self.changes([chunk.name for chunk in chunks])
    if changes := changes or self._untrained(self.chunks()):
      raise UserError(
        f"the source has changed while it was read ({changes})",
        f"config.corpus.source={self.corpus.source}",
        "run it again when nobody writes to it: it goes on",
      )

  def stale(
    self, chunks: Sequence[Chunk], made_by: Mapping[str, Any] | None = None
  ) -> list[int]:
    """Returns numbers of chunks whose shards are to be made, see `is_made`."""
    identities, stale = self._read(_SEEN), []
    with futures.ThreadPoolExecutor(columns.AT_ONCE) as pool:
      are_made = pool.map(
        lambda i: shard.is_made(self.directory, i, chunks, identities, made_by),
        range(len(chunks)),
      )
      for i, is_made in enumerate(are_made):
        distributed.raise_if_stopped()
        if not is_made:
          stale.append(i)
    return stale

  def note(self, chunks: Sequence[Chunk]):
    """Notes the identities of files whose content is that of their shards."""
    identities = {chunk.name: chunk.probe.identity for chunk in chunks}
    files.write_json(self.directory / _SEEN, identities)

  def read_for_training(self, chunks: Sequence[Chunk]) -> Iterator[Record]:
    """Yields all records; at the end notes what a tokenizer was trained on."""
    content = {}
    self.note(chunks)
    for chunk in chunks:
      reading = Reading(chunk)
      yield from reading
      content[chunk.name] = reading.content
    files.write_json(self.directory / _TRAINED_ON, content)

  def _renamed(self) -> str:
    """What it was made from, in words, if that is another name; else ""."""
    before = self._read(_BEGUN).get("source", self.corpus.source)
    return "" if before == self.corpus.source else f"it was made from {before}"

  def _moved(self, chunks: Sequence[Chunk]) -> Iterator[Chunk]:
    """Those that have another identity than was noted."""
    identities = self._read(_SEEN)
    return (c for c in chunks if identities.get(c.name) != c.probe.identity)

  def _untrained(self, chunks: Sequence[Chunk]) -> str:
    """The first that is not what a tokenizer was trained on here."""
    if trained_on := self._read(_TRAINED_ON):
      for chunk in self._moved(chunks):
        before = trained_on.get(chunk.name, "")
        if not contents.may_be(before, chunk.content()):
          return chunk.name
    return ""

  def _read(self, name: str) -> Mapping[str, str]:
    """One of the notes; without it everything counts as moved."""
    return files.read_json(self.directory / name)
