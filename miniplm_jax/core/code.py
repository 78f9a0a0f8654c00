"""Which version of the code made something: of what decides it, no more.

A digest of the modules that a result comes from and of all that they import
from this package, as Python understands them: comments, docstrings, layout and
the words of errors change no result and are left out. So are `core`, which
moves bytes and talks, and the config, which settings speak for. A list of
modules, or a number that somebody has to raise, would be forgotten once.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Mapping
from typing import Any

from miniplm_jax.core.errors import UserError

_PACKAGE = pathlib.Path(__file__).parents[1]
_PLUMBING = "core", "config"
_DECIDES = ("core/noise.py",)  # draws
# Calls whose arguments are for people. `jnp.log` is none of them.
_WORDS = ("UserError", "log", "warn", "plain")


@dataclasses.dataclass(frozen=True)
class Version:
  """The code that makes the pieces of something, as its digest."""

  modules: tuple[str, ...] = ()  # see `fingerprint`
  libraries: tuple[str, ...] = ()  # likewise
  any_code: bool = False  # pieces by other versions will do

  def check(self, details: Mapping[str, Any], where: str, stage: str):
    """Raises UserError unless this version alone began it."""
    if not self.modules or self.any_code:
      return
    began, now = _versions(details), fingerprint(self.modules, *self.libraries)
    if began != [now]:
      raise UserError(
        f"code {' and '.join(began)} began this, here it is {now}",
        where,
        f"finish it with that version, start over with --stages={stage} "
        "--force, or say --config.run.any_code=True if no result differs",
      )

  def joined(self, details: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Returns, for a manifest, all versions that made pieces; None began."""
    if not self.modules:
      return {}
    began = [] if details is None else _versions(details)
    now = fingerprint(self.modules, *self.libraries)
    return {"code": sorted({*began, now})}


# Of what is not made piece by piece, or says of each piece what made it.
WHOLE = Version()


def _versions(details: Mapping[str, Any]) -> list[str]:
  return details.get("code", ["unknown"])


@functools.cache
def fingerprint(modules: tuple[str, ...], *libraries: str) -> str:
  """Returns a short digest, and the versions of libraries (distributions).

  Modules are those that results come from, such as "corpus/shard.py".
  """
  content = hashlib.sha256()
  for name in sorted(_closure(modules)):
    tree = ast.parse((_PACKAGE / name).read_text())
    content.update(f"{name}\n{ast.unparse(_Normal().visit(tree))}\n".encode())
  versions = [f"{n} {importlib.metadata.version(n)}" for n in libraries]
  return ", ".join([content.hexdigest()[:16], *versions])


def _closure(modules: tuple[str, ...]) -> set[str]:
  """Returns the modules, and all of the package that they import anywhere."""
  closure, pending = set(), list(modules)
  while pending:
    name = pending.pop()
    folder, is_below, _ = name.partition("/")
    is_result = is_below and folder not in _PLUMBING
    if name in closure or not (is_result or name in _DECIDES):
      continue
    closure.add(name)
    for node in ast.walk(ast.parse((_PACKAGE / name).read_text())):
      if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        names.append(f"{node.module}")
      elif isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      else:
        continue
      for full in names:
        package, _, path = full.replace(".", "/").partition("/")
        if package == _PACKAGE.name and (_PACKAGE / f"{path}.py").exists():
          pending.append(f"{path}.py")
  return closure


class _Normal(ast.NodeTransformer):
  """Removes docstrings, and what is said to people."""

  def visit(self, node):
    """Changes a node, after those below it."""
    self.generic_visit(node)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      return None  # a docstring
    if isinstance(node, ast.Call):
      name = getattr(node.func, "id", "")
      if name in _WORDS or getattr(node.func, "attr", "") == "UserError":
        node.args, node.keywords = [], []
    return node
