"""Log-probs of texts under one model, whatever asks for them.

`RowScorer` is what zero-shot tasks, `lm_eval --model miniplm_jax` and whole
texts have in common: rows of ids in, Σ −log p of the ends of rows out. Rows are
sorted into batches of few shapes and split over the mesh, and the head is
computed for scored tokens alone. `TextScorer` cuts texts into such rows.

B batch, T time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tokenizers
from etils import epath
from jax.sharding import Mesh

from miniplm_jax.config import DocumentsConfig
from miniplm_jax.core import fields
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress
from miniplm_jax.corpus import batching
from miniplm_jax.corpus import tokenizer as tokenizer_lib
from miniplm_jax.models import (
  generation,
  hub,
  huggingface,
  likelihood,
  placement,
  sharding,
)
from miniplm_jax.models.decoder import Decoder

# Rows are padded to the least of these: four to an octave, so that a tenth of
# the work is padding.
_LENGTHS = [(4 + i) * 2**octave for octave in range(2, 20) for i in range(4)]
_LEAST_TOKENS = 1024  # of a batch: less work than this is not split
_MAX_LENGTH = 2048  # of a model that does not say its own, as in lm_eval


@dataclasses.dataclass(frozen=True)
class TextModel:
  """A decoder with its tokenizer, on a mesh."""

  decoder: Decoder
  engine: tokenizers.Tokenizer
  mesh: Mesh
  folder: epath.Path  # that both are of
  dtype: str  # of weights and computation
  end_id: int | None  # ends a text; None if nobody says
  bos_id: int | None  # begins a text; None if texts follow the eot_id
  eos_ids: tuple[int, ...] = ()  # of generation_config.json or config.json

  @classmethod
  def load(cls, folder: epath.Path, mesh: Mesh, dtype: str) -> "TextModel":
    """Reads a directory; of a hub id, see `hub.resolve`.

    Raises:
      UserError: it is no model with a fast tokenizer.
    """
    engine = tokenizer_lib.load_engine(folder)
    decoder = huggingface.load(folder, mesh, jnp.dtype(dtype))
    eos_ids, end_id = hub.eos_ids(folder), _special(folder, engine, "eos_token")
    return cls(
      decoder=decoder,
      engine=engine,
      mesh=mesh,
      folder=folder,
      dtype=dtype,
      end_id=next(iter(eos_ids), None) if end_id is None else end_id,
      bos_id=_special(folder, engine, "bos_token"),
      eos_ids=eos_ids,
    )

  @property
  def eot_id(self) -> int:
    """The id that ends a text.

    Raises:
      UserError: there is none.
    """
    if self.end_id is None:
      raise UserError(
        "no end-of-text token",
        str(self.folder),
        "give eos_token in tokenizer_config.json",
      )
    return self.end_id

  @property
  def first_id(self) -> int:
    """The id that a text without context follows; raises as `eot_id`."""
    return self.eot_id if self.bos_id is None else self.bos_id

  def own_ids(self, ids: Sequence[int]) -> Sequence[int]:
    """A text's ids without a BOS; an end of text in front is the text's own."""
    is_bos = self.first_id != self.end_id and list(ids[:1]) == [self.first_id]
    return ids[1:] if is_bos else ids

  @functools.cached_property
  def special_ids(self) -> frozenset[int]:
    """The ids that stand for no text."""
    added = self.engine.get_added_tokens_decoder().items()
    return frozenset(i for i, token in added if token.special)


def _special(folder: epath.Path, engine, name: str) -> int | None:
  """The id of a token that tokenizer_config.json names."""
  path = folder / "tokenizer_config.json"
  token = hub.read_json(path).get(name) if path.exists() else None
  if isinstance(token, dict):
    token = token["content"]
  return engine.token_to_id(token) if token else None


class TextScore(NamedTuple):
  """What a model says of one text."""

  nll_sum: float | None  # Σ −log p of its tokens, in nats; None has a reason
  n_tokens: int | None  # all of them are scored
  n_bytes: int  # of its UTF-8
  reason: str | None = None  # why it has no score, in words

  @property
  def bits_per_byte(self) -> float | None:
    """What each byte takes, whatever the tokenizer."""
    if self.nll_sum is None:
      return None
    return self.nll_sum / (math.log(2) * self.n_bytes)


class TextScorer:
  """Scores whole texts, each after the model's BOS or end of text."""

  def __init__(
    self, model: TextModel, how: DocumentsConfig, score: "RowScorer"
  ):
    """Cuts as `how` says, see `windows`; the rows are scored under `model`."""
    self._model, self._score = model, score
    self.max_length = how.max_length or max_length_of(model.decoder)
    self._overlap = fields.of(how.overlap, self.max_length)

  def __call__(self, texts: Sequence[str]) -> list[TextScore]:
    """The scores, or the reasons why there is none."""
    model = self._model
    encoded = model.engine.encode_batch(texts, add_special_tokens=False)
    encoded = [model.own_ids(encoding.ids) for encoding in encoded]
    reasons = list(map(self._reason, texts, encoded))
    cut = (model.first_id, self.max_length, self._overlap)
    totals = self._score.sums(
      () if reason else windows(ids, *cut)
      for ids, reason in zip(encoded, reasons)
    )
    scores = []
    for text, ids, total, reason in zip(texts, encoded, totals, reasons):
      if not np.isfinite(total):
        reason = f"its −log p is {total}: the weights hold NaN or overflow"
      known = (None, None) if reason else (total, len(ids))
      scores.append(TextScore(*known, len(text.encode()), reason))
    return scores

  def _reason(self, text: str, ids: Sequence[int]) -> str | None:
    """Why a text has no score, before it is computed."""
    if not text:
      return "it is empty"
    if not ids:
      return "it has no token"
    if self._model.special_ids.issuperset(ids):
      return "it has only special tokens"
    if max(ids) >= (most := self._model.decoder.arch.vocab_size):
      return f"the tokenizer's id {max(ids)} is beyond the model's {most:,}"
    return None


