"""Criteria × seeds over one score table, as one command."""

import csv
import json
import re
import shutil
import types

import helpers
import numpy as np
import pyarrow as pa
import pytest
from helpers import LONG, ROOT, refused, run, run_as_process
from pyarrow import feather
from scipy import stats
from test_api import content

import miniplm_jax as mp
from miniplm_jax import config as config_lib
from miniplm_jax.config import EvaluateConfig, SelectConfig
from miniplm_jax.config.compare import CompareConfig
from miniplm_jax.core.errors import UserError
from miniplm_jax.evaluation import heldout
from miniplm_jax.report import compare_page, compare_step, paired

CRITERIA = "--config.compare.criteria=easy=-teacher"
ORACLE = "--config.compare.oracle=best"
SEEDS = 10, 11
OPTIONS = (
  "--config.compare.seeds=10,11",
  "--config.compare.oracle=easy",
  "--config.evaluate.ignore_domains=odd",
)
STAGE = "--stages=compare"


@pytest.fixture(scope="module")
def compared(finished, tmp_path_factory):
  """A workdir with scores, and what one command has made of them."""
  folder = tmp_path_factory.mktemp("compared")
  shutil.copytree(finished, folder, dirs_exist_ok=True)
  done = run(folder, STAGE, CRITERIA, *OPTIONS, "--config.run.eval_every=2")
  return folder / "run", done.stdout


def figures(workdir):
  return json.loads((workdir / "compare" / "compare.json").read_text())


def losses(workdir, name):
  """float64 [seeds, rows] of the domain that counts, from the files."""
  index = pa.concat_tables(
    pa.parquet.read_table(p) for p in sorted(workdir.glob("corpus/index-*"))
  )
  domain = np.array(index["domain"].to_pylist())
  found = []
  for seed in SEEDS:
    path = workdir / "students" / f"{name}-s{seed}" / "evaluation.arrow"
    table = feather.read_table(path).to_pandas()
    table = table[domain[table["row_id"]] == "even"]
    found.append(table["nll_sum"].astype(float) / table["n_tokens"])
  return np.array(found)


def by_hand(loss):
  """What `paired.resample` says it does, draw by draw, by indices."""
  _, seeds, rows = loss.shape
  rng, found = np.random.default_rng(10), []
  factor = stats.t(seeds - 1).isf(0.025) / 1.959963984540054
  for _ in range(2000):
    drawn = rng.integers(seeds, size=seeds - 1)
    chosen = rng.integers(rows, size=rows)
    both = [one[np.ix_(drawn, chosen)].mean() for one in loss]
    alone = [one[drawn].mean() - one.mean() for one in loss]
    found.append(np.array(both) + (factor - 1) * np.array(alone))
  return np.array(found)


def test_figures_are_those_of_the_files(compared):
  workdir, stdout = compared
  found = figures(workdir)
  names = ["random", "easy"]
  loss = np.stack([losses(workdir, name) for name in names])
  assert loss.shape[2] == found["heldout_rows"] > 20
  drawn = by_hand(loss)
  for i, name in enumerate(names):
    one = found["criteria"][name]
    less = loss[i] - loss[0]
    assert one["loss"] == pytest.approx(loss[i].mean())
    assert one["delta"] == pytest.approx(less.mean())
    assert one["delta_by_seed"] == pytest.approx(less.mean(1))
    for key, draws in (
      ("loss", drawn[:, i]),
      ("delta", drawn[:, i] - drawn[:, 0]),
    ):
      ends = [one[f"{key}_low"], one[f"{key}_high"]]
      assert ends == pytest.approx(np.percentile(draws, [2.5, 97.5])), name
    if name != "random":
      is_in = one["delta_low"] <= 0 <= one["delta_high"]
      assert (one["shown"] == "no difference shown") == is_in
      assert one["formula"] in stdout
    student = mp.open_artifact(workdir / "students" / f"{name}-s10")
    assert student.evaluation.loss == pytest.approx(one["loss_by_seed"][0])
    steps, values = student.curve("eval/loss")
    assert (steps, values) == (found["points"], one["curves"][0])
    assert len(steps) > 2


