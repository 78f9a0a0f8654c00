"""Text with planted waste of two kinds, of which every document is labeled.

A third is clean, a third easier than text (templates, headers, tables, menus,
near copies), a third no text at all (shuffled words, wrong encodings, random
strings), counted in a teacher's ids. Documents of each kind are of D, of D_ref
or held out, and of two clean domains all are held out.
"""

import base64
import codecs
import json
import pathlib
import random
from collections.abc import Callable, Iterator, Mapping

CLEAN, EASY, NOISE = "clean", "easy", "noise"
OUTSIDE = ("dialogue", "wiki")  # domains that D does not have
# How much of its label a kind is.
KINDS = {
  EASY: {
    "logs": 0.2,
    "headers": 0.2,
    "tables": 0.2,
    "menus": 0.2,
    "near_copies": 0.2,
  },
  # Random characters are easy for a small model, which soon knows that they
  # are: what it finds as hard as text is what words are made into.
  NOISE: {"shuffled": 0.6, "mojibake": 0.2, "base64": 0.1, "random": 0.1},
}
WASTE = tuple(kind for kinds in KINDS.values() for kind in kinds)
LABELS = dict.fromkeys((CLEAN, EASY, NOISE), 1 / 3)  # of D
_SIZE = 4000  # characters of a document that is made up, about

_WORDS = (
  *("server", "cache", "worker", "request", "session", "index", "queue"),
  *("storage", "network", "client", "backup", "monitor", "gateway", "parser"),
  *("scheduler", "report", "update", "search", "image", "order"),
)
_LOGS = (
  '{ip} - - [{day}/Nov/2026:{time}] "GET /{w}/{n} HTTP/1.1" {code} {n}',
  "Nov {day} {time} host{k} {w}[{n}]: started {w} in {n} ms",
  "2026-11-{day} {time},{n} INFO  [{w}-{k}] {w}: finished {n} items",
  "2026-11-{day} {time},{n} WARN  [{w}-{k}] {w}: retry {k} after {n} ms",
  "[{time}] {w}: connection from {ip} port {n} closed by {w}",
)
_HEADERS = (
  "Copyright (c) {year} {name}. All rights reserved.\n"
  "Redistribution and use in source and binary forms, with or without "
  "modification, are permitted provided that the conditions are met.",
  "Copyright {year} {name}\n"
  "Licensed under the Apache License, Version 2.0; you may not use this "
  "file except in compliance with the License. Software distributed under "
  "the License is distributed on an AS IS BASIS, without warranties.",
  "Copyright (C) {year} {name}\n"
  "This program is free software: you can redistribute it and modify it "
  "under the terms of the GNU General Public License, version 3 or later. "
  "It comes without any warranty.",
)
_MENU = (
  '<li class="nav-item"><a class="nav-link" href="/{w}/{n}">{w}</a></li>',
  '<li><a href="/{w}/{w}" title="{w}">{w} {k}</a></li>',
  '<option value="{n}">{w} {w}</option>',
)


def label(domain: str) -> str:
  """That of a domain of the corpus."""
  return next((k for k, kinds in KINDS.items() if domain in kinds), CLEAN)


def plant(
  domains: Mapping[str, list[str]],
  tokens: Mapping[str, int],
  count: Callable[[str], int],
  seed: int = 10,
) -> Iterator[dict[str, object]]:
  """Documents of all labels for each split; each text is used once.

  Args:
    domains: clean documents by domain; those of `OUTSIDE` are held out.
    tokens: of each label, by split; of each domain of `OUTSIDE` a quarter of
      what is held out.
    count: ids of a text.
    seed: of what is taken and of what is made up.

  Yields:
    `text`, `domain` (of waste the kind), `split`, `label`, and `clean`, 0 or 1.

  Raises:
    ValueError: a domain has too little text.
  """
  rng = random.Random(seed)
  left = {name: sorted(texts) for name, texts in sorted(domains.items())}
  for texts in left.values():
    rng.shuffle(texts)
  inside = [name for name in left if name not in OUTSIDE]
  makers = _makers(rng, inside, left)

  def some(make: Callable[[], str], n: float, about: dict[str, object]):
    while n > 0:
      text = make()
      n -= count(text)
      yield {"text": text} | about

  for split, n in tokens.items():
    about = {"split": split, "label": CLEAN, "clean": 1}
    for name in inside:
      share = n / len(inside)
      yield from some(
        lambda name=name: _taken(left, name), share, about | {"domain": name}
      )
    for label, kinds in KINDS.items():
      for kind, share in kinds.items():
        about = {"domain": kind, "split": split, "label": label, "clean": 0}
        yield from some(makers[kind], n * share, about)
  for name in OUTSIDE if "heldout" in tokens else ():
    about = {"domain": name, "split": "heldout", "label": CLEAN, "clean": 1}
    yield from some(
      lambda name=name: _taken(left, name), tokens["heldout"] / 4, about
    )


