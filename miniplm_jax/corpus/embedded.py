"""The corpus that every installation carries: real text, nothing to fetch.

Five domains of text that a Python installation brings along, and a planted
one: `noise`, words of the others in random order, so that one sees what
selection throws away.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import pathlib
import platform
import random
import sysconfig
from collections.abc import Iterator

from miniplm_jax.core import files
from miniplm_jax.corpus.chunks import Chunk, Document, Probe

CHUNKS = 4
_NOISE_SHARE = 0.1  # of all words, planted in addition
_LONGEST = 20_000  # characters; longer texts are cut into several documents
_SOURCE_BYTES = 4_000_000  # of the standard library's 9 MB without docs

_SKIP = {"test", "tests", "site-packages", "idlelib", "lib2to3", "pydoc_data"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedChunk(Chunk):
  """One of `CHUNKS` of the embedded corpus."""

  number: int

  def read(self) -> Iterator[Document]:
    """See `Chunk`."""
    return (d for key, d in _documents() if key % CHUNKS == self.number)


def list_chunks() -> list[EmbeddedChunk]:
  """Returns the chunks of the embedded corpus.

  Documents are spread over them, and ordered within them, by a hash of their
  text: as in the Pile, neighbors have nothing to do with each other.
  """
  probe = Probe(name=_fingerprint())
  return [
    EmbeddedChunk(name=f"embedded-{i}", n_bytes=0, probe=probe, number=i)
    for i in range(CHUNKS)
  ]


@functools.cache
def _fingerprint() -> str:
  packages = [f"{d.name}=={d.version}" for d in _distributions()]
  recipe = [CHUNKS, _NOISE_SHARE, _LONGEST, _SOURCE_BYTES]
  return files.digest([platform.python_version(), packages, recipe])


@functools.cache
def _documents() -> list[tuple[int, Document]]:
  """(key, document), by the key."""
  from pydoc_data import topics

  documents: dict[int, Document] = {}
  for domain, texts in (
    ("source", _sources()),
    ("docstring", (strings for _, strings in _library())),
    ("topic", (text for _, text in sorted(topics.topics.items()))),
    ("readme", _readmes()),
    ("licence", _licenses()),
  ):
    for text in texts:
      for passage in _passages(text.strip()):
        if len(passage) >= 40:  # no scraps, and of duplicates the first
          documents.setdefault(_key(passage), Document(passage, domain))
  in_order = sorted(documents.items(), key=lambda pair: pair[0])
  noise = [(_key(text), Document(text, "noise")) for text in _noise(in_order)]
  return sorted(in_order + noise, key=lambda pair: pair[0])


def _noise(documents: list[tuple[int, Document]]) -> Iterator[str]:
  """Documents of words drawn from all others, order and origin lost."""
  words = [word for _, d in documents for word in d.text.split()]
  words = random.Random(0).sample(words, int(_NOISE_SHARE * len(words)))
  for start in range(0, len(words), 1000):
    yield " ".join(words[start : start + 1000])


def _key(text: str) -> int:
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _passages(text: str) -> Iterator[str]:
  """Cuts a long text at empty lines."""
  passage = ""
  for paragraph in text.split("\n\n"):
    if passage and len(passage) + len(paragraph) > _LONGEST:
      yield passage
      passage = ""
    passage = f"{passage}\n\n{paragraph}" if passage else paragraph
  yield passage


@functools.cache
def _library() -> list[tuple[str, str]]:
  """(source without documentation strings, those strings) by module."""
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
  modules = []
  for path in sorted(root.rglob("*.py")):
    if set(path.relative_to(root).parts[:-1]) & _SKIP:
      continue
    try:
      text = path.read_text("utf-8")
      tree = ast.parse(text)
    except (UnicodeDecodeError, SyntaxError):
      continue  # samples of broken source, which the library carries
    lines, strings = text.split("\n"), []
    for node in ast.walk(tree):
      if isinstance(node, kinds) and (string := ast.get_docstring(node)):
        first = node.body[0]
        lines[first.lineno - 1 : first.end_lineno] = [""] * (
          first.end_lineno - first.lineno + 1
        )
        name = "" if isinstance(node, ast.Module) else f"{node.name}\n"
        strings.append(name + string)
    modules.append(("\n".join(lines), "\n\n".join(strings)))
  return modules


def _sources() -> Iterator[str]:
  total = 0
  for source, _ in _library():
    total += len(source)
    if total > _SOURCE_BYTES:
      return
    yield source


def _distributions() -> list[importlib.metadata.Distribution]:
  """The packages that ours needs, without extras: the same everywhere."""
  from packaging.requirements import Requirement

  known, missing = {}, ["miniplm-jax"]
  while missing:
    name = missing.pop().lower().replace("_", "-")
    if name in known:
      continue
    try:
      known[name] = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
      continue  # a requirement of another platform
    for text in known[name].requires or ():
      need = Requirement(text)
      if need.marker is None or need.marker.evaluate({"extra": ""}):
        missing.append(need.name)
  known.pop("miniplm-jax", None)
  return [known[name] for name in sorted(known)]


def _readmes() -> Iterator[str]:
  for distribution in _distributions():
    metadata = distribution.metadata
    yield metadata.get_payload() or metadata.get("Description") or ""


def _licenses() -> Iterator[str]:
  for distribution in _distributions():
    for file in sorted(distribution.files or (), key=str):
      if any(k in file.name.upper() for k in ("LICEN", "COPYING", "NOTICE")):
        path = pathlib.Path(file.locate())
        if path.suffix in (".py", ".pyc") or not path.is_file():
          continue
        yield path.read_text("utf-8", errors="replace")
