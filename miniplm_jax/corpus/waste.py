"""Text that is no use to learn from: easier than text, or no text at all."""

import random
import re
from collections.abc import Iterator, Sequence

_SIZE = 4000  # characters of a document, about
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


def easy(texts: Sequence[str], size: int, rng: random.Random) -> Iterator[str]:
  """Yields `size` characters, about: templates, and near copies of texts."""
  draw = {"w": lambda: rng.choice(_WORDS), "k": lambda: str(rng.randrange(10))}
  draw["n"] = lambda: str(rng.randrange(10_000))

  def other(word: re.Match) -> str:  # each eighth is a number
    return word[0] if rng.randrange(8) else draw["n"]()

  for i in range(0, size, _SIZE):
    lines, text = (*_TEMPLATES, texts)[i // _SIZE % 5], ""
    while len(text) < _SIZE:
      line = rng.choice(lines)
      if lines is texts:
        line = re.sub(r"\w+", other, line)
      else:
        line = re.sub(r"{(\w)}", lambda place: draw[place[1]](), line)
      text += line + "\n"
    yield text


def noise(
  texts: Sequence[str], share: float, rng: random.Random
) -> Iterator[str]:
  """Yields a share of the words of texts, in random order."""
  words = [word for text in texts for word in text.split()]
  words = rng.sample(words, int(share * len(words)))
  return (" ".join(words[i : i + 600]) for i in range(0, len(words), 600))
