"""Hashed n-gram models: they score rows on a CPU, by the counts of a text.

method: DSIR (arXiv 2302.03169) as its package `data-selection` has it: uni- and
bigrams are hashed into buckets, and −log p of one is −log(its bucket's share of
all + 1e-8). Here they are of a row's ids, not of words, and none spans the end
of a document. A row's Σ is over both; its token count is that of any table.
"""

import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath, epy

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import code, distributed, errors, fields, files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.noise import mix
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus import sources
from miniplm_jax.corpus.chunks import Chunk

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
  role = scores = ""  # what other models may have, see `ModelRef`

  @classmethod
  def named(
    cls, text: str, workdir: Workdir, corpus: epath.Path
  ) -> "NgramRef | None":
    """That of NAME=ngram:PATH in config.score.more; None if it is another."""
    name, is_ngram, path = text.partition(f"={PREFIX}")
    return cls(name, path, workdir.scores(name), corpus) if is_ngram else None

  @property
  def origin(self) -> str:
    """What it counts, for people."""
    return f"by n-grams of {self.path}"

  def as_input(self) -> "NgramRef":
    """Itself: what it is called for is known before anything is counted."""
    return self

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
    own = {"source": self.path, "tokenizer": "its own"}
    own |= {"fields": (), "id_field": "", "split_field": ""}
    return CorpusConfig(**{name: settings[name] for name in names} | own)

  def chunks(self) -> list[Chunk]:
    """The chunks of the text; raises UserError if there is none."""
    field = f"config.score.more={self.name}={PREFIX}"
    also = f"give {', '.join(store.SPLITS)}; or "
    words = {r"config\.corpus\.source=": field, "give ": also}
    with errors.rewording(words):
      return sources.list_chunks(self.section(), self.corpus.parent.parent)


class NgramScorer:
  """Scores rows under n-gram models, as `Scorer` does under decoders."""

  dtype = "float32"  # of the sums, by which their tolerance is chosen
  shapes = frozenset()  # nothing is compiled

  def __init__(
    self,
    texts: Mapping[NgramRef, str],
    corpus: "store.Corpus",
    buckets: int,
    max_broken: int,
  ):
    """Counts what was not counted yet.

    Args:
      texts: the models, with the fingerprint of what each counts.
      corpus: of the rows; its tokenizer makes ids of text.
      buckets: how many n-grams are hashed into.
      max_broken: records of a text that may be left out.

    Raises:
      UserError: there is no text, or it cannot be read.
    """
    self._corpus, self._buckets = corpus, buckets
    # Hashes of every id: alone, as the first and as the second of two.
    ids = np.arange(corpus.manifest.details["vocab_size"], dtype=np.uint64)
    kinds = np.arange(3, dtype=np.uint64)[:, None] << np.uint64(32)
    alone, *self._pair = mix(ids + kinds)
    self._alone = self._bucket(alone)
    special = [i for i in (corpus.eos_id, corpus.bos_id) if i is not None]
    self._alone[special] = buckets
    self._counts = {
      ref.name: self._counted(ref, text, max_broken)
      for ref, text in texts.items()
    }
    self._nll = {
      name: np.append(-np.log(counts / counts.sum() + _SMOOTHING), 0.0)
      for name, counts in self._counts.items()
    }

  def _bucket(self, hashes):
    """By the upper half of a hash: a division would be slower."""
    scaled = (hashes >> np.uint64(32)) * np.uint64(self._buckets)
    return (scaled >> np.uint64(32)).astype(np.intp)

  def _ngrams(self, rows: Sequence[np.ndarray]):
    """Rows one after another, and the buckets that their n-grams fall into.

    Returns:
      ids int32 [n]; where each row begins; the bucket of each id, and of the
      pair that it ends, int [n] each: one more than there are for none.
    """
    ids, starts = np.concatenate(rows), np.cumsum([0, *map(len, rows[:-1])])
    alone, (first, second) = self._alone[ids], self._pair
    both = np.full(len(ids), self._buckets)
    with np.errstate(over="ignore"):  # modulo 2⁶⁴ is meant
      both[1:] = self._bucket(first[ids[:-1]] + second[ids[1:]])
    is_none = alone == self._buckets
    both[1:][is_none[1:] | is_none[:-1]] = self._buckets
    both[starts] = self._buckets
    return ids, starts, alone, both

  def _counted(self, ref: NgramRef, text: str, max_broken: int) -> np.ndarray:
    """How often each bucket is met, int64 [buckets]; counted once.

    The file is named by the text, the buckets and the corpus.
    """
    about = [text, self._buckets, self._corpus.manifest.fingerprint]
    path = ref.table / COUNTS.replace("*", files.digest(about)[:12])

    def counted():
      if not path.exists():
        counts, content = np.zeros(self._buckets + 1, np.int64), io.BytesIO()
        for rows in self._rows(ref, max_broken):
          distributed.raise_if_stopped()
          for buckets in self._ngrams(rows)[2:]:
            counts += np.bincount(buckets, minlength=len(counts))
        if not (n := counts[:-1].sum()):
          hint = "give another text, or a split that has rows"
          what = "there is no n-gram to count"
          raise UserError(what, f"{ref.name}={PREFIX}{ref.path}", hint)
        log("score", f"{ref.name}: {n:,} n-grams of {ref.path}")
        np.save(content, counts[:-1])
        claims.publish(path, content.getvalue())
      with errors.parsing(path, "remove it: it is counted again"):
        return np.load(io.BytesIO(path.read_bytes())).tolist()

    return np.array(distributed.agree(counted), np.int64)

  def _rows(self, ref: NgramRef, max_broken: int) -> Iterator[list[np.ndarray]]:
    """What a model counts: ids of some rows or documents at a time."""
    corpus = self._corpus
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

  def made_by(self, name: str) -> dict[str, str]:
    """Returns what each part of a table says it was scored with."""
    return {
      "weights": files.digest(self._counts[name].tolist()),
      "tokenizer": self._corpus.manifest.tokenizer,
      "code": code.fingerprint(("scoring/ngram.py",), "numpy"),
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
      ids, starts, alone, both = self._ngrams([row.ids for row in rows])
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
  text = table.inputs["weights"]
  if table.fingerprint_by("weights", ref) != text:
    raise UserError(
      f"{ref.name} was scored by the counts of another text",
      f"{PREFIX}{ref.path}",
      "give the text that it counted, or score again with --stages=score "
      "--force",
    )
  buckets = table.settings["ngram_buckets"]
  return NgramScorer({ref: text}, corpus, buckets, max_broken)
