"""The table that tells a run: kept shares beside paired differences."""

import statistics
import types

import numpy as np
import pytest

from miniplm_jax.report.by_domain import Paired

SUMMARY = types.SimpleNamespace(
  domains=[
    types.SimpleNamespace(
      name=name, rows=40, kept_rows=int(40 * share), share=share
    )
    for name, share in (("code", 0.25), ("mail", 0.75), ("unheld", 0.5))
  ],
  total=types.SimpleNamespace(rows=120, kept_rows=48, share=0.4),
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
    rows, kept, share, n, mean, shown = lines[name]
    shares = {"code": "25.0%", "mail": "75.0%", "all": "0.4"}
    assert str(share) == shares[name]
    assert (rows, kept) == {
      "code": (40, 10),
      "mail": (40, 30),
      "all": (120, 48),
    }[name]
    assert n == len(own) and mean == pytest.approx(statistics.fmean(loss))
    assert shown == f"{statistics.fmean(delta):+.4f} ± {error:.4f}"
  assert lines["unheld"][3:] == [0, None, None] and lines["odd"][0] is None


@pytest.mark.parametrize("sign", [1, -1])
def test_the_headline_has_an_interval_and_the_domain_that_decides(sign):
  both = paired(code=sign * 0.5, mail=sign * 9.0, odd=sign * -0.1)
  delta = both.delta_N[both.counts_N].tolist()
  mean, n = statistics.fmean(delta), len(delta)
  reach = 1.96 * statistics.stdev(delta) / n**0.5
  code = sum(both.delta_N[both.domain_N == "code"]) / n
  mail = both.delta_N[both.domain_N == "mail"].mean()

  def way(x):
    return f"{abs(x):.4f} {'lower' if x < 0 else 'higher'}"

  nats = way(mean).replace(" ", " nats ")
  assert both.sentence() == (
    f"miniplm is {'behind' if sign > 0 else 'ahead of'} pretrain (rows at "
    f"random): its held-out loss is {nats} (95 %: {way(mean - reach)} to "
    f"{way(mean + reach)}, over one seed and {n} held-out rows), "
    f"most by code, {way(code)}. Not counted: mail {way(mail)}."
  )
  assert "most by" not in paired(code=0.1).sentence()
