"""Analyses of a workdir: goldens, brute force, constructed curves, a run."""

import dataclasses
import itertools
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_config
from etils import epath
from helpers import LONG, edited, run, typed
from scipy import optimize, stats

from miniplm_jax.core import execute
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.pipeline import Stages
from miniplm_jax.report import inventory
from miniplm_jax.report.analyses import (
  ablations,
  analyze_step,
  diversity,
  domains,
  ranking,
  savings,
  scaling,
  seeds,
)
from miniplm_jax.report.analyses.base import NoInputs
from miniplm_jax.report.by_domain import Paired
from miniplm_jax.training import comparable

PAPER = scaling.Law(
  log_A=math.log(2.19e7),
  a=0.41,
  floor=3.30,
  covariance=np.zeros((3, 3)).tolist(),
  points=20,
  residual=0.0,
)
N_200M = 203_437_824


# --- ranking ---------------------------------------------------------------


def test_ranking_by_hand():
  """Ranks 0 to 5 and 1 0 2 3 5 4: Σd² = 4, and one of three rows differs."""
  a = np.array([0.0, 1, 2, 3, 4, 5])
  b = np.array([1.0, 0, 2, 3, 5, 4])
  found = ranking.compare(a, b, 0.5)
  assert found["spearman"] == pytest.approx(1 - 6 * 4 / (6 * 35))
  assert found["pearson"] == pytest.approx(1 - 6 * 4 / (6 * 35))
  assert found["agreement"] == 1 and found["chance"] == 0.5
  b[[2, 3]] = b[[3, 2]]  # rows 2 and 3 change sides
  assert ranking.compare(a, b, 0.5)["agreement"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.826, 0.95])
def test_ranking_of_normal_scores_is_that_of_theory(rho):
  """Spearman 6/π·asin(ρ/2); both above the median ¼ + asin(ρ)/2π (Sheppard)."""
  rng = np.random.default_rng(3)
  a, noise = rng.normal(size=(2, 100_001))
  b = rho * a + math.sqrt(1 - rho**2) * noise
  found = ranking.compare(a, 7 + 3 * b, 0.5)
  assert found["pearson"] == pytest.approx(rho, abs=0.01)
  wanted = 6 / math.pi * math.asin(rho / 2)
  assert found["spearman"] == pytest.approx(wanted, abs=0.01)
  wanted = 0.5 + math.asin(rho) / math.pi
  assert found["agreement"] == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("alpha", [0.1, 0.33, 0.5, 0.9])
