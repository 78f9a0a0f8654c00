"""How far a student q is from its teacher p, by what each of them writes.

MiniPLM is derived as a minimization of the reverse KL(q ‖ p) = E_q [log q −
log p] (arXiv 2410.17215, section 2.2); the forward one is E_p [log p − log q].
Expectations are means over samples that are drawn at temperature 1.

Where ids mean the same to both models, they are scored as they were drawn.
Otherwise both read a sample's text up to the first byte that is no UTF-8, each
by its own canonical ids. The end of a text is one more token of it, of no
byte, if it was drawn. What a text starts with is given and not scored; see
docs/evaluation.md.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest

with epy.lazy_imports():
  from miniplm_jax.corpus import fast_bpe, store
  from miniplm_jax.evaluation import texts
  from miniplm_jax.models import generation

MANIFEST = "divergence.json"  # beside a student's own
_LETTERS = 40  # of a start at most: a word may be as long as its row
_BROKEN = "\ufffd"  # in a decoded text, bytes that are no UTF-8


class Estimate(NamedTuple):
  """A mean with its 95 % interval: Student's t, over samples."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Divergence:
  """What `measure` gives; in bits per UTF-8 byte, or nats per token of q."""

  reverse_kl: Estimate  # bits per byte of what the student wrote
  forward_kl: Estimate  # bits per byte of what the teacher wrote
  forward_nll: Estimate  # the student's loss on that, bits per byte
  forward_nll_per_token: Estimate  # nats
  # nats; None where ids do not mean the same to both
  reverse_kl_per_token: Estimate | None
  forward_kl_per_token: Estimate | None
  samples: int  # of each model
  tokens: int  # of the student's samples, in its ids
  n_bytes: int  # of their text
  ended: float  # the share of its samples that the student ended itself
  not_canonical: float  # that of those whose text is encoded as other ids

  @classmethod
  def of(cls, measured: Manifest) -> "Divergence":
    """Reads a student's divergence.json."""
    facts = measured.details["divergence"]
    lists = {k: v for k, v in facts.items() if isinstance(v, list)}
    return cls(**facts | {k: Estimate(*v) for k, v in lists.items()})


class Sample(NamedTuple):
  """What a model wrote after a start."""

  start: str  # text
  ids: list[int]  # without the end
  is_ended: bool
  text: str  # of the ids

  @property
  def n_bytes(self) -> int:
    """UTF-8 of the text; what is none counts as one byte."""
    return len(self.text.replace(_BROKEN, "?").encode())

  def readable(self) -> "Sample":
    """It, up to the first byte that is no UTF-8."""
    text, broken, _ = self.text.partition(_BROKEN)
    return self._replace(text=text, is_ended=self.is_ended and not broken)


