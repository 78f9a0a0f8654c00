"""One unit of work: what it is made from, and what is there of it."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from miniplm_jax.core import files, gs
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.code import WHOLE, Version
from miniplm_jax.core.errors import GoneError, UserError
from miniplm_jax.core.former import Former, is_old
from miniplm_jax.core.log import log
from miniplm_jax.core.manifest import Manifest

# An input is another step's manifest file, or how to fingerprint it. The latter
# may have a `path`, by which a config names it; a method `former`, which gives
# the fingerprints of earlier versions; and a method `changed`, which says
# whether what a manifest was made from has other content now, where the
# fingerprint does not tell.
Input = epath.Path | Callable[[], str]


def _absolute(path: str) -> str:
  """Without links on this machine."""
  if not gs.is_local(path):
    return path.rstrip("/")
  return os.path.realpath(os.path.expanduser(path))


@dataclasses.dataclass(frozen=True)
class Step:
  """What a stage wants done.

  Attributes:
    stage: the stage's name, as on the command line.
    manifest: the file that says it is done.
    settings: everything of the config that changes the result.
    inputs: what it reads, by name.
    outputs: files, folders and patterns of files that a forced run replaces.
    summary: one line for `--dry_run`.
    run: does it. Takes the inputs' manifests and returns the fields of the
      new manifest other than stage, settings and inputs. May be called
      again after a kill: it finds its own partial work in `outputs`.
    is_view: shows what other steps made; with other inputs it is made again
      instead of being refused.
    rechecks: inputs that may change: `run` compares each piece of its earlier
      work with them, and goes on with what still holds.
    idle: settings without effect beside the others: kept, and not compared.
    layout: settings of how it is computed and cut: by rounding apart, whoever
      reads it finds the same.
    effect: settings → what they come to: those of finished work are compared
      by it. What is begun is gone on with as it was begun.
    grows: goes on in that way from a finished state, too; otherwise finished
      work is refused when an input that it rechecks has changed.
    explain: what has changed in the inputs since a manifest was written, in
      words, for a refusal; "" if it cannot tell.
    together: several steps of a stage may share a pass over the data: they
      carry the same function, which is called with the inputs of those that
      are not done, by name of the step's folder, before each one's `run`.
    is_host_only: needs no device; of several processes the first runs it.
    is_measure: of what other steps made; with other inputs it is made again,
      with other settings it is refused.
    code: what makes its pieces; another version that began is refused.
    is_shared: several programs may make it, by claims of their own.
    checks: each raises UserError if the config disagrees with what is read.
  """

  stage: str
  manifest: epath.Path
  settings: Mapping[str, Any]
  inputs: Mapping[str, Input]
  outputs: tuple[epath.Path, ...]
  summary: str
  run: Callable[[Mapping[str, Manifest]], Mapping[str, Any]]
  is_view: bool = False
  rechecks: tuple[str, ...] = ()
  idle: tuple[str, ...] = ()
  layout: tuple[str, ...] = ()
  effect: Callable[[dict[str, Any]], Any] = dict
  grows: bool = False
  explain: Callable[[Manifest], str] | None = None
  together: Callable[[Mapping[str, Mapping[str, Manifest]]], None] | None = None
  is_host_only: bool = False
  is_measure: bool = False
  code: Version = WHOLE
  is_shared: bool = False
  checks: tuple[Callable[[], None], ...] = ()

  @property
  def name(self) -> str:
    """The folder that it makes."""
    return self.manifest.parent.name

  @property
  def input_manifests(self) -> list[epath.Path]:
    """Those of its inputs that are other steps'."""
    return [p for p in self.inputs.values() if isinstance(p, epath.Path)]

  @property
  def named_inputs(self) -> dict[str, Any]:
    """Those that were given by a path."""
    return {
      name: source
      for name, source in self.inputs.items()
      if hasattr(source, "path") and not isinstance(source, epath.Path)
    }

  @property
  def partial(self) -> epath.Path:
    """The file that stands in for the manifest while the step runs."""
    stem = self.manifest.name.removesuffix(".json")
    return self.manifest.parent / f"{stem}.partial.json"

  @property
  def former(self) -> Former:
    """What it made before, while it is made again."""
    return Former(self.manifest, self.partial, self.outputs)

  @property
  def is_brief(self) -> bool:
    """Whether it is made in one go: nothing half-made is gone on with."""
    return self.is_view or self.is_measure

  def read_inputs(self) -> dict[str, Manifest]:
    """The inputs' manifests, checked against each other.

    Whether the files are those that were written is checked where they are
    read: there it can be said what is wrong with them.
    """
    inputs = {
      name: manifest_lib.require(source)
      for name, source in self.inputs.items()
      if isinstance(source, epath.Path)
    }
    for made in inputs.values():
      made.check_inputs(inputs)
    return inputs

  def files_made(self) -> Iterator[epath.Path]:
    """What was made of the step's outputs, without its own partial manifest."""
    for path in files.walk(self.outputs):
      is_other = files.is_lock(path) or files.is_scratch(path)
      below = [path, *path.parents][: -len(self.manifest.parents)]
      is_other = is_other or any(map(is_old, below))
      if path != self.partial and not is_other:
        yield path

  def wanted(self) -> Manifest:
    """What the manifest would say of settings and inputs, as they are now."""
    for check in self.checks:
      check()
    inputs = {}
    for name, source in self.inputs.items():
      if isinstance(source, epath.Path):
        inputs[name] = manifest_lib.read(source).fingerprint
      else:
        inputs[name] = self._fingerprint(name, source)
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
    """The first setting that was another than it is, or than in `settings`.

    Args:
      old: has what it was.
      settings: as wanted; None are the step's.
      but: not to be compared.
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
      raise UserError(
        f"stage {self.stage} was run otherwise: {difference}"
        + self.explained(old),
        f"{old.path}",
        "put the setting back, choose another --config.workdir or name, or "
        f"remake it with --stages={self.stage} --force, and with it all that "
        "this stage makes",
      )

  def refuse_made_otherwise(self, makers: Mapping[epath.Path, "Step"]):
    """Raises UserError if what it reads is not what the config says of it.

    Stages that are run alone find it by its name, which may be of another
    config.

    Args:
      makers: by manifest, the steps of the stages before as they would be now.
    """
    pending, seen = [self], set()
    while pending:
      # In their order: of several differences always the same is said.
      for path in [p for p in pending.pop().input_manifests if p not in seen]:
        seen.add(path)
        maker, made = makers.get(path), manifest_lib.read(path)
        if maker and made and not maker.is_brief:
          other = maker.other_settings(made, but=maker.layout)
          maker.refuse(made, other)
          maker.refuse(made, maker._other_inputs(made))
          pending.append(maker)

  def _other_inputs(self, old: Manifest) -> str | None:
    """The first input that is another now, but for those that are gone."""
    now = {}
    for name, source in self.inputs.items():
      now[name] = old.inputs.get(name, "")
      if isinstance(source, epath.Path):
        found = manifest_lib.read(source)
        now[name] = found.fingerprint if found else now[name]
      # Whole models are not copied for this: whoever loads one looks.
      elif gs.is_local(getattr(source, "path", "")):
        now[name] = old.fingerprint_by(name, source)
    return manifest_lib.first_difference(old.inputs, now, "inputs")

  def _fingerprint(self, name: str, source: Callable[[], str]) -> str:
    """Of an input as it is now; of what is gone, that of what was made of it.

    Raises:
      GoneError: nothing was.
    """

    def earlier():
      return manifest_lib.read(self.manifest) or manifest_lib.read(self.partial)

    try:
      if not getattr(source, "is_here", True) and (old := earlier()):
        old.refuse_gone(name, source)
      return source()
    except GoneError as e:
      old = earlier()
      if old is None:
        raise
      found = old.fingerprint_by(name, source)
      log(self.stage, f"{e.what}: {e.where}; what was made of it stands")
      return found

  def difference(
    self, old: Manifest, wanted: Manifest, rechecked: bool = False
  ) -> str | None:
    """The first difference; in inputs that the step rechecks only if asked."""
    # What an earlier version saw of them is the same, and all that is known.
    former = {
      name: old.fingerprint_by(name, source)
      for name, source in self.inputs.items()
      if old.inputs.get(name) != wanted.inputs.get(name)
      and hasattr(source, "former")
    }
    wanted = dataclasses.replace(wanted, inputs=wanted.inputs | former)

    inputs = (
      {k: v for k, v in m.inputs.items() if rechecked or k not in self.rechecks}
      for m in (old, wanted)
    )
    found = manifest_lib.first_difference(*inputs, "inputs")
    found = found or self.other_settings(old, wanted.settings)
    for name, source in self.inputs.items():
      is_asked = rechecked or name not in self.rechecks
      if not found and is_asked and hasattr(source, "changed"):
        is_other = source.changed(old)
        found = f"inputs.{name} has other content here" if is_other else None
    return found

  def explained(self, old: Manifest) -> str:
    """What has changed in the inputs, in brackets; "" if it cannot tell."""
    text = ""
    with contextlib.suppress(UserError):  # what it was made from may be gone
      text = self.explain(old) if self.explain else ""
    return f" ({text})" if text else ""
