"""Figures of all rows beside those of each domain, in one mapping.

`evaluation.json` and the analyses hold such mappings, and users read them:
the total is called "all", a domain by its name. A file `all.jsonl` makes a
domain "all", so the name of that one is escaped here, and nowhere else.
"""

import re
from collections.abc import Mapping
from typing import Any

ALL = "all"  # the total's key, which is no domain's
_ESCAPED = re.compile(f"(domain )*{ALL}")


def key(domain: str) -> str:
  """The key of a domain in a mapping that has `ALL`, and its label beside it.

  The name itself, but "domain all" for "all"; no two domains have one key.
  """
  return f"domain {domain}" if _ESCAPED.fullmatch(domain) else domain


def with_total(total: Any, by_domain: Mapping[str, Any]) -> dict[str, Any]:
  """The mapping: the total first, then the domains in their order."""
  return {ALL: total} | {key(name): each for name, each in by_domain.items()}