def test_what_is_kept_of_rows_that_count_and_of_others(compared):
  workdir, stdout = compared
  index = pa.concat_tables(
    pa.parquet.read_table(p) for p in sorted(workdir.glob("corpus/index-*"))
  ).to_pandas()
  of_d = index[index["split"] == "train"]["domain"].value_counts()
  for name, folders in ("random", SEEDS), ("easy", ("",)):
    folders = [f"{name}-s{one}" if one else name for one in folders]
    rows = [np.load(workdir / "selection" / f / "rows.npy") for f in folders]
    kept = index.loc[np.concatenate(rows), "domain"].value_counts()
    kept /= len(folders)
    wanted = {"what counts": kept["even"] / of_d["even"]}
    wanted["odd"] = kept["odd"] / of_d["odd"]
    found = figures(workdir)["criteria"][name]["kept_of"]
    assert found == pytest.approx(wanted)
    text = [f"{group} {wanted[group]:.0%}" for group in sorted(wanted)]
    assert ", ".join(text) in stdout


def test_of_a_domain_that_is_held_out_alone_nothing_is_kept():
  domains = {"even": {"rows": 8, "kept": 4}, "odd": {"rows": 0, "kept": 0}}
  student = types.SimpleNamespace(
    evaluation=types.SimpleNamespace(settings={"ignore_domains": ["odd"]}),
    selection=types.SimpleNamespace(counts={"domains": domains}),
  )
  assert compare_step._kept_of([student]) == {"what counts": 0.5}


def test_students_of_a_seed_differ_in_their_rows_alone(compared):
  workdir, _ = compared
  for seed in SEEDS:
    settings = []
    for name in "random", "easy":
      student = mp.open_artifact(workdir / "students" / f"{name}-s{seed}")
      settings.append(dict(student.settings) | {"rows": None})
      assert student.settings["train"]["seed"] == seed
    assert settings[0] == settings[1]
  drawn = [
    (workdir / "selection" / f"random-s{seed}" / "rows.npy").read_bytes()
    for seed in SEEDS
  ]
  assert drawn[0] != drawn[1] and len(drawn[0]) == len(drawn[1])


def test_the_library_finds_what_the_command_has_made(compared):
  workdir, _ = compared
  before, ran = content(workdir), mp.open_artifact(workdir)
  student = ran.students["random-s10"]
  train = dict(student.settings["train"])
  del train["seed"]
  again = mp.compare(
    ran.scores,
    {"easy": "-teacher"},
    shape=student.shape,
    seeds=2,
    oracle="easy",
    evaluate=EvaluateConfig(ignore_domains=("odd",)),
    **train,
  )
  assert content(workdir) == before
  assert again.figures == figures(workdir) and "-teacher" in str(again)
  table = again.to_arrow().to_pylist()
  assert {line["criterion"] for line in table} == {
    "random",
    "easy",
  }
  assert mp.open_artifact(workdir / "compare").fingerprint == again.fingerprint
  with pytest.raises(UserError, match="give what score returns"):
    mp.compare(ran, ["mean_diff"])


@pytest.mark.long
def test_it_is_in_the_report(compared):
  workdir, _ = compared
  options = "--config.baselines=pretrain", "--config.train.steps=100"
  run(workdir.parent, "--stages=report", *options)
  page = (workdir / "report.html").read_text()
  assert "Criteria compared" in page and "no difference shown" in page


def columns(line):
  """A line of table.csv, its numbers as such; ValueError if it has others."""
  words = {"criterion", "formula", "baseline", "oracle", "corpus", "student"}
  numbers = {
    name: float(text) if text else None
    for name, text in line.items()
    if name not in words | {"shown"}
  }
  if list(line) != list(compare_page.COLUMNS):
    raise ValueError(line)
  for name in "loss", "delta":
    low, value, high = (numbers[f"{name}{e}"] for e in ("_low", "", "_high"))
    if not low <= value <= high:
      raise ValueError(name)
  return {name: line[name] for name in words} | numbers


@pytest.mark.parametrize("of", ["run", "shared"])
def test_lines_of_tables_are_valid(compared, of):
  """Those of docs/results/criteria.csv, to which others may add, too."""
  path = ROOT / "docs" / "results" / "criteria.csv"
  if of == "run":
    path = compared[0] / "compare" / "table.csv"
  with path.open() as file:
    lines = list(map(columns, csv.DictReader(file)))
  assert all(line["seeds"] >= 1 and line["loss"] > 0 for line in lines)
  for line in lines:  # a baseline is of the same corpus, student and steps
    same = "baseline", "corpus", "student", "steps", "seeds"
    alike = [o for o in lines if all(o[k] == line[k] for k in same)]
    (base,) = (o for o in alike if o["criterion"] == line["baseline"])
    assert line["delta"] == pytest.approx(line["loss"] - base["loss"], abs=1e-6)


