"""Rows of a corpus whose ends the teacher writes anew.

B batch, P tokens of a prompt.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from miniplm_jax.config import SeqKDConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.corpus import store
from miniplm_jax.corpus.store import Corpus, StoredRow
from miniplm_jax.models import generation, placement, sharding
from miniplm_jax.models.decoder import Decoder
from miniplm_jax.training import flops


class Continuation:
  """Makes new rows of given ones, a batch at a time."""

  def __init__(
    self,
    model: Decoder,
    corpus: Corpus,
    mesh,
    options: SeqKDConfig,
    prompt: int,  # P
  ):
    """Compiles nothing yet; rows of P tokens or fewer stay as they are."""
    self._model, self._corpus, self._mesh = model, corpus, mesh
    self._prompt = prompt
    self._byte_lengths = corpus.tokenizer().byte_lengths
    shards = sharding.batch_shards(mesh)
    self._batch = -(-options.batch_size // shards) * shards
    self._program = generation.compiled(
      mesh,
      sampling=generation.Sampling(
        corpus.max_length + 1 - prompt,
        options.temperature,
        top_p=options.top_p,
      ),
      seed=options.seed,
      eos_ids=(corpus.eos_id,),
      # The head may have rows that belong to no token.
      vocabulary=min(
        corpus.manifest.details["vocab_size"], model.arch.vocab_size
      ),
      dtype=jnp.dtype(options.dtype),
    )
    self._seconds, self._drawn = 0.0, 0

  def rows(
    self,
    row_ids: np.ndarray,
    part: int,
    counts: collections.Counter,
    progress: Callable[[int, str], None],
  ) -> Iterator[StoredRow]:
    """Rows that begin like the given ones and go on as the teacher does.

    Args:
      row_ids: int64, ascending.
      progress: called with the number of rows that are done, and the rate.

    Raises:
      UserError: the logits of a row are not finite.
    """
    for start in range(0, len(row_ids), self._batch):
      ids = row_ids[start : start + self._batch]
      rows = self._corpus.read(ids)
      new_ids = self._continued(ids, rows, counts)
      for i, (row_id, row, new) in enumerate(zip(ids.tolist(), rows, new_ids)):
        yield self._instance(row, new, row_id, part, start + i, counts)
      rate = self._drawn / max(self._seconds, 1e-9)
      progress(len(ids), f"{rate:,.0f} new tokens/s")

  def copies(
    self, row_ids: np.ndarray, part: int, counts: collections.Counter
  ) -> Iterator[StoredRow]:
    """Rows as they are, held-out ones."""
    for start in range(0, len(row_ids), self._batch):
      ids = row_ids[start : start + self._batch].tolist()
      for i, row in enumerate(self._corpus.read(ids)):
        yield self._instance(row, row.ids, ids[i], part, start + i, counts)

  def _continued(self, row_ids, rows, counts) -> list[np.ndarray]:
    """The ids of each new row."""
    size = self._prompt
    new_ids = [row.ids for row in rows]
    long = [i for i, ids in enumerate(new_ids) if len(ids) > size]
    counts["rows_too_short"] += len(rows) - len(long)
    if not long:
      return new_ids
    prompts = [new_ids[i][:size] for i in long]
    # The row's id, not its place: it seeds the draws.
    batch = generation.pad_left(prompts, self._batch, size, row_ids[long])
    start = time.perf_counter()
    run = functools.partial(self._program, self._model)
    batches = [(row_ids[long], placement.own_rows(batch, self._mesh))]
    ((generated_ids, generated),) = placement.run_rows(run, batches, self._mesh)
    self._seconds += time.perf_counter() - start
    for k, i in enumerate(np.searchsorted(row_ids, generated_ids)):
      if not generated.finite[k]:
        raise UserError(
          f"the teacher's logits are not finite in row {row_ids[i]}",
          str(self._corpus.directory),
          "its weights hold NaN or overflow; try --config.seqkd.dtype=float32",
        )
      new = int(generated.length[k])
      tokens = generated.tokens[k, :new]
      new_ids[i] = np.concatenate([new_ids[i][:size], tokens])
      counts["rows_continued"] += 1
      counts["rows_ended"] += int(size + new <= self._corpus.max_length)
      counts["new_tokens"] += new
      counts["flops"] += flops.generation(self._model.arch, size, new)
      self._drawn += new
    return new_ids

  def _instance(self, row, ids, row_id, part, ordinal, counts) -> StoredRow:
    """A finished row; counts it."""
    corpus = self._corpus
    counts["rows"] += 1
    counts["tokens"] += len(ids)
    counts[f"split {row.split}"] += 1
    return dataclasses.replace(
      row,
      ids=ids,
      part=part,
      documents=(ordinal,),  # what it begins with, row `source_rows` knows
      offset=0,
      n_bytes=store.scored_bytes(ids, corpus.eos_id, self._byte_lengths),
      hash=store.hash_of(ids, corpus.manifest.settings["seed"]),
      source_rows=(row_id,),
    )
