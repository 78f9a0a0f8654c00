"""The one manifest type: what was made, from what, with which settings.

A stage writes `manifest.json` last, so its presence means that everything
beside it is whole. While a step runs, the same facts stand in
`manifest.partial.json`: a rerun with the same facts resumes, with others it
is refused. Users rely on this format.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

import miniplm_jax
from miniplm_jax.core import files, gs
from miniplm_jax.core.errors import GoneError, UserError

# 2 has `checksum`, and its inputs hold whole contents of model folders; 1 has
# neither, so that only what its fingerprint covers can be checked.
SCHEMA_VERSION = 2
_READ = (1, SCHEMA_VERSION)
NAMED = "named"  # in details: the paths of inputs that were given by path
HERE = "here"  # and which of them were on this machine, whatever hub has some
REMADE_BY = "remade_by"  # the stage that makes it again, if not its own


class MissingError(UserError):
  """Manifests that must be there are not: stages before are to be run."""

  def __init__(self, paths: Mapping[str, epath.PathLike]):
    """Takes the paths by the names that a step has for them, at least one."""
    names, self.paths = list(paths), dict(paths)
    many = f"{len(names)} inputs"
    self.in_words = " and ".join(names) if len(names) < 4 else many
    super().__init__(
      f"{next(iter(paths.values()))} is not there",
      "a finished stage was expected",
      "run the stage that makes it first, or drop --stages",
    )


@dataclasses.dataclass(frozen=True)
class Manifest:
  """A manifest as read from, or to be written to, `path`."""

  path: epath.Path  # its own file
  stage: str  # that makes what is of its kind
  settings: dict[str, Any]  # all of the config that changes the result
  inputs: dict[str, str]  # sha256 fingerprints of what the stage read, by name
  tokenizer: str | None = None  # fingerprint
  weights: str | None = None  # fingerprint of the weights made or used
  counts: dict[str, Any] = dataclasses.field(default_factory=dict)
  # {relative name: {"bytes", "sha256"}} of what was written.
  files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  # Anything else worth keeping, losses among it; like the counts not part of
  # the fingerprint, but of the file's checksum.
  details: dict[str, Any] = dataclasses.field(default_factory=dict)
  code_version: str = ""
  schema_version: int = SCHEMA_VERSION

  @property
  def directory(self) -> epath.Path:
    """Returns the folder that the names in `files` are relative to."""
    return self.path.parent

  @property
  def remade_by(self) -> str:
    """Returns the stage that makes it again."""
    return self.details.get(REMADE_BY, self.stage)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Returns sha256 of the content: the same bytes made twice are the same.

    Without what `details.idle` names: settings that had no effect, and inputs
    that each file vouches for. A model's weights are the same by whatever path
    they are given. Earlier versions named none.
    """
    idle = self.details.get("idle", ())
    settings, inputs = (
      {k: v for k, v in facts.items() if f"{prefix}{k}" not in idle}
      for prefix, facts in (("", self.settings), ("inputs.", self.inputs))
    )
    content = [self.stage, settings, inputs, self.weights, self.files]
    return files.digest(content)

  @functools.cached_property
  def content(self) -> str:
    """Returns sha256 of all that it says, losses and seconds too: for views."""
    return _checksum(self._body())

  def write(self):
    """Writes the manifest, whole or not at all."""
    body = self._body()
    body["code_version"] = self.code_version or code_version()
    body |= {"schema_version": SCHEMA_VERSION, "fingerprint": self.fingerprint}
    files.write_json(self.path, body | {"checksum": _checksum(body)})

  def _body(self) -> dict[str, Any]:
    """Returns what its file says, without the digests of it."""
    body = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    del body["path"]
    return body

  def check_sizes(self, hint: str = ""):
    """Raises UserError, with what to do, unless all files have their size."""
    sizes = gs.sizes(self.directory, self.files)
    for name, facts in self.files.items():
      path, size = self.directory / name, sizes.get(name)
      if size != facts["bytes"]:
        state = "is missing" if size is None else f"has {size} bytes"
        what = f"{path} {state} where the manifest says {facts['bytes']}"
        raise UserError(what, f"in {self.path}", hint or self.remedy)

  @property
  def remedy(self) -> str:
    """What to do about a file that is not as it was written."""
    again = f"--stages={self.remade_by} --force"
    return f"restore the file, or make it again with {again}"

  @contextlib.contextmanager
  def reading(
    self, name: str, at: epath.Path | None = None
  ) -> Iterator[pathlib.Path]:
    """Yields a file of this manifest, to be read whole, if its sha256 is right.

    It is on this machine, a copy if the folder is remote; `at` is where it lies
    if it was moved.

    Raises:
      UserError: the file is missing, or is not the one that was written.
    """
    path, where = at or self.directory / name, f"in {self.path}"
    if name not in self.files or not path.exists():
      raise UserError(f"{path} is missing", where, self.remedy)
    with gs.local(path) as local:
      sha256, written = files.sha256(local), self.files[name]["sha256"]
      if sha256 != written:
        what = f"its sha256 is {sha256[:12]} and not {written[:12]}"
        what = f"{path} is not the file that was written: {what}"
        raise UserError(what, where, self.remedy)
      yield local

  def check_content(self):
    """Raises UserError unless all files are those that were written."""
    for name in self.files:
      with self.reading(name):
        pass

  def fingerprint_by(self, name: str, source: Callable[[], str]) -> str:
    """Returns an input's fingerprint now, in the form that it has here.

    Raises:
      GoneError: it is not there any more, and was no input of this; or has
        another path now, which may be mistyped. Earlier versions noted none.
    """
    recorded = self.inputs.get(name)
    try:
      self.refuse_gone(name, source)
      now = source()
      if now != recorded and recorded in getattr(source, "former", tuple)():
        return recorded
      return now
    except GoneError:
      path = getattr(source, "path", None)
      if (
        recorded is None
        or path is None
        or self.details.get(NAMED, {name: path}).get(name) != path
      ):
        raise
      return recorded

  def refuse_gone(self, name: str, source: Callable[[], str]):
    """Raises GoneError if what was a folder now reads like a hub id."""
    path, named = getattr(source, "path", None), self.details.get(NAMED, {})
    was_here = path == named.get(name) and name in self.details.get(HERE, ())
    if was_here and not getattr(source, "is_folder", True):
      hint = "put it back where it was, or give its path"
      raise GoneError("no such folder here", path, hint)

  def check_inputs(self, inputs: Mapping[str, "Manifest"]):
    """Raises UserError if it was made from others of these inputs."""
    for name, manifest in inputs.items():
      made_from = self.inputs.get(name, manifest.fingerprint)
      if made_from != manifest.fingerprint:
        raise UserError(
          f"inputs.{name} is {made_from[:12]} there, but {manifest.path} is "
          f"{manifest.fingerprint[:12]}",
          str(self.path),
          f"name the {name} that it was made from, or make it again with "
          f"--stages={self.remade_by} --force",
        )


