"""Log-probs of many rows under one or several models, in one pass."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from miniplm_jax.config import ScoreConfig
from miniplm_jax.corpus import batching
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models import likelihood, placement, ready, sharding
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.models.decoder import Decoder


@dataclasses.dataclass
class Effort:
  """The time and work that scoring took, for one model or for all."""

  seconds: float = 0.0  # from the first batch to the last result
  host_wait: float = 0.0  # of these, waiting for rows to be read
  tokens: int = 0  # inputs of rows
  padded_tokens: int = 0  # inputs that were computed
  flops: float = 0.0  # of the models, for `tokens`; padding is not counted

  def add(self, other: "Effort"):
    """Adds another's figures."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name) + getattr(other, field.name)
      setattr(self, field.name, value)


class Scorer:
  """Scores rows of a corpus; models share the reading and the batches."""

  def __init__(
    self,
    score: ScoreConfig,
    models: Mapping[str, Decoder],
    corpus: Corpus,
    mesh: Mesh,
    *,
    dtype: str = "",
    lengths: Sequence[int] | None = None,
    row_sum=likelihood.row_nll,
    flops=Architecture.forward_flops,
  ):
    """Compiles nothing yet; one compilation per model and length in use.

    Args:
      models: by name, on `mesh`; decoders, if `row_sum` is not given.
      dtype: of the computation, if not that of `score`.
      lengths: if not those of `score`; that of the corpus is added.
      row_sum: (model, batch, eos_id, dtype) → (Σ of each row, tokens).
      flops: (arch, length) → FLOPs of it for a token.
    """
    self._models, mesh = ready.for_rows(dict(models), mesh)
    self._corpus, self._mesh = corpus, mesh
    self.dtype = dtype or score.dtype
    lengths = score.lengths if lengths is None else lengths
    lengths = {min(n, corpus.max_length) for n in lengths}
    self.batch_tokens = batching.tokens_of(score.batch_tokens, mesh)
    self._plan = functools.partial(
      batching.plan,
      lengths=sorted(lengths | {corpus.max_length}),
      batch_tokens=self.batch_tokens,
      shards=sharding.batch_shards(mesh),
    )
    self._flops_of = flops
    self._row_sum = placement.program(
      row_sum, mesh, eos_id=corpus.eos_id, dtype=jnp.dtype(self.dtype)
    )
    self.shapes: set[tuple[int, int]] = set()
    self.compiling = 0.0  # seconds until first batches of a shape were begun
    self._compiled = set()  # of models and shapes

  def __call__(
    self,
    row_ids: np.ndarray,
    names: Sequence[str] | None = None,
    progress: Callable[[int], Any] = lambda rows: None,
  ) -> tuple[dict[str, np.ndarray], np.ndarray, Effort]:
    """Scores rows under the models of these names; None is all.

    `progress` is called with the number of rows that are done.

    Returns:
      Σ nll in nats by model, float32 [n]; the tokens summed over, int32 [n];
      and what it took.
    """
    start = time.perf_counter()
    models = {m: self._models[m] for m in names or self._models}
    nll_sum = {m: np.zeros(len(row_ids), np.float32) for m in models}
    n_tokens = np.zeros(len(row_ids), np.int32)
    inputs = self._corpus.lengths[row_ids] - 1
    planned = self._plan(inputs)
    self.shapes |= {(p.size, p.length) for p in planned}
    stream = batching.ReadAhead(self._corpus, row_ids, planned, self._mesh)

    def run(batch):
      before, key = time.perf_counter(), (*models, batch["tokens"].shape)
      sums = {m: self._row_sum(d, batch) for m, d in models.items()}
      if key not in self._compiled:
        self._compiled.add(key)
        self.compiling += time.perf_counter() - before
      return sums

    for by_model in placement.run_rows(run, stream, self._mesh):
      for model, (places, values) in by_model.items():
        nll_sum[model][places], n_tokens[places] = values
      progress(len(places))
    effort = Effort(
      seconds=time.perf_counter() - start,
      host_wait=stream.host_wait,
      tokens=int(inputs.sum()),
      padded_tokens=sum(p.padded_tokens for p in planned),
      flops=sum(self._flops(model, inputs) for model in models.values()),
    )
    return nll_sum, n_tokens, effort

  def _flops(self, model: Decoder, inputs_R: np.ndarray) -> float:
    lengths, counts = np.unique(inputs_R, return_counts=True)
    by_row = [int(n) * self._flops_of(model.arch, int(n)) for n in lengths]
    return float(np.dot(by_row, counts))
