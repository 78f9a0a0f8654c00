"""Hashed n-gram models: they score rows on a CPU, by the counts of a text.

method: DSIR (arXiv 2302.03169) as its package `data-selection` has it: uni- and
bigrams are hashed into buckets, and −log p of one is −log(its bucket's share of
all + 1e-8). Here they are of a row's ids, not of words, and none spans the end
of a document. A row's Σ is over both; its token count is that of any table.
"""

import dataclasses
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath, epy

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import code, distributed, errors, fields, files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.splitmix import mix
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus import sources
from miniplm_jax.corpus.chunks import Chunk
from miniplm_jax.corpus.formats import Fields

with epy.lazy_imports():
  from miniplm_jax.core import claims
  from miniplm_jax.corpus import shard, store
  from miniplm_jax.scoring import scorer

PREFIX = "ngram:"
COUNTS = "ngram-*.npy"  # beside a table: what its model counted
_SMOOTHING = 1e-8
# Rows of a split that are counted at most, evenly spaced: minutes of one core.
# The package stops at 10⁹ n-grams.
_MOST = 1 << 20
_AT_A_TIME = 256  # rows; what is computed of them stays in the cache


@dataclasses.dataclass(frozen=True)
class NgramRef:
  """An n-gram model: what it counts, and what it is known by.

  It is an input of its table's step, whose fingerprint is that of the text.
  """

  name: str  # of its score table
  path: str  # a split of the corpus, or text as corpus.source may name some
  table: epath.Path  # its score table, which may not exist yet
  corpus: epath.Path  # the manifest of what is scored
  # What other models have, see `ModelRef`.
  role = scores = ""

  @classmethod
  def named(
    cls, text: str, workdir: Workdir, corpus: epath.Path
  ) -> "NgramRef | None":
    """That of NAME=ngram:PATH in config.score.more; None if it is another."""
    name, is_ngram, path = text.partition(f"={PREFIX}")
    return cls(name, path, workdir.scores(name), corpus) if is_ngram else None

  @property
  def is_split(self) -> bool:
    """Whether it counts rows of the corpus."""
    return self.path in store.SPLITS

  def __call__(self) -> str:
    """The fingerprint of what it counts; a text is read for it."""
    if self.is_split:
      return files.digest([PREFIX, self.path])
    contents = (c.content() or c.probe.fingerprint for c in self.chunks())
    return files.digest(list(contents))

  def section(self) -> CorpusConfig:
    """How the text is read: as that of the corpus, from another source."""
    settings = manifest_lib.require(self.corpus).settings
    names = settings.keys() & fields.rules_of(CorpusConfig)
    known = {name: settings[name] for name in names}
    return CorpusConfig(**known | {"source": self.path, "tokenizer": "its own"})

  def chunks(self) -> list[Chunk]:
    """The chunks of the text.

    Raises:
      UserError: there is none.
    """
    c, splits = self.section(), ", ".join(store.SPLITS)
    field = f"config.score.more={self.name}={PREFIX}"
    words = {"config.corpus.source=": field, "give ": f"give {splits}; or "}
    with errors.renaming(words):
      return sources.list_chunks(
        c.source,
        Fields(c.text_field, c.domain_field),
        c.split,
        c.part_bytes,
        self.corpus.parent.parent,
      )