def windows(
  ids: Sequence[int], first: int, size: int, overlap: int = 0
) -> Iterator[tuple[list[int], list[int]]]:
  """Cuts a text into (context, targets) that make up rows of `size` inputs.

  Each id is a target once. A target sees those before it in its window: of the
  first one `first`, of later ones `overlap` ids and the one before the targets,
  and of the last, which may have few targets, as many as there is room for.
  Without overlap these are lm_eval's rolling windows, with it those of a
  context_len of one more.
  """
  start, end = 0, min(size, len(ids))
  while start < end:
    context = [first] if start == 0 else ids[end - size - 1 : start]
    yield list(context), list(ids[start:end])
    start, end = end, min(end + size - overlap, len(ids))


def max_length_of(model: Decoder) -> int:
  """Inputs of a row at most, as a `Decoder` says; Mamba has no bound."""
  own = getattr(model.arch, "max_position_embeddings", None)
  return own or _MAX_LENGTH


class RowScorer:
  """Scores the ends of rows of ids; one compilation per shape of a batch."""

  def __init__(
    self,
    model: TextModel,
    batch_tokens: int,
    log_every_seconds: float = 30.0,
    stage: str = "evaluate",
  ):
    """Compiles nothing yet; a batch has so many inputs over all devices."""
    self._mesh, self._every = model.mesh, log_every_seconds
    self._stage = stage
    self.batch_tokens = batching.tokens_of(batch_tokens, model.mesh)
    self._score = functools.partial(
      _program(model.mesh, model.dtype), model.decoder
    )

  def __call__(
    self,
    rows: Sequence[Sequence[int]],
    scored: Sequence[int],
    where: Sequence[str] = (),
  ) -> list[tuple[float, bool]]:
    """Σ −log p of the last ids of each row, and whether all are greedy's.

    Args:
      rows: their ids.
      scored: how many at the end of each are scored; 1 or more, fewer than
        the row has.
      where: names of the rows, for messages; without, what is not finite is
        returned as it is.

    Raises:
      UserError: a log-prob is not finite.
    """
    if not rows:
      return []
    inputs = np.array([len(row) - 1 for row in rows], np.int64)
    size = self.batch_tokens
    while size > _LEAST_TOKENS and inputs.sum() < 4 * size:
      size //= 2  # a batch of empty rows takes as long as a full one
    shards = sharding.batch_shards(self._mesh)
    planned = batching.plan(inputs, lengths(inputs.max()), size, shards)
    answers: list[Any] = [None] * len(rows)
    batches = (
      (b.places, placement.own_rows(_padded(b, rows, scored), self._mesh))
      for b in planned
    )
    done = placement.run_rows(self._score, batches, self._mesh)
    with Progress(self._stage, len(rows), "rows", every=self._every) as bar:
      for places, (nll_BxT, is_greedy_B) in done:
        total_B = nll_BxT.sum(-1, dtype=np.float64)
        for place, total, is_greedy in zip(places, total_B, is_greedy_B):
          if where and not np.isfinite(total):
            raise UserError(
              f"the log-probability of a text is {-total}",
              where[place],
              "the model's weights hold NaN or overflow; try float32",
            )
          answers[place] = float(total), bool(is_greedy)
        bar.update(len(places))
    return answers

  def sums(
    self,
    cut: Iterable[Iterable[tuple[list[int], list[int]]]],
    where: Sequence[str] = (),
  ) -> list[float]:
    """Σ −log p in nats of the targets of texts, each cut as by `windows`.

    `where` are names of the texts; for them and for errors see `__call__`.
    """
    rows, scored, owners, sums = [], [], [], []
    for i, windows_of_text in enumerate(cut):
      sums.append(0.0)
      for context, targets in windows_of_text:
        rows.append(np.array(context + targets, np.int32))
        scored.append(len(targets))
        owners.append(i)
    names = [where[i] for i in owners] if where else ()
    for i, (nll_sum, _) in zip(owners, self(rows, scored, names)):
      sums[i] += nll_sum
    return sums


