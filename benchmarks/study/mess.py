"""A mess as it is found, beside clean documents, which are the target.

Of D, of D_ref and of what is held out 60 % are files of packages that nobody
has filtered, 40 % clean domains, counted in a teacher's ids. Pieces of one
file are of one split, and a text that is there twice is used once. Take other
packages than the clean text is from: the same manual as HTML is another text.
"""

import codecs
import collections
import gzip
import hashlib
import pathlib
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.study.planted import CLEAN, OUTSIDE

MESS = "mess"
LABELS = {CLEAN: 0.4, MESS: 0.6}  # of D
# What a file is, by the first that its path without .gz has.
KINDS = {
  "copyright": r"/(copyright|licen[cs]e|copying|notice|authors)[^/]*$",
  "changelogs": r"/(change|news|history|release)[^/]*$",
  "translations": r"/locales?/|/lc_messages/|\.(po|pot|lang|msg|ftl)$",
  "man": r"/man\d?/",
  "html": r"\.x?html?$",
  "scripts": r"\.([cm]?js|css)$",
  "data": r"\.(json|xml|svg|map|ya?ml|toml|csv|tsv|ini|conf)$",
  "other": "",
}
TARGET = "target"  # a split: clean text that is neither of D nor held out
_SIZE, _LEAST = 8000, 200  # characters of a document
_PIECES = 8  # documents of a file at most, else a few would be the pool
_STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}


def label(domain: str) -> str:
  """That of a domain of the corpus."""
  return MESS if domain in KINDS else CLEAN


def collect(
  domains: Mapping[str, list[str]],
  tokens: Mapping[str, int],
  count: Callable[[str], int],
  packages: pathlib.Path | None = None,
  seed: int = 10,
) -> Iterator[dict[str, object]]:
  """Documents for each split.

  Args:
    domains: clean documents by domain, which are taken as they are mixed.
    tokens: by split, of both labels together; `target` is clean alone.
    count: ids of a text.
    packages: the folder whose files are the mess. Without one all is clean,
      and of each domain of `OUTSIDE`, which D then does not have, a quarter of
      what is held out is held out too.
    seed: of what is taken.

  Yields:
    `text`, `domain` (of the mess the kind), `split` and `quality`.

  Raises:
    ValueError: there is too little text.
  """
  rng, seen = random.Random(seed), set()
  outside = () if packages else OUTSIDE
  # By where it is taken from, domains and texts or files.
  found: dict[str, list[tuple[str, Any]]] = collections.defaultdict(list)
  for domain, texts in sorted(domains.items()):
    source = domain if domain in outside else CLEAN
    found[source] += [(domain, text) for text in sorted(texts)]
  paths = sorted(packages.rglob("*")) if packages else ()
  found[MESS] = [(kind(path.relative_to(packages)), path) for path in paths]
  for each in found.values():
    rng.shuffle(each)
  left = {source: iter(each) for source, each in found.items()}

  def some(source: str, split: str, n: float):
    while n > 0:
      try:
        domain, whole = next(left[source])
      except StopIteration as e:
        raise ValueError(f"too little {source} text for this study") from e
      for text in (pieces if source == MESS else cut)(whole):
        digest = hashlib.sha256(text.encode()).digest()
        if digest not in seen:
          seen.add(digest)
          n -= count(text)
          about = {"domain": domain, "split": split, "quality": quality(text)}
          yield {"text": text} | about

  for split, n in tokens.items():
    is_clean = split == TARGET or not packages
    for source, share in ({CLEAN: 1.0} if is_clean else LABELS).items():
      yield from some(source, split, n * share)
  for name in outside:
    yield from some(name, "heldout", tokens["heldout"] / 4)


def kind(path: pathlib.Path) -> str:
  """That of `KINDS` that a file is by its path below the packages."""
  name = f"/{path.as_posix()}".lower().removesuffix(".gz")
  return next(k for k, pattern in KINDS.items() if re.search(pattern, name))


def pieces(path: pathlib.Path) -> list[str]:
  """Documents of a file; none of what is no UTF-8 text, or no file."""
  if path.is_symlink() or not path.is_file():
    return []
  try:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
      data = file.read(4 * _SIZE * _PIECES)
    # What it ends in may be half a character.
    text = codecs.getincrementaldecoder("utf-8")().decode(data)
  except (OSError, EOFError, zlib.error, UnicodeDecodeError):
    return []
  return [] if "\0" in text else cut(text)


def cut(text: str) -> list[str]:
  """Documents of up to 8,000 characters, where there are some at line ends."""
  found = []
  while text and len(found) < _PIECES:
    end = len(text)
    if end > _SIZE:
      end = text.rfind("\n", _SIZE // 2, _SIZE) + 1 or _SIZE
    found.append(text[:end])
    text = text[end:]
  return [one for one in found if len(one.strip()) >= _LEAST]


def quality(text: str) -> float:
  """How many of Gopher's seven rules a text keeps, and its stop words' share.

  The rules are those of appendix A.1.1 of Rae et al. (2112.11446), which keeps
  texts that keep all; the share, below 1, ranks those that are alike.
  """
  words, lines = text.split() or [""], text.splitlines() or [""]
  n = len(words)
  stop = [w for w in map(str.lower, words) if w in _STOP_WORDS]
  ends = sum(line.rstrip().endswith(("...", "…")) for line in lines)
  bullets = sum(line.lstrip().startswith(("-", "*", "•")) for line in lines)
  ellipses = text.count("...") + text.count("…")
  kept = (
    50 <= n <= 100_000,
    3 <= sum(map(len, words)) / n <= 10,
    max(text.count("#"), ellipses) / n <= 0.1,
    bullets / len(lines) <= 0.9,
    ends / len(lines) <= 0.3,
    sum(any(map(str.isalpha, word)) for word in words) / n >= 0.8,
    len({*stop}) >= 2,
  )
  return sum(kept) + len(stop) / (n + 1)
