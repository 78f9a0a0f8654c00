"""Stage export: a directory that transformers loads, with a model card."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath, epy

from miniplm_jax.config import ExportConfig, RunConfig
from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input, Policy, Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.evaluation import heldout
from miniplm_jax.training import trained

with epy.lazy_imports():
  from miniplm_jax.corpus import store
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.training import batches

STAGE = "export"


def step(
  name: str,
  directory: epath.Path,
  corpus: Mapping[str, Input],
  selection: epath.Path,
  export: ExportConfig,
  run: RunConfig,
  card: Callable[..., str],
) -> Step:
  """One student for transformers.

  Args:
    name: the student's.
    directory: its folder.
    corpus: the inputs that are its corpus.
    selection: the manifest of its rows.
    export: how it is written.
    run: the mesh.
    card: what README.md says of (name, manifest of its training, of its
      selection, and of its held-out losses or None).
  """
  return Step(
    stage=STAGE,
    manifest=directory / "hf" / MANIFEST,
    settings={"name": name, **dataclasses.asdict(export)},
    inputs={
      **corpus,
      "selection": selection,
      "model": directory / MANIFEST,
      "evaluation": lambda: _losses_fingerprint(directory),
    },
    # Of the checkpoint, for others: made again when the student is evaluated.
    policy=Policy(is_view=True),
    outputs=(directory / "hf",),
    summary=f"{directory / 'hf'} for transformers, {export.dtype}",
    run=lambda inputs: _run(name, directory, export, run, card, inputs),
  )


def _run(
  name: str,
  directory: epath.Path,
  export: ExportConfig,
  run: RunConfig,
  card: Callable[..., str],
  inputs: Mapping[str, Manifest],
) -> dict[str, Any]:
  corpus = store.open_corpus(inputs)
  mesh = sharding.mesh_of(run)
  model = trained.restore(inputs["model"], mesh)
  ids = trained.row_ids(corpus, inputs)
  weights = inputs["model"].settings["train"].get("domain_weights", ())
  readme = card(
    name, inputs["model"], inputs["selection"], _evaluation(directory)
  )
  written = trained.save(
    directory / "hf",
    model,
    corpus,
    batches.trained_on(corpus, ids, weights),
    {"README.md": readme.encode()},
    dtype=export.dtype,
    max_shard_size=export.max_shard_size,
  )
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": huggingface.weights_fingerprint(model),
    "counts": {"parameters": model.arch.parameters()},
    "files": written,
  }


def _losses_fingerprint(directory: epath.Path) -> str:
  evaluation = _evaluation(directory)
  return files.digest(heldout.losses(evaluation) if evaluation else {})


def _evaluation(directory: epath.Path) -> Manifest | None:
  """Its held-out losses, if these weights of the student were evaluated."""
  trained = manifest_lib.read(directory / MANIFEST)
  evaluation = manifest_lib.read(directory / heldout.MANIFEST)
  if not trained or not evaluation:
    return None
  same = evaluation.inputs["model"] == trained.fingerprint
  return evaluation if same else None