def test_seeds_alone_give_the_bounds_of_theory():
  """Rows that are all alike: of 3 seeds, 2 drawn, the ends are the extremes."""
  by_seed = np.array([[1.0, 4.0, 2.5]])
  draws = paired.resample(np.repeat(by_seed[:, :, None], 30, 2))
  factor = stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975)
  assert np.quantile(draws, (0.025, 0.975)) == pytest.approx(
    [2.5 - 1.5 * factor, 2.5 + 1.5 * factor]
  )


def test_rows_alone_give_the_bounds_of_theory():
  loss = np.random.default_rng(0).normal(5, 2, size=(1, 1, 2500))
  low, high = np.quantile(paired.resample(loss), (0.025, 0.975))
  assert (high - low) / 2 == pytest.approx(1.96 * 2 / 50, rel=0.06)
  assert (high + low) / 2 == pytest.approx(loss.mean(), abs=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch):
  """Of 3 seeds that differ more than the rows: plain percentiles hold 76 %."""
  monkeypatch.setattr(paired, "DRAWS", 200)
  rng, inside = np.random.default_rng(1), []
  for _ in range(100):
    own, of_rows = rng.normal(size=(1, 3, 1)), rng.normal(size=(1, 1, 100))
    draws = paired.resample(own + of_rows)
    low, high = np.quantile(draws, (0.025, 0.975))
    inside.append(low <= 0 <= high)
  assert np.mean(inside) >= 0.88


def test_shares_of_an_oracle():
  """a has 2/3 of the oracle's gain, in every seed and row."""
  base = np.random.default_rng(2).normal(3, 1, size=(3, 40))
  loss = {"random": base, "oracle": base - 0.3, "a": base - 0.2}
  found = paired.losses(loss, "random", "oracle", "here")
  for name, share in ("random", 0), ("a", 2 / 3), ("oracle", 1):
    ends = [found[name][f"recovered{end}"] for end in ("_low", "", "_high")]
    assert ends == pytest.approx([share] * 3)
  assert [one["shown"] for one in found.values()] == [
    *("baseline", "better", "better")
  ]
  # One that is no better than the baseline has no gain to share.
  found = paired.losses(loss | {"oracle": base + 0.1}, "random", "oracle", "")
  assert "recovered" not in found["a"] and found["oracle"]["shown"] == "worse"


@pytest.mark.parametrize(("rows", "bad"), [(19, 3.0), (40, np.nan)])
def test_losses_that_say_nothing_are_refused(rows, bad):
  loss = np.full((2, rows), bad)
  with pytest.raises(UserError, match=r"19 held-out rows|not finite"):
    paired.losses({"random": loss, "a": loss}, "random", "", "here")


def test_tokens_to_target_by_hand():
  """The baseline ends at 4 in the mean."""
  curves = {
    "random": np.array([[6.0, 5, 4.5], [6, 4, 3.5]]),
    "a": np.array([[6.0, 4, 3], [5, 3, 2]]),
    "b": np.array([[6.0, 5, 4.5], [3.0, 3, 3]]),
  }
  found = paired.to_target((100, 200, 400), curves, "random")
  assert found["a"]["at"] == [0.5, 0.375] and found["a"]["reached"] == 2
  assert [found["a"][f"tokens{e}"] for e in ("_low", "", "_high")] == [
    *(0.375, 0.4375, 0.5)
  ]
  assert found["random"]["at"] == [None, 0.5] and found["b"]["at"][1] == 0.25
  assert found["b"]["reached"] == 1 and "tokens" not in found["b"]


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ([CRITERIA + ",foo"], "criteria is 'foo', .*mean_diff.*, and NAME=FORMULA"),
    ([CRITERIA + ",easy=teacher"], "give each another name"),
    ([CRITERIA + ",Easy=teacher"], "give each another name"),
    ([CRITERIA + ",random=teacher"], "random is random"),
    ([CRITERIA + ",Random=teacher"], "compare.criteria .*none random's"),
    ([CRITERIA + ",Easy-s11=teacher", OPTIONS[0]], "easy-s11 is another's"),
    ([CRITERIA, "--config.method=vanilla_kd"], "say --config.method=miniplm"),
    ([CRITERIA + ",x=teacher+"], "it is no formula"),
    ([CRITERIA + ",x=nobody"], "no score table nobody"),
    ([CRITERIA + ",best=field('x')", ORACLE], "is .field.*no field 'x', but"),
    ([CRITERIA, ORACLE], "oracle is 'best', .* choose from random, easy"),
    ([CRITERIA + ",best=labels", ORACLE], "no score table labels"),
    (
      [CRITERIA, "--config.compare.oracle=random"],
      "from random, easy, but the baseline",
    ),
    ([CRITERIA, "--config.compare.baseline=best"], "from random, easy"),
    (
      [CRITERIA, "--config.compare.seeds="],
      r"seeds is \(\), .*give one or more",
    ),
    ([CRITERIA, "--config.compare.seeds=7,7"], "each once"),
    (["--config.compare.oracle=easy"], "choose from random, but the baseline"),
    ([CRITERIA, "--config.student.name=x"], "into it: two methods have one"),
    ([CRITERIA, "--config.select.name=x"], "into it: two methods that rank"),
  ],
)
def test_what_cannot_be_meant_is_refused(compared, options, said):
  line = refused(compared[0].parent, STAGE, *options)
  assert re.search(said, line), line