def test_ranking_equals_brute_force(alpha):
  rng = np.random.default_rng(4)
  a, b = np.round(rng.normal(size=(2, 301)), 1)  # with ties
  found = ranking.compare(a, b, alpha)
  assert found["pearson"] == pytest.approx(stats.pearsonr(a, b).statistic)
  assert found["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)
  kept = []
  for score in (a, b):
    order = sorted(range(301), key=lambda i, score=score: (-score[i], i))
    kept.append(set(order[: int(alpha * 301)]))
  same = sum((i in kept[0]) == (i in kept[1]) for i in range(301))
  assert found["agreement"] == pytest.approx(same / 301)


# --- the scaling law -------------------------------------------------------


def test_the_paper_s_law_gives_the_paper_s_losses():
  """Golden of the paper: L_1T 3.349, L_10T 3.319."""
  compute = 6 * N_200M * np.array([*scaling.TOKENS.values()])
  assert scaling.TOKENS["1T"] == pytest.approx(1.0486e12, rel=1e-4)
  assert PAPER.loss(compute).round(3).tolist() == [3.349, 3.319]


def test_a_law_is_found_again_and_extrapolated():
  steps = np.arange(5000, 100_001, 5000)
  compute = 6 * N_200M * steps * 512.0 * 1024
  law = scaling.fit(compute, PAPER.loss(compute))
  assert math.exp(law.log_A) == pytest.approx(2.19e7, rel=1e-3)
  assert law.a == pytest.approx(0.41, rel=1e-4)
  assert law.floor == pytest.approx(3.30, rel=1e-6)
  after = 6 * N_200M * np.array([*scaling.TOKENS.values()])
  assert law.loss(after).round(3).tolist() == [3.349, 3.319]
  assert law.margin(after).max() < 1e-4 and law.residual < 1e-6


def noisy(seed: int, sigma: float = 0.004):
  compute = 6 * N_200M * np.linspace(4e3, 1e5, 25) * 512 * 1024
  noise = np.random.default_rng(seed).normal(size=25) * sigma
  return compute, PAPER.loss(compute) + noise


def test_no_other_law_is_nearer():
  """The least of many starts of another algorithm."""
  compute, loss = noisy(0)
  law = scaling.fit(compute, loss)
  ours = np.sum((law.loss(compute) - loss) ** 2)
  x = np.log(compute) - np.log(compute).mean()

  def error(p):
    return np.sum((np.exp(p[0] - p[1] * x) + p[2] - loss) ** 2)

  best = min(
    optimize.minimize(error, start, method="Nelder-Mead", tol=1e-12).fun
    for start in itertools.product((-3, -1), (0.2, 0.6), (3.0, 3.3))
  )
  assert ours == pytest.approx(best, rel=1e-4)
  assert law.residual == pytest.approx(math.sqrt(ours / 22))


def test_the_band_holds_the_truth_as_often_as_it_says():
  """95 % within what was measured; of ten times as much, about that."""
  after = 6 * N_200M * np.array([5e4, 1e6]) * 512 * 1024
  inside = []
  for seed in range(300):
    law = scaling.fit(*noisy(seed))
    off = np.abs(law.loss(after) - PAPER.loss(after))
    inside.append(off <= law.margin(after))
  measured, extrapolated = np.mean(inside, 0)
  assert 0.92 < measured < 0.98 and 0.88 < extrapolated < 0.99


@pytest.mark.parametrize(
  ("loss", "why"),
  [
    ([3.0, 2.9, 2.8, 2.7], "4 points"),
    ([3.0, 3.0, 3.0, 3.0, 3.0, 3.0], "."),
    ([3.0, 3.1, 3.3, 3.7, 4.5, 6.1], "fall"),
  ],
)
def test_what_determines_no_law_is_refused(loss, why):
  with pytest.raises(ValueError, match=why):
    scaling.fit(np.geomspace(1e15, 1e17, len(loss)), np.array(loss))


@dataclasses.dataclass(frozen=True)
class Constructed(inventory.Student):
  """A student with a curve, and with what a step takes, as given."""

  points: tuple[list, list] = ()
  step: dict[str, float] | None = None

  def curve(self):
    return tuple(map(np.array, self.points))

  def per_step(self, what):
    return self.step[what]


# --- seeds -----------------------------------------------------------------


def seeded(definition, seed, losses, **more):
  """A student of so many steps whose held-out loss is the last of its curve."""
  loss = {"instance_mean": losses[-1], "bits_per_byte": losses[-1] / 2}
  return Constructed(
    training=SimpleNamespace(
      settings={
        "model": "shape",
        "train": {"steps": 40, "seed": seed, "warmup_steps": 4},
        "rows": f"selection {definition}-{seed}",
        **more,
      },
      counts={"steps": 40},
      details={"train_flops": 80.0, "seconds": 1.0, "offline_flops": {}},
      inputs={"corpus": "c", "selection": f"{definition}-{seed}"},
      tokenizer="t",
      weights=f"{definition}-{seed}-{more}",
    ),
    selection=SimpleNamespace(
      settings={
        "definition": definition,
        "ratio": 0.5,
        "seed": seed,
        "scores": {},
      },
      counts={"kept": seed, "rows": 8},
    ),
    evaluation=SimpleNamespace(
      tokenizer="t",
      settings={"max_rows": 0, "name": f"{definition}-{seed}"},
      details={"loss": {"all": loss, "mail": loss}},
    ),
    points=([10, 20, 40], losses),
  )


def test_seeds_become_a_mean_and_its_spread():
  """Means 4.0, 5.0 and 3.5; variances 0.02, 0 and 0.08 over two seeds each."""
  students = {
    "pretrain-11": seeded("random", 11, [7.0, 5.0, 3.9]),
    "pretrain-12": seeded("random", 12, [7.0, 5.0, 4.1]),
    "kd-11": seeded("random", 11, [7.0, 6.0, 5.0], kd={"weight": 0.5}),
    "kd-12": seeded("random", 12, [7.0, 6.0, 5.0], kd={"weight": 0.5}),
    "miniplm-11": seeded("mean_diff", 11, [6.2, 4.4, 3.3]),
    "miniplm-12": seeded("mean_diff", 12, [5.8, 4.6, 3.7]),
    "again-12": seeded("mean_diff", 12, [5.8, 4.6, 3.7]),  # the same weights
    "alone-11": seeded("difficulty", 11, [5.8, 4.6, 3.7]),
  }
  found = seeds.measure(SimpleNamespace(students=students))
  assert list(found["groups"]) == ["pretrain", "kd", "miniplm"]
  rows = seeds.ANALYSIS.section(found).table.cells()
  assert [row[4:] for row in rows] == [
    ["4.0000 ± 0.1414", *["2.0000 ± 0.0707"] * 2],  # all, and mail
    ["5.0000 ± 0.0000", *["2.5000 ± 0.0000"] * 2],
    ["3.5000 ± 0.2828", *["1.7500 ± 0.1414"] * 2],
  ]


def measured(digest, tokenizer="t", **settings):
  details = {"loss_rows": digest} if digest else {}
  return SimpleNamespace(
    tokenizer=tokenizer, settings=settings, details=details
  )


def test_losses_are_of_the_same_rows_if_these_hold_the_same():
  corpus = SimpleNamespace(hashes=np.array([3, 7, 5, 3, 7], np.uint64))
  a, b, c = (comparable.digest(corpus, r) for r in ([0, 1], [3, 4], [0, 2]))
  assert a == b != c
  made = {
    "few": measured(c),
    "one": measured(a),
    "other": measured(b),
    "own": measured(c, "its own"),
  }
  assert comparable.left_out(made) == ["few"]
  # As earlier versions measured.
  old = {n: measured("", max_rows=m) for n, m in (("a", 9), ("b", 9), ("c", 5))}
  assert comparable.left_out(old) == ["c"]
  assert comparable.in_words(["c"])[0].endswith("than most: c.")
  assert comparable.in_words([]) == []


def test_losses_of_other_rows_are_left_out_by_name():
  students = {
    f"{name}-{seed}": seeded(name, seed, [7.0, 5.0, 4.0 + seed / 9])
    for name in ("random", "diff")
    for seed in (1, 2, 3)
  }
  students["diff-3"].evaluation.details["loss_rows"] = "few"
  found = SimpleNamespace(students=students, scores={})
  made = seeds.measure(found)
  assert made["left_out"] == ["diff-3"]
  assert made["groups"]["diff"]["names"] == ["diff-1", "diff-2"]
  assert "than most: diff-3." in seeds.ANALYSIS.section(made).notes[0]
  with pytest.raises(NoInputs, match="no students differ alone in α"):
    ablations.measure(found)
  students["less"] = seeded("diff", 1, [7.0, 5.0, 4.5])
  students["less"].selection.counts["kept"] = 4
  made = ablations.measure(found)
  assert [line["names"] for line in made["lines"]["kept"]] == [
    ["diff-1", "less"]
  ]
  assert made["left_out"] == ["diff-3"] and "diff-3" not in made["runs"]
  assert "than most: diff-3." in ablations.ANALYSIS.section(made).notes[-1]


def test_a_law_of_other_rows_or_beginnings_is_not_shown_beside_others():
  steps = np.arange(100, 2001, 100)
  students = {
    name: SimpleNamespace(
      training=SimpleNamespace(
        tokenizer="t",
        settings={},
        details={"curve_rows": rows},
        counts={"parameters": 10},
      ),
      warmup=0,
      begins_with="weights" if name == "warm" else None,
      per_step=lambda what: 8,
      curve=lambda: (steps, 3 + 5 * (480.0 * steps) ** -0.3),
    )
    for name, rows in (
      ("few", "x"),
      ("one", "y"),
      ("other", "y"),
      ("warm", "y"),
    )
  }
  found = scaling.measure(SimpleNamespace(students=students))
  assert list(found["laws"]) == ["one", "other"]
  assert "began with given weights" in found["refused"]["warm"]
  assert "other rows than most" in found["refused"]["few"]


def test_what_follows_the_selection_does_not_part_seeds():
  """Tables made of its rows, where what else they are made with is known."""
  made = {
    "seqkd": ("generated", "seqkd", "teacher"),
    "other": ("generated", "seqkd", "another"),
    "sparse": ("logits", "logits_of", "teacher"),
    "old": ("generated", "", ""),  # of a version that did not say
  }
  students = {}
  for name, (table, said, how) in made.items():
    for seed in (11, 12):
      one = seeded("random", seed, [7.0, 5.0, 4.0])
      one.training.inputs[table] = f"{table}-{seed}"
      one.training.inputs |= {said: how} if said else {}
      one.training.weights = f"{name}-{seed}"
      students[f"{name}-{seed}"] = one
  del students["other-12"]
  found = seeds.measure(SimpleNamespace(students=students))
  assert list(found["groups"]) == ["seqkd", "sparse"]
  notes = seeds.ANALYSIS.section(found).notes
  assert notes == [
    "No other differs in its seeds alone: other-11, old-11, old-12."
  ]


def test_one_seed_has_no_spread():
  alone = {"a-11": seeded("random", 11, [5.0, 4.0, 3.0])}
  with pytest.raises(NoInputs, match="seeds alone"):
    seeds.measure(SimpleNamespace(students=alone))


def test_a_group_is_named_by_what_its_students_share():
  assert seeds.name_of(["miniplm-r0.3-11", "miniplm-r0.3-12"]) == "miniplm-r0.3"
  assert seeds.name_of(["kd-9", "kd-10"]) == "kd"
  assert seeds.name_of(["11", "12"]) == "11"


# --- savings ---------------------------------------------------------------


def test_a_loss_is_reached_between_two_points():
  spent, loss = np.array([0.0, 10, 20, 30]), np.array([5.0, 4.0, 3.0, 3.2])
  for target, wanted in (
    (5.0, 0.0),
    (6.0, 0.0),  # at most so much
    (4.5, 5.0),
    (4.0, 10.0),
    (3.25, 17.5),
    (3.0, 20.0),
    (2.9, None),
  ):
    assert savings.reached(spent, loss, target) == wanted


def student(
  steps, losses, step_flops, rows=10**6, offline=None, seen="a", init=None
):
  """What `savings` asks of a student; a step reads 8 rows."""
  return Constructed(
    training=SimpleNamespace(
      tokenizer="t",
      settings={"model": "shape", "train": {}},
      inputs={"init": init} if init else {},
      counts={"rows": rows},
      details={"curve_rows": seen}
      | ({} if offline is None else {"offline_flops": offline}),
    ),
    selection=None,
    evaluation=None,
    points=(steps, losses),
    step={"FLOPs": step_flops, "rows": 8},
  )


def test_savings_on_constructed_curves():
  """L = 3 + 1/x for one, twice as fast for the other, whose steps cost 1.5.

  The baseline ends at 3.01 after 100 steps of 1; the method has 3.01 after
  50, of 1.5: 100 / 75 in FLOPs, 2 in rows. It had spent 25 before.
  """
  steps = np.arange(10, 101, 10)
  found = savings.measure(
    SimpleNamespace(
      students={
        "fast": student(steps, 3 + 0.5 / steps, 1.5, 200, {"scoring": 25.0}),
        "slow": student(steps, 3 + 1 / steps, 1.0, offline={}),
      }
    )
  )
  first, second = found["pairs"]
  assert (first["method"], first["baseline"]) == ("fast", "slow")
  assert first["target"] == pytest.approx(3.01)
  assert first["step"] == pytest.approx(50)
  assert first["FLOPs"] == pytest.approx(100 / 75)
  assert first["FLOPs with offline"] == pytest.approx(1.0)
  assert first["rows"] == pytest.approx(2)
  # 800 rows against the 200 that there are: 50 steps read 400.
  assert first["different rows"] == pytest.approx(4)
  assert second["step"] is None and second["FLOPs"] is None
  section = savings.ANALYSIS.section(found)
  assert section.table.cells()[0][4] == "1.33 ×"
  assert section.notes == ["Not reached: slow that of fast."]


def test_each_domain_of_a_mixture_begins_anew_by_itself():
  """Of 40 rows 3/4 are mail, which has 20: with 10 of code 30 are new."""
  mixed = student([5, 10], [3.0, 2.0], 1.0, rows=80)
  mixed.training.settings["train"]["domain_weights"] = ("mail=9", "old=0")
  domains = {"mail": {"kept": 20}, "code": {"kept": 60}, "old": {"kept": 7}}
  given = SimpleNamespace(counts={"domains": domains})
  mixed = dataclasses.replace(mixed, selection=given)
  assert [savings.different(mixed, n) for n in (1, 5, 100)] == [8, 30, 80]
  given.counts = {}  # of an old version
  assert savings.different(mixed, 5) is None
  given.counts = {"domains": domains}
  mixed.training.inputs["generated"] = "g"
  assert savings.different(mixed, 5) is None


def test_what_is_reached_by_the_first_point_is_a_bound():
  """It may have been there before: at most the step, at least the saving."""
  students = {
    "fast": student([10, 15, 20], [2.0, 1.5, 1.0], 1.0),
    "slow": student([10, 15, 20], [5.0, 4.0, 3.0], 1.0),
  }
  found = savings.measure(SimpleNamespace(students=students))
  ((*_, step, spent, _, _, _),) = savings.ANALYSIS.section(found).table.cells()
  assert (step, spent) == ("≤ 10", "≥ 2.00 ×")


def test_curves_on_other_rows_do_not_compare():
  a, b = (student([1, 2, 3], [4, 3, 2], 1.0, seen=rows) for rows in "ab")
  with pytest.raises(NoInputs, match="the same held-out rows"):
    savings.measure(SimpleNamespace(students={"a": a, "b": b}))
  made = savings.measure(SimpleNamespace(students={"a": a, "b": b, "c": a}))
  assert made["left_out"] == ["b"] and set(made["curves"]) == {"a", "c"}
  assert "than most: b." in savings.ANALYSIS.section(made).notes[-1]


def test_students_that_began_alike_are_compared():
  """What the weights that they began with took is not known."""
  steps, made = [1, 2, 3], {}
  for name, init in (("a", "x"), ("b", "x"), ("c", "y"), ("d", None)):
    made[name] = student(steps, [4, 3, 2], 1.0, offline={}, init=init)
  pairs = savings.measure(SimpleNamespace(students=made))["pairs"]
  assert {(p["method"], p["baseline"]) for p in pairs} == {
    ("a", "b"),
    ("b", "a"),
  }
  assert {p["FLOPs"] for p in pairs} == {1.0}
  assert {p["FLOPs with offline"] for p in pairs} == {None}


def test_a_saving_is_of_curves_of_one_seed_that_differ(monkeypatch):
  """Of two points, of other seeds or by chance nothing is saved."""
  steps, delta = [1, 2, 3], np.array([0.1, 0.2, 0.3, -0.4])
  made = {n: student(steps, [4, 3, 2], 1.0, offline={}) for n in "abc"}
  made["c"].training.settings["train"]["seed"] = 11
  made["d"] = student([1, 2], [4, 2], 1.0)

  def pairs():
    return savings.measure(SimpleNamespace(students=made, corpus=None))["pairs"]

  assert {p["method"] + p["baseline"] for p in pairs()} == {"ab", "ba"}
  for name in "abcd":
    measured = SimpleNamespace(evaluation="measured")
    made[name] = dataclasses.replace(made[name], **vars(measured))

  def of(pair, corpus):
    of_rows = delta, delta, np.array(["x"] * 4), np.ones(4, bool)
    return Paired((*pair,), *of_rows)

  monkeypatch.setattr(savings, "Corpus", lambda manifest: "opened")
  monkeypatch.setattr(savings.Paired, "of", of)
  with pytest.raises(NoInputs, match="shown to differ"):  # 0.05 ± 0.32
    pairs()
  delta += 0.4
  assert len(pairs()) == 2


def test_what_is_not_known_is_not_added_up():
  found = savings.measure(
    SimpleNamespace(
      students={
        "a": student([1, 2, 3], [4, 3, 2], 1.0, offline={"scoring": None}),
        "b": student([1, 2, 3], [5, 4, 3], 1.0),
      }
    )
  )
  first = found["pairs"][0]
  assert first["step"] == 2 and first["FLOPs"] == pytest.approx(3 / 2)
  assert first["FLOPs with offline"] is None


# --- diversity -------------------------------------------------------------


def test_vendi_of_the_authors_examples():
  """Numbers of the README of their package."""
  points = np.array([0, 0, 10, 10, 20, 20.0])
  kernel = np.exp(-np.abs(points[:, None] - points))
  assert diversity.vendi(kernel) == pytest.approx(2.9999, abs=1e-4)
  kernel = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
  assert diversity.vendi(kernel) == pytest.approx(2.1573, abs=1e-4)
  sentences = (
    "Look , Jane .",
    "See Spot .",
    "See Spot run .",
    "Run , Spot , run .",
    "Jane sees Spot run .",
  )
  ids = {}
  rows = [
    np.array([ids.setdefault(word, len(ids)) for word in s.split()])
    for s in sentences
  ]
  kernel = diversity.ngram_kernel(rows, (1, 2))
  assert diversity.vendi(kernel) == pytest.approx(3.90657, abs=1e-5)


def test_vendi_at_its_ends():
  assert diversity.vendi(np.ones((7, 7))) == pytest.approx(1)
  assert diversity.vendi(np.eye(7)) == pytest.approx(7)
  assert diversity.vendi(np.kron(np.eye(3), np.ones((4, 4)))) == pytest.approx(
    3
  )


def test_the_kernel_equals_brute_force():
  rng = np.random.default_rng(5)
  rows = [rng.integers(0, 6, n) for n in (2, 9, 1, 30, 30, 5)]

  def cosine(a, b, n):
    counts = []
    for row in (a, b):
      grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
      counts.append({g: grams.count(g) for g in grams})
    dot = sum(counts[0].get(g, 0) * c for g, c in counts[1].items())
    norm = math.prod(math.hypot(*c.values()) for c in counts)
    return dot / norm if norm else 0.0

  wanted = np.mean(
    [[[cosine(a, b, n) for a in rows] for b in rows] for n in (1, 2)], 0
  )
  np.fill_diagonal(wanted, 1)
  np.testing.assert_allclose(diversity.ngram_kernel(rows), wanted, atol=1e-12)


# --- ablations -------------------------------------------------------------


def test_a_line_takes_runs_that_differ_in_one_thing():
  def made(kept, reference, loss, rest="same", teacher=9, read=None):
    return {
      "read": [read],
      "definition": "mean_diff",
      "rest": rest,
      "kept": kept,
      "reference": reference,
      "reference_scores": f"r{reference}",
      "teacher": teacher,
      "teacher_scores": f"t{teacher}",
      "loss": loss,
    }

  runs = {
    "c": made(0.5, 2, 3.0),
    "a": made(0.3, 2, 3.2),
    "longer": made(0.7, 2, 2.5, rest="more steps"),
    "larger": made(0.5, 4, 2.9),
    "taught": made(0.6, 2, 2.7, read="a teacher's weights"),
    "unknown": made(0.5, None, 2.8),
  }
  (line,) = ablations.lines(runs, "kept")
  assert line["names"] == ["a", "c"] and line["values"] == [0.3, 0.5]
  assert line["losses"] == [3.2, 3.0]
  (line,) = ablations.lines(runs, "reference")
  assert line["names"] == ["c", "larger"] and "α 0.5" in line["label"]
  assert ablations.lines(runs, "teacher") == []


def test_what_stands_on_other_scores_is_left_out(copy):
  """Scores that were made again, a proxy that learned them, what they chose."""
  config = tiny_config.get_config()
  workdir = Workdir(epath.Path(copy / "run"))
  there = Stages(typed(config), workdir).analyses.inventory()
  assert [*there.students] == ["miniplm", "pretrain"] and not there.left_out
  prints = {n: s.table.fingerprint for n, s in there.scores.items()}
  made = dataclasses.replace(
    there.scores["teacher"].table,
    path=workdir.scores("proxy") / "manifest.json",
    inputs={"corpus": there.corpus.fingerprint, **prints},
    counts={},
  )
  made.write()
  ranks = workdir.selection("ranked") / "manifest.json"
  chosen = there.selections["miniplm"]
  dataclasses.replace(
    chosen,
    path=ranks,
    settings=chosen.settings | {"scores": {"proxy": "proxy"}},
    inputs={"proxy": made.fingerprint},
  ).write()
  there = Stages(typed(config), workdir).analyses.inventory()
  assert "ranked" in there.selections and not there.left_out
  with edited(copy / "run/scores/teacher/manifest.json") as body:
    body["weights"] = "another"
  there = Stages(typed(config), workdir).analyses.inventory()
  assert [*there.students] == [*there.selections] == ["pretrain"]
  left = " ".join(there.left_out)
  assert "inputs.teacher is" in left and "students/miniplm: its sel" in left
  assert "scores/proxy: its scores are not there" in left
  assert f"scores proxy, by which it ranks, are left out, {ranks}" in left
  (copy / "run/scores/teacher/manifest.json").unlink()  # used, and removed
  there = Stages(typed(config), workdir).analyses.inventory()
  assert {"miniplm", "ranked"} <= there.selections.keys()


def test_a_domain_called_all_is_not_the_total():
  counts = {
    "kept": 3,
    "rows": 8,
    "domains": {
      "all": {"rows": 2, "kept": 1},
      "mail": {"rows": 2, "kept": 0},
      "domain all": {"rows": 4, "kept": 2},
    },
  }
  selections = {"miniplm": SimpleNamespace(counts=counts)}
  found = domains.measure(SimpleNamespace(selections=selections))
  rows = {k: v["rows"] for k, v in found["selections"]["miniplm"].items()}
  assert rows == {"all": 8, "domain all": 2, "mail": 2, "domain domain all": 4}


# --- a run -----------------------------------------------------------------


def test_a_finished_run_has_them(finished):
  folder = finished / "run/analysis"
  made = json.loads((folder / "manifest.json").read_text())
  assert set(made["details"]["skipped"]) == {
    *("ablations", "stability", "seeds")
  }
  for name in set(analyze_step.ANALYSES) - {"stability", "ablations", "seeds"}:
    assert (folder / f"{name}.json").exists(), name
  for name in ("savings", "scaling", "ranking"):
    assert (folder / f"{name}.png").read_bytes()[1:4] == b"PNG", name
  text = (finished / "run/report.html").read_text()
  for name in ("Savings at equal quality", "Scaling law", "Diversity"):
    assert name in text, name
  assert "has changed since" not in text
  stdout = (finished / "stdout").read_text()
  assert (
    "stability skipped: " in stdout and savings.ANALYSIS.definition in stdout
  )
  pairs = json.loads((folder / "ranking.json").read_text())["pairs"]
  assert [p["student"] for p in pairs] == ["miniplm", "pretrain"]


@pytest.mark.long
def test_a_sweep_becomes_lines(copy):
  """α and the reference varied in one workdir, as docs/analyses.md says."""
  other = copy / "given"  # stands in for a reference, of other rows
  shutil.copytree(copy / "run/students/pretrain/hf", other)
  for name in ("trained_rows.json", "manifest.json"):  # as from elsewhere
    (other / name).unlink()
  more = f"--config.score.more=('other={other}',)"
  done = run(
    copy,
    "--stages=score,select,train,evaluate,analyze,report",
    more,
    LONG,
    "--config.select.ratio=0.3",
    "--config.select.name={method}-r0.3",
    "--config.student.name={method}-r0.3",
  )
  folder = copy / "run/analysis"
  found = json.loads((folder / "ablations.json").read_text())
  ((line,), *others) = (found["lines"][axis] for axis in ablations.AXES)
  assert line["names"] == ["miniplm-r0.3", "miniplm"] and others == [[], []]
  assert line["values"] == pytest.approx([0.3, 0.5], abs=0.002)
  assert (folder / "ablations.png").exists()
  runs = found["runs"]
  assert runs["miniplm"]["teacher"] > runs["miniplm"]["reference"] > 0
  for name, loss in zip(line["names"], line["losses"]):
    evaluation = copy / "run/students" / name / "evaluation.json"
    wanted = json.loads(evaluation.read_text())["details"]["loss"]["all"]
    assert loss == wanted["instance_mean"]
  found = json.loads((folder / "stability.json").read_text())
  assert found["pairs"] == ["teacher − reference", "teacher − other"]
  (line,) = found["compared"]
  scores = [mean_nll(copy, name) for name in ("reference", "other", "teacher")]
  a, b = scores[0] - scores[2], scores[1] - scores[2]
  assert line["rows"] == len(a)
  assert line["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)
  assert "stability skipped" not in done.stdout
  text = (copy / "run/report.html").read_text()
  assert "Stability of the scores" in text and "miniplm-r0.3" in text


def mean_nll(folder, name):
  """Of the rows of a score table, by plain Arrow."""
  table = pq.read_table(sorted((folder / "run/scores" / name).glob("part-*")))
  return table["nll_sum"].to_numpy() / np.float64(table["n_tokens"])


@pytest.mark.parametrize("of", ["corpus", "teacher"])
def test_what_no_longer_belongs_together_is_left_out(copy, capsys, of):
  """A selection of another corpus or table, and with it its student."""
  config = tiny_config.get_config()
  config.workdir = str(copy / "run")
  workdir = Workdir(epath.Path(config.workdir))

  def analyzed():
    execute.execute(Stages(typed(config), workdir).analyze())
    return capsys.readouterr().out

  assert "skipped, nothing has changed" in analyzed()
  made = copy / "run/selection/miniplm/manifest.json"
  with edited(made) as body:
    body["inputs"][of] = "another"
  first, *others = Stages(typed(config), workdir).analyses.sections()
  assert "has changed since" in first.text[0] and len(others) == 6
  left = [x for x in analyzed().splitlines() if "left out: " in x]
  assert len(left) == 2 and f"inputs.{of} is another" in left[0]
  assert "students/miniplm: its selection is not there" in left[1]
  pairs = json.loads((copy / "run/analysis/ranking.json").read_text())["pairs"]
  assert [p["student"] for p in pairs] == ["pretrain"]
  shutil.rmtree(copy / "run/analysis")
  (copy / "run/scores/reference/evaluation.arrow").write_bytes(b"damaged")
  with pytest.raises(UserError, match=r"evaluation\.arrow.*--stages=evaluate"):
    analyzed()
