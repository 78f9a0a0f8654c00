"""The source of a corpus as an input of its step: is it what it was?

Before it is read a source is known by the names, the sizes and both ends of its
files. Beside each shard is a digest of all that it was made from. That is
compared with what is there now if a file has another identity than was noted
(see `core.contents`): one that was copied is read once, an edit is seen.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

from etils import epath

from miniplm_jax.core import contents, files, hosts, manifest
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.corpus import columns, datasets, readers
from miniplm_jax.corpus.records import Part

TRAIN = "train"  # a corpus.tokenizer
_SEEN = "source_seen.json"  # identities, by the parts' names
_TRAINED_ON = "trained_on.json"  # content, likewise
_BEGUN = "source_begun.json"  # a name, and the commit that it stands for


@dataclasses.dataclass(frozen=True)
class Source:
  """The source that a config names, for the corpus in a folder.

  Attributes:
    c: the config's `corpus`.
    directory: of the corpus.
  """

  c: Any
  directory: epath.Path

  @property
  def path(self) -> str:
    """By which the config names it."""
    return self.c.source

  def parts(self) -> list[Part]:
    """As `readers.list_parts`."""
    c, fields = self.c, readers.Fields(self.c.text_field, self.c.domain_field)
    more = c.split, c.part_bytes, self.directory.parent, self.commit
    return readers.list_parts(c.source, fields, *more)

  def begin(self) -> list[Part]:
    """The parts; those of a name are of one commit until all are read.

    Raises:
      UserError: there is work of another name or revision.
    """
    if renamed := self._renamed():
      raise UserError(
        renamed,
        f"config.corpus.source={self.c.source}",
        "put that back, or start over with --stages=tokenize --force",
      )
    parts = self.parts()
    if datasets.is_named(self.c.source):
      begun = {"source": self.c.source, "commit": self.commit}
      files.write_json(self.directory / _BEGUN, begun)
    return parts

  @property
  def commit(self) -> str:
    """Of the hub: that which the corpus was begun with, else today's."""
    if old := self.finished():
      return old.details.get("source_commit", "")
    return self._read(_BEGUN).get("commit") or datasets.commit(self.c.source)

  def finished(self) -> manifest.Manifest | None:
    """What the corpus's manifest says; None also if it cannot be read."""
    try:
      return manifest.read(self.directory / "manifest.json")
    except UserError:
      return None  # said where it is read

  def __call__(self) -> str:
    """The fingerprint; nothing is fetched for it."""
    old = self.finished()
    is_first = old is not None and old.schema_version == 1
    if datasets.is_named(self.c.source):
      if is_first and old.details["source"] == self.c.source:
        return old.inputs["source"]  # which says no more than the name
      return datasets.identity(self.c.source, self.c.split, self.commit)
    parts = self.parts()
    if is_first:
      found = readers.fingerprint(parts, domains=False)
      if found == old.inputs["source"]:
        return found
    return readers.fingerprint(parts)

  def changed(self, old: manifest.Manifest) -> bool:
    """Whether it is another than a step had, by the content of its files."""
    if datasets.is_named(self.c.source) or old.schema_version == 1:
      return False
    try:
      parts = self.parts()
    except GoneError:  # with its text; what was made of it stands
      return False
    if old.path == self.directory / "manifest.json":
      return any(self._moved(parts)) and self._differs(parts)
    return bool(self._untrained(parts))

  def changes(self, before: Sequence[str] | None) -> str:
    """Which parts are not those that shards were made from, in words.

    Args:
      before: names of those; None if they are not known.
    """
    if before is None or datasets.is_named(self.c.source):
      return self._renamed()
    parts = self.parts()
    now = [part.name for part in parts]
    for what, names in (
      ("new in the source", [n for n in now if n not in before]),
      ("gone from the source", [n for n in before if n not in now]),
      ("changed", [now[i] for i in self.stale(parts)]),
    ):
      if names:
        more = f" and {len(names) - 1} more" if names[1:] else ""
        return f"{what}: {names[0]}{more}"
    return ""

  def refuse_changes(self, parts: Sequence[Part]):
    """Raises UserError if these are not what is there any more."""
    changes = self.changes([part.name for part in parts])
    if changes := changes or self._untrained(self.parts()):
      raise UserError(
        f"the source has changed while it was read ({changes})",
        f"config.corpus.source={self.c.source}",
        "run it again when nobody writes to it: it goes on",
      )

  def stale(
    self, parts: Sequence[Part], made_by: Mapping[str, Any] | None = None
  ) -> list[int]:
    """Numbers of the parts whose shards are to be made, see `is_made`."""
    from miniplm_jax.corpus import shard  # here for a quick --help

    seen = self._read(_SEEN)
    found = []
    with futures.ThreadPoolExecutor(columns.AT_ONCE) as pool:
      made = pool.map(
        lambda i: shard.is_made(self.directory, i, parts, seen, made_by),
        range(len(parts)),
      )
      for i, is_there in enumerate(made):
        hosts.raise_if_stopped()
        if not is_there:
          found.append(i)
    return found

  def note(self, parts: Sequence[Part]):
    """Notes the identities of files whose content is that of their shards."""
    seen = {part.name: part.identity for part in parts}
    files.write_json(self.directory / _SEEN, seen)

  def read_for_training(self, parts: Sequence[Part]) -> Iterator[Any]:
    """All records; at the end notes what a tokenizer was trained on."""
    content = {}
    self.note(parts)
    for part in parts:
      noted: dict[str, Any] = {}
      yield from part.noted(noted)
      content[part.name] = noted["content"]
    files.write_json(self.directory / _TRAINED_ON, content)

  def _renamed(self) -> str:
    """What it was made from, in words, if that is another name; else ""."""
    before = self._read(_BEGUN).get("source", self.c.source)
    return "" if before == self.c.source else f"it was made from {before}"

  def _moved(self, parts: Sequence[Part]) -> Iterator[Part]:
    """Those that have another identity than was noted."""
    seen = self._read(_SEEN)
    return (part for part in parts if seen.get(part.name) != part.identity)

  def _untrained(self, parts: Sequence[Part]) -> str:
    """The first that is not what a tokenizer was trained on here."""
    if trained_on := self._read(_TRAINED_ON):
      for part in self._moved(parts):
        before = trained_on.get(part.name, "")
        if not contents.may_be(before, part.content()):
          return part.name
    return ""

  def _differs(self, parts: Sequence[Part]) -> bool:
    if self.stale(parts):
      return True
    with contextlib.suppress(OSError):  # a disk that can only be read
      self.note(parts)
    return False

  def _read(self, name: str) -> Mapping[str, str]:
    """One of the notes; without it everything counts as moved."""
    path = self.directory / name
    try:
      return json.loads(path.read_bytes())
    except (OSError, ValueError):
      return {}