def read(path: epath.PathLike) -> Manifest | None:
  """Reads a manifest, None without one; UserError if it cannot be read."""
  path = epath.Path(path)
  if not path.exists():
    return None
  try:
    body = json.loads(path.read_text())
    version = body["schema_version"]
    manifest = _parsed(path, body) if version in _READ else None
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise UserError(
      "this is not a manifest that this version can read",
      f"{path} ({type(e).__name__}: {e})",
      "restore it, or move its folder away and run its stage again",
    ) from e
  if manifest is None:
    raise UserError(
      f"schema version {version} where {_READ[0]} to {_READ[-1]} are read",
      str(path),
      "use the release that wrote it, or another workdir",
    )
  return manifest


def _parsed(path: epath.Path, body: dict[str, Any]) -> Manifest:
  """Returns the manifest; raises an error unless its digests are right."""
  if body["schema_version"] > 1 and body.pop("checksum") != _checksum(body):
    raise ValueError("its content has changed since it was written")
  fingerprint = body.pop("fingerprint")
  manifest = Manifest(path=path, **body)
  for name, kind in _KINDS.items():
    if not isinstance(getattr(manifest, name), kind):
      raise TypeError(f"{name} is no {kind.__name__}")
  if fingerprint != manifest.fingerprint:
    raise ValueError("its content is not that of its fingerprint")
  return manifest


_KINDS = {"stage": str} | dict.fromkeys(
  ("settings", "inputs", "counts", "files", "details"), dict
)


def _checksum(body: Mapping[str, Any]) -> str:
  """Returns the sha256 of all that a manifest's file says."""
  # Through JSON, as a reader sees it: numbers as keys become strings.
  return files.digest(json.loads(json.dumps(body)))


def require(path: epath.PathLike) -> Manifest:
  """Reads a manifest; UserError if it is not there or cannot be read."""
  manifest = read(path)
  if manifest is None:
    raise MissingError({"": path})
  return manifest


@functools.cache
def code_version() -> str:
  """Returns the package version and, in a checkout, its commit."""
  folder = epath.resource_path("miniplm_jax").parent
  if not ((folder / ".git").exists() and shutil.which("git")):
    return miniplm_jax.__version__
  commit = subprocess.run(
    ["git", "-C", str(folder), "describe", "--always", "--dirty"],
    capture_output=True,
    text=True,
    check=False,
  ).stdout.strip()
  return "+".join(filter(None, [miniplm_jax.__version__, commit]))


def first_difference(old: Any, new: Any, name: str = "") -> str | None:
  """Names the first field in which two JSON values differ, with both."""
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted(old.keys() | new.keys()):
      below = f"{name}.{key}" if name else key
      difference = first_difference(old.get(key), new.get(key), below)
      if difference:
        return difference
    return None
  if old == new:
    return None
  texts = json.dumps(old), json.dumps(new)
  pairs = enumerate(zip(*texts))
  alike = next((i for i, (a, b) in pairs if a != b), min(map(len, texts)))
  there, here = (_short(text, alike) for text in texts)
  return f"{name} is {there} there and {here} here"


def made_otherwise(
  stage: str, path: epath.PathLike, difference: str
) -> UserError:
  """Returns the error that what a stage made is of another config."""
  return UserError(
    f"stage {stage} was run otherwise: {difference}",
    os.fspath(path),
    "put the setting back or restore the file, choose another "
    f"--config.workdir or name, or remake it with --stages={stage} --force, "
    "and with it all that this stage makes",
  )


def made_by(
  settings: Mapping[str, Any], inputs: Mapping[str, Manifest], **more: str
) -> dict[str, Any]:
  """Returns what a piece says of all that decides it, as JSON is read."""
  prints = {name: manifest.fingerprint for name, manifest in inputs.items()}
  body = {"settings": settings, "inputs": prints, **more}
  return json.loads(json.dumps(body))


def other_maker(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
  """Returns the first difference to what makes a piece now."""
  # Of what an earlier version did not say, nothing is known.
  return first_difference(old, {name: new.get(name) for name in old})


def _short(text: str, alike: int) -> str:
  """Returns a text, or so much of it that what differs can be seen."""
  if len(text) <= 60:
    return text
  start = max(alike - 20, 0) if alike > 40 else 0
  end = "..." if len(text) > start + 57 else ""
  return "..." * bool(start) + text[start : start + 57] + end
