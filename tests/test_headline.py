"""The top of a report: doubts, and what one would do next."""

import collections
import math
import shlex
import statistics
import types

import numpy as np
import pytest
import yaml
from helpers import ROOT
from scipy import stats

from miniplm_jax.config import flag_parsers
from miniplm_jax.methods import MethodNames
from miniplm_jax.report import findings, headline, report_step
from miniplm_jax.report.by_domain import Difference, Paired
from miniplm_jax.report.inventory import Student


def test_ids_are_guessed_as_often_as_d_has_them():
  """By counting in plain Python; ids 5 and 6 are not in D."""
  of_d = [[1, 2, 2, 3], [2, 2, 4], [1, 1]]
  held = [[1, 2, 5], [3], [4, 2, 2, 6]]
  rows = [types.SimpleNamespace(ids=np.array(ids)) for ids in of_d + held]
  corpus = types.SimpleNamespace(
    ids=8,
    rows_of=lambda split: np.arange(3) if split == "train" else None,
    heldout_rows=lambda most, ignored: np.arange(3, 6),
    read=lambda row_ids: [rows[i] for i in row_ids],
  )
  count = collections.Counter(i for ids in of_d for i in ids)
  total, kinds = sum(count.values()), len(count)
  assert sum((count[i] + kinds / 8) / (total + kinds) for i in range(8)) == 1
  by_row = [
    statistics.fmean(
      -math.log((count[i] + kinds / 8) / (total + kinds)) for i in ids[1:]
    )
    for ids in held
    if ids[1:]
  ]
  uniform, unigram = headline.guesses(corpus)
  assert uniform == math.log(8)
  assert unigram == pytest.approx(statistics.fmean(by_row), abs=1e-12)


def doubted(**loss):
  students = [name for name in loss if name not in ("teacher", "reference")]
  return list(headline.doubts(loss, students, uniform=10.0, unigram=7.0))


def test_models_that_know_nothing_are_doubted():
  fine = {"miniplm": 5.0, "pretrain": 5.1, "teacher": 3.0, "reference": 6.0}
  assert not doubted(**fine)
  assert not doubted(miniplm=6.85)  # 2 % below the guess is 6.86
  ((text, about),) = doubted(**fine | {"pretrain": 6.87, "miniplm": 8.5})
  assert about == "students" and "miniplm (8.5000), pretrain (6.8700)" in text
  assert "7.0000 (a uniform guess: 10.0000). Differences" in text
  ((text, about),) = doubted(**fine | {"reference": 9.0})
  assert about == "reference" and "reference (9.0000)" in text
  assert "The scores mean little" in text
  # Worse than the reference and the better student, better than a guess.
  one, two = doubted(**fine | {"teacher": 6.5})
  assert one[1] == two[1] == "teacher"
  assert "teacher (6.5000) is worse than reference (6.0000)" in one[0]
  assert "is worse than miniplm (5.0000)" in two[0]
  assert [about for _, about in doubted(**fine | {"teacher": 5.5})] == [
    "teacher"
  ]


def test_how_many_seeds_would_show_a_difference():
  by_seed, rows = [0.06, -0.02, 0.02], 400
  mean, spread = statistics.fmean(by_seed), statistics.stdev(by_seed)
  reach = stats.t.ppf(0.975, 2) * spread / 3**0.5
  given = "a", "b", mean, mean - reach, mean + reach, rows
  text = headline.more(Difference(*given, by_seed=by_seed))
  wanted = next(
    n
    for n in range(4, 1000)
    if stats.t.interval(0.95, n - 1, mean, spread / n**0.5)[0] > 0
  )
  assert f"Ask more seeds: {wanted} and not 3 would" in text
  assert f"as small as {mean:.4f}" in text
  tiny = Difference("a", "b", 1e-4, -0.1, 0.1, rows, by_seed=[0.05, -0.04, 0])
  assert "not even 100 seeds" in headline.more(tiny)
  for by_seed in ((), (0.0, 0.0, 0.0)):  # the same student twice
    same = Difference("a", "b", 0.0, 0.0, 0.0, rows, by_seed=by_seed)
    assert "not even 100 seeds" in headline.more(same)


@pytest.mark.parametrize("by_seed", [(), (0.02, 0.0201, 0.0199)])
def test_how_many_rows_would_show_a_difference(by_seed):
  """Seeds agree, so rows make the interval, of four times the difference."""
  one = Difference("a", "b", 0.02, -0.06, 0.10, 400, by_seed=by_seed)
  assert "some 6,400 and not 400 would" in headline.more(one)


