"""The same ids as `tokenizers`, several times as fast: tiktoken on its ranks.

tiktoken merges whatever two neighbors join to a known token, the likeliest
first; `tokenizers` merges the listed pairs. The two agree on every text if

1. ids grow with the order of the merges, and
2. every token, taken alone, is merged to itself by `tokenizers`:

take the first step in which tiktoken joins l and r to a token t that
`tokenizers` does not join. Until then both did the same, and inside t they
did what `tokenizers` does to t taken alone, for nothing was merged across its
ends. That ends in t, by 2, so (l, r) is a listed pair.

Both are checked when a tokenizer is loaded, and the words that texts are split
into first must be those of a known pattern. Any other kind is left to
`tokenizers`.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tokenizers

# What the byte-level pre-tokenizer of `tokenizers` splits at (GPT-2's).
_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
  r"|\s+(?!\S)|\s+"
)
# What a Split before it may split at: patterns that leave no character out,
# which tiktoken would lose, and that both engines read alike.
QWEN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# Settings of a BPE that tiktoken does not know.
_ODD = (
  *("dropout", "byte_fallback"),
  *("continuing_subword_prefix", "end_of_word_suffix"),
)
# tiktoken's pattern engine gives up on longer runs of white space.
_LONG_SPACE = re.compile(r"\s{10000}")
_LONG = 10_000


def byte_alphabet() -> str:
  """Returns the character for each byte in byte-level vocabularies.

  Printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards.
  """
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = itertools.count(256)
  return "".join(
    chr(b) if b in printable else chr(next(others)) for b in range(256)
  )


def build(
  engine: tokenizers.Tokenizer, body: dict[str, Any]
) -> Callable[[str], np.ndarray | None] | None:
  """Returns a function text → int32 ids, `engine`'s without special tokens.

  That function returns None for the rare text that `engine` must encode. There
  is none if this kind of tokenizer, by its tokenizer.json, is not one of those
  above.
  """
  split_at, ranks = pattern(body["pre_tokenizer"] or {}), _ranks(body)
  normalizer = (body["normalizer"] or {}).get("type")
  if not (split_at and ranks and normalizer in (None, "NFC")):
    return None
  # Found in any text, unlike the special ones.
  added = [t["content"] for t in body["added_tokens"] if not t["special"]]
  has_added = re.compile("|".join(map(re.escape, added)) or r"(?!)").search
  # Imported where it is used: it is a compiled library.
  import tiktoken

  bpe = tiktoken.Encoding(
    "corpus", pat_str=split_at, mergeable_ranks=ranks, special_tokens={}
  )._core_bpe  # its wrapper makes a list of every text
  no_special: set[str] = set()

  def encode(text: str) -> np.ndarray | None:
    if len(text) > _LONG and _LONG_SPACE.search(text):
      return None
    if has_added(text):
      return None
    if normalizer and not text.isascii():
      text = engine.normalizer.normalize_str(text)
      if has_added(text):  # some are looked for after, some before
        return None
    ids = bpe.encode_to_tiktoken_buffer(text, no_special)
    return np.frombuffer(ids, np.uint32).astype(np.int32)

  return encode


def pattern(body: dict[str, Any]) -> str | None:
  """Returns the pattern that splits a text into words, if one does it all."""
  steps = body.get("pretokenizers", [body])
  last = steps[-1]
  if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
    return None
  if len(steps) == 1:
    return _GPT2 if last["use_regex"] else None
  first = steps[0]
  alone = len(steps) == 2 and not last["use_regex"]
  if not alone or first["type"] != "Split" or first["invert"]:
    return None
  regex = first["pattern"].get("Regex")
  is_known = first["behavior"] == "Isolated" and regex in (QWEN, _LLAMA)
  return regex if is_known else None


def pairs(merges: Iterable[str | list[str]]) -> list[tuple[str, ...]]:
  """Returns merges, of which some releases write "a b", others [a, b]."""
  return [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]


def _ranks(body: dict[str, Any]) -> dict[bytes, int] | None:
  """Bytes → id of all tokens, if the module's conditions hold."""
  model = body["model"]
  if model["type"] != "BPE" or any(model[key] for key in _ODD):
    return None
  byte_of = {c: b for b, c in enumerate(byte_alphabet())}
  added = {token["content"] for token in body["added_tokens"]}
  vocab = {t: i for t, i in model["vocab"].items() if t not in added}
  if any(c not in byte_of for token in vocab for c in token):
    return None
  merges = pairs(model["merges"])
  merged = [vocab.get(a + b) for a, b in merges]
  single = [vocab.get(c) for c in byte_of]
  if None in merged or None in single or merged != sorted(merged):
    return None
  merged = list(dict.fromkeys(merged))  # several pairs may make one token
  if len(merged) + len(single) != len(vocab):
    return None
  if merged and max(single) > merged[0]:
    return None
  alone = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocab, merges=merges)
  )
  for token, encoding in zip(vocab, alone.encode_batch_fast(list(vocab))):
    if encoding.ids != [vocab[token]]:
      return None
  return {bytes(byte_of[c] for c in t): i for t, i in vocab.items()}


def is_qwens(body: dict[str, Any]) -> bool:
  """Returns whether a tokenizer gives the same ids if it is read as Qwen's.

  transformers does so beside a Qwen2 model: it keeps the vocabulary, the
  merges and the added tokens, and takes its own for the rest.
  """
  model = body["model"]
  added = {t["content"]: t for t in body["added_tokens"]}
  vocab = model.get("vocab", {})
  beyond = [t["id"] for t in added.values() if t["content"] not in vocab]
  return (
    model["type"] == "BPE"
    and not any(model[key] for key in (*_ODD, "ignore_merges"))
    and body["normalizer"] == {"type": "NFC"}
    and (body["decoder"] or {}).get("type") == "ByteLevel"
    and pattern(body["pre_tokenizer"] or {}) == QWEN
    # It adds this one where it is missing, and numbers what it adds.
    and "<|endoftext|>" in added
    and beyond == list(range(len(vocab), len(vocab) + len(beyond)))
  )
