"""The corpus's tokenizer: trained here, or a Hugging Face tokenizer.json."""

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from miniplm_jax.core import files
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import fast_bpe


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
    # not end the document.
    engine.encode_special_tokens = True
    self._engine = engine
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

  def model(self) -> tuple[Any, ...]:
    """What decides which ids a text gets: the vocabulary and the merges."""
    return (
      self._engine.get_vocab(with_added_tokens=True),
      [_pair(m) for m in self._body["model"].get("merges", ())],
    )

  def token_bytes(self) -> list[bytes]:
    """The bytes of every id; eos has none. Those of a text join to it."""
    decoder = self._body["decoder"] or {}
    steps = decoder.get("decoders", [decoder])
    if not any(step.get("type") == "ByteLevel" for step in steps):
      found = [text.encode() for text in self.decode_each()]
    else:
      added = self._engine.get_added_tokens_decoder()
      byte_of = {c: b for b, c in enumerate(fast_bpe.byte_alphabet())}
      found = []
      for i in range(self.vocab_size):
        text = self._engine.id_to_token(i) or ""
        known = i not in added and all(c in byte_of for c in text)
        found.append(
          bytes(byte_of[c] for c in text) if known else text.encode()
        )
    found[self.eos_id] = b""
    return found

  @functools.cached_property
  def byte_lengths(self) -> np.ndarray:
    """int32 [vocab_size]: UTF-8 bytes that each id stands for."""
    return np.array([len(b) for b in self.token_bytes()], np.int32)

  def decode_each(self) -> list[str]:
    """The text of every single id."""
    return self._engine.decode_batch(
      [[i] for i in range(self.vocab_size)], skip_special_tokens=False
    )

  def to_files(self) -> dict[str, bytes]:
    """The files of a Hugging Face directory that hold it."""
    config = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "eos_token": self.eos_token,
      "pad_token": self.eos_token,
      "clean_up_tokenization_spaces": False,
    }
    return {
      "tokenizer.json": self._engine.to_str().encode(),
      "tokenizer_config.json": json.dumps(config, indent=1).encode(),
    }


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
  except Exception as e:  # the library raises plain Exception
    raise UserError(
      f"the tokenizer cannot be read ({e})", str(path), "fetch it again"
    ) from e
  # The file may say otherwise.
  engine.no_truncation()
  engine.no_padding()
  return engine


def train(texts: Iterable[str], vocab_size: int, eos_token: str) -> Tokenizer:
  """Trains a byte-level BPE; `eos_token` gets id 0."""
  engine = tokenizers.Tokenizer(tokenizers.models.BPE())
  engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  engine.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[eos_token],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  engine.train_from_iterator(texts, trainer)
  return Tokenizer(engine, eos_token, "the trained tokenizer")
