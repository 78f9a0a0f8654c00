"""Formulas of criteria, against NumPy over the whole of D at once."""

import math

import numpy as np
import pytest
from scipy import stats

from miniplm_jax.core import noise
from miniplm_jax.core.errors import UserError
from miniplm_jax.criteria import formula, statistics

N, TABLES = 5000, ("teacher", "reference", "small", "early")


@pytest.fixture(scope="module")
def rows():
  """Columns of all rows; values are coarse, so that many are alike."""
  rng = np.random.default_rng(0)
  columns = {
    "row_id": np.arange(N) * 3,
    "domain": rng.integers(0, 4, N).astype(np.int32),
    "n_bytes": rng.integers(1, 900, N).astype(np.int32),
    "corpus_tokens": rng.integers(3, 129, N).astype(np.int32),
  }
  columns["domain"][-1] = 4  # a domain of one row
  for name in TABLES:
    columns[f"{name}_tokens"] = columns["corpus_tokens"] - 1
    total = np.round(rng.uniform(1, 900, N))
    columns[f"{name}_nll"] = total.astype(np.float32)
  return columns


def value(text, rows, size=N, seed=3):
  """The formula's values, `size` rows at a time."""
  evaluate = formula.Evaluator(formula.parse(text), seed)
  parts = [
    {k: v[i : i + size] for k, v in rows.items()} for i in range(0, N, size)
  ]
  # The second pass may read what the first one has found.
  values, again = (
    np.concatenate([c["score"] for c in evaluate.over(lambda: iter(parts), N)])
    for _ in range(2)
  )
  np.testing.assert_array_equal(values, again)
  assert values.dtype == np.float32 and len(values) == N
  return values


def mean(rows, name):
  return rows[f"{name}_nll"] / rows[f"{name}_tokens"].astype(np.float32)


def total(rows, name):
  return rows[f"{name}_nll"].astype(np.float64)


def standardized(x, group):
  z = np.zeros(N)
  for g in np.unique(group):
    own = x[group == g].astype(np.float64)
    z[group == g] = (own - own.mean()) / (own.std() or 1)
  return z


def share_below(x):
  return (stats.rankdata(x.astype(np.float32)) - 0.5) / N


def difference(r):
  return mean(r, "reference") - mean(r, "teacher")


FORMULAS = {
  "reference - teacher": difference,  # MiniPLM, ScalingFilter
  "reference.sum-teacher.sum": lambda r: (
    total(r, "reference") - total(r, "teacher")
  ),
  "(reference.sum - teacher.sum) / (log(2) * bytes)": lambda r: (
    (total(r, "reference") - total(r, "teacher")) / math.log(2) / r["n_bytes"]
  ),
  "reference.sum / reference.tokens": lambda r: mean(r, "reference"),
  "-teacher": lambda r: -mean(r, "teacher"),
  "early - small": lambda r: mean(r, "early") - mean(r, "small"),  # RHO-LOSS
  "2.5*reference - 1.5*teacher": lambda r: (
    2.5 * mean(r, "reference") - 1.5 * mean(r, "teacher")
  ),
  "z(reference - teacher)": lambda r: standardized(difference(r), np.zeros(N)),
  "z(reference - teacher, by=domain)": lambda r: standardized(
    difference(r), r["domain"]
  ),
  "rank(reference) * rank(-teacher)": lambda r: (
    share_below(mean(r, "reference")) * share_below(-mean(r, "teacher"))
  ),
  # perplexity pruning, the middle
  "band(reference, 0.25, 0.75)": lambda r: (
    -np.abs(share_below(mean(r, "reference")) - 0.5)
  ),
  "bytes + 0.1*z(rank(teacher), by=domain)": lambda r: (
    r["n_bytes"]
    + 0.1 * standardized(share_below(mean(r, "teacher")), r["domain"])
  ),
  "clip(exp(-reference), 0.01, 0.5)": lambda r: np.clip(
    np.exp(-mean(r, "reference")), 0.01, 0.5
  ),
  "max(min(teacher, reference, small), 0.25) + abs(log(tokens))": lambda r: (
    np.maximum(
      np.min([mean(r, n) for n in ("teacher", "reference", "small")], 0), 0.25
    )
    + np.log(r["corpus_tokens"])
  ),
  "rank_agreement(early, small, reference, teacher)": lambda r: np.mean(
    [
      (np.sign(mean(r, a) - mean(r, b)) + 1) / 2
      for a, b in (
        *(("early", "small"), ("early", "reference"), ("early", "teacher")),
        *(("small", "reference"), ("small", "teacher")),
        ("reference", "teacher"),
      )
    ],
    0,
  ),
  "rank_correlation(early=0.7, small=0.5, reference=0.5, teacher=0.3)": (
    lambda r: np.nan_to_num(
      [
        stats.spearmanr(four, [0.7, 0.5, 0.5, 0.3]).statistic
        for four in zip(
          *(total(r, n) for n in ("early", "small", "reference", "teacher"))
        )
      ]
    )
  ),
  "random()": lambda r: noise.uniform(r["row_id"], 3, 0),
}


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_what_numpy_says_whatever_the_parts(text, rows):
  whole = value(text, rows)
  expected = FORMULAS[text](rows)
  np.testing.assert_allclose(whole, expected, rtol=2e-6, atol=2e-6)
  np.testing.assert_array_equal(whole, value(text, rows, 617))


