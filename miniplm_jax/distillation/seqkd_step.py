"""Stage seqkd: the rows of method seqkd, whose ends the teacher writes.

SeqKD as in MiniPLM's paper: the first 768 tokens of a row prompt the teacher,
which generates the rest; the student trains on the whole. Rows are those of
`pretrain`. A row that the teacher ends stays short; one that is no longer
than a prompt stays as it is. The corpus that is written also holds the
held-out rows, as they are, so a student is never measured on generated text.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from etils import epath, epy

from miniplm_jax.config import RunConfig, SeqKDConfig, TrainConfig
from miniplm_jax.core import distributed, files, manifest, pieces
from miniplm_jax.core.code import Version
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input, Step
from miniplm_jax.core.workdir import GENERATED, MANIFEST
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.methods import SEQKD
from miniplm_jax.models.ref import ModelRef

with epy.lazy_imports():
  import numpy as np

  from miniplm_jax.corpus import columns, store
  from miniplm_jax.distillation import seqkd_rows
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.training import flops

STAGE = SEQKD
_CODE = ("distillation/seqkd_rows.py", "models/huggingface.py")  # makes a shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedRows:
  """The rows of a student whose ends the teacher writes."""

  folder: epath.Path  # students/<name>/generated
  corpus: epath.Path  # manifest of the teacher's
  selection: epath.Path  # manifest of the rows to continue
  teacher: ModelRef
  options: SeqKDConfig
  train: TrainConfig  # how many rows are needed, and in which order
  max_length: int
  eos_token: str

  @property
  def prompt_tokens(self) -> int:
    """Ids of a prompt, of a row's `max_length`."""
    return round(self.options.prompt_share * self.max_length)

  @property
  def settings(self) -> dict[str, Any]:
    """All that decides them."""
    settings, train = dataclasses.asdict(self.options), self.train
    del settings["prompt_share"]
    return settings | {
      "prompt_tokens": self.prompt_tokens,
      "rows": self.options.rows or train.steps * train.batch_size,
      "shuffle": train.shuffle,
      "max_length": self.max_length,
      "eos_token": self.eos_token,
    }

  @property
  def idle(self) -> tuple[str, ...]:
    """Settings without effect: without a temperature nothing is drawn."""
    return () if self.options.temperature else ("seed", "top_p")

  def as_inputs(self) -> dict[str, Input]:
    """What a stage that reads the rows has as inputs.

    The generated corpus, which `store.open_corpus` prefers to the teacher's,
    and what the config says of it, which is refused if the corpus is another.
    """
    rows = self.folder / MANIFEST
    how = self.settings, rows, STAGE, self.idle
    return {GENERATED: rows, STAGE: lambda: self.teacher.as_configured(*how)}

  def step(self, run: RunConfig) -> Step:
    """The step that makes them."""
    settings = self.settings
    return Step(
      stage=STAGE,
      manifest=self.folder / MANIFEST,
      settings=settings,
      idle=self.idle,
      inputs={
        "corpus": self.corpus,
        "selection": self.selection,
        "weights": self.teacher.as_input(),
      },
      outputs=(self.folder,),
      code=Version(_CODE, ("jax",), run.any_code),
      summary=f"{self.teacher.name} {self.teacher.origin} goes on after the "
      f"first {self.prompt_tokens:,} tokens of up to {settings['rows']:,} rows "
      f"of selection {self.selection.parent.name} until there are "
      f"{self.max_length + 1:,}, {self.options.dtype}",
      run=functools.partial(_run, self, run),
    )


def _chosen(settings: Mapping[str, Any], kept):
  """The rows that training will take: it reads them in order, or shuffled."""
  most = min(settings["rows"], len(kept))
  if not settings["shuffle"]:
    return kept[:most]
  return kept[np.arange(most) * len(kept) // most]  # from all of the corpus


def _run(
  spec: GeneratedRows, run: RunConfig, inputs: Mapping[str, Manifest]
) -> dict[str, Any]:
  c, directory, settings = spec.options, spec.folder, spec.settings
  corpus = store.Corpus(inputs["corpus"])
  corpus.tokenizer()  # or UserError
  mesh = sharding.mesh_of(run)
  model = spec.teacher.load_as_scored(corpus, mesh, c.dtype)
  continuation = seqkd_rows.Continuation(
    model, corpus, mesh, c, spec.prompt_tokens
  )
  weights = huggingface.weights_fingerprint(model)
  idle = *spec.idle, "batch_size"  # a row's id seeds its draws
  kept = {k: v for k, v in settings.items() if k not in idle}
  by = manifest.made_by(kept, inputs, weights=weights)
  rows = _chosen(settings, kept_rows(inputs["selection"]))
  size = c.rows_per_part
  units = [rows[i : i + size] for i in range(0, len(rows), size)]
  parts = len(units) + 1  # the last are the held-out rows
  names = [store.shard_names(i, parts) for i in range(parts)]

  def make(i: int, progress):
    counts = collections.Counter()
    if i < len(units):
      instances = continuation.rows(units[i], i, counts, progress)
    else:
      instances = continuation.copies(corpus.rows_of("heldout"), i, counts)
    shard = directory, names[i], list(instances), counts
    return functools.partial(store.write_shard, *shard, {columns.MADE_BY: by})

  pieces.fill(
    STAGE,
    [*map(len, units), 0],  # the held-out rows are no work
    lambda i: store.has(directory, names[i], by),
    make,
    run.log_every_seconds,
  )

  def merged():
    corpus.tokenizer()  # or UserError
    for path in (corpus.directory / "tokenizer").iterdir():
      files.write_bytes(directory / "tokenizer" / path.name, path.read_bytes())
    return store.merge(directory, parts, by)

  counts, described = distributed.agree(merged)
  cost = counts.pop("flops", 0)
  n, total = counts.get("rows_continued", 0), counts.get("split train", 0)
  log(
    STAGE,
    f"{n:,} of {total:,} rows have {counts.get('new_tokens', 0):,} new tokens, "
    f"{counts.get('rows_ended', 0):,} ended early, the others were too short; "
    f"{cost:.2e} FLOPs",
  )
  same = ("eos_id", "vocab_size", "bos_id", "bos_token")
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": weights,
    "files": described,
    "counts": counts,
    "details": {
      **{name: corpus.manifest.details.get(name) for name in same},
      flops.OFFLINE: {"generation by the teacher": float(cost)},
    },
  }
