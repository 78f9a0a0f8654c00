"""The corpus's tokenizer: trained here, or a Hugging Face tokenizer.json."""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from miniplm_jax.core import distributed, files
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import warn
from miniplm_jax.corpus import fast_bpe, losses

AUTO = "auto"  # the BOS that a tokenizer's own file puts before a text
# Spaces, a line, and characters of one to four bytes.
PROBE = " A b.\n  c é 你 🙂"


class Tokenizer:
  """A `tokenizers.Tokenizer` and the ids that begin and end a document."""

  eos_id: int  # end of document; also padding, as in Qwen
  bos_token: str  # what every text of a row follows; "" is nothing
  bos_id: int | None
  vocab_size: int  # the highest id and one more, added tokens included

  def __init__(
    self,
    engine: tokenizers.Tokenizer,
    eos_token: str,
    where: str,
    bos_token: str = "",
    section: str = "corpus",
  ):
    self._engine, self._where = engine, where
    if bos_token == AUTO:
      before, _ = self.adds
      bos_token = "" if before == eos_token else before
    named = {"eos_token": eos_token} | (
      {"bos_token": bos_token} if bos_token else {}
    )
    for field, token in named.items():
      hint = f"set --config.{section}.{field} to "
      token_id = engine.token_to_id(token)
      if token_id is None:
        what = f"the tokenizer has no token {token!r}"
        raise UserError(what, where, f"{hint}one that it has")
      # A document may contain the text "<|endoftext|>": it stays text and does
      # not end the document, also if the file does not call that token special.
      engine.add_special_tokens([token])
      engine.encode_special_tokens = True
      if token_id in engine.encode(token, add_special_tokens=False).ids:
        does = "end" if field == "eos_token" else "begin"
        what = f"the text {token!r} in a document would {does} it"
        raise UserError(what, where, f"{hint}a token that no text has")
    self.eos_token, self.eos_id = eos_token, engine.token_to_id(eos_token)
    self.bos_token = bos_token
    self.bos_id = engine.token_to_id(bos_token) if bos_token else None
    self.vocab_size = vocab_size(engine)

  @property
  def details(self) -> dict[str, Any]:
    """What the manifest of a corpus says of its tokenizer."""
    names = "eos_id", "bos_id", "bos_token", "vocab_size"
    return {name: getattr(self, name) for name in names}

  @functools.cached_property
  def fingerprint(self) -> str:
    """The sha256 of the tokenizer's canonical form."""
    return files.digest(self._body)

  @functools.cached_property
  def _body(self) -> dict[str, Any]:
    """The content of tokenizer.json."""
    return json.loads(self._engine.to_str())

  @functools.cached_property
  def _encode(self):
    return fast_bpe.build(self._engine, self._body)

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns int32 ids of each text, without special tokens."""
    if self._encode is None:
      return self._encode_all(texts)
    encoded = [self._encode(text) for text in texts]
    for i, ids in enumerate(encoded):
      if ids is None:
        (encoded[i],) = self._encode_all([texts[i]])
    return encoded

  def _encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
    encodings = self._engine.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [np.asarray(e.ids, np.int32) for e in encodings]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of some ids, special tokens included."""
    return self._engine.decode([int(i) for i in ids], skip_special_tokens=False)

  def model(self, below: int) -> tuple[Any, ...]:
    """Returns what decides a text's ids: vocabulary below an id, and merges."""
    vocab = self._engine.get_vocab(with_added_tokens=True)
    return (
      {t: i for t, i in vocab.items() if i < below},
      fast_bpe.pairs(self._body["model"].get("merges", ())),
    )

  def token_bytes(self) -> list[bytes]:
    """Returns the bytes of every id. Those of a text join to it.

    They are those of its token: a single id that is decoded would lose the
    space that it begins with, if texts are decoded so (SentencePiece). Eos and
    BOS have none, nor has the unknown token: bits per byte are then of text
    that the ids have, and a tokenizer does not look better for what it loses.

    Raises:
      UserError: those of a probe do not join to what its ids decode to, or
        unknown text has no id or eos's.
    """
    unk_id = self._unk_id
    if not self.is_lossless:
      losses.check_unknown(self._body, unk_id, self.eos_id, self._where)
    steps = losses.steps(self._body["decoder"])
    if losses.has_step(self._body["decoder"], "ByteLevel"):
      added = self._engine.get_added_tokens_decoder()
      byte_of = {c: b for b, c in enumerate(fast_bpe.byte_alphabet())}

      def content(i: int, token: str) -> bytes:
        if i in added or not all(c in byte_of for c in token):
          return token.encode()
        return bytes(byte_of[c] for c in token)

    else:

      def content(i: int, token: str) -> bytes:
        return losses.content(token, steps)

    each = [
      content(i, self._engine.id_to_token(i) or "")
      for i in range(self.vocab_size)
    ]
    for i in {self.eos_id, self.bos_id} - {None}:
      each[i] = b""
    (ids,) = self.encode([PROBE])
    joined = b"".join(each[i] for i in ids).decode(errors="replace")
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
      each[unk_id] = b""
    return each

  @functools.cached_property
  def byte_lengths(self) -> np.ndarray:
    """The UTF-8 bytes that each id stands for, int32 [vocab_size]."""
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

  def lost(
    self, texts: Sequence[str], encoded: Sequence[np.ndarray]
  ) -> dict[str, int]:
    """Returns what encoded texts lose: counts for `losses.check`.

    Normalizing text is no loss; leaving some out, or making it unknown, is.
    `bytes_of_text` are UTF-8 bytes of the texts once normalized, and
    `bytes_unencoded` those of them that no id stands for.
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
    if losses.has_step(self._body["normalizer"], "ByteLevel"):
      return len(text)  # a character is a byte
    content = losses.content(text, losses.steps(self._body["decoder"]))
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
  def adds(self) -> tuple[str, str]:
    """The tokens that its own file puts before a text, and those after it."""
    encoding = self._engine.encode(PROBE)
    texts = enumerate(encoding.sequence_ids)
    own = [i for i, text in texts if text is not None]
    first, last = own[0] if own else 0, own[-1] if own else -1
    tokens = encoding.tokens
    return "".join(tokens[:first]), "".join(tokens[last + 1 :])

  def warn_of_bos(self, stage: str, of_rows: str):
    """Says so if a model's tokenizer puts another token before a text."""
    before, where = self.adds[0], self._where
    if before != of_rows:
      warn(
        stage,
        f"{where} puts {before or 'nothing'} before a text, in rows "
        f"it follows {of_rows or 'nothing'}: log-probs are off if the model "
        "was trained so; --config.corpus.bos_token= says what rows have",
      )

  def text_engine(self) -> tokenizers.Tokenizer:
    """Returns one that puts BOS, if any, before a text and nothing after.

    Whatever the file said: texts begin as those of the rows do that a model is
    trained on.
    """
    engine = tokenizers.Tokenizer.from_str(self._engine.to_str())
    first = f"{self.bos_token}:0 " if self.bos_token else ""
    engine.post_processor = tokenizers.processors.TemplateProcessing(
      single=f"{first}$A:0",
      pair=f"{first}$A:0 $B:1",
      special_tokens=[(self.bos_token, self.bos_id)] if first else [],
    )
    return engine

  @property
  def is_qwens(self) -> bool:
    """Whether it gives the same ids if it is read as Qwen's."""
    return fast_bpe.is_qwens(self._body)

  def to_files(self, max_length: int = 0) -> dict[str, bytes]:
    """Returns what a Hugging Face directory needs of it, see `text_engine`.

    There a model is trained on rows of `max_length` tokens, if it is given.
    """
    as_given = self.adds == (self.bos_token, "")
    engine = self._engine if as_given else self.text_engine()
    config = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "eos_token": self.eos_token,
      "pad_token": self.eos_token,
      "clean_up_tokenization_spaces": False,
    }
    config |= {"bos_token": self.bos_token} if self.bos_token else {}
    config |= {"model_max_length": max_length} if max_length else {}
    return {
      "tokenizer.json": engine.to_str().encode(),
      "tokenizer_config.json": json.dumps(config, indent=1).encode(),
    }


