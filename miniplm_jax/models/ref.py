"""A model that steps read: given by path or hub id, or trained in the workdir.

A `ModelRef` says where it lies and what it must be. Nothing is read before it
is asked for: steps are planned without any weight.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath, epy

from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Input
from miniplm_jax.core.workdir import MANIFEST, Workdir
from miniplm_jax.models import hub
from miniplm_jax.models.architecture import Architecture

with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from miniplm_jax.models import decoder, huggingface

TEACHER, REFERENCE = ROLES = "teacher", "reference"
CONDITIONAL = "conditional"  # the reference, trained on target text


TABLE = "table:"  # before a file or folder of scores, where a path may stand


class Identity(NamedTuple):
  """What a score table says of the model that made it."""

  weights: str  # `huggingface.weights_fingerprint` in that dtype
  dtype: str  # that the parameters were loaded in
  architecture: str | None  # its fingerprint; None of earlier versions' tables

  @classmethod
  def of(cls, table: Manifest) -> "Identity":
    """Reads it from a finished table's manifest."""
    architecture = table.details.get("architecture")
    return cls(table.weights, table.settings["dtype"], architecture)


@dataclasses.dataclass(frozen=True)
class ModelRef:
  """Where a model lies, and what it is known by."""

  name: str  # of its score table, and in messages
  path: str = ""  # directory or hub id; "" is the model in `trained`
  revision: str = "main"  # branch, tag or commit of a hub id
  role: str = ""  # one of `ROLES`, or "" of further ones
  trained: epath.Path | None = None  # the folder, if it is trained here
  model: Architecture | None = None  # its shape, if it is trained here
  scores: str = ""  # file of scores from elsewhere: the model is never loaded
  table: epath.Path | None = None  # its score table, which may not exist yet

  @classmethod
  def of_role(cls, role: str, section, workdir: Workdir) -> "ModelRef":
    """The teacher or the reference, by its section of the config."""
    return cls(
      name=section.name,
      path=section.path,
      revision=section.revision,
      role=role,
      trained=workdir.scorer(role),
      model=section.model,
      scores=section.scores,
      table=workdir.scores(section.name),
    )

  @classmethod
  def named(cls, text: str, workdir: Workdir) -> "ModelRef":
    """A further model that scores, by NAME=PATH of config.score.more.

    NAME=table:PATH are scores from elsewhere.
    """
    name, _, path = text.partition("=")
    table = workdir.scores(name)
    if path.startswith(TABLE):
      return cls(name, scores=path.removeprefix(TABLE), table=table)
    return cls(name, path, table=table)

  @property
  def origin(self) -> str:
    """Where it is from, for people."""
    return self.path or "trained here"

  def as_input(self) -> Input:
    """The manifest of its training, or a given one's fingerprint."""
    if not self.path:
      return self.trained / MANIFEST
    return hub.Given(self.path, self.revision)

  def fingerprint(self, manifest: Manifest | None = None) -> str:
    """Its fingerprint as it is now, in the form that a manifest has it in.

    The manifest is of what was made with it, which has it as "weights".
    """
    source = self.as_input()
    if callable(source):
      by_manifest = manifest and manifest.fingerprint_by("weights", source)
      return by_manifest or source()
    trained = manifest_lib.read(source)
    return trained.fingerprint if trained else str(source)

  def shape(self) -> Architecture:
    """Its shape, without any weight.

    Raises:
      UserError: no such directory or hub id.
    """
    if not self.path:
      return self.model
    return hub.shape_of(self.path, self.revision)

  def folder(self) -> epath.Path:
    """The Hugging Face directory; a hub id is fetched.

    Raises:
      UserError: there is none; or the model was trained here, and a file of it
        is not the one that was written.
    """
    if self.path:
      return hub.resolve(self.path, self.revision)
    trained = manifest_lib.require(self.trained / MANIFEST)
    trained.check_content()
    return trained.directory / "hf"

  def load(self, corpus, mesh, dtype, expected: Identity | None = None):
    """The `Decoder`, which reads a corpus's ids as the corpus means them.

    Raises:
      UserError: there is no model, it has another tokenizer or too few ids, or
        it is not the one that is expected.
    """
    dtype = jnp.dtype(dtype)
    # From the wider of the two the other can be had.
    wide = jnp.promote_types(dtype, expected.dtype) if expected else dtype
    folder = self.folder()
    model = huggingface.load(folder, mesh, wide)
    corpus.check_model(folder, model.arch.vocab_size)
    if expected:
      self._refuse_other(model, expected)
    if wide == dtype:
      return model
    like, tree = jax.tree.flatten(decoder.abstract(model.arch, dtype))
    leaves = zip(jax.tree.leaves(model), like)
    return jax.tree.unflatten(tree, [x.astype(y.dtype) for x, y in leaves])

  def load_as_scored(self, corpus, mesh, dtype):
    """The `Decoder` that made its score table, if that is finished.

    Another may lie under its name by now: a hub id's branch moves. See `load`
    for arguments and errors.
    """
    table = manifest_lib.read(self.table / MANIFEST)
    if table is None or "weights" not in table.inputs:  # scores of elsewhere
      return self.load(corpus, mesh, dtype)
    return self.load(corpus, mesh, dtype, Identity.of(table))

  def _refuse_other(self, model, expected: Identity):
    """Raises UserError unless this is it, in that dtype or in a wider one."""
    now = {
      "weights": huggingface.weights_fingerprint(model, expected.dtype),
      "architecture": model.arch.fingerprint,
    }
    for name, value in now.items():
      then = getattr(expected, name) or value
      if value != then:
        raise UserError(
          f"{self.name} was scored by {name} {then[:12]}, here it is "
          f"{value[:12]}",
          f"{self.path or self.trained}",
          "give the model that scored (of a hub id the same commit as its "
          "revision), or score again with --stages=score --force",
        )

  def as_configured(
    self,
    settings: Mapping[str, Any],
    path: epath.Path,
    stage: str,
    idle: Sequence[str] = (),
  ) -> str:
    """A digest of how a stage uses the model; what it made must be so.

    Args:
      path: the manifest of what it made, with an input "weights".
      idle: settings without effect: those of what was made hold.

    Raises:
      UserError: it was made otherwise; names the first difference.
    """
    manifest = manifest_lib.read(path)
    settings = dict(settings)
    now = {
      "settings": settings,
      "inputs": {"weights": self.fingerprint(manifest)},
    }
    if manifest:
      settings |= {k: v for k, v in manifest.settings.items() if k in idle}
      inputs = {"weights": manifest.inputs["weights"]}
      then = {"settings": manifest.settings, "inputs": inputs}
      if difference := manifest_lib.first_difference(then, now):
        raise manifest_lib.made_otherwise(stage, path, difference)
    return files.digest(now)