def summary(**groups):
  """Rows and kept rows by domain."""
  groups["all"] = [sum(each) for each in zip(*groups.values())]
  of = {
    name: types.SimpleNamespace(name=name, rows=rows, share=kept / rows)
    for name, (rows, kept) in groups.items()
  }
  return types.SimpleNamespace(total=of.pop("all"), domains=[*of.values()])


def after(difference, by_row=None, **groups):
  made = summary(**groups or {"code": (30, 3), "mail": (90, 57)})
  return [*headline._after(difference, by_row, made, "s/a", "Longer.")]


def test_what_to_do_follows_from_the_difference():
  def one(low, high, seeds=3):
    middle = (low + high) / 2
    by_seed = [middle - 0.1, middle, middle + 0.1][:seeds]
    return Difference("a", "b", middle, low, high, 99, by_seed=by_seed)

  better = after(one(-0.4, -0.2))
  assert "student: s/a/hf" in better[0] and "larger" in better[1]
  assert "miniplm compare" in after(one(-0.4, -0.2, seeds=1))[0]
  more, longer = after(one(-0.1, 0.2))
  assert "seeds" in more and longer == "Longer."
  worse = one(0.2, 0.4)
  assert "under Texts" in after(worse)[0]
  domain = np.array(["code"] * 9 + ["mail"] * 9)
  delta = np.where(domain == "code", 0.5, 0.1)
  counts = np.ones(18, bool)
  by_row = Paired(("a", "b"), delta, delta, domain, counts)
  (text,) = after(worse, by_row)
  # 3 of 30 rows of code are kept, of all 60 of 120; code is 30 / 120 of D.
  assert "Keep more of code, which decides: 10.0% of it is kept and 50.0%" in (
    text
  )
  assert "--config.select.quotas=code=0.25: --config.select.name='{" in text
  assert "--config.evaluate.ignore_domains=code " in text
  flag = headline._of("evaluate.ignore_domains", "a b,c's")
  (typed,) = shlex.split(flag)
  field, _, value = typed.partition("=")
  parsed = flag_parsers._ListParser().parse(value)
  assert (field, parsed) == ("--config.evaluate.ignore_domains", ("a b,c's",))
  better = Paired(("a", "b"), delta, -delta, domain, counts)
  assert "Texts" in after(worse, better)[0]  # seeds say otherwise
  assert "Texts" in after(worse, by_row, code=(30, 29), mail=(90, 10))[0]


def test_pages_that_are_named_are_there():
  site = (ROOT / "mkdocs.yml").read_text()
  site = yaml.safe_load(site[site.index("\nnav:") :])["nav"]
  pages = set()
  for group in site:
    for value in group.values():
      pages |= {n for each in value for n in each if isinstance(value, list)}
  source = (ROOT / "miniplm_jax/report/headline.py").read_text()
  source = " ".join(source.replace('"', " ").split())
  named = source.split("(docs: ")[1:]
  named = {" ".join(text.partition(")")[0].split()) for text in named}
  assert len(named) > 4 and named <= pages, named - pages


def student(steps, flops):
  made = types.SimpleNamespace(
    counts={"steps": steps, "tokens": 0, "rows": 1},
    details={"train_flops": flops},
    settings={"train": {"batch_size": 8}},
  )
  return Student(made, None)


def test_why_a_student_took_fewer_steps():
  """8 steps of 1 FLOP; one of 7.3 is what those afford, two are not."""
  first = student(8, 8.0)
  said = findings.steps_in_words("miniplm", first, student(1, 7.3))
  assert said == (
    "after 1 step, miniplm after 8: a step takes 7.30 × the FLOPs, and "
    "config.equal_flops gives both the same in all"
  )
  said = findings.steps_in_words("miniplm", first, student(2, 14.6))
  assert said == "after 2 steps, miniplm after 8"
  said = findings.steps_in_words("miniplm", first, student(8, 99.0))
  assert said == "after as many steps, 8"


def test_no_two_things_share_a_name():
  compared = [{"criteria": {"miniplm": {"formula": "reference - teacher"}}}]

  def label(student, definition):
    names = MethodNames("", student, definition, "next_token", False)
    return report_step._label(names, compared, ["teacher"])

  assert label("miniplm", "mean_diff") == "miniplm"
  assert label("miniplm-z", "zscore_by_domain") == "miniplm-z"
  assert label("miniplm", "-reference") == "miniplm (-reference)"
  assert label("pretrain", "random") == "pretrain"
  assert label("teacher", "random") == "teacher (random)"
