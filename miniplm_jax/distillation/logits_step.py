"""Stage logits: what a frozen model says of each token, once, for methods.

`sparse_kd` reads the teacher's likeliest or sampled ids, `token_selection`
the −log p of the labels under its frozen model. For other methods there is
nothing to do.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

from etils import epath, epy

from miniplm_jax.config import RunConfig, ScoreConfig
from miniplm_jax.core import distributed, files, pieces
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.code import Version
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input, Step
from miniplm_jax.core.workdir import MANIFEST, PARTIAL
from miniplm_jax.corpus.kept_rows import kept_rows
from miniplm_jax.distillation import logits_table
from miniplm_jax.methods import LABELS, LABELS_OF, Labels
from miniplm_jax.models.ref import REFERENCE, ModelRef

with epy.lazy_imports():
  from miniplm_jax.corpus import store
  from miniplm_jax.distillation import logits
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.training import flops

STAGE = LABELS
_CODE = (  # makes a part
  "distillation/logits.py",
  "distillation/logits_table.py",
  "models/huggingface.py",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredLabels:
  """One folder of labels; students may share it."""

  folder: epath.Path  # selection/<name>/logits/<model>-<what is asked of it>
  corpus: epath.Path  # its manifest
  selection: epath.Path  # manifest of the rows
  model: ModelRef  # whose words they are
  settings: Mapping[str, Any]  # all that decides them

  @classmethod
  def of(
    cls,
    labels: Labels,
    model: ModelRef,
    selection: epath.Path,
    corpus: epath.Path,
    score: ScoreConfig,
    rows_per_part: int,
  ) -> "StoredLabels":
    """The labels that an objective asks for; a model reads as it scores."""
    asked = labels._asdict()
    del asked["role"]
    settings = score.of_table | asked
    return cls(
      folder=_folder(selection.parent / "logits", model.name, asked),
      corpus=corpus,
      selection=selection,
      model=model,
      settings=settings | {"rows_per_part": rows_per_part},
    )

  @property
  def idle(self) -> tuple[str, ...]:
    """Settings without effect."""
    return logits_table.idle(self.settings)

  def as_inputs(self) -> dict[str, Input]:
    """What a student that trains on them reads of them.

    The labels, and what the config says of them, which is refused if they were
    made otherwise.
    """
    labels = self.folder / MANIFEST
    how = dict(self.settings), labels, STAGE, self.idle
    return {LABELS: labels, LABELS_OF: lambda: self.model.as_configured(*how)}

  def step(self, run: RunConfig) -> Step:
    """The step that makes them."""
    s, model = self.settings, self.model
    what = "−log p of the labels"
    if s["ids"]:
      what += f" and {s['ids']} ids a token by {s['kind']}"
    return Step(
      stage=STAGE,
      manifest=self.folder / MANIFEST,
      settings=s,
      idle=self.idle,
      inputs={
        "corpus": self.corpus,
        "selection": self.selection,
        "weights": model.as_input(),
      },
      outputs=(self.folder,),
      code=Version(_CODE, ("jax",), run.any_code),
      summary=f"{what}, of selection {self.selection.parent.name} under "
      f"{model.name} {model.origin}, {s['dtype']}",
      run=functools.partial(_run, self, run),
    )


def _folder(
  folder: epath.Path, model: str, asked: Mapping[str, Any]
) -> epath.Path:
  """Where labels lie: what is asked for tells one table from another.

  A folder of an earlier version, which had the model's name alone, is used
  if it holds just that.
  """
  asked = {k: v for k, v in asked.items() if k not in logits_table.idle(asked)}
  for name in (MANIFEST, PARTIAL):
    manifest = manifest_lib.read(folder / model / name)
    if manifest and {k: manifest.settings.get(k) for k in asked} == asked:
      return folder / model
  words = map(str, asked.values() if asked["ids"] else ["nll"])
  return folder / "-".join([model, *words])


def _run(
  spec: StoredLabels, run: RunConfig, inputs: Mapping[str, Manifest]
) -> dict[str, Any]:
  directory, settings = spec.folder, spec.settings
  corpus = store.Corpus(inputs["corpus"])
  corpus.tokenizer()  # or UserError
  ids = corpus.manifest.details["vocab_size"]
  if settings["ids"] > ids:
    raise UserError(
      f"the corpus has {ids} token ids",
      f"config.sparse_kd.ids={settings['ids']}",
      "give fewer",
    )
  mesh = sharding.mesh_of(run)
  dtype = settings["dtype"]
  model = spec.model.load_as_scored(corpus, mesh, dtype)
  weights = huggingface.weights_fingerprint(model)
  mark = logits_table.mark(settings, weights, model.arch.fingerprint)
  labeler = logits.Labeler(model, corpus, mesh, settings)
  rows, size = kept_rows(inputs["selection"]), settings["rows_per_part"]
  units = [rows[i : i + size] for i in range(0, len(rows), size)]
  names = [logits_table.part_name(i, len(units)) for i in range(len(units))]

  def has(i: int) -> bool:
    return logits_table.holds(directory / names[i], units[i].tolist(), mark)

  def make(i: int, progress):
    marks = itertools.repeat(mark)
    labels = labeler(units[i], progress)
    records = map(logits_table.encode, units[i].tolist(), labels, marks)
    path = directory / names[i]
    return functools.partial(logits_table.write_part, path, records)

  sizes = [len(unit) for unit in units]
  pieces.fill(STAGE, sizes, has, make, run.log_every_seconds)
  described = distributed.agree(
    lambda: {name: files.describe(directory / name) for name in names}
  )
  lengths = corpus.lengths[rows] - 1
  cost = flops.rows(model.arch.forward_flops, lengths)
  spent, tokens = {f"logits of {spec.model.name}": cost}, int(lengths.sum())
  if spec.model.role == REFERENCE and "weights" in inputs:
    trained = inputs["weights"].details.get("train_flops")
    spent["training of reference"] = trained  # a teacher was there before
  stored = sum(facts["bytes"] for facts in described.values())
  log(STAGE, f"{tokens:,} tokens, {stored / tokens:.1f} bytes a token")
  return {
    "tokenizer": corpus.manifest.tokenizer,
    "weights": weights,
    "files": described,
    "counts": {"rows": len(rows), "tokens": tokens, "parts": len(units)},
    "details": {
      "bytes_per_token": stored / tokens,
      "architecture": model.arch.fingerprint,
      flops.OFFLINE: spent,
    },
  }
