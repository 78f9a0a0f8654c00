"""The one manifest type: what was made, from what, with which settings.

A stage writes `manifest.json` last, so its presence means that everything
beside it is whole. While a job runs, the same facts stand in
`manifest.partial.json`: a rerun with the same facts resumes, with others it
is refused. Users rely on this format.
"""

import dataclasses
import functools
import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from etils import epath

import miniplm_jax
from miniplm_jax.core import files
from miniplm_jax.core.errors import UserError

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
  """A manifest as read from, or to be written to, `path`.

  Attributes:
    path: the manifest's own file.
    stage: the stage that made it.
    settings: everything of the config that changes the result.
    inputs: sha256 fingerprints of what the stage read, by name.
    tokenizer: fingerprint of the tokenizer, or None.
    weights: fingerprint of the weights made or used, or None.
    counts: row, token and step counts.
    files: {relative name: {"bytes", "sha256"}} of what was written.
    details: anything else worth keeping; not part of the fingerprint.
  """

  path: epath.Path
  stage: str
  settings: dict[str, Any]
  inputs: dict[str, str]
  tokenizer: str | None = None
  weights: str | None = None
  counts: dict[str, Any] = dataclasses.field(default_factory=dict)
  files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  details: dict[str, Any] = dataclasses.field(default_factory=dict)
  code_version: str = ""
  schema_version: int = SCHEMA_VERSION

  @property
  def directory(self) -> epath.Path:
    """The folder that the names in `files` are relative to."""
    return self.path.parent

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of the content: the same bytes made twice are the same."""
    content = [self.stage, self.settings, self.inputs, self.weights, self.files]
    return files.digest(content)

  def write(self):
    """Writes the manifest, whole or not at all."""
    body = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    body.pop("path")
    body["code_version"] = self.code_version or code_version()
    files.write_json(self.path, body | {"fingerprint": self.fingerprint})

  def check_sizes(self, todo: str = ""):
    """Raises UserError, with what to do, unless all files have their size."""
    for name, facts in self.files.items():
      path = self.directory / name
      size = path.stat().length if path.exists() else None
      if size != facts["bytes"]:
        found = "is missing" if size is None else f"has {size} bytes"
        raise UserError(
          f"{path} {found} where the manifest says {facts['bytes']}",
          f"in {self.path}",
          todo
          or f"restore the file, or make it again with "
          f"--stages={self.stage} --force",
        )

  def check_inputs(self, inputs: Mapping[str, "Manifest"]):
    """Raises UserError if it was made from others of these inputs."""
    for name, manifest in inputs.items():
      made_from = self.inputs.get(name, manifest.fingerprint)
      if made_from != manifest.fingerprint:
        raise UserError(
          f"inputs.{name} is {made_from[:12]} there, but {manifest.path} is "
          f"{manifest.fingerprint[:12]}",
          str(self.path),
          f"make it again from this {name} with --stages={self.stage} --force",
        )


def read(path: epath.PathLike) -> Manifest | None:
  """Reads a manifest; None if there is none.

  Raises:
    UserError: the file is not a manifest of this schema version.
  """
  path = epath.Path(path)
  if not path.exists():
    return None
  try:
    body = json.loads(path.read_text())
    found = body.pop("schema_version")
    body.pop("fingerprint")
    manifest = Manifest(path=path, schema_version=found, **body)
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      "this is not a manifest that this version can read",
      f"{path} ({type(e).__name__}: {e})",
      "use another workdir, or remake the stage with --force",
    ) from e
  if found != SCHEMA_VERSION:
    raise UserError(
      f"schema version {found} where {SCHEMA_VERSION} is read",
      str(path),
      "use the release that wrote it, or another workdir",
    )
  return manifest


def require(path: epath.PathLike) -> Manifest:
  """Reads a manifest that must be there.

  Raises:
    UserError: it is not there or not readable.
  """
  found = read(path)
  if found is None:
    raise UserError(
      f"{path} is not there",
      "a finished stage was expected",
      "run the stage that makes it first, or drop --stages",
    )
  return found


@functools.cache
def code_version() -> str:
  """The package version and, in a checkout, its commit."""
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
      found = first_difference(old.get(key), new.get(key), below)
      if found:
        return found
    return None
  if old == new:
    return None
  return f"{name} is {_short(old)} there and {_short(new)} here"


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else text[:57] + "..."
