"""What a stage makes in one folder, and how it differs from what lies there."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import files, gs
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.backup import Backup, is_old
from miniplm_jax.core.code import WHOLE, Version
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest, MissingError

# An input is another step's manifest file, or how to fingerprint it. The latter
# may have a `path`, by which a config names it; a method `former`, which gives
# the fingerprints of earlier versions; and a method `changed`, which says
# whether what a manifest was made from has other content now, where the
# fingerprint does not tell.
Input = epath.Path | Callable[[], str]


def _absolute(path: str) -> str:
  """Returns the path without links, if it is of this machine."""
  if not gs.is_local(path):
    return path.rstrip("/")
  return os.path.realpath(os.path.expanduser(path))


@dataclasses.dataclass(frozen=True)
class Policy:
  """Says what may be done about what lies there, and by whom."""

  # Shows what other steps made: with other inputs or settings it is made
  # again instead of being refused.
  is_view: bool = False
  # Measures what other steps made: with other inputs it is made again, with
  # other settings it is refused.
  is_measure: bool = False
  # A finished state is gone on with when an input that it rechecks has
  # changed; otherwise it is refused then.
  grows: bool = False
  # Several programs may make it at a time, by claims of their own.
  is_shared: bool = False
  # It needs no device: of several processes the first runs it.
  is_host_only: bool = False


@dataclasses.dataclass(frozen=True)
class Step:
  """What a stage makes in one folder, of what, and how."""

  stage: str  # on the command line, that makes what is of its kind
  manifest: epath.Path  # the file that says that it is done
  settings: Mapping[str, Any]  # all of the config that changes the result
  inputs: Mapping[str, Input]  # what it reads, by name
  # Files, folders and patterns of files that a forced run replaces.
  outputs: tuple[epath.Path, ...]
  summary: str  # what is done, in a line; `subject` completes it
  # Makes it: takes the inputs' manifests and returns the fields of the new
  # manifest other than stage, settings and inputs. It may be called again
  # after a kill: it finds its own partial work in `outputs`.
  run: Callable[[Mapping[str, Manifest]], Mapping[str, Any]]
  policy: Policy = Policy()
  # What it is done to or with, such as a name. Steps that differ in nothing
  # else are one line of a dry run.
  subject: str = ""
  # Inputs that may change: `run` compares each piece of its earlier work with
  # them, and goes on with what still holds.
  rechecks: tuple[str, ...] = ()
  # Settings without effect beside the others: kept, and not compared.
  idle: tuple[str, ...] = ()
  # Settings of how it is computed and cut: by rounding apart, whoever reads it
  # finds the same.
  layout: tuple[str, ...] = ()
  # Settings → what they come to: those of finished work are compared by it.
  # What is begun is gone on with as it was begun.
  effect: Callable[[dict[str, Any]], Any] = dict
  # What has changed in the inputs since a manifest was written, in words, for
  # a refusal; "" if it cannot tell.
  explain: Callable[[Manifest], str] | None = None
  # Several steps of a stage may share a pass over the data: they carry the same
  # function, which is called with the inputs of those that are not done, by
  # name of the step's folder, before each one's `run`.
  shared_pass: Callable[[Mapping[str, Mapping[str, Manifest]]], None] | None = (
    None
  )
  # The stage that makes it, where that is another than its kind's; "" if not.
  made_in: str = ""
  # What makes its pieces: what another version of it began is refused.
  code: Version = WHOLE
  # Each raises UserError if the config disagrees with what is read.
  checks: tuple[Callable[[], None], ...] = ()

  @property
  def name(self) -> str:
    """Returns the name of the folder that it makes."""
    return self.manifest.parent.name

  @property
  def in_words(self) -> str:
    """Returns what is done, and to what."""
    return f"{self.summary} {self.subject}".strip()

  @property
  def remade_by(self) -> str:
    """Returns the stage that makes it again."""
    return self.made_in or self.stage

  @property
  def input_manifests(self) -> dict[str, epath.Path]:
    """Returns those of its inputs that are other steps'."""
    inputs = self.inputs.items()
    return {k: path for k, path in inputs if isinstance(path, epath.Path)}

  @property
  def named_inputs(self) -> dict[str, Any]:
    """Returns those of its inputs that were given by a path."""
    return {
      name: source
      for name, source in self.inputs.items()
      if hasattr(source, "path") and not isinstance(source, epath.Path)
    }

  @property
  def partial(self) -> epath.Path:
    """Returns the file that stands in for the manifest while the step runs."""
    stem = self.manifest.name.removesuffix(".json")
    return self.manifest.parent / f"{stem}.partial.json"

  @property
  def backup(self) -> Backup:
    """Returns what it made before, while it is made again."""
    return Backup(self.manifest, self.partial, self.outputs)

  @property
  def is_brief(self) -> bool:
    """Returns whether it is made in one go, so that it is never resumed."""
    return self.policy.is_view or self.policy.is_measure

  def read_inputs(self) -> dict[str, Manifest]:
    """Reads the inputs' manifests, and checks them against each other.

    Whether the files are those that were written is checked where they are
    read: there it can be said what is wrong with them.
    """
    paths = self.input_manifests
    inputs = {k: manifest_lib.require(path) for k, path in paths.items()}
    for manifest in inputs.values():
      manifest.check_inputs(inputs)
    return inputs

  def files_made(self) -> Iterator[epath.Path]:
    """Yields what lies in its outputs, but for its partial manifest."""
    for path in files.walk(self.outputs):
      below = [path, *path.parents][: -len(self.manifest.parents)]
      is_other = files.is_passing(path) or any(map(is_old, below))
      if path != self.partial and not is_other:
        yield path

  def expected(self) -> Manifest:
    """Returns what the manifest would say of settings and inputs now.

    Raises:
      MissingError: inputs are not there yet.
      UserError: the config disagrees with what is read.
    """
    paths = self.input_manifests
    manifests = {k: manifest_lib.read(path) for k, path in paths.items()}
    if missing := {k: path for k, path in paths.items() if not manifests[k]}:
      raise MissingError(missing)
    for check in self.checks:
      check()
    inputs = {
      name: manifests[name].fingerprint
      if name in manifests
      else self._fingerprint(name, source)
      for name, source in self.inputs.items()
    }
    return Manifest(self.manifest, self.stage, self._settings(), inputs)

  def _settings(self) -> dict[str, Any]:
    # Through JSON, so that a tuple equals the list that is on disk.
    return json.loads(json.dumps(dict(self.settings)))

  def other_settings(
    self,
    old: Manifest,
    settings: dict[str, Any] | None = None,
    but: Sequence[str] = (),
  ) -> str | None:
    """Returns the first setting of `old`, `but` for some, that is another now.

    Now it is as in `settings`; None are the step's.
    """
    then, now = (
      {k: v for k, v in each.items() if k not in (*self.idle, *but)}
      for each in (old.settings, settings or self._settings())
    )
    if old.path != self.partial and self.effect(then) == self.effect(now):
      return None
    return manifest_lib.first_difference(then, now, "settings")

  def refuse_own_inputs(self):
    """Raises UserError if what it would remove is what it is made from."""
    root = _absolute(os.fspath(self.manifest.parent))
    for name, source in self.named_inputs.items():
      if source.path and f"{_absolute(source.path)}/".startswith(f"{root}/"):
        raise UserError(
          f"this {name} lies in the folder that is made again",
          source.path,
          "copy it elsewhere and give that, or choose another name",
        )

  def refuse(self, old: Manifest, difference: str | None):
    """Raises UserError if there is a difference to what was made."""
    if difference:
      difference += self.explained(old)
      raise manifest_lib.made_otherwise(self.remade_by, old.path, difference)

  def refuse_made_otherwise(self, makers: Mapping[epath.Path, "Step"]):
    """Raises UserError if what it reads is not what the config says of it.

    Stages that are run alone find it by its name, which may be of another
    config.

    Args:
      makers: by manifest, the steps of the stages before as they would be now.
    """
    pending, visited = [self], set()
    while pending:
      # In their order: of several differences always the same is said.
      paths = pending.pop().input_manifests.values()
      for path in [p for p in paths if p not in visited]:
        visited.add(path)
        maker, manifest = makers.get(path), manifest_lib.read(path)
        if maker and manifest and not maker.is_brief:
          other = maker.other_settings(manifest, but=maker.layout)
          maker.refuse(manifest, other)
          maker.refuse(manifest, maker._other_inputs(manifest))
          pending.append(maker)

  def _other_inputs(self, old: Manifest) -> str | None:
    """Returns the first input that is another now, but for those gone."""
    now = {}
    for name, source in self.inputs.items():
      now[name] = old.inputs.get(name, "")
      if isinstance(source, epath.Path):
        manifest = manifest_lib.read(source)
        now[name] = manifest.fingerprint if manifest else now[name]
      # Whole models are not copied for this: whoever loads one looks.
      elif gs.is_local(getattr(source, "path", "")):
        now[name] = old.fingerprint_by(name, source)
    return self._first_other(old.inputs, now)

  def _first_other(self, old: Mapping[str, str], new: Mapping[str, str]):
    """Returns the first input that differs, and the path it is given by."""
    for name in sorted(old.keys() | new.keys()):
      if old.get(name) != new.get(name):
        now, both = self.named_inputs.get(name), (old.get(name), new.get(name))
        difference = manifest_lib.first_difference(*both, f"inputs.{name}")
        return difference + (f", of {now.path}" if now and now.path else "")
    return None

  def _fingerprint(self, name: str, source: Callable[[], str]) -> str:
    """Returns an input's fingerprint; of what is gone, that of what it made."""

    def earlier():
      return manifest_lib.read(self.manifest) or manifest_lib.read(self.partial)

    try:
      if not getattr(source, "is_folder", True) and (old := earlier()):
        old.refuse_gone(name, source)
      return source()
    except GoneError as e:
      old = earlier()
      if old is None:
        raise
      fingerprint = old.fingerprint_by(name, source)
      log(self.stage, f"{e.what}: {e.where}; what was made of it stands")
      return fingerprint

  def difference(
    self, old: Manifest, expected: Manifest, rechecked: bool = False
  ) -> str | None:
    """Returns the first difference; in rechecked inputs only if asked."""
    # What an earlier version saw of them is the same, and all that is known.
    former = {
      name: old.fingerprint_by(name, source)
      for name, source in self.inputs.items()
      if old.inputs.get(name) != expected.inputs.get(name)
      and hasattr(source, "former")
    }
    inputs = (
      {k: v for k, v in each.items() if rechecked or k not in self.rechecks}
      for each in (old.inputs, expected.inputs | former)
    )
    if difference := self._first_other(*inputs):
      return difference
    if difference := self.other_settings(old, expected.settings):
      return difference
    for name, source in self.inputs.items():
      is_asked = rechecked or name not in self.rechecks
      if is_asked and hasattr(source, "changed") and source.changed(old):
        return f"inputs.{name} has other content here"
    return None

  def explained(self, old: Manifest) -> str:
    """Returns what has changed in the inputs, in brackets, or ""."""
    text = ""
    with contextlib.suppress(UserError):  # what it was made from may be gone
      text = self.explain(old) if self.explain else ""
    return f" ({text})" if text else ""
