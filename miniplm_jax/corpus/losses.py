"""What a tokenizer loses of a text: said, counted, and limited."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import warn
from miniplm_jax.corpus import fast_bpe

# Ways to split a text that leave no character out.
_KEEPING = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", None}
# Bytes of a text without a token that are put up with. SentencePiece, by its
# defaults, leaves out one character in 2,000; a tokenizer that loses twenty
# times as much is broken, or was not made for this text.
_MOST_LOST = 0.01
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a token that is one byte


def is_lossless(body: Mapping[str, Any]) -> bool:
  """Returns whether each byte of any text, once normalized, has its token.

  By tokenizer.json: the vocabulary has all 256 bytes, and nothing is left out
  before.
  """
  model, split = body["model"], steps(body["pre_tokenizer"])
  if any(
    step.get("type") not in _KEEPING or step.get("behavior") == "Removed"
    for step in split
  ) or any(
    (token["lstrip"] or token["rstrip"]) and not token["special"]
    for token in body["added_tokens"]
  ):
    return False
  before = "pre_tokenizer", "normalizer"
  if any(has_step(body[part], "ByteLevel") for part in before):
    each = set(fast_bpe.byte_alphabet())
  elif model.get("byte_fallback"):
    each = {f"<0x{byte:02X}>" for byte in range(256)}
  else:
    return False
  if model["type"] == "Unigram":
    return each <= {piece for piece, _ in model["vocab"]}
  return (
    model["type"] == "BPE"
    and not model["continuing_subword_prefix"]
    and not model["end_of_word_suffix"]
    and each <= model["vocab"].keys()
  )


def check_unknown(
  body: Mapping[str, Any], unk_id: int | None, eos_id: int, where: str
):
  """Refuses a tokenizer that cannot cope with text that it does not know.

  By tokenizer.json, unknown text would end a document, or cannot be encoded.
  """
  model = body["model"]
  if unk_id is not None and unk_id == eos_id:
    what = "its end of document is also its unknown token: any character that "
    what += "it does not know would end a document"
    hint = "name another eos_token that it has"
  elif unk_id is None and (model["type"] != "BPE" or model["unk_token"]):
    what = "its unknown token is not in its vocabulary, so some text cannot be "
    what += "encoded"
    hint = "mend its unk_token"
  else:
    return
  raise UserError(
    f"the tokenizer does not know all bytes, and {what}",
    where,
    f"{hint}, or give a tokenizer that is byte-level or has byte fallback",
  )


def check(counts: Mapping[str, int], stage: str, where: str) -> float:
  """Returns the share of a corpus's text that its tokenizer lost; says it.

  The counts are the sum of what `Tokenizer.lost` gave.

  Raises:
    UserError: it is so much that the tokenizer is none of this text.
  """
  lost, total = counts.get("bytes_unencoded", 0), counts.get("bytes_of_text", 0)
  if not lost:
    return 0.0
  if lost / total > _MOST_LOST:
    raise _too_much(lost, total, where)
  what = _in_words(lost, total)
  warn(stage, f"{what}: it is left out, or unknown to the models")
  return lost / total


def refuse_early(counts: Mapping[str, int], read: int, left: int, where: str):
  """Raises what `check` will at the end, if no text that is left can help.

  The counts are of `read` bytes of input, packed or not. Those that are left
  are taken to be of twice as much text as these were, or of as much.
  """
  lost, total = counts.get("bytes_unencoded", 0), counts.get("bytes_of_text", 0)
  if read and lost > _MOST_LOST * (total + left * max(2 * total / read, 1)):
    raise _too_much(lost, total, where)


def _in_words(lost: int, total: int) -> str:
  return (
    f"the tokenizer has no tokens for {lost / total:.2%} of the text, "
    f"{lost:,} of {total:,} bytes"
  )


def _too_much(lost: int, total: int, where: str) -> UserError:
  return UserError(
    f"{_in_words(lost, total)}; {_MOST_LOST:.0%} is the most that may be lost",
    where,
    "give a tokenizer that was made for this text, byte-level or with byte "
    "fallback best",
  )


def steps(body: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
  """Returns the steps of a normalizer, pre-tokenizer or decoder, in order."""
  body = body or {}
  for key in ("normalizers", "pretokenizers", "decoders"):
    if key in body:
      return [step for inner in body[key] for step in steps(inner)]
  return [body]


def has_step(body: Mapping[str, Any] | None, kind: str) -> bool:
  """Returns whether one of its steps is of a type."""
  return any(step.get("type") == kind for step in steps(body))


def content(token: str, steps: Sequence[Mapping[str, Any]]) -> bytes:
  """Returns the bytes of a token within a text, by its decoder's steps."""
  for step in steps:
    kind = step.get("type")
    if kind == "Replace" and "String" in step["pattern"]:
      token = token.replace(step["pattern"]["String"], step["content"])
    elif kind == "Metaspace":
      token = token.replace(step["replacement"], " ")
    elif kind == "ByteFallback" and (byte := _BYTE.fullmatch(token)):
      return bytes.fromhex(byte[1])
  return token.encode()