class Buckets:
  """Which buckets the n-grams of rows fall into."""

  def __init__(self, corpus: "store.Corpus", buckets: int):
    """Hashes every id: alone, as the first and as the second of two."""
    self._none, self._buckets = buckets, np.uint64(buckets)
    vocab = corpus.manifest.details["vocab_size"]
    kinds = np.arange(3, dtype=np.uint64)[:, None] << np.uint64(32)
    alone, *self._pair = mix(np.arange(vocab, dtype=np.uint64) + kinds)
    self._alone = self._of(alone)
    special = [i for i in (corpus.eos_id, corpus.bos_id) if i is not None]
    self._alone[special] = buckets

  def _of(self, hashes):
    """By the upper half of a hash: a division would be slower."""
    scaled = (hashes >> np.uint64(32)) * self._buckets
    return (scaled >> np.uint64(32)).astype(np.intp)

  def __call__(
    self, ids: np.ndarray, starts: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bucket of each id, and of it with the id before it.

    Args:
      ids: [n], of rows one after another.
      starts: where each row begins.

    Returns:
      [n] and [n]; the number of buckets stands where there is no n-gram.
    """
    alone, (first, second) = self._alone[ids], self._pair
    both = np.full(len(ids), self._none)
    with np.errstate(over="ignore"):  # modulo 2⁶⁴ is meant
      both[1:] = self._of(first[ids[:-1]] + second[ids[1:]])
    is_none = alone == self._none
    both[1:][is_none[1:] | is_none[:-1]] = self._none
    both[starts] = self._none
    return alone, both


def _joined(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  lengths = [len(ids) for ids in rows]
  return np.concatenate(rows), np.cumsum([0, *lengths[:-1]])


def count(rows: Iterable[Sequence[np.ndarray]], of: Buckets, buckets: int):
  """How often each bucket is met, int64 [buckets], in batches of rows."""
  counts = np.zeros(buckets + 1, np.int64)
  for batch in rows:
    distributed.raise_if_stopped()
    for places in of(*_joined(batch)):
      counts += np.bincount(places, minlength=buckets + 1)
  return counts[:-1]


def _rows(
  ref: NgramRef, corpus: "store.Corpus", max_broken: int
) -> Iterator[list[np.ndarray]]:
  """What a model counts, in batches."""
  if ref.is_split:
    row_ids = corpus.rows_of(ref.path)
    row_ids = row_ids[:: fields.stride(len(row_ids), _MOST)]
    for start in range(0, len(row_ids), _AT_A_TIME):
      rows = corpus.read(row_ids[start : start + _AT_A_TIME])
      yield [row.ids for row in rows]
    return
  of_rows = ref.section().replace(bos_token=corpus.tokenizer().bos_token)
  recipe = shard.Recipe(of_rows, (), str(corpus.directory), max_broken)
  maker = shard.Maker(recipe, lambda unused_bytes: None)
  for chunk in ref.chunks():
    yield from maker.documents(chunk)


def counts_of(
  ref: NgramRef,
  text: str,
  corpus: "store.Corpus",
  buckets: int,
  max_broken: int,
) -> np.ndarray:
  """What a model has counted, int64 [buckets]: once, beside its table.

  Args:
    ref: the model.
    text: the fingerprint of what it counts.
    corpus: whose tokenizer makes ids of it.
    buckets: how many there are.
    max_broken: records of the text that may be left out.

  Raises:
    UserError: there is no text, or it cannot be read.
  """
  about = [text, buckets, corpus.manifest.fingerprint]
  path = ref.table / COUNTS.replace("*", files.digest(about)[:12])

  def counted():
    if not path.exists():
      of, content = Buckets(corpus, buckets), io.BytesIO()
      counts = count(_rows(ref, corpus, max_broken), of, buckets)
      if not counts.any():
        hint = "give another text, or a split that has rows"
        what = "there is no n-gram to count"
        raise UserError(what, f"{ref.name}={PREFIX}{ref.path}", hint)
      log("score", f"{ref.name}: {counts.sum():,} n-grams of {ref.path}")
      np.save(content, counts)
      claims.publish(path, content.getvalue())
    with errors.parsing(path, "remove it: it is counted again"):
      return np.load(io.BytesIO(path.read_bytes())).tolist()

  return np.array(distributed.agree(counted), np.int64)


def made_by(corpus: "store.Corpus", counts: np.ndarray) -> dict[str, str]:
  """Returns what each part says it was scored with."""
  return {
    "weights": files.digest(counts.tolist()),
    "tokenizer": corpus.manifest.tokenizer,
    "code": code.fingerprint(("scoring/ngram.py",), "numpy"),
  }


class NgramScorer:
  """Scores rows under n-gram models, as `Scorer` does under decoders."""

  dtype = "float32"  # of the sums, by which their tolerance is chosen
  shapes = frozenset()  # nothing is compiled

  def __init__(
    self, corpus: "store.Corpus", models: Mapping[str, np.ndarray], buckets: int
  ):
    """Takes the counts of each model, [buckets], by its name."""
    self._corpus, self._of = corpus, Buckets(corpus, buckets)
    self._nll = {
      name: np.append(-np.log(counts / counts.sum() + _SMOOTHING), 0.0)
      for name, counts in models.items()
    }

  def __call__(
    self,
    row_ids: np.ndarray,
    names: Sequence[str] | None = None,
    progress: Callable[[int], Any] = lambda rows: None,
  ) -> "tuple[dict[str, np.ndarray], np.ndarray, scorer.Effort]":
    """See `Scorer`."""
    start, waited = time.perf_counter(), 0.0
    sums = {n: np.zeros(len(row_ids), np.float32) for n in names or self._nll}
    n_tokens = np.zeros(len(row_ids), np.int32)
    for first in range(0, len(row_ids), _AT_A_TIME):
      distributed.raise_if_stopped()
      part, begin = slice(first, first + _AT_A_TIME), time.perf_counter()
      rows = self._corpus.read(row_ids[part])
      waited += time.perf_counter() - begin
      ids, starts = _joined([row.ids for row in rows])
      alone, both = self._of(ids, starts)
      for name, total in sums.items():
        nll = self._nll[name]
        total[part] = np.add.reduceat(nll[alone] + nll[both], starts)
      # As `likelihood.loss_mask`: not the last, and no end of a document.
      is_scored = (ids != self._corpus.eos_id).astype(np.int32)
      is_scored[np.append(starts[1:], len(ids)) - 1] = 0
      n_tokens[part] = np.add.reduceat(is_scored, starts)
      progress(len(rows))
    tokens = int((self._corpus.lengths[row_ids] - 1).sum())
    seconds = time.perf_counter() - start
    return sums, n_tokens, scorer.Effort(seconds, waited, tokens, tokens)


def rescorer(
  ref: NgramRef, corpus: "store.Corpus", table: Manifest, max_broken: int
) -> NgramScorer:
  """Makes what scores a table's rows again.

  Raises:
    UserError: it is another model than the table says.
  """
  text, buckets = table.inputs["text"], table.settings["ngram_buckets"]
  counts = None
  if table.fingerprint_by("text", ref) == text:
    counts = counts_of(ref, text, corpus, buckets, max_broken)
  if counts is None or made_by(corpus, counts)["weights"] != table.weights:
    raise UserError(
      f"{ref.name} was scored by the counts of another text",
      f"{PREFIX}{ref.path}",
      "give the text that it counted, or score again with --stages=score "
      "--force",
    )
  return NgramScorer(corpus, {ref.name: counts}, buckets)
