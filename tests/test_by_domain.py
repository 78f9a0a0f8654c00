"""The table that tells a run: kept shares beside paired differences."""

import statistics
import types

import numpy as np
import pytest

from miniplm_jax.report.by_domain import Paired

SUMMARY = types.SimpleNamespace(
  domains=[
    types.SimpleNamespace(name=name, share=share)
    for name, share in (("code", 0.25), ("mail", 0.75), ("unheld", 0.5))
  ],
  total=types.SimpleNamespace(share=0.4),
)


def paired(seed=0, **means):
  """Differences around the mean of each row's domain; mail's do not count."""
  rng = np.random.default_rng(seed)
  domain = rng.choice(list(means), 90)
  delta = np.array([means[d] for d in domain]) + rng.normal(0, 0.1, 90)
  loss = rng.uniform(3, 4, 90)
  return Paired(("miniplm", "pretrain"), loss, delta, domain, domain != "mail")


def test_a_domain_s_difference_has_its_standard_error():
  both = paired(code=-0.5, mail=2.0, odd=0.1)
  table = both.section(SUMMARY).table
  lines = {line[0]: line[1:] for line in table.rows}
  # Most kept first; what counts in no mean is in parentheses.
  assert [*lines] == ["(mail)", "unheld", "code", "odd", "all"]
  lines["mail"] = lines.pop("(mail)")
  for name, names in (("code", "code"), ("mail", "mail"), ("all", "code odd")):
    own = [
      (loss, delta)
      for loss, delta, d in zip(both.loss_N, both.delta_N, both.domain_N)
      if d in names.split()
    ]
    loss, delta = zip(*own)
    error = statistics.stdev(delta) / len(own) ** 0.5
    share, n, mean, shown = lines[name]
    assert share == {"code": 0.25, "mail": 0.75, "all": 0.4}[name]
    assert n == len(own) and mean == pytest.approx(statistics.fmean(loss))
    assert shown == f"{statistics.fmean(delta):+.4f} ± {error:.4f}"
  assert lines["unheld"] == [0.5, 0, None, None] and lines["odd"][0] is None


@pytest.mark.parametrize("sign", [1, -1])
def test_the_headline_has_an_interval_and_the_domain_that_decides(sign):
  both = paired(code=sign * 0.5, mail=sign * 9.0, odd=sign * -0.1)
  delta = both.delta_N[both.counts_N].tolist()
  mean, n = statistics.fmean(delta), len(delta)
  reach = 1.96 * statistics.stdev(delta) / n**0.5
  code = sum(both.delta_N[both.domain_N == "code"]) / n
  mail = both.delta_N[both.domain_N == "mail"].mean()
  assert both.sentence() == (
    f"miniplm less pretrain (rows at random): {mean:+.4f} nats, of which "
    f"{code:+.4f} by code, 95 % {mean - reach:+.4f} to {mean + reach:+.4f} "
    f"over {n} held-out rows, one seed; not counted: mail {mail:+.4f}."
  )
  assert "of which" not in paired(code=0.1).sentence()
