"""Domains of which held-out rows do not count."""

from collections.abc import Collection, Mapping

from miniplm_jax.core.log import warn
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.store import Corpus


def tell(stage: str, domains: Collection[str], inputs: Mapping[str, Manifest]):
  """Says if a domain is ignored that no row of D's corpus is of.

  It is no error: a small corpus may lack a domain, and a config of one corpus,
  such as the demo's, may be used with another.

  Args:
    stage: for the log.
    domains: `evaluate.ignore_domains`.
    inputs: of a step; what is made of that "corpus" may lack some domain.
  """
  if not domains:
    return
  there = set(Corpus(inputs["corpus"]).domain_codes[1].tolist())
  for domain in sorted(set(domains) - there):
    warn(
      stage,
      f"no row is of domain {domain!r}, which "
      "config.evaluate.ignore_domains leaves out",
    )