def _taken(left: dict[str, list[str]], name: str) -> str:
  if not left.get(name):
    raise ValueError(f"domain {name} has too little text for this study")
  return left[name].pop()


def _makers(rng, inside, left) -> dict[str, Callable[[], str]]:
  """What makes a document of each kind of waste."""

  def source():  # a clean document that is used for nothing else
    return _taken(left, rng.choice(inside))[: 2 * _SIZE]

  def filled(template: str) -> str:
    return template.format(
      w=rng.choice(_WORDS),
      n=rng.randrange(100_000),
      k=rng.randrange(1, 10),
      code=rng.choice((200, 200, 200, 304, 404)),
      ip=".".join(str(rng.randrange(256)) for _ in range(4)),
      day=rng.randrange(10, 31),
      time=f"{rng.randrange(24):02}:{rng.randrange(60):02}:"
      f"{rng.randrange(60):02}",
      year=rng.randrange(1990, 2027),
      name=f"The {rng.choice(_WORDS).title()} Authors",
    )

  def repeated(templates, joined="\n"):
    lines, size = [], 0
    while size < _SIZE:
      lines.append(filled(rng.choice(templates)))
      size += len(lines[-1])
    return joined.join(lines)

  def table():
    names = rng.sample(_WORDS, 6)
    lines = [",".join(names)]
    while len(lines) < 120:
      line = (str(rng.randrange(1000)) for _ in names[1:])
      lines.append(",".join([rng.choice(_WORDS), *line]))
    return "\n".join(lines)

  originals = [source()[:800] for _ in range(12)]

  def near_copy():
    copies = []
    for _ in range(_SIZE // 800):
      words = rng.choice(originals).split()
      for _ in range(8):  # each eighth word or so is another number
        words[rng.randrange(len(words))] = str(rng.randrange(10_000))
      copies.append(" ".join(words))
    return "\n\n".join(copies)

  def shuffled():
    words = source().split()
    rng.shuffle(words)
    return " ".join(words)

  def mojibake():  # bytes of one encoding that were read as another
    data = source()[: _SIZE // 2].encode("ascii", "ignore")
    data = data[: len(data) // 2 * 2]
    if rng.random() < 0.5:  # two letters become one ideograph
      return codecs.decode(data, "utf-16-le", "ignore")
    return bytes(b ^ 0x80 for b in data).decode("cp1251", "ignore")

  def in_base64():
    return base64.b64encode(rng.randbytes(_SIZE // 2)).decode()

  def random_text():
    letters = "".join(map(chr, range(33, 127)))
    sizes = (rng.randrange(3, 12) for _ in range(_SIZE // 16))
    return " ".join("".join(rng.choices(letters, k=k)) for k in sizes)

  return {
    "logs": lambda: repeated(_LOGS),
    "headers": lambda: repeated(_HEADERS, "\n\n"),
    "tables": table,
    "menus": lambda: f"<ul>\n{repeated(_MENU)}\n</ul>",
    "near_copies": near_copy,
    "shuffled": shuffled,
    "mojibake": mojibake,
    "base64": in_base64,
    "random": random_text,
  }


def read(folder: pathlib.Path) -> dict[str, list[str]]:
  """Texts by domain, of a folder with a *.jsonl for each."""
  domains = {}
  for path in sorted(folder.glob("*.jsonl")):
    with path.open() as file:
      domains[path.stem] = [json.loads(line)["text"] for line in file]
  return domains