def save(encoder: Tokenizer, directory: epath.Path):
  """Writes its files; tokenizer.json last: it says that the folder is whole."""
  for name, content in sorted(encoder.to_files().items(), reverse=True):
    files.write_bytes(directory / name, content)


def vocab_size(engine: tokenizers.Tokenizer) -> int:
  """Returns the highest id and one more: ids may have gaps."""
  return max(engine.get_vocab().values()) + 1


def load(
  directory: epath.Path, eos_token: str, bos_token: str = "", section="corpus"
) -> Tokenizer:
  """Returns the tokenizer of a directory, for documents.

  A BOS of `AUTO` is what the file says; the section of the config is the one
  that names the tokens.

  Raises:
    UserError: it is missing or damaged, or has no such token, or texts have it.
  """
  where, engine = str(directory / "tokenizer.json"), load_engine(directory)
  return Tokenizer(engine, eos_token, where, bos_token, section)


def load_engine(directory: epath.Path) -> tokenizers.Tokenizer:
  """Reads tokenizer.json from a directory, to encode texts whole."""
  path = directory / "tokenizer.json"
  if not path.exists():
    raise UserError(
      "no tokenizer.json",
      str(directory),
      "restore it, or give a directory with a fast tokenizer, or 'train'",
    )
  try:
    engine = tokenizers.Tokenizer.from_str(path.read_text())
  except BaseException as e:
    # The library raises plain Exception, or panics, which is none.
    if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
      raise
    raise UserError(
      f"the tokenizer cannot be read ({e})", str(path), "restore or fetch it"
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
    distributed.raise_if_stopped()
    yield text
