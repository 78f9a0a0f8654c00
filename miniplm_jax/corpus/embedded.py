"""The corpus that every installation carries: real text, nothing to fetch.

Five domains of text that a Python installation brings along, and a planted
one: `noise`, words of the others in random order, so that one sees what
selection throws away.
"""

import ast
import functools
import hashlib
import importlib.metadata
import pathlib
import platform
import random
import sysconfig
from collections.abc import Iterator

from miniplm_jax.core import files
from miniplm_jax.corpus.records import Document, Part

PARTS = 4
_NOISE_SHARE = 0.1  # of all words, planted in addition
_LONGEST = 20_000  # characters; longer texts are cut into several documents
_SOURCE_BYTES = 4_000_000  # of the standard library's 9 MB without docs

_SKIP = {"test", "tests", "site-packages", "idlelib", "lib2to3", "pydoc_data"}


def list_parts() -> list[Part]:
  """The parts of the embedded corpus.

  Documents are spread over the parts, and ordered within them, by a hash of
  their text: as in the Pile, neighbors have nothing to do with each other.
  """
  return [
    Part(f"embedded-{i}", functools.partial(_read, i), 0, _fingerprint)
    for i in range(PARTS)
  ]


def _read(part: int) -> Iterator[Document]:
  return (d for key, d in _documents() if key % PARTS == part)


@functools.cache
def _fingerprint() -> str:
  packages = [f"{d.name}=={d.version}" for d in _distributions()]
  recipe = [PARTS, _NOISE_SHARE, _LONGEST, _SOURCE_BYTES]
  return files.digest([platform.python_version(), packages, recipe])


@functools.cache
def _documents() -> list[tuple[int, Document]]:
  seen, found = set(), []
  for domain, texts in (
    ("source", _sources()),
    ("docstring", _docstrings()),
    ("topic", _topics()),
    ("readme", _readmes()),
    ("licence", _licences()),
  ):
    for text in texts:
      for piece in _pieces(text.strip()):
        key = _key(piece)
        if len(piece) < 40 or key in seen:  # no duplicates, no scraps
          continue
        seen.add(key)
        found.append((key, Document(piece, domain)))
  found.sort(key=lambda pair: pair[0])
  found += [(_key(text), Document(text, "noise")) for text in _noise(found)]
  return sorted(found, key=lambda pair: pair[0])


def _noise(documents: list[tuple[int, Document]]) -> Iterator[str]:
  """Documents of words drawn from all others, order and origin lost."""
  words = [word for _, d in documents for word in d.text.split()]
  words = random.Random(0).sample(words, int(_NOISE_SHARE * len(words)))
  for start in range(0, len(words), 1000):
    yield " ".join(words[start : start + 1000])


def _key(text: str) -> int:
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _pieces(text: str) -> Iterator[str]:
  """Cuts a long text at empty lines."""
  piece = ""
  for paragraph in text.split("\n\n"):
    if piece and len(piece) + len(paragraph) > _LONGEST:
      yield piece
      piece = ""
    piece = f"{piece}\n\n{paragraph}" if piece else paragraph
  yield piece


@functools.cache
def _library() -> list[tuple[str, str]]:
  """(source without documentation strings, those strings) by module."""
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
  found = []
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
    found.append(("\n".join(lines), "\n\n".join(strings)))
  return found


def _sources() -> Iterator[str]:
  total = 0
  for source, _ in _library():
    total += len(source)
    if total > _SOURCE_BYTES:
      return
    yield source


def _docstrings() -> Iterator[str]:
  return (strings for _, strings in _library())


def _topics() -> Iterator[str]:
  from pydoc_data import topics

  for name in sorted(topics.topics):
    yield topics.topics[name]


def _distributions() -> list[importlib.metadata.Distribution]:
  """The packages that ours needs, without extras: the same everywhere."""
  from packaging.requirements import Requirement

  found, pending = {}, ["miniplm-jax"]
  while pending:
    name = pending.pop().lower().replace("_", "-")
    if name in found:
      continue
    try:
      found[name] = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
      continue  # a requirement of another platform
    for text in found[name].requires or ():
      need = Requirement(text)
      if need.marker is None or need.marker.evaluate({"extra": ""}):
        pending.append(need.name)
  found.pop("miniplm-jax", None)
  return [found[name] for name in sorted(found)]


def _readmes() -> Iterator[str]:
  for distribution in _distributions():
    metadata = distribution.metadata
    yield metadata.get_payload() or metadata.get("Description") or ""


def _licences() -> Iterator[str]:
  for distribution in _distributions():
    for file in sorted(distribution.files or (), key=str):
      if any(k in file.name.upper() for k in ("LICEN", "COPYING", "NOTICE")):
        path = pathlib.Path(file.locate())
        if path.suffix in (".py", ".pyc") or not path.is_file():
          continue
        yield path.read_text("utf-8", errors="replace")