def test_one_seed_is_said_and_other_rows_are_refused(compared, tmp_path):
  shutil.copytree(compared[0].parent, tmp_path, dirs_exist_ok=True)
  one = CRITERIA, "--config.compare.seeds=10", OPTIONS[2]
  done = run(tmp_path, STAGE, *one)
  assert "One seed: intervals are over held-out rows alone" in done.stdout
  longer = "--config.train.learning_rate=0.125"
  line = refused(tmp_path, STAGE, *one, longer)
  # Stage train does not have these students.
  assert "learning_rate is" in line and "--stages=compare --force" in line


def test_a_workdir_has_several_comparisons(compared, tmp_path):
  shutil.copytree(compared[0].parent, tmp_path, dirs_exist_ok=True)
  first = (tmp_path / "run" / "compare" / "compare.json").read_bytes()
  one = "--config.compare.criteria=hard=reference", "--config.compare.seeds=10"
  name = "--config.compare.name=second"
  run(tmp_path, f"{STAGE},report", *one, name)
  assert (tmp_path / "run" / "compare" / "compare.json").read_bytes() == first
  folder = tmp_path / "run" / "compare" / "second"
  assert [*mp.open_artifact(folder).figures["criteria"]] == ["random", "hard"]
  page = (tmp_path / "run" / "report.html").read_text()
  assert page.index("Criteria compared<") < page.index("compared, second<")


def test_other_held_out_rows_are_measured_and_nothing_is_trained(
  compared, tmp_path
):
  shutil.copytree(compared[0].parent, tmp_path, dirs_exist_ok=True)
  workdir = tmp_path / "run"
  loss, before = losses(workdir, "easy").mean(), content(workdir)
  run(tmp_path, STAGE, CRITERIA, OPTIONS[0], "--config.evaluate.max_rows=40")
  after, found = content(workdir), figures(workdir)
  changed = {path for path in after if after[path] != before.get(path)}
  measured = {path for path in changed if path.parts[0] == "students"}
  assert {path.stem for path in measured} == {"evaluation"}
  folders = {path.parts[0] for path in changed - measured}
  assert folders == {"compare", "config.json"}
  assert 20 <= found["heldout_rows"] <= 40
  ran = mp.open_artifact(workdir)
  settings = ran.students["easy-s10"].settings
  train = {k: v for k, v in settings["train"].items() if k != "seed"}
  again = mp.compare(
    ran.scores,
    {"easy": "-teacher"},
    shape=ran.students["easy-s10"].shape,
    seeds=SEEDS,
    evaluate=EvaluateConfig(ignore_domains=("odd",)),
    **train,
  )
  assert again.figures["criteria"]["easy"]["loss"] == pytest.approx(loss)


