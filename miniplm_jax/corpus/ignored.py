"""Domains of which held-out rows do not count."""

from collections.abc import Collection, Mapping

from miniplm_jax.core import groups
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus.store import Corpus


def check(domains: Collection[str], inputs: Mapping[str, Manifest]):
  """Raises UserError if a domain is ignored that no row of D's corpus is of.

  Args:
    domains: `evaluate.ignore_domains`.
    inputs: of a job; what is made of that "corpus" may lack some domain.
  """
  if domains:
    there = Corpus(inputs["corpus"]).domain_codes[1].tolist()
    where = f"config.evaluate.ignore_domains={','.join(domains)}"
    groups.refuse_unknown(domains, there, "row", where)
