"""A step that trains one model: teacher, reference and students alike."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from miniplm_jax.core import hosts
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest, made_by
from miniplm_jax.core.step import Input, Step
from miniplm_jax.core.workdir import GENERATED, Workdir
from miniplm_jax.models.architecture import Architecture
from miniplm_jax.training import comparable
from miniplm_jax.training import flops as flops_lib


def make(
  *,
  stage: str,
  config,
  workdir: Workdir,
  directory: epath.Path,
  arch: Architecture,
  train,
  rows: str,
  row_ids: Callable,
  inputs: Mapping[str, Input],
  export: bool = False,
  objective: Callable | None = None,
  settings: Mapping[str, Any] | None = None,
  token_flops: float = 0.0,
  told: str = "",
  offline: Mapping[str, float | None] | None = None,
  begin: Callable | None = None,
  export_every: int = 0,
) -> Step:
  """The step; nothing of JAX is touched until it runs.

  Args:
    stage: its name.
    config: the whole config, of which `run` is used.
    workdir: for the corpus.
    directory: gets checkpoints/, metrics/, and hf/ if `export`.
    arch: shape of the model.
    train: a train section of the config.
    rows: which rows, in words.
    row_ids: (corpus, input manifests) → int64 row ids.
    inputs: what it reads; "corpus" must be among them.
    export: write hf/ at the end.
    objective: (corpus, mesh, input manifests) → what is minimized; None is
      the next-token loss.
    settings: the objective's, for the manifest.
    token_flops: of training on one input token; 0 is the next-token loss.
    told: about the number of steps, for the summary.
    offline: FLOPs that were spent for it before, by part, for the manifest.
    begin: (arch, corpus, what that was generated from, mesh) → the model to
      begin with; None draws one.
    export_every: steps between folders hf-<step>; 0 is never.
  """
  token_flops = token_flops or flops_lib.next_token(
    arch, config.corpus.max_length
  )
  tokens = train.steps * train.batch_size * config.corpus.max_length
  flops = token_flops * tokens
  outputs = ["checkpoints", "metrics"] + ["hf"] * export
  decided_by = {
    "model": dataclasses.asdict(arch),
    "train": dataclasses.asdict(train),
    "rows": rows,
    **(settings or {}),
  }
  return Step(
    stage=stage,
    manifest=directory / "manifest.json",
    settings=decided_by,
    inputs=inputs,
    outputs=(
      *(directory / name for name in outputs),
      *directory.glob("hf-*"),  # as often as an earlier config said
    ),
    summary=f"{arch.parameters():,} parameters "
    f"({arch.non_embedding_parameters():,} without embeddings), "
    f"{train.steps:,} steps{told} × {train.batch_size} rows × "
    f"{config.corpus.max_length} = {tokens / 1e9:.3g}B tokens of {rows}, "
    f"learning rate {train.learning_rate:g} after {train.warmup_steps:,} "
    f"steps, {train.dtype}, {flops:.2e} FLOPs"
    + ("" if offline is None else f", {flops_lib.in_words(offline)}"),
    run=functools.partial(
      _run,
      config,
      _Recipe(
        stage,
        directory,
        arch,
        train,
        row_ids,
        export,
        objective,
        token_flops,
        offline,
        begin,
        export_every,
        decided_by,
      ),
    ),
  )


@dataclasses.dataclass(frozen=True)
class _Recipe:
  """What of `make` the run needs."""

  stage: str
  directory: epath.Path
  arch: Architecture
  train: Any
  row_ids: Callable
  export: bool
  objective: Callable | None
  token_flops: float
  offline: Mapping[str, float | None] | None
  begin: Callable | None
  export_every: int
  settings: Mapping[str, Any]


def _run(config, it: _Recipe, inputs) -> Mapping[str, Any]:
  from miniplm_jax.corpus.store import Corpus, open_corpus
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.training import batches, loop, metrics

  run = config.run
  corpus = open_corpus(inputs)
  arch, train, directory = it.arch, it.train, it.directory
  if not corpus.tokenizer().is_qwens and getattr(arch, "qkv_bias", False):
    arch.check_llama()  # as which it will be exported: said before it trains
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  ids = it.row_ids(corpus, inputs)
  ignored = config.evaluate.ignore_domains
  Corpus(inputs["corpus"]).warn_of_missing(ignored, it.stage)
  source, seen = corpus, ids
  if GENERATED in inputs:  # they begin as rows of D do
    given = {k: made for k, made in inputs.items() if k != GENERATED}
    source = open_corpus(given)
    seen = it.row_ids(source, given)
  weights = train.domain_weights
  rows = len(batches.trained_on(corpus, ids, weights))
  seen = source, batches.trained_on(source, seen, weights)
  heldout = corpus.heldout_rows(run.eval_rows, config.evaluate.ignore_domains)
  curve_rows = comparable.digest(corpus, heldout)
  step_tokens = train.batch_size * corpus.max_length
  model = loop.train(
    loop.Run(
      name=it.stage if it.stage != "train" else directory.name,
      arch=arch,
      train=train,
      run=run,
      corpus=corpus,
      row_ids=ids,
      heldout_ids=heldout,
      directory=directory,
      step_flops=it.token_flops * step_tokens,
      made_by=made_by(it.settings, inputs, **{comparable.CURVE_OF: curve_rows}),
      objective=it.objective and it.objective(corpus, mesh, inputs),
      begin=it.begin
      and functools.partial(it.begin, arch, corpus, source, mesh),
      export=functools.partial(_export, config.export, directory, *seen)
      if it.export_every
      else None,
    ),
    mesh,
  )
  described = {}
  if it.export:
    written = save(directory / "hf", model, *seen)
    described = {f"hf/{name}": facts for name, facts in written.items()}
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": huggingface.weights_fingerprint(model),
    "counts": {
      "rows": rows,
      "steps": train.steps,
      "tokens": train.steps * step_tokens,
      "parameters": arch.parameters(),
    },
    "files": described,
    "details": {
      # Written by the process that writes the manifest.
      "metrics": metrics.describe(directory) if hosts.is_first() else None,
      comparable.CURVE: curve_rows,
      "train_flops": it.token_flops * train.steps * step_tokens,
      **({} if it.offline is None else {flops_lib.OFFLINE: dict(it.offline)}),
    },
  }


def save(folder, model, corpus, row_ids, extra=None, **how):
  """Writes a model that was trained here, and which rows it has seen.

  Args:
    folder: for transformers, see `huggingface.save`.
    model: a `Decoder`.
    corpus: that it was trained on.
    row_ids: int64, of the rows of it.
    extra: further files by name.
    **how: dtype and max_shard_size of `huggingface.save`.

  Returns:
    Of `huggingface.save`.
  """
  from miniplm_jax.corpus import trained_rows
  from miniplm_jax.models import huggingface

  seen = {trained_rows.NAME: trained_rows.encode(corpus, row_ids)}
  return huggingface.save(
    folder,
    model,
    corpus.eos_id,
    {**corpus.tokenizer_files(), **seen, **(extra or {})},
    bos_id=corpus.bos_id,
    as_llama=not corpus.tokenizer().is_qwens,
    **how,
  )


def _export(how, directory, corpus, row_ids, step, model):
  """Writes hf-<step>, unless an earlier start did."""
  from miniplm_jax.models import huggingface

  folder = directory / f"hf-{step}"
  if hosts.agree(lambda: huggingface.is_whole(folder)):
    return
  save(
    folder,
    model,
    corpus,
    row_ids,
    dtype=how.dtype,
    max_shard_size=how.max_shard_size,
  )
  log(directory.name, f"wrote {folder}")


def restore(trained: Manifest, mesh, objective=None):
  """The model of a finished run, checked against its manifest.

  Its shape is what the manifest says: many fields of it no weight tells. Of
  the checkpoint the parameters alone are read, a third of it: AdamW's two means
  are neither held in memory nor need they be sound.

  Args:
    trained: the run's manifest.
    mesh: where to put it.
    objective: the class of what was minimized; None is `NextToken`.

  Returns:
    What the objective trains: a `Decoder`, or a module of its own.

  Raises:
    UserError: the last checkpoint is missing or not the one that was made.
  """
  from miniplm_jax.models import architecture, huggingface
  from miniplm_jax.training import loop
  from miniplm_jax.training.checkpoints import GO_ON, Checkpoints
  from miniplm_jax.training.objective import NextToken

  folder = trained.directory / "checkpoints"
  with contextlib.closing(Checkpoints(folder, keep=None)) as checkpoints:
    model, latest = None, checkpoints.latest()
    if latest == trained.counts["steps"]:
      new_model = (objective or NextToken).new_model
      arch = architecture.of(trained.settings["model"])
      part = loop.abstract_part(arch, mesh, new_model)
      model = checkpoints.restore(latest, part, is_part=True).model
  if model is None or huggingface.weights_fingerprint(model) != trained.weights:
    raise UserError(
      f"checkpoint {trained.counts['steps']} is missing or another",
      str(folder),
      GO_ON,
    )
  return model