def test_other_domains_count_without_a_pass_of_any_model(
  compared, tmp_path, monkeypatch
):
  shutil.copytree(compared[0].parent, tmp_path, dirs_exist_ok=True)
  monkeypatch.setattr(heldout, "measure", None)
  students = tmp_path / "run" / "students"
  before = {p: p.read_bytes() for p in students.glob("*/evaluation.arrow")}
  ignored = "--config.evaluate.ignore_domains=even"
  run(tmp_path, STAGE, CRITERIA, OPTIONS[0], ignored)
  run(tmp_path, "--stages=evaluate", LONG, ignored)
  assert before == {path: path.read_bytes() for path in before}
  index = mp.open_artifact(tmp_path / "run/corpus").to_pandas()
  odd = index.row_id[index.domain == "odd"]
  compared = [f"{c}-s{seed}" for c in ("easy", "random") for seed in SEEDS]
  for name in ("miniplm", *compared):
    path = students / name / "evaluation.arrow"
    rows = feather.read_table(path).to_pandas()
    rows = rows[rows.row_id.isin(odd)]
    body = json.loads(path.with_suffix(".json").read_text())
    means = rows.nll_sum.astype(float) / rows.n_tokens
    loss = body["details"]["loss"]["all"]["instance_mean"]
    assert loss == pytest.approx(means.mean()) and len(rows)
    assert body["settings"]["ignore_domains"] == ["even"]
  # As it is measured anew, which a damaged file leads to as well.
  monkeypatch.undo()
  found = json.loads((students / "miniplm/evaluation.json").read_text())
  run(tmp_path, "--stages=evaluate", LONG, ignored, "--force")
  path = students / "miniplm/evaluation.json"
  anew = json.loads(path.read_text())
  assert found["details"]["loss"] == anew["details"]["loss"]
  with path.with_suffix(".arrow").open("r+b") as file:
    file.seek(200)
    file.write(b"xxxx")
  run(tmp_path, "--stages=evaluate", LONG)
  run(tmp_path, "--stages=evaluate", LONG, ignored)
  again = json.loads(path.read_text())
  assert found["details"]["loss"] == again["details"]["loss"]


def test_what_compare_measures_otherwise_is_measured_again(compared, tmp_path):
  """It shares students with the run, which nobody has to force afterwards."""
  shutil.copytree(compared[0].parent, tmp_path, dirs_exist_ok=True)
  path = tmp_path / "run/students/miniplm/evaluation.json"
  shutil.rmtree(tmp_path / "run/students/random-s10")  # of fewer steps
  given = LONG, "--config.compare.criteria=kept=mean_diff"
  given += ("--config.compare.seeds=10,",)
  before = json.loads(path.read_text())["counts"]
  run(tmp_path, STAGE, *given, "--config.evaluate.max_rows=40")
  assert json.loads(path.read_text())["counts"] != before
  run(tmp_path, "--stages=evaluate,compare,report", *given)
  assert json.loads(path.read_text())["counts"] == before


def test_random_rows_are_drawn_without_a_penalty(compared):
  options = CRITERIA, *OPTIONS, "--config.select.redundancy=0.1", "--dry_run"
  said = run_as_process(compared[0].parent, STAGE, *options, code=1).stdout
  done, other = re.findall("compare +([^:]*): .*\n? .*top 0.5 of D(.*)", said)
  assert done == ("done", ": random by random × seeds 10, 11")
  assert other[0] == "would be refused"
  assert other[1] == ", redundancy 0.1: easy by -teacher"


def test_each_seed_draws_its_share_for_all_criteria(compared):
  options = CRITERIA, *OPTIONS, "--config.select.share=0.5", "--dry_run"
  said = run_as_process(compared[0].parent, STAGE, *options, code=1).stdout
  told = " ".join(re.findall("a share of 0.5: (.*)", said))
  for name in "random by random", "easy by -teacher":
    assert re.search(f"{name}.* × seeds 10, 11", told), said
  ran, rows, n = mp.open_artifact(compared[0]), {}, len(SEEDS)
  section = CompareConfig(criteria=("easy=-teacher",), seeds=SEEDS)
  select = SelectConfig(ratio=1.0, share=0.5)
  for by_seed in section.names(select, "{method}").values():
    assert len({one.selection for one in by_seed.values()}) == n
    for seed, one in by_seed.items():
      by = vars(section.select_of(select, one.definition, seed))
      by = {k: v for k, v in by.items() if k not in ("definition", "name")}
      folder = compared[0].parent / "drawn" / one.selection
      kept = ran.scores.select(one.definition, name="x", to=folder, **by)
      rows.setdefault(seed, []).append(np.load(folder / "rows.npy"))
      assert kept.manifest.settings["share"] == 0.5
  for first, other in rows.values():  # all that are drawn, by either criterion
    np.testing.assert_array_equal(first, other)
  assert not np.array_equal(*(first for first, _ in rows.values()))


