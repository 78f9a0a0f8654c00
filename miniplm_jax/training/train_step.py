"""A step that trains one model: teacher, reference and students alike."""

import functools
from collections.abc import Mapping
from typing import Any

from etils import epy

from miniplm_jax.core import distributed, files
from miniplm_jax.core.log import log, short
from miniplm_jax.core.manifest import Manifest, made_by
from miniplm_jax.core.step import Input, Step
from miniplm_jax.core.workdir import GENERATED, MANIFEST
from miniplm_jax.training import comparable, flops, trained
from miniplm_jax.training.spec import TrainSpec

with epy.lazy_imports():
  from miniplm_jax.corpus import store, trained_rows
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.training import batches, loop, metrics


def step(spec: TrainSpec, inputs: Mapping[str, Input]) -> Step:
  """The step; nothing of JAX is touched until it runs.

  Inputs are what it reads beside what its objective does, among them "corpus".
  """
  folder, train, shape = spec.folder, spec.train, spec.shape
  tokens = spec.last_step * spec.step_tokens
  outputs = ["checkpoints", "metrics"] + ["hf"] * spec.writes_hf
  if spec.writes_rows:
    outputs.append(trained_rows.NAME)
  spent = spec.spent_before()
  is_known = any(n is not None for n in spent.values())
  # A student's name begins as that of its rows, mostly.
  name, (*_, rows) = folder.name, spec.rows.split(" ")
  subject = name if name.startswith(rows) else f"{name} of {spec.rows}"
  subject = "" if name == spec.stage else subject
  plain = spec.plain_steps or train.steps
  note = f" ({plain:,} of the next-token loss)" * (plain != train.steps)
  return Step(
    stage=spec.stage,
    manifest=folder / MANIFEST,
    settings=spec.settings,
    inputs={**inputs, **spec.objective.inputs},
    outputs=(
      *(folder / name for name in outputs),
      *folder.glob("hf-*"),  # as often as an earlier config said
    ),
    summary=f"{short(shape.parameters())} parameters "
    f"({short(shape.non_embedding_parameters())} without embeddings), "
    f"{spec.last_step:,} steps{note} × {train.batch_size} rows × "
    f"{spec.max_length} = {short(tokens)} tokens, learning rate "
    f"{train.learning_rate:g} after {train.warmup_steps:,} steps, "
    f"{train.dtype}, {spec.token_flops * tokens:.2e} FLOPs"
    + (f", {flops.in_words(spent)}" if is_known else "")
    + ":" * bool(subject),
    subject=subject,
    run=functools.partial(_run, spec),
  )


def _run(spec: TrainSpec, inputs: Mapping[str, Manifest]) -> Mapping[str, Any]:
  """Trains, and returns the fields of the manifest."""
  folder, train, run = spec.folder, spec.train, spec.run
  every = run.of(train.steps)
  corpus = store.open_corpus(inputs)
  if not corpus.tokenizer().is_qwens and getattr(spec.shape, "qkv_bias", False):
    spec.shape.check_llama()  # as which it will be exported: said before
  mesh = sharding.mesh_of(run)
  row_ids = spec.row_ids(corpus, inputs)
  whole = store.Corpus(inputs["corpus"])
  whole.warn_of_missing(spec.ignore_domains, spec.stage)
  all_ids = spec.all_row_ids(corpus, inputs) if spec.all_row_ids else row_ids
  source, source_ids = corpus, all_ids
  if GENERATED in inputs:  # they begin as rows of D do
    given = {k: made for k, made in inputs.items() if k != GENERATED}
    source = store.open_corpus(given)
    source_ids = spec.row_ids(source, given)
  weights = train.domain_weights
  rows = len(batches.trained_on(corpus, all_ids, weights))
  source_ids = batches.trained_on(source, source_ids, weights)
  curve_ids = corpus.heldout_rows(run.eval_rows, spec.ignore_domains)
  curve_rows = comparable.digest(corpus, curve_ids)
  objective, begin, goes_on, export = None, None, None, None
  if spec.objective.make:
    objective = spec.objective.make(spec, corpus, mesh, inputs)
  if spec.begin:
    begin = functools.partial(spec.begin, spec.shape, corpus, source, mesh)
  if spec.goes_on:
    earlier = inputs[spec.goes_on]
    goes_on = functools.partial(_go_on, folder, earlier, curve_rows)
  if spec.export and run.export_every:
    export = functools.partial(_export, spec, source, source_ids)
  model = loop.train(
    loop.Training(
      spec=spec,
      corpus=corpus,
      row_ids=row_ids,
      curve_ids=curve_ids,
      made_by=made_by(
        spec.settings, inputs, **{comparable.CURVE_OF: curve_rows}
      ),
      objective=objective,
      begin=begin,
      goes_on=goes_on,
      export=export,
    ),
    mesh,
  )
  made, described = {}, None
  if spec.writes_hf:
    written = trained.save(folder / "hf", model, source, source_ids)
    made = {f"hf/{name}": facts for name, facts in written.items()}
  if distributed.is_first():  # the process that writes the manifest
    described = files.describe(folder / "metrics" / metrics.NAME)
    if spec.writes_rows:
      path = folder / trained_rows.NAME
      files.write_bytes(path, trained_rows.encode(source, source_ids))
      made[path.name] = files.describe(path)
  offline = {flops.OFFLINE: spec.spent_before()} if spec.offline else {}
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": huggingface.weights_fingerprint(model),
    "counts": {
      "rows": rows,
      "steps": spec.last_step,
      "tokens": spec.last_step * spec.step_tokens,
      "parameters": spec.shape.parameters(),
    },
    "files": made,
    "details": {
      "metrics": described,
      comparable.CURVE: curve_rows,
      "every": {"checkpoint": every.checkpoint_every, "eval": every.eval_every},
      "train_flops": spec.token_flops * spec.last_step * spec.step_tokens,
      **offline,
    },
  }


def _go_on(folder, earlier: Manifest, curve_rows: str, abstract):
  """The state that an earlier training ended with, its metrics copied."""
  lines = metrics.read(earlier.directory / "metrics")
  if distributed.is_first():
    metrics.write(folder / "metrics", lines)
  is_same_curve = earlier.details[comparable.CURVE] == curve_rows
  state = trained.restore_state(earlier, abstract)
  return earlier.counts["steps"], state, is_same_curve


def _export(spec: TrainSpec, corpus, row_ids, step: int, model):
  """Writes hf-<step>, unless an earlier start did."""
  folder = spec.folder / f"hf-{step}"
  if distributed.agree(lambda: huggingface.is_whole(folder)):
    return
  trained.save(
    folder,
    model,
    corpus,
    row_ids,
    dtype=spec.export.dtype,
    max_shard_size=spec.export.max_shard_size,
  )
  log(spec.name, f"wrote {folder}")
