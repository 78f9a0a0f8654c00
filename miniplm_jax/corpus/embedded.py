"""The corpus that every installation carries: real text, nothing to fetch.

Four clean domains of text that a Python installation brings along, and waste
that is planted, so that one sees what selection throws away: `easy`, templates
and near copies, and `noise`, words in random order. Whole documents are of D,
of D_ref, of a teacher's text, or held out, if `corpus.split_field` is "split".
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import pathlib
import platform
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epy

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import files
from miniplm_jax.corpus.chunks import Chunk, Probe, Record
from miniplm_jax.corpus.documents import document

with epy.lazy_imports():  # it imports PyArrow
  from miniplm_jax.corpus import store

CHUNKS = 4
_AS_IT_IS = CorpusConfig()  # records have the names that it expects
_MADE = 2  # a number for what is made below, so that another one is seen
# Of clean text; the others are D.
_SHARES = ("teacher", 0.62), ("reference", 0.12), ("heldout", 0.06)
# Each of easy waste and noise, for 1 of clean text; a teacher's is cleaner.
_WASTE = {"train": 1, "reference": 1, "teacher": 0.25, "heldout": 0.25}
_EASY_SIZE = 0.63  # characters that are as many tokens as one of clean text
_LONGEST = 20_000  # characters; longer texts are cut into several documents
_SOURCE_BYTES = 4_000_000  # of the standard library's 9 MB without docs

_SKIP = {"test", "tests", "site-packages", "idlelib", "lib2to3", "pydoc_data"}
_SKIP.add("encodings")  # tables of characters, near copies of each other

_WASTE_SIZE = 4000  # characters of a document, about
_WORDS = (
  *("server", "cache", "worker", "request", "session", "index", "queue"),
  *("storage", "network", "client", "backup", "monitor", "gateway", "parser"),
)
# Lines of logs, of licenses' headers, of tables, of menus.
_TEMPLATES = (
  (
    '{n}.{n}.{n}.{n} - - [{n}/Nov/2026:{k}] "GET /{w}/{n} HTTP/1.1" 200 {n}',
    "2026-11-0{k} 1{k}:0{k},{n} INFO  [{w}-{k}] {w}: finished {n} items",
  ),
  (
    "Copyright (c) 200{k} The {w} Authors. All rights reserved.\n"
    "Redistribution and use in source and binary forms, with or without "
    "modification, are permitted provided that the conditions are met.\n",
    "Copyright 201{k} The {w} Authors\n"
    "Licensed under the Apache License, Version 2.0; you may not use this "
    "file except in compliance with the License.\n",
  ),
  ("{w},{n},{n},{k},{n},{k}",),
  ('<li class="nav-item"><a class="nav-link" href="/{w}/{n}">{w}</a></li>',),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedChunk(Chunk):
  """One of `CHUNKS` of the embedded corpus."""

  number: int
  corpus: CorpusConfig

  def read(self) -> Iterator[Record]:
    """See `Chunk`."""
    for key, record in _records():
      if key % CHUNKS == self.number:
        yield document(record, self.corpus, record["domain"], self.name)


def list_chunks(corpus: CorpusConfig = _AS_IT_IS) -> list[EmbeddedChunk]:
  """Returns the chunks of the embedded corpus.

  Its records have a `text`, a `domain`, a `split`, and `clean`, 1 or 0.
  Documents are spread over them, and ordered within them, by a hash of their
  text: as in the Pile, neighbors have nothing to do with each other.
  """
  shared = {"n_bytes": 0, "probe": Probe(name=_fingerprint()), "corpus": corpus}
  every = [(f"embedded-{i}", i) for i in range(CHUNKS)]
  return [EmbeddedChunk(name=name, number=i, **shared) for name, i in every]


@functools.cache
def _fingerprint() -> str:
  packages = [f"{d.name}=={d.version}" for d in _distributions()]
  recipe = [CHUNKS, _MADE, _LONGEST, _SOURCE_BYTES]
  return files.digest([platform.python_version(), packages, recipe])


@functools.cache
def _records() -> list[tuple[int, dict[str, Any]]]:
  """(key, record), by the key."""
  from pydoc_data import topics

  records: dict[int, dict[str, Any]] = {}
  seen: set[str] = set()
  by_split: dict[str, list[str]] = {split: [] for split in _WASTE}
  for domain, texts in (
    ("source", _sources()),
    ("docstring", (strings for _, strings in _library())),
    ("topic", (text for _, text in sorted(topics.topics.items()))),
    ("readme", _readmes()),
  ):
    for text in texts:
      split = store.split_of(_key(text), _SHARES)
      about = {"domain": domain, "split": split, "clean": 1}
      for passage in _passages(text.strip(), seen):
        if len(passage) > 80:
          records[_key(passage)] = {"text": passage} | about
          by_split[split].append(passage)
  # No split but that of the teacher has so much text.
  copied = [text[:800] for text in by_split["teacher"][:12]]
  for split, texts in by_split.items():
    share, rng = _WASTE[split], random.Random(split)
    size = int(share * _EASY_SIZE * sum(map(len, texts)))
    for domain, made in (
      ("easy", _easy(copied, size, rng)),
      ("noise", _noise(texts, share, rng)),
    ):
      about = {"domain": domain, "split": split, "clean": 0}
      records |= {_key(text): {"text": text} | about for text in made}
  return sorted(records.items(), key=lambda pair: pair[0])


def _key(text: str) -> int:
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _passages(text: str, seen: set[str]) -> Iterator[str]:
  """Cuts a long text at empty lines; leaves out what was seen, but scraps."""
  passage = ""
  for paragraph in text.split("\n\n"):
    if paragraph in seen:  # manuals and programs quote each other
      continue
    if len(paragraph) > 80:
      seen.add(paragraph)
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
  """The packages that ours needs, with the extra seqio's that are there."""
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
      if need.marker is None or need.marker.evaluate({"extra": "seqio"}):
        missing.append(need.name)
  known.pop("miniplm-jax", None)
  return [known[name] for name in sorted(known)]


def _readmes() -> Iterator[str]:
  for distribution in _distributions():
    metadata = distribution.metadata
    yield metadata.get_payload() or metadata.get("Description") or ""


def _easy(texts: Sequence[str], size: int, rng: random.Random) -> Iterator[str]:
  """Yields `size` characters, about: templates, and near copies of texts."""
  draw = {"w": lambda: rng.choice(_WORDS), "k": lambda: str(rng.randrange(10))}
  draw["n"] = lambda: str(rng.randrange(10_000))

  def other(word: re.Match) -> str:  # each eighth is a number
    return word[0] if rng.randrange(8) else draw["n"]()

  for i in range(0, size, _WASTE_SIZE):
    lines, text = (*_TEMPLATES, texts)[i // _WASTE_SIZE % 5], ""
    while len(text) < _WASTE_SIZE:
      line = rng.choice(lines)
      if lines is texts:
        line = re.sub(r"\w+", other, line)
      else:
        line = re.sub(r"{(\w)}", lambda place: draw[place[1]](), line)
      text += line + "\n"
    yield text


def _noise(
  texts: Sequence[str], share: float, rng: random.Random
) -> Iterator[str]:
  """Yields a share of the words of texts, in random order."""
  words = [word for text in texts for word in text.split()]
  words = rng.sample(words, int(share * len(words)))
  return (" ".join(words[i : i + 600]) for i in range(0, len(words), 600))