class Reader:
  """A model that writes samples, and scores what was written."""

  def __init__(
    self,
    model: "texts.TextModel",
    max_length: int = 0,
    batch_tokens: int = 16_384,
    every: float = 30.0,
  ):
    """`max_length` are inputs of a row; 0 is what the model says."""
    self.model = model
    self.max_length = max_length or texts.max_length_of(model.decoder)
    self._batch_tokens = batch_tokens
    self._score = texts.RowScorer(model, batch_tokens, every)

  @functools.cached_property
  def meaning(self) -> tuple[Any, ...]:
    """What ids mean: the same of two models whose ids are exchanged."""
    engine = self.model.engine
    merges = json.loads(engine.to_str())["model"].get("merges", ())
    vocabulary = engine.get_vocab(with_added_tokens=True)
    ends = self.model.first_id, self.model.eot_id
    return vocabulary, fast_bpe.pairs(merges), ends

  def write(
    self, starts: Sequence[str], samples: int, tokens: int, seed: int
  ) -> list[Sample]:
    """Draws samples, each of `tokens` ids at most, or as many as a row has.

    Those of one seed depend on their number alone, not on each other.

    Raises:
      UserError: a start leaves no room, or the logits are not finite.
    """
    model = self.model
    rows = [self._context(starts[i % len(starts)]) for i in range(samples)]
    tokens = min(tokens, self.max_length + 1 - max(map(len, rows)))
    if tokens < 1:
      what = f"a start leaves no room in {self.max_length:,} inputs"
      raise UserError(what, str(model.folder), "give shorter ones")
    written: list[Any] = [None] * samples
    for i, ids in texts.write(
      model,
      rows,
      range(samples),
      self._batch_tokens,
      lambda _: str(model.folder),
      sampling=generation.Sampling(tokens),
      seed=seed,
      eos_ids=(model.eot_id,),
    ):
      is_ended = ids[-1] == model.eot_id
      ids = ids[: len(ids) - is_ended]
      written[i] = self.sample(starts[i % len(starts)], ids, is_ended)
    return written

  def sample(self, start: str, ids: Sequence[int], is_ended: bool) -> Sample:
    """What was drawn, with its text."""
    # Together: alone, some tokenizers take the first space away.
    before, decode = self._context(start)[1:], self.model.engine.decode
    text = decode([*before, *ids])[len(decode(before)) :]
    return Sample(start, list(ids), is_ended, text)

  def is_canonical(self, sample: Sample) -> bool:
    """Whether its ids, drawn here, are those that its text is encoded as."""
    ids = self._ids(sample.readable(), by_text=True)
    ids = ids[: len(ids) - sample.readable().is_ended]
    return sample.ids[: len(ids)] == ids

  def nll(
    self, samples: Sequence[Sample], by_text: bool
  ) -> tuple[np.ndarray, np.ndarray]:
    """Σ -log p of each sample in nats, float64 [n]; its tokens, int64 [n].

    `by_text`, their text is encoded here; else their ids are taken.
    """
    contexts = [self._context(sample.start) for sample in samples]
    ids = [self._ids(sample, by_text) for sample in samples]
    most = self.model.decoder.arch.vocab_size
    read = map(max, [*contexts, *filter(None, ids)])
    if (highest := max(read, default=0)) >= most:
      what = f"the tokenizer's id {highest} is beyond the model's {most:,}"
      raise UserError(what, str(self.model.folder), "give another model")
    where = [f"sample {i}, {self.model.folder}" for i in range(len(samples))]
    nll_sum = self._score.sums(map(self._cut, contexts, ids), where)
    return np.array(nll_sum), np.array(list(map(len, ids)))

  def _cut(self, context, ids) -> Iterator[tuple[list[int], list[int]]]:
    """Windows over both, in which only `ids` are targets."""
    given, size = len(context) - 1, self.max_length
    whole = [*context[1:], *ids]
    for before, targets in texts.windows(whole, context[0], size, size // 2):
      start = min(given, len(targets))
      given -= start
      if targets[start:]:
        yield before + targets[:start], targets[start:]

  def _context(self, start: str) -> list[int]:
    return [self.model.first_id, *self._encode(start)]

  def _encode(self, text: str) -> list[int]:
    ids = self.model.engine.encode(text, add_special_tokens=False).ids
    return list(self.model.own_ids(ids))

  def _ids(self, sample: Sample, by_text: bool) -> list[int]:
    """The ids to score, with the end if there is one."""
    ids = sample.ids
    if by_text:
      before, whole = (
        self._encode(text)
        for text in (sample.start, sample.start + sample.text)
      )
      # A word that goes on with the start's last one is encoded alone.
      joins = whole[: len(before)] == before
      ids = whole[len(before) :] if joins else self._encode(sample.text)
    return [*ids, *[self.model.eot_id] * sample.is_ended]


class Teacher:
  """A teacher, and what it wrote: the same for all of its students."""

  def __init__(self, reader: Reader, written: Sequence[Sample]):
    self.reader, self.written = reader, written
    self._nll: dict[bool, np.ndarray] = {}

  def own_nll(self, by_text: bool) -> np.ndarray:
    """Its Σ -log p of what it wrote, float64 [samples]; computed once."""
    if by_text not in self._nll:
      written = _as_read(self.written, by_text)
      self._nll[by_text], _ = self.reader.nll(written, by_text)
    return self._nll[by_text]


def measure(
  student: Reader, teacher: Teacher, tokens: int, seed: int
) -> Divergence:
  """Draws as many samples of the student, and compares the two models.

  Raises:
    UserError: see `Reader`; or no sample has text.
  """
  q, p = student, teacher.reader
  by_text = q.meaning != p.meaning
  starts = [sample.start for sample in teacher.written]
  drawn = q.write(starts, len(starts), tokens, seed)
  own, theirs = (_as_read(x, by_text) for x in (drawn, teacher.written))
  q_own, n_own = q.nll(own, by_text)
  q_theirs, n_theirs = q.nll(theirs, by_text)
  reverse = p.nll(own, by_text)[0] - q_own
  forward = q_theirs - teacher.own_nll(by_text)
  bytes_own, bytes_theirs = (
    np.array([sample.n_bytes for sample in each]) for each in (own, theirs)
  )
  for reader, each in (q, bytes_own), (p, bytes_theirs):
    if not each.any():
      what = f"none of {len(own)} samples has text: all end at once"
      hint = "give starts that its texts have"
      raise UserError(what, str(reader.model.folder), hint)

  def per_byte(nats, n_bytes) -> Estimate:
    return ratio(nats / math.log(2), n_bytes)

  return Divergence(
    reverse_kl=per_byte(reverse, bytes_own),
    forward_kl=per_byte(forward, bytes_theirs),
    forward_nll=per_byte(q_theirs, bytes_theirs),
    forward_nll_per_token=ratio(q_theirs, n_theirs),
    reverse_kl_per_token=None if by_text else ratio(reverse, n_own),
    forward_kl_per_token=None if by_text else ratio(forward, n_theirs),
    samples=len(own),
    tokens=int(n_own.sum()),
    n_bytes=int(bytes_own.sum()),
    ended=np.mean([s.is_ended for s in drawn]).item(),
    not_canonical=np.mean([not q.is_canonical(s) for s in drawn]).item(),
  )


def ratio(values: np.ndarray, units: np.ndarray) -> Estimate:
  """Σ values / Σ units of samples [n], with its interval.

  Student's t with n − 1 degrees of freedom, of the linearized ratio (Cochran
  1977, section 6.4): a long sample counts as much as it has units.
  """
  from scipy import stats

  n, total = len(values), units.sum()
  value = values.sum() / total
  rest = values - value * units
  error = math.sqrt(n / (n - 1) * (rest**2).sum()) / total
  reach = float(stats.t.ppf(0.975, n - 1)) * error
  return Estimate(float(value), float(value - reach), float(value + reach))


def first_words(
  corpus: "store.Corpus", most: int, ignored: Sequence[str] = ()
) -> list[str]:
  """The first words of held-out rows, evenly spaced: what samples start with.

  Raises:
    UserError: there are no held-out rows.
  """
  tokenizer = corpus.tokenizer()
  apart = (_BROKEN, tokenizer.eos_token, tokenizer.bos_token or _BROKEN)
  starts = []
  for row in corpus.read(corpus.heldout_rows(most, ignored)):
    text = tokenizer.decode(row.ids)
    for mark in apart:
      text = text.replace(mark, " ")
    starts += [word[:_LETTERS] for word in text.split()[:1]]
  if not starts:
    hint = "raise corpus.heldout_share"
    raise UserError("there are no held-out rows", str(corpus.directory), hint)
  return starts


def _as_read(samples: Sequence[Sample], by_text: bool) -> list[Sample]:
  return [s.readable() if by_text else s for s in samples]