@functools.lru_cache(8)
def _program(mesh: Mesh, dtype: str):
  """One for all models: those of one shape are compiled once."""
  function = functools.partial(
    likelihood.continuation_nll, dtype=jnp.dtype(dtype)
  )
  return placement.program(function, mesh)


def write(
  model: TextModel,
  rows: Sequence[Sequence[int]],
  numbers: Sequence[int],
  batch_tokens: int,
  where: Callable[[int], str],
  **settings: Any,
) -> Iterator[tuple[int, list[int]]]:
  """What a model writes after rows of ids.

  Args:
    numbers: of the rows, which seed what is drawn.
    batch_tokens: prompts and new tokens of a batch over all devices.
    where: a row's number → its name, for an error.
    **settings: `sampling`, `seed` and `eos_ids` of `generation.generate`.

  Yields:
    A row's number and its new ids, the end among them.

  Raises:
    UserError: the logits are not finite.
  """
  program = _writer(
    model.mesh,
    # The tokenizer may know fewer ids than the head has rows.
    vocabulary=min(
      tokenizer_lib.vocab_size(model.engine), model.decoder.arch.vocab_size
    ),
    dtype=jnp.dtype(model.dtype),
    **settings,
  )
  new = settings["sampling"].max_new_tokens
  batches = _prompts(rows, numbers, new, batch_tokens, model.mesh)
  run = functools.partial(program, model.decoder)
  for drawn in placement.run_rows(run, batches, model.mesh):
    for number, ids, n, is_finite in zip(drawn.row_B.tolist(), *drawn.values):
      if not is_finite:
        hint = "its weights hold NaN or overflow; try float32"
        what = "the model's logits are not finite"
        raise UserError(what, where(number), hint)
      yield number, ids[:n].tolist()


@functools.lru_cache(8)
def _writer(mesh: Mesh, **settings: Any):
  """As `generation.compiled`; models of one shape share it."""
  return generation.compiled(mesh, **settings)


def _prompts(rows, numbers, new: int, batch_tokens: int, mesh: Mesh):
  """Batches of rows that `new` tokens follow, as `run_rows` takes them."""
  # The longest first, so that rows of a batch are of like length.
  order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
  shards, start = sharding.batch_shards(mesh), 0
  batch_tokens = batching.tokens_of(batch_tokens, mesh)
  while start < len(order):
    (length,) = lengths(len(rows[order[start]]))[-1:]
    most = max(batch_tokens // (length + new) // shards, 1) * shards
    chosen = order[start : start + most]
    start += most
    # Powers of two: few shapes.
    size = min(most, shards << (-(-len(chosen) // shards) - 1).bit_length())
    of_batch = [numbers[i] for i in chosen]
    batch = generation.pad_left(
      [rows[i] for i in chosen], size, length, of_batch
    )
    yield np.array(of_batch), placement.own_rows(batch, mesh)


def lengths(longest: int) -> list[int]:
  """Returns the lengths that rows are padded to; the last holds the longest."""
  (last,) = [n for n in _LENGTHS if n >= longest][:1]
  return [n for n in _LENGTHS if n <= last]


def _padded(batch, rows, scored) -> dict[str, np.ndarray]:
  """A planned batch for `likelihood.continuation_nll`, with its numbers."""
  ids = [rows[place] for place in batch.places]
  n_scored = np.zeros(batch.size, np.int32)
  n_scored[: len(ids)] = [scored[place] for place in batch.places]
  row = np.full(batch.size, -1, np.int32)
  row[: len(ids)] = batch.places
  padded = batching.pad(ids, batch.length, 0, batch.size)
  return padded | {"scored": n_scored, placement.ROW: row}