def test_unequal_selections_are_said(compared):
  def of(*kept):
    keys = "kept_rows", "kept_tokens"
    return {str(i): dict(zip(keys, each)) for i, each in enumerate(kept)}

  for alike in (
    of((3578, 114_496), (3577, 114_464)),
    of((9, 288), (10, 320)),
    of((1000, 32_000), (1010, 32_320)),
  ):
    assert compare_page.unequal(alike) == ""
  assert compare_page.unequal(of((1000, 32_000), (1000, 31_000)))
  text = compare_page.unequal(of((3578, 114_496), (100, 3200)))
  assert "0 3,578 rows of 114,496 tokens; 1 100 rows of 3,200" in text
  found = figures(compared[0])
  for name, one in found["criteria"].items():
    folder = "random-s10" if name == "random" else name
    selection = mp.open_artifact(compared[0] / "selection" / folder)
    counts = selection.manifest.counts
    assert [one["kept_rows"], one["kept_tokens"]] == [
      *(counts["kept"], counts["tokens"])
    ]
  assert found["unequal"] == compare_page.unequal(found["criteria"])
  assert text in compare_page.section(found | {"unequal": text}).notes


def test_what_no_criterion_can_read_is_refused_before_anything_trains(
  compared, tmp_path
):
  ran = mp.open_artifact(compared[0])
  shape = ran.students["easy-s10"].shape
  with pytest.raises(UserError, match="no score table nobody"):
    mp.compare(ran.scores, {"a": "nobody"}, shape=shape, seeds=1, to=tmp_path)
  assert not (tmp_path / "students").exists()


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"seed": 4}, "seed is 4, .*seeds="),
    ({"seeds": True}, "seeds is True"),
    ({"seeds": 2.0}, "seeds is 2.0"),
    ({"seeds": 0}, "seeds is"),
    ({"criteria": None}, "criteria is None"),
    ({"criteria": [None]}, "criteria is"),
    ({"select": {"ratio": 0.2}}, "select is .*SelectConfig"),
    ({"select": SelectConfig(name="x")}, "select.name is 'x', .*{method}"),
    ({"select": SelectConfig(seed=3)}, "select.seed is 3"),
    ({"select": SelectConfig(definition="random")}, "select.definition is"),
    ({"run": None}, "run is None"),
    ({"ratio": 0.2}, r"select=SelectConfig\(ratio=0.2\)"),
    ({"max_rows": 9}, r"evaluate=EvaluateConfig\(max_rows=9\)"),
    ({"eval_every": 9}, r"run=RunConfig\(eval_every=9\)"),
  ],
)
def test_arguments_without_effect_are_refused(
  compared, options, said, tmp_path
):
  ran = mp.open_artifact(compared[0])
  options = {"criteria": {"a": "teacher"}, "shape": "qwen-45m"} | options
  with pytest.raises(UserError, match=said):
    mp.compare(ran.scores, to=tmp_path / "x", **options)
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  "changed, shared",
  [
    ({}, {"miniplm", "pretrain"}),
    ({"train.seed": 11}, {"miniplm"}),  # whose rows no seed draws
    ({"train.seed": 9}, set()),
    ({"select.share": 0.5, "train.seed": 11}, set()),
    # Random rows are not spread where the run's own are.
    ({"select.redundancy": 0.1}, {"miniplm"}),
    ({"select.definition": "difficulty"}, {"pretrain"}),
    ({"baselines": ("vanilla_kd",)}, {"miniplm"}),
  ],
)
def test_a_student_of_the_run_is_not_trained_again(changed, shared):
  given = config_lib.default()
  given.baselines = ("pretrain",)
  given.compare.criteria, given.compare.seeds = ("kept=mean_diff",), SEEDS
  given.update_from_flattened_dict(changed)
  config = helpers.typed(given)
  compared = [n for them in config.compared.values() for n in them.values()]
  assert {n.student for n in compared if "-s" not in n.student} == shared
  trained = [n.student for n in config.all_names]
  assert len(trained) == len(set(trained)) == 4 + 2 - len(shared)