def test_a_row_without_a_value_has_no_rank_and_moves_nobody(rows):
  text = "rank(log(reference - 2)) + z(log(reference - 2))"
  with np.errstate(invalid="ignore", divide="ignore"):
    x = np.log(mean(rows, "reference") - 2)
  there = np.isfinite(x)
  assert 0 < there.sum() < N
  values = value(text, rows)
  np.testing.assert_array_equal(np.isfinite(values), there)
  x = x[there]
  expected = (stats.rankdata(x) - 0.5) / len(x) + stats.zscore(x.astype(float))
  np.testing.assert_allclose(values[there], expected, rtol=2e-6, atol=2e-6)


def test_equal_parts_are_looked_at_once(rows, monkeypatch):
  text = "z(teacher) + z(teacher) - z(reference) + rank(z(teacher))"
  evaluate = formula.Evaluator(formula.parse(text), 0)
  passes = []

  def parts():
    passes.append(1)
    return [rows]

  made = []
  monkeypatch.setattr(
    statistics.Ranks, "finish", lambda self: made.append(self)
  )
  next(iter(evaluate.over(parts, N)))
  # both z, then rank of one, then the values; but that ended at its first part
  assert len(passes) == 3 and len(made) == 1
  monkeypatch.undo()
  for wanted in (6, 7):  # all over again, and now they are known
    list(evaluate.over(parts, N))
    assert len(passes) == wanted


def test_the_text_of_a_formula_does_not_depend_on_its_layout():
  texts = (
    "reference-teacher",
    " reference  -\tteacher ",
    "(reference)-(teacher)",
  )
  assert {formula.parse(text) for text in texts} == {
    formula.parse("reference - teacher")
  }
  parsed = formula.parse('tokens * table("qwen-500m").sum / small')
  assert parsed.tables == ("qwen-500m", "small")
  assert parsed.columns == ("corpus_tokens",)
  assert formula.parse(parsed.text) == parsed


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("", "no formula"),
    ("reference teacher", "no formula: invalid syntax"),
    ("1 + 2", "the same for all rows"),
    ("log(2)", "the same for all rows"),
    ("foo(teacher)", "no function foo"),
    ('__import__("os").getcwd()', "cannot stand in a formula"),
    ("negative(teacher)", "no function negative"),
    ("teacher.mean", "teacher.mean cannot stand in a formula"),
    ("teacher.sum.sum", "cannot stand in a formula"),
    ("teacher ** 2", "teacher \\*\\* 2 cannot stand"),
    ("teacher < 2", "cannot stand"),
    ("teacher if 1 else 2", "cannot stand"),
    ("[teacher]", "cannot stand"),
    ("True * teacher", "True cannot stand"),
    ("z(teacher, by=language)", "it is z\\(a\\), z\\(a, by=domain\\)"),
    ("rank(teacher, by=domain)", "it is rank\\(a\\)"),
    ("z(teacher, reference)", "z has 2 arguments"),
    ("band(teacher, 0.2)", "band has 2 arguments"),
    ("band(teacher, 0.2, reference)", "reference is no number"),
    ("clip(teacher)", "clip has 1 arguments"),
    ("rank_correlation(teacher, reference, small)", "NAME=error"),
    ("rank_correlation(teacher=1, reference=2)", "has 2 arguments, not 3 or"),
    ("rank_correlation(teacher=1, reference=2, small=x)", "x is no number"),
    ("rank_correlation(**teacher)", "NAME=error"),
    ("table(teacher)", 'write table\\("its name"\\)'),
    ("domain", "domain cannot stand"),
    ("z(1) * teacher", "z\\(1\\) is the same for all rows"),
    ("field(grade)", 'write field\\("its name"\\)'),
    ('field("a", "b")', 'write field\\("its name"\\)'),
    ('field("a").sum', "cannot stand in a formula"),
    ("log", "log cannot stand"),
    ("band(teacher, 0.5, 0.2)", "says nothing: band"),
    ("band(teacher, 0, 2)", "says nothing: band"),
    ("clip(teacher, 6, 5)", "says nothing: clip"),
    ("rank_agreement(teacher, small, teacher)", "says nothing: rank_agr"),
    ("rank_correlation(a=1, b=1, c=1)", "says nothing: rank_corr"),
    ("rank_correlation(a=1, b=2, c=3, a=4)", "has a name twice"),
    ("1e999 * teacher", "too large"),
    ("9" * 400 + " * teacher", "no formula"),
    ("(" * 300 + "teacher" + ")" * 300, "no formula"),
    ("-" * 3000 + "teacher", "no formula"),
    ("teacher + " * 500 + "teacher", "has 5,007 characters"),
  ],
)
def test_what_is_no_formula_is_refused_in_a_line(text, words):
  with pytest.raises(UserError, match=words) as e:
    formula.parse(text)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("student - teacher", "table('s-1') - teacher"),
    ("z(table('student').sum)", "z(table('s-1').sum)"),
    (
      "student.tokens * field('student')",
      "table('s-1').tokens * field('student')",
    ),
  ],
)
def test_a_table_has_a_new_name_however_it_is_written(text, wanted):
  assert formula.renamed(text, "student", "s-1") == wanted
