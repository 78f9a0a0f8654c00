"""Figures of all rows beside those of each domain, in one mapping.

`evaluation.json` and the analyses hold such mappings, and users read them:
the total is called "all", a domain by its name. A file `all.jsonl` makes a
domain "all", so the name of that one is escaped here, and nowhere else.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from miniplm_jax.core.errors import UserError, shortened

ALL = "all"  # the total's key, which is no domain's
_ESCAPED = re.compile(f"(domain )*{ALL}")


def key(domain: str) -> str:
  """Returns the key, and label, of a domain beside `ALL`.

  The name itself, but "domain all" for "all"; no two domains have one key.
  """
  return f"domain {domain}" if _ESCAPED.fullmatch(domain) else domain


def with_total(total: Any, by_domain: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the mapping: the total, then the domains in their order."""
  return {ALL: total} | {key(name): each for name, each in by_domain.items()}


def refuse_unknown(
  named: Collection[str], known: Collection[str], what: str, where: str
):
  """Raises UserError if a domain is named, and no `what` is of it."""
  if unknown := sorted(set(named) - set(known)):
    raise UserError(
      f"no {what} is of domain {unknown[0]}",
      where,
      f"choose from {shortened(', '.join(sorted(known)))}",
    )


def places(code, codes: int) -> list[Any]:
  """Returns where in `code`, int [n], each of 0 to codes − 1 is: int64 [m]."""
  import numpy as np

  # One sort: a mask for each of many codes would read all of them as often.
  ends = np.cumsum(np.bincount(code, minlength=codes))
  return np.split(np.argsort(code, kind="stable"), ends[:-1])
