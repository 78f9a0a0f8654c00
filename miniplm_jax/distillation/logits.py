"""A model's labels for many rows, a batch at a time.

B batch, T time, K ids of a token.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from miniplm_jax.corpus import batching
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.distillation.logits_table import Row
from miniplm_jax.models import (
  likelihood,
  placement,
  sharding,
  sparse_labels,
)
from miniplm_jax.models.decoder import Decoder


def keys(seed: int, row_B, length: int):
  """uint32 [B, T, 2]: of the seed, the row and the position alone."""
  key = jax.random.key(seed)
  key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_B)
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  key_BxT = jax.vmap(fold, (0, None))(key_B, jnp.arange(length))
  return jax.random.key_data(key_BxT)


def labels(model: Decoder, batch, *, settings, vocabulary, dtype):
  """What `sparse_labels.draw` returns, of packed rows.

  Args:
    batch: `tokens` int32 [B, T + 1] and `row_id` int32 [B].
    vocabulary: ids of the corpus's tokenizer; no other is taken.
  """
  inputs_BxT, targets_BxT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
  with likelihood.matmul_precision(dtype):
    return sparse_labels.draw(
      model(inputs_BxT, dtype=dtype),
      model.head_VxD,
      targets_BxT,
      keys(settings["seed"], batch["row_id"], inputs_BxT.shape[1]),
      kind=settings["kind"],
      count=settings["ids"],
      ids=vocabulary,
      vocab_size=model.arch.vocab_size,
    )


class Labeler:
  """Labels rows of a corpus, by the settings of stage logits."""

  def __init__(self, model: Decoder, corpus: Corpus, mesh, settings):
    """Compiles nothing yet, then one program a length in use."""
    self._model, self._corpus, self._mesh = model, corpus, mesh
    self._settings = settings
    lengths = {min(n, corpus.max_length) for n in settings["lengths"]}
    self._plan = functools.partial(
      batching.plan,
      lengths=sorted(lengths | {corpus.max_length}),
      batch_tokens=settings["batch_tokens"],
      shards=sharding.batch_shards(mesh),
    )
    function = functools.partial(
      labels,
      settings=settings,
      vocabulary=min(
        corpus.manifest.details["vocab_size"], model.arch.vocab_size
      ),
      dtype=jnp.dtype(settings["dtype"]),
    )
    self._program = placement.program(function, mesh)

  def __call__(
    self, row_ids: np.ndarray, progress: Callable[[int], None]
  ) -> list[Row]:
    """Labels of each row's inputs, without padding; log-probs if not sampled.

    `progress` is called with the number of rows that are done.
    """
    rows: list = [None] * len(row_ids)
    inputs = self._corpus.lengths[row_ids] - 1
    is_sampled = self._settings["kind"] == "sampling"
    planned = self._plan(inputs)
    stream = batching.ReadAhead(self._corpus, row_ids, planned, self._mesh)

    def with_row_ids(batch):
      row_B = batch[placement.ROW]
      row_id_B = np.where(row_B >= 0, row_ids[row_B], -1).astype(np.int32)
      return batch | {"row_id": row_id_B}

    batches = ((places, with_row_ids(batch)) for places, batch in stream)
    run = functools.partial(self._program, self._model)
    for places, values in placement.run_rows(run, batches, self._mesh):
      nll, ids, log_p = values
      for i, place in enumerate(places):
        size = inputs[place]
        rows[place] = (
          nll[i, :size].copy(),
          ids[i, :size].copy(),
          None if is_sampled else log_p[i, :size].copy(),
        )
      progress(len(places))
    return rows
