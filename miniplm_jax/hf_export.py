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


@dataclasses.dataclass(frozen=True)
class Export:
  """One student for transformers."""

  name: str  # the student's
  directory: epath.Path  # its folder
  corpus: Mapping[str, Input]  # the inputs that are its corpus
  selection: epath.Path  # the manifest of its rows
  options: ExportConfig
  run: RunConfig
  # What README.md says of (name, manifest of its training, of its selection,
  # and of its held-out losses or None).
  card: Callable[..., str]

  def step(self) -> Step:
    """The step that writes it."""
    folder = self.directory / "hf"
    return Step(
      stage=STAGE,
      manifest=folder / MANIFEST,
      settings={"name": self.name, **dataclasses.asdict(self.options)},
      inputs={
        **self.corpus,
        "selection": self.selection,
        "model": self.directory / MANIFEST,
        "evaluation": self._losses_fingerprint,
      },
      # Of the checkpoint, for others: made again when the student is evaluated.
      policy=Policy(is_view=True),
      outputs=(folder,),
      summary=f"hf for transformers, {self.options.dtype}, of",
      subject=self.name,
      run=self._run,
    )

  def _losses_fingerprint(self) -> str:
    student = manifest_lib.read(self.directory / MANIFEST)
    evaluation = student and heldout.of(student)
    return files.digest(heldout.losses(evaluation) if evaluation else {})

  def _run(self, inputs: Mapping[str, Manifest]) -> dict[str, Any]:
    corpus, student = store.open_corpus(inputs), inputs["model"]
    model = trained.restore(student, sharding.mesh_of(self.run))
    readme = self.card(
      self.name, student, inputs["selection"], heldout.of(student)
    )
    written = trained.save(
      self.directory / "hf",
      model,
      corpus,
      batches.trained_on(
        corpus,
        trained.row_ids(corpus, inputs),
        student.settings["train"].get("domain_weights", ()),
      ),
      {"README.md": readme.encode()},
      **dataclasses.asdict(self.options),
    )
    return {
      "tokenizer": corpus.manifest.tokenizer,
      "weights": huggingface.weights_fingerprint(model),
      "counts": {"parameters": model.arch.parameters()},
      "files": written,
    }
