"""The corpus's tokenizer: trained here, or a Hugging Face tokenizer.json."""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from miniplm_jax.core import files, hosts
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import fast_bpe, losses

# Spaces, a line, and characters of one to four bytes.
PROBE = " A b.\n  c é 你 🙂"
# Settings of a BPE that Qwen's has not.
_NOT_QWENS = (
  "dropout",
  "byte_fallback",
  "ignore_merges",
  "continuing_subword_prefix",
  "end_of_word_suffix",
)
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a piece that is one byte


def _pair(merge: str | list[str]) -> tuple[str, ...]:
  """A merge, which files of different releases write as "a b" or [a, b]."""
  return tuple(merge.split(" ") if isinstance(merge, str) else merge)


class Tokenizer:
  """A `tokenizers.Tokenizer` and the id that ends a document.

  Attributes:
    eos_id: end of document; also padding, as in Qwen.
    vocab_size: the highest id and one more, added tokens included.
    fingerprint: sha256 of tokenizer.json.
  """

  def __init__(self, engine: tokenizers.Tokenizer, eos_token: str, where: str):
    eos_id = engine.token_to_id(eos_token)
    if eos_id is None:
      raise UserError(
        f"the tokenizer has no token {eos_token!r}",
        where,
        "set --config.corpus.eos_token to its end-of-document token",
      )
    # A document may contain the text "<|endoftext|>": it stays text and does
    # not end the document, also if the file does not call that token special.
    engine.add_special_tokens([eos_token])
    engine.encode_special_tokens = True
    quoted = engine.encode(eos_token, add_special_tokens=False).ids
    if eos_id in quoted:
      raise UserError(
        f"the text {eos_token!r} in a document would end it",
        where,
        "set --config.corpus.eos_token to a token that no text has",
      )
    self._engine, self._where = engine, where
    self.eos_token, self.eos_id = eos_token, eos_id
    self.vocab_size = vocab_size(engine)

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of the tokenizer's canonical form."""
    return files.digest(self._body)

  @functools.cached_property
  def _body(self) -> dict[str, Any]:
    """The content of tokenizer.json."""
    return json.loads(self._engine.to_str())

  @functools.cached_property
  def _encode(self):
    return fast_bpe.build(self._engine, self._body)

  @property
  def is_fast(self) -> bool:
    """Whether `fast_bpe` gives the ids."""
    return self._encode is not None

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """int32 ids of each text, without special tokens."""
    if self._encode is None:
      return self._encode_all(texts)
    found = [self._encode(text) for text in texts]
    for i, ids in enumerate(found):
      if ids is None:
        (found[i],) = self._encode_all([texts[i]])
    return found

  def _encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
    found = self._engine.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [np.asarray(e.ids, np.int32) for e in found]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of some ids, special tokens included."""
    return self._engine.decode([int(i) for i in ids], skip_special_tokens=False)

  def model(self, below: int | None = None) -> tuple[Any, ...]:
    """What decides which ids a text gets: the vocabulary and the merges.

    Args:
      below: leaves out the tokens with this id or a higher one.
    """
    vocab = self._engine.get_vocab(with_added_tokens=True)
    return (
      {t: i for t, i in vocab.items() if below is None or i < below},
      [_pair(m) for m in self._body["model"].get("merges", ())],
    )

  def token_bytes(self) -> list[bytes]:
    """The bytes of every id. Those of a text join to it.

    They are those of the pieces: a single id that is decoded would lose the
    space that it begins with, if texts are decoded so (SentencePiece). Eos has
    none, nor has the unknown token: bits per byte are then of text that the ids
    have, and a tokenizer does not look better for what it loses.

    Raises:
      UserError: those of a probe do not join to what its ids decode to, or
        unknown text has no id or eos's.
    """
    unk_id = self._unk_id
    if not self.is_lossless:
      losses.check_unknown(self._body, unk_id, self.eos_id, self._where)
    steps = losses.steps(self._body["decoder"])
    if any(step.get("type") == "ByteLevel" for step in steps):
      added = self._engine.get_added_tokens_decoder()
      byte_of = {c: b for b, c in enumerate(fast_bpe.byte_alphabet())}

      def content(i: int, piece: str) -> bytes:
        if i in added or not all(c in byte_of for c in piece):
          return piece.encode()
        return bytes(byte_of[c] for c in piece)

    else:

      def content(i: int, piece: str) -> bytes:
        return _content(piece, steps)

    found = [
      content(i, self._engine.id_to_token(i) or "")
      for i in range(self.vocab_size)
    ]
    found[self.eos_id] = b""
    (ids,) = self.encode([PROBE])
    joined = b"".join(found[i] for i in ids).decode(errors="replace")
    text = self.decode(ids)
    # SentencePiece puts a space before a text and takes it away again.
    if joined not in (text, f" {text}"):
      raise UserError(
        f"the pieces of {PROBE!r} join to {joined!r} and decode to {text!r}",
        self._where,
        "give one that is byte-level or of SentencePiece's kind: the bytes of "
        "its tokens are counted",
      )
    if unk_id is not None:
      found[unk_id] = b""
    return found

  @functools.cached_property
  def byte_lengths(self) -> np.ndarray:
    """int32 [vocab_size]: UTF-8 bytes that each id stands for."""
    return np.array([len(b) for b in self.token_bytes()], np.int32)

  @functools.cached_property
  def _unk_id(self) -> int | None:
    """The id of text that has no other."""
    model = self._body["model"]
    if "unk_id" in model:  # Unigram
      return model["unk_id"]
    return self._engine.token_to_id(model["unk_token"] or "")

  @functools.cached_property
  def is_lossless(self) -> bool:
    """Whether each byte of any text, once normalized, is in its tokens."""
    return losses.is_lossless(self._body)

  @functools.cached_property
  def _normalizers(self) -> list[Mapping[str, Any]]:
    return losses.steps(self._body["normalizer"])

  def lost(
    self, texts: Sequence[str], encoded: Sequence[np.ndarray]
  ) -> dict[str, int]:
    """What texts lose: counts for `losses.check`.

    Normalizing text is no loss; leaving some out, or making it unknown, is.

    Args:
      texts: some.
      encoded: their ids.

    Returns:
      `bytes_of_text`, UTF-8 bytes of the texts once normalized, and
      `bytes_unencoded`, those of them that no id stands for.
    """
    counts = {"bytes_of_text": 0, "bytes_unencoded": 0}
    for text, ids in zip(texts, encoded, strict=True):
      kept = size = int(self.byte_lengths[ids].sum())
      if not self.is_lossless:
        size = self._size(text)
      counts["bytes_of_text"] += size
      counts["bytes_unencoded"] += max(size - kept, 0)
    return counts

  def _size(self, text: str) -> int:
    """The bytes that all tokens of a text should have together."""
    if self._engine.normalizer:
      text = self._engine.normalizer.normalize_str(text)
    if any(step.get("type") == "ByteLevel" for step in self._normalizers):
      return len(text)  # a character is a byte
    content = _content(text, losses.steps(self._body["decoder"]))
    return len(content) + (self._puts_space and content[:1] not in (b"", b" "))

  @functools.cached_property
  def _puts_space(self) -> bool:
    """Whether a text that begins with none gets a space before it."""
    return any(
      step.get("add_prefix_space")
      or step.get("prepend_scheme", "never") != "never"
      for step in losses.steps(self._body["pre_tokenizer"])
      if step.get("type") in ("ByteLevel", "Metaspace")
    )

  @property
  def adds(self) -> list[str]:
    """What it puts around a text by its own file, and rows do not have."""
    return self._engine.encode("").tokens

  def starting_with(self, bos_token: str = "") -> tokenizers.Tokenizer:
    """One that puts this token, or nothing, before a text and nothing after.

    Whatever the file said: texts begin as the rows do that a model is trained
    on.
    """
    engine = tokenizers.Tokenizer.from_str(self._engine.to_str())
    first = f"{bos_token}:0 " if bos_token else ""
    engine.post_processor = tokenizers.processors.TemplateProcessing(
      single=f"{first}$A:0",
      pair=f"{first}$A:0 $B:1",
      special_tokens=[(t, engine.token_to_id(t)) for t in [bos_token] if t],
    )
    return engine

  @property
  def is_qwens(self) -> bool:
    """Whether it gives the same ids if it is read as Qwen's.

    transformers does so beside a Qwen2 model: it keeps the vocabulary, the
    merges and the added tokens, and takes its own for the rest.
    """
    body, model = self._body, self._body["model"]
    added = {t["content"]: t for t in body["added_tokens"]}
    vocab = model.get("vocab", {})
    beyond = [t["id"] for t in added.values() if t["content"] not in vocab]
    return (
      model["type"] == "BPE"
      and not any(model[key] for key in _NOT_QWENS)
      and body["normalizer"] == {"type": "NFC"}
      and (body["decoder"] or {}).get("type") == "ByteLevel"
      and fast_bpe.pattern(body["pre_tokenizer"] or {}) == fast_bpe.QWEN
      # It adds this one where it is missing, and numbers what it adds.
      and "<|endoftext|>" in added
      and beyond == list(range(len(vocab), len(vocab) + len(beyond)))
    )

  def to_files(self, bos_token: str | None = None) -> dict[str, bytes]:
    """The files of a Hugging Face directory that hold it.

    Args:
      bos_token: what is put before a text, "" is nothing; None is what the
        tokenizer was given with.
    """
    as_given = bos_token is None
    engine = self._engine if as_given else self.starting_with(bos_token)
    config = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "eos_token": self.eos_token,
      "pad_token": self.eos_token,
      "clean_up_tokenization_spaces": False,
    }
    config |= {"bos_token": bos_token} if bos_token else {}
    return {
      "tokenizer.json": engine.to_str().encode(),
      "tokenizer_config.json": json.dumps(config, indent=1).encode(),
    }


def _content(piece: str, steps: Sequence[Mapping[str, Any]]) -> bytes:
  """The bytes of a piece within a text, by the steps of its decoder."""
  for step in steps:
    kind = step.get("type")
    if kind == "Replace" and "String" in step["pattern"]:
      piece = piece.replace(step["pattern"]["String"], step["content"])
    elif kind == "Metaspace":
      piece = piece.replace(step["replacement"], " ")
    elif kind == "ByteFallback" and (byte := _BYTE.fullmatch(piece)):
      return bytes.fromhex(byte[1])
  return piece.encode()


def save(found: Tokenizer, directory: epath.Path):
  """Writes its files; tokenizer.json last: it says that the folder is whole."""
  for name, content in sorted(found.to_files().items(), reverse=True):
    files.write_bytes(directory / name, content)


def vocab_size(engine: tokenizers.Tokenizer) -> int:
  """The highest id and one more: ids may have gaps."""
  return max(engine.get_vocab().values()) + 1


def load(directory: epath.Path, eos_token: str) -> Tokenizer:
  """The tokenizer of a directory, for documents.

  Raises:
    UserError: it is missing or damaged, or has no `eos_token`.
  """
  where = str(directory / "tokenizer.json")
  return Tokenizer(load_engine(directory), eos_token, where)


def load_engine(directory: epath.Path) -> tokenizers.Tokenizer:
  """Reads tokenizer.json from a directory, to encode texts whole.

  Raises:
    UserError: it is missing or damaged.
  """
  path = directory / "tokenizer.json"
  if not path.exists():
    raise UserError(
      "no tokenizer.json",
      str(directory),
      "give a directory with a fast tokenizer, or 'train'",
    )
  try:
    engine = tokenizers.Tokenizer.from_str(path.read_text())
  except BaseException as e:
    # The library raises plain Exception, or panics, which is none.
    if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
      raise
    raise UserError(
      f"the tokenizer cannot be read ({e})", str(path), "fetch it again"
    ) from e
  # The file may say otherwise. A text has the same ids whenever it is encoded.
  engine.no_truncation()
  engine.no_padding()
  if getattr(engine.model, "dropout", None) is not None:
    engine.model.dropout = None
  return engine


def train(texts: Iterable[str], vocab_size: int, eos_token: str) -> Tokenizer:
  """Trains a byte-level BPE as Qwen's is made; `eos_token` gets id 0.

  transformers reads every tokenizer beside a Qwen2 model as one of this kind,
  whatever its tokenizer.json says.
  """
  engine = tokenizers.Tokenizer(tokenizers.models.BPE())
  engine.normalizer = tokenizers.normalizers.NFC()
  engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(fast_bpe.QWEN), "isolated"
      ),
      tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
      ),
    ]
  )
  engine.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[eos_token],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  engine.train_from_iterator(_until_stopped(texts), trainer)
  return Tokenizer(engine, eos_token, "the trained tokenizer")


def _until_stopped(texts: Iterable[str]) -> Iterator[str]:
  for text in texts:
    hosts.raise_if_stopped()
    yield text
