"""A job that trains one model: teacher, reference and students alike."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from miniplm_jax.core.errors import UserError
from miniplm_jax.core.job import Input, Job
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.models.architecture import Architecture


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
) -> Job:
  """The job; nothing of JAX is touched until it runs.

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
  """
  tokens, flops = _cost(arch, train, config.corpus.max_length)
  outputs = ["checkpoints", "metrics"] + ["hf"] * export
  return Job(
    stage=stage,
    manifest=directory / "manifest.json",
    settings={
      "model": dataclasses.asdict(arch),
      "train": dict(train),
      "rows": rows,
    },
    inputs=inputs,
    outputs=tuple(directory / name for name in outputs),
    summary=f"{arch.parameters():,} parameters "
    f"({arch.non_embedding_parameters():,} without embeddings), "
    f"{train.steps:,} steps × {train.batch_size} rows × "
    f"{config.corpus.max_length} = {tokens / 1e9:.3g}B tokens of {rows}, "
    f"learning rate {train.learning_rate:g} after {train.warmup_steps:,} "
    f"steps, {train.dtype}, {flops:.2e} FLOPs",
    run=lambda found: _run(
      stage, config, directory, arch, train, row_ids, export, found
    ),
  )


def _cost(arch, train, length) -> tuple[int, float]:
  """Tokens, padding included, and FLOPs forward and backward of a run."""
  tokens = train.steps * train.batch_size * length
  return tokens, 3 * arch.forward_flops(length) * tokens


def _run(
  stage, config, directory, arch, train, row_ids, export, inputs
) -> Mapping[str, Any]:
  from miniplm_jax.corpus.store import open_corpus
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.trainer import loop

  run = config.run
  corpus = open_corpus(inputs)
  corpus.check_tokenizer()
  mesh = sharding.make_mesh(run.data, run.fsdp, run.tensor)
  ids = row_ids(corpus, inputs)
  heldout = corpus.heldout_rows(run.eval_rows, config.evaluate.ignore_domains)
  model = loop.train(
    loop.Run(
      name=stage if stage != "train" else directory.name,
      arch=arch,
      train=train,
      run=run,
      corpus=corpus,
      row_ids=ids,
      heldout_ids=heldout,
      directory=directory,
    ),
    mesh,
  )
  tokens, flops = _cost(arch, train, corpus.max_length)
  described = {}
  if export:
    written = huggingface.save(
      directory / "hf", model, corpus.eos_id, corpus.tokenizer().to_files()
    )
    described = {f"hf/{name}": facts for name, facts in written.items()}
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": huggingface.weights_fingerprint(model),
    "counts": {
      "rows": len(ids),
      "steps": train.steps,
      "tokens": tokens,
      "parameters": arch.parameters(),
    },
    "files": described,
    "details": {"train_flops": flops},
  }


def restore(trained: Manifest, arch: Architecture, train, mesh):
  """The model of a finished run, checked against its manifest.

  Args:
    trained: the run's manifest.
    arch: shape of the model.
    train: its train section.
    mesh: where to put it.

  Returns:
    A `Decoder`.

  Raises:
    UserError: the last checkpoint is missing or not the one that was made.
  """
  from miniplm_jax.models import huggingface
  from miniplm_jax.trainer import loop
  from miniplm_jax.trainer.checkpoints import Checkpoints

  folder = trained.directory / "checkpoints"
  with contextlib.closing(Checkpoints(folder, keep=None)) as checkpoints:
    model = None
    if checkpoints.latest() == trained.counts["steps"]:
      abstract = loop.abstract_state(arch, train, mesh)
      model = checkpoints.restore(trained.counts["steps"], abstract).model
  if model is None or huggingface.weights_fingerprint(model) != trained.weights:
    raise UserError(
      f"checkpoint {trained.counts['steps']} is missing or another",
      str(folder),
      f"restore it, or train again with --stages={trained.stage} --force",
    )
  return model
