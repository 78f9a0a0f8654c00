"""The report of a selection: its figures, its page, its card."""

import collections
import dataclasses
import gzip
import html.parser
import json
import re
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_config
from etils import epath
from helpers import LONG, edited, refused, run, typed
from scipy import stats

from miniplm_jax.core import decide, execute, files, manifest
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.workdir import Workdir
from miniplm_jax.corpus import store
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.evaluation import evaluate_step, heldout, subjects
from miniplm_jax.pipeline import Stages
from miniplm_jax.report import (
  agreement,
  audit,
  copies,
  dataset_card,
  headline,
  model_card,
  page,
  plots,
  report_step,
  tasks_report_step,
)
from miniplm_jax.report import (
  selection as card,
)
from miniplm_jax.report import (
  selection_figures as figures,
)
from miniplm_jax.report import (
  selection_summary as summary,
)
from miniplm_jax.report import (
  selection_tables as tables,
)
from miniplm_jax.report.inventory import Student
from miniplm_jax.report.page import Bar, Table
from miniplm_jax.selection import items as eval_items
from miniplm_jax.selection import overlap
from miniplm_jax.training.trained import own_corpora


class MadeUp:
  """A corpus without records: what an index says of its rows."""

  def __init__(self, rows: int, seed: int, domains=("a", "b", "c")):
    rng = np.random.default_rng(seed)
    self.max_length = 64
    split = rng.choice(["train", "heldout"], rows, p=[0.9, 0.1])
    self._train = np.flatnonzero(split == "train")
    columns = {
      "domain": pa.array(rng.choice(domains, rows)),
      "n_tokens": pa.array(rng.integers(2, 66, rows), pa.int32()),
      "hash": pa.array(rng.integers(0, rows, rows).astype(np.uint64)),
    }
    table = pa.table(columns)
    self.index = pa.concat_tables([table[:17], table[17:]])
    self.score = np.round(rng.normal(size=len(self._train)), 1)
    self.nll = rng.uniform(1, 9, (2, len(self._train))).astype(np.float32)

  def written(self, folder):
    """The index on disk, as two parts of several row groups."""
    split = np.full(len(self.index), "heldout")
    split[self._train] = "train"
    table = self.index.append_column("split", pa.array(split))
    for part, rows in enumerate((table[:900], table[900:])):
      path = folder / store.shard_names(part, 2)[1]
      pq.write_table(rows, path, row_group_size=130)
    counts = {"parts": 2, "split train": len(self._train)}
    names = [store.shard_names(part, 2)[1] for part in range(2)]
    made = manifest.Manifest(
      epath.Path(folder, "manifest.json"),
      "tokenize",
      settings={},
      inputs={},
      counts=counts,
      files={name: files.describe(folder / name) for name in names},
    )
    return types.SimpleNamespace(directory=folder, manifest=made)

  def rows_of(self, split):
    assert split == "train"
    return self._train

  def scored(self, models=("teacher", "reference"), step=37):
    n_tokens = self.index["n_tokens"].to_numpy()
    names = self.index["domain"].to_pylist()
    met = {}  # codes grow as domains are met

    def columns():
      for i in range(0, len(self._train), step):
        here = slice(i, i + step)
        ids = self._train[here]
        codes = [met.setdefault(names[j], len(met)) for j in ids]
        scored.domains = list(met)
        yield {
          "row_id": ids,
          "domain": np.array(codes),
          "corpus_tokens": n_tokens[ids],
          "score": self.score[here].astype(np.float32),
          **{f"{m}_nll": v[here] for m, v in zip(models, self.nll)},
          **{f"{m}_tokens": np.ones_like(self._train[here]) for m in models},
        }

    scored = types.SimpleNamespace(columns=columns, rows=len(self._train))
    return scored


@pytest.fixture(scope="module")
def made_up():
  """A corpus, and kept rows that no threshold explains."""
  corpus = MadeUp(2000, 1)
  rng = np.random.default_rng(2)
  kept = rng.random(len(corpus.score)) < 0.2 + 0.4 * (corpus.score > 0)
  return corpus, kept


def test_figures_equal_those_of_plain_python(made_up):
  corpus, kept = made_up
  ids = corpus.rows_of("train")
  found = summary.summarize(corpus, corpus.scored(), ids[kept])
  domain = np.array(corpus.index["domain"].to_pylist())[ids]
  length = corpus.index["n_tokens"].to_numpy()[ids]
  noise = corpus.nll[1] < corpus.nll[0]
  assert {g.name for g in found.domains} == {"a", "b", "c"}
  for g in (*found.domains, found.total):
    here = (domain == g.name) | (g.name == "all")
    assert (g.rows, g.kept_rows) == (here.sum(), (here & kept).sum())
    assert g.tokens == length[here].sum()
    assert g.kept_tokens == length[here & kept].sum()
    assert g.noise == noise[here].sum()
    assert g.kept_noise == noise[here & kept].sum()
    assert g.score == pytest.approx(corpus.score[here].sum(), abs=1e-3)
    assert g.kept_score == pytest.approx(corpus.score[here & kept].sum(), 1e-4)
  assert sum(g.tokens for g in found.lengths) == found.total.tokens
  first, *_, full = found.lengths
  assert (first.name, full.name) == ("2 to 15", "65")
  assert first.kept_rows == (kept & (length < 16)).sum()


def test_texts_are_those_at_the_ends_and_at_the_cut(made_up):
  corpus, kept = made_up
  ids, score = corpus.rows_of("train"), corpus.score.astype(np.float32)
  found = summary.summarize(corpus, corpus.scored(), ids[kept])
  domain = np.array(corpus.index["domain"].to_pylist())[ids]
  for name, places in found.places.items():
    for place, (is_kept, highest) in summary.PLACES.items():
      here = domain == name
      if is_kept is not None:
        here &= kept == is_kept
      order = np.lexsort((ids[here], -score[here] if highest else score[here]))
      best = order[: summary.TEXTS]
      wanted = list(zip(score[here][best].tolist(), ids[here][best].tolist()))
      assert places[place] == wanted, (name, place)


def test_a_threshold_that_kept_rows_do_not_reach_is_not_shown():
  corpus = MadeUp(500, 4)
  ids, score = corpus.rows_of("train"), corpus.score.astype(np.float32)
  found = summary.summarize(corpus, corpus.scored(), ids[score >= 0.5])
  for threshold, wanted in ((0.5, 0.5), (0.7, None), ({"a": 0.5}, None)):
    made = types.SimpleNamespace(
      path=epath.Path("x/manifest.json"),
      settings={"definition": "new", "scores": {"teacher": "big"}},
      details={"cutoff": {"threshold": threshold}},
      counts={"dropped": {"near_duplicate": 3, "too_short": 0}},
    )
    shown = tables.SelectionReport.of(made, found)
    assert (shown.name, shown.label) == ("x", "new")
    assert shown.threshold == wanted
    assert shown.dropped == {"near duplicate": 3}
    assert shown.options["scores.teacher"] == "big"
    drawn = made.settings | {"temperature": 0.5}  # the cut is of score + noise
    drawn = types.SimpleNamespace(**vars(made) | {"settings": drawn})
    assert tables.SelectionReport.of(drawn, found).threshold is None
    assert ("from 0.5000 on" in tables.lead(shown)) == (wanted is not None)


def test_one_more_domain_is_shown_by_its_name():
  corpus = MadeUp(3000, 3, [f"d{i}" for i in range(13)])
  rows = corpus.rows_of("train")[::2]
  found = summary.summarize(corpus, corpus.scored(), rows)
  assert summary.largest(found.domains, 12) == found.domains


def test_pictures_show_names_as_they_are(monkeypatch):
  """A $ begins no maths, and a name may begin with "_"."""
  names = ("_a", "$b^$", r"\$c$", "d")
  corpus = MadeUp(2000, 5, names)
  rows = corpus.rows_of("train")[::2]
  found = summary.summarize(corpus, corpus.scored(), rows)
  seen, picture = [], plots.picture

  def look(figure):
    content = picture(figure)  # drawn: all labels are there
    ax = figure.axes[0]
    legend = ax.get_legend()
    seen.append(
      [
        t._preprocess_math(t.get_text())
        for t in (
          *ax.get_yticklabels(),
          *(legend.get_texts() if legend else ()),
        )
      ]
    )
    return content

  monkeypatch.setattr(plots, "picture", look)
  shown = tables.SelectionReport(
    "x",
    "mean_diff",
    "score",
    threshold=0.1,
    dropped={},
    options={},
    summary=found,
  )
  figures.pictures(shown)
  wanted = {(name, False) for name in names}
  assert sum(wanted <= set(texts) for texts in seen) == 1


@pytest.mark.parametrize("models", [(), ("reference",)])
def test_without_a_table_the_figures_do_without_it(made_up, models):
  corpus, kept = made_up
  scored = corpus.scored(models)
  found = summary.summarize(corpus, scored, corpus.rows_of("train")[kept])
  assert not found.has_noise and found.total.noise == 0
  assert set(found.sample.means) == set(models)
  assert len(found.sample.score) == scored.rows


def test_numbers_have_a_sign_unless_they_are_shown_as_zero():
  assert tables.signed(1.234, 1) == "+1.2"
  assert tables.signed(-1.234, 2) == "−1.23"
  assert tables.signed(-0.04, 1) == tables.signed(0, 1) == "0.0"
  assert tables.mean(1, 0) == tables.share(1, 0) == "–"


@pytest.mark.parametrize("shift", [0, 0.6, 3])
def test_an_audit_says_what_a_criterion_goes_with(shift):
  """Against figures over all rows at once."""
  corpus = MadeUp(3000, 7)
  rows = corpus.rows_of("train")
  domain = np.array(corpus.index["domain"].to_pylist())[rows]
  corpus.score += shift * (domain == "b") - shift * (domain == "c")
  score = corpus.score.astype(np.float32)
  kept = np.sort(rows[np.argsort(-score)[: len(rows) // 2]])
  found = audit.Audit.of("x", summary.summarize(corpus, corpus.scored(), kept))

  def between(values):
    groups = [values[domain == name] for name in "abc"]
    part = sum(len(g) * (g.mean() - values.mean()) ** 2 for g in groups)
    return part / np.sum((values - values.mean()) ** 2)

  expected = between(score.astype(np.float64)), between(stats.rankdata(score))
  assert found.between_domains == pytest.approx(expected[0], abs=1e-12)
  assert found.between_domains_by_rank == pytest.approx(expected[1], abs=1e-12)
  tokens = corpus.index["n_tokens"].to_numpy()[rows]
  columns = dict(zip(("teacher", "reference"), corpus.nll), tokens=tokens)
  for name, values in columns.items():
    rho = stats.spearmanr(score, values).statistic
    assert found.correlations[name] == pytest.approx(rho, abs=1e-12)
  assert bool(found.warning) == (expected[1] >= 0.5) == (shift == 3)
  if shift == 3:
    assert "x mostly ranks domains" in found.warning
    c, b = (np.isin(rows, kept)[domain == name].mean() for name in "cb")
    assert f"of c {c:.1%} is kept, of b {b:.1%}" in found.warning


def test_many_domains_are_added_up():
  corpus = MadeUp(3000, 3, [f"d{i}" for i in range(30)])
  rows = corpus.rows_of("train")[::2]
  found = summary.summarize(corpus, corpus.scored(), rows)
  shown = summary.largest(found.domains, 12)
  assert len(found.domains) == 30 and len(shown) == 13
  assert shown[-1].name == "18 other domains"
  assert sum(g.tokens for g in shown) == found.total.tokens
  assert sum(g.kept_rows for g in shown) == len(rows)


def evaluated(losses, ignored=()):
  return types.SimpleNamespace(
    details={"loss": losses},
    settings={"ignore_domains": list(ignored)},
    path="evaluation.json",
  )


def test_the_loss_of_a_domain_called_all_is_not_the_total():
  """Means a token: all 2 and 4, b 1 and 3, c 9 that does not count."""
  columns = (
    np.array(["all", "b", "c", "b", "all"], object),
    np.array([4.0, 2.0, 9.0, 3.0, 12.0]),
    np.array([2, 2, 1, 1, 3]),
    np.array([10, 20, 1, 10, 30]),
  )
  found = heldout.losses(evaluated(heldout.grouped_losses(*columns, "c"), "c"))
  assert list(found) == ["all", "domain all", "b", "c"]
  means = {name: loss["instance_mean"] for name, loss in found.items()}
  assert means == {"all": 2.5, "domain all": 3.0, "b": 2.0, "c": 9.0}
  assert found["all"]["rows"] == 4 and found["all"]["tokens"] == 8
  assert found["domain all"]["token_mean"] == 16 / 5
  assert found["b"]["bits_per_byte"] == pytest.approx(5 / np.log(2) / 30)
  # As an earlier version wrote it: the domain's loss instead of the total's.
  mixed_up = {"all": found["domain all"], "b": found["b"], "c": found["c"]}
  with pytest.raises(
    UserError, match=r"“all” is of 2 rows, but .* have 3"
  ) as e:
    heldout.losses(evaluated(mixed_up | {"b": {"rows": 3}}, "c"))
  assert "--stages=evaluate --force" in str(e.value)


def test_a_domain_is_known_by_its_whole_name():
  """NumPy's own strings would end before the NUL."""
  one, domain = np.ones(2), np.array(["b", "b\0"], object)
  found = heldout.grouped_losses(domain, one, one, one)
  rows = {name: loss["rows"] for name, loss in found.items()}
  assert rows == {"all": 2, "b": 1, "b\0": 1}


@pytest.mark.parametrize(
  ("earlier", "state"),
  [
    ({"name": "renamed", "max_rows": 0}, "done"),
    ({"max_rows": 134}, "done"),
    ({"max_rows": 133}, "max_rows is 133 there and 10000 here"),
    ({"ignore_domains": ["b", "a", "b"]}, "done"),
    ({"ignore_domains": ["a"]}, "ignore_domains"),
  ],
)
def test_an_evaluation_is_refused_for_what_decides_alone(
  tmp_path, earlier, state
):
  """A student's name does not, nor how many more rows might be taken."""
  config = tiny_config.get_config()
  config.evaluate.ignore_domains = ("a", "b")
  place = Workdir(epath.Path(tmp_path))
  corpus = manifest.Manifest(
    place.corpus / "manifest.json", "", {}, {}, counts={"split heldout": 134}
  )
  folder = place.student("mine")
  model = manifest.Manifest(folder / "manifest.json", "train", {}, {})
  paths = {"corpus": corpus.path}
  it = subjects.Subject("miniplm", "mine", folder, paths, "float32")
  for made in (corpus, model):
    made.path.parent.mkdir(parents=True)
    made.write()
  settings = {"max_rows": 10000, "ignore_domains": ["a", "b"]} | earlier
  manifest.Manifest(
    folder / "evaluation.json",
    "evaluate",
    settings | {"dtype": "float32"},
    {"corpus": corpus.fingerprint, "model": model.fingerprint},
  ).write()
  one = evaluate_step.step(it, config.evaluate, config.score, config.run)
  assert state in str(decide.decide(one))
  # Of another model it is made again, unless it is refused.
  dataclasses.replace(model, weights="anew").write()
  again = "would run again" if state == "done" else "would be refused"
  assert again in str(decide.decide(one))


def test_the_tables_tell_a_domain_called_all_from_the_total():
  corpus = MadeUp(300, 3, ["all", "b"])
  rows = corpus.rows_of("train")
  table = tables.domain_table(summary.summarize(corpus, corpus.scored(), rows))
  names = [row[0] for row in table.rows]
  assert sorted(names[:-1]) == ["b", "domain all"] and names[-1] == "all"


def methods_of(config):
  """What is made for each method of a config."""
  config = typed(config)
  return dict(zip(config.methods, config.names))


def chain(definition="mean_diff", **settings):
  """What a report shows of a run with method miniplm."""

  def made(name, settings=(), **inputs):
    prints = {k: v.fingerprint for k, v in inputs.items()}
    path = epath.Path(name, "manifest.json")
    return manifest.Manifest(path, name, dict(settings), prints)

  tables = {role: made(role) for role in ("teacher", "reference")}
  selection = made("miniplm", {"definition": definition}, **tables)
  trained = made("train", {"rows": "", **settings}, selection=selection)
  models = tables | {"miniplm": trained}
  return {
    **{f"{role} scores": one for role, one in tables.items()},
    "miniplm selection": selection,
    "miniplm training": trained,
    **{f"{n} evaluation": made(n, model=one) for n, one in models.items()},
  }


@pytest.mark.parametrize(
  ("changed", "what"),
  [
    ("teacher scores", "teacher"),
    ("miniplm selection", "selection"),
    ("miniplm training", "model"),
    ("reference scores", "reference"),
  ],
)
def test_a_report_is_of_what_was_made_from_each_other(changed, what):
  config, inputs = tiny_config.get_config(), chain()
  report_step.check(methods_of(config), inputs)
  other = dataclasses.replace(inputs[changed], weights="another")
  with pytest.raises(UserError, match=rf"inputs\.{what} .* name the {what}"):
    report_step.check(methods_of(config), inputs | {changed: other})


@pytest.mark.parametrize(
  ("name", "folder"), [("generated", "generated"), ("converted", "corpus")]
)
def test_a_student_of_a_corpus_that_was_made_again_is_refused(
  tmp_path, name, folder
):
  """Also left out of analyses, which ask the same."""
  path = epath.Path(tmp_path / folder / "manifest.json")
  own = manifest.Manifest(path, "seqkd", {}, {})
  inputs = chain()
  trained = inputs["miniplm training"]
  trained = dataclasses.replace(
    trained,
    path=epath.Path(tmp_path / "manifest.json"),
    inputs=trained.inputs | {name: own.fingerprint},
  )
  assert own_corpora(trained) == {}  # it was removed when it had been used
  own.write()
  assert own_corpora(trained) == {name: manifest.require(path)}
  dataclasses.replace(own, weights="of another run").write()
  config = tiny_config.get_config()
  config.method = "seqkd" if name == "generated" else "miniplm"
  inputs = {k.replace("miniplm", config.method): m for k, m in inputs.items()}
  with pytest.raises(UserError, match=f"inputs.{name} is"):
    report_step.check(
      methods_of(config), inputs | {f"{config.method} training": trained}
    )


def test_losses_of_other_rows_are_not_shown_beside_each_other():
  config, inputs = tiny_config.get_config(), chain()
  few = dataclasses.replace(
    inputs["miniplm evaluation"], details={"loss_rows": "few"}
  )
  with pytest.raises(UserError, match="of miniplm is of other rows than that"):
    report_step.check(methods_of(config), inputs | {"miniplm evaluation": few})
  own = dataclasses.replace(few, tokenizer="its own")
  report_step.check(methods_of(config), inputs | {"miniplm evaluation": own})


def test_the_verdict_says_what_sets_students_apart():
  """Beside method and rows; not what an earlier version did not say."""

  def made(method, **train):
    train = {"steps": 8, "warmup_steps": 2, "learning_rate": 0.1} | train
    settings = {
      "training": {"model": {"rope_theta": 2.0}, "train": train},
      "selection": {
        "definition": method,
        "scores": {},
        "ratio": 0.5,
        "seed": 1,
      },
      "evaluation": {"dtype": "float32"},
    }
    loss = {"rows": 1, "instance_mean": len(method) + 0.0}
    details = {"train_flops": 9.0, "loss": {"all": loss}}
    return Student(
      **{
        what: manifest.Manifest(
          epath.Path("m"), what, s, {}, counts={"steps": 8}, details=details
        )
        for what, s in settings.items()
      }
    )

  def told(**train):
    students = {"miniplm": made("miniplm")}
    students["pretrain"] = made("pretrain", **train)
    return " ".join(headline.verdict(students, (), None))

  assert told() == (
    "pretrain is 1.0000 nats higher than miniplm (one seed, no interval), "
    "after as many steps, 8."
  )
  assert told(warmup_steps=1, steps=4) == told(new_in_this_version=1) == told()
  text = told(learning_rate=0.3, warmup_steps=1)
  assert text.endswith(
    "as many steps, 8. Beside its method pretrain differs from miniplm: "
    "train.learning_rate 0.3 and not 0.1, train.warmup_steps 1 and not 2."
  )


def test_the_verdict_of_several_seeds_has_an_interval():
  mine = {"formula": "reference", "delta_by_seed": [-0.5, 0.0]} | {
    f"{key}{end}": value
    for key, values in {
      "delta": (-0.25, -0.5, -0.125),
      "recovered": (0.5, 0.25, 0.75),
    }.items()
    for end, value in zip(("", "_low", "_high"), values)
  }
  other = {"formula": "random()"}
  one = {"baseline": "random", "oracle": "best", "seeds": 2, "steps": 8}
  one |= {"criteria": {"random": other, "mine": mine}, "heldout_rows": 90}
  assert f"{headline.of_seeds(one, 'difficulty')}" == (
    "mine is shown to be better than random: its held-out "
    "loss is 0.2500 nats lower (95 %: 0.5000 lower to 0.1250 lower, over 2 "
    "seeds of 8 steps and 90 held-out rows). That is 50% (25% to 75%) of what "
    "best gains."
  )
  mine["delta_high"], one["name"] = 0.125, "x"
  del mine["recovered"]
  other["formula"] = "teacher"
  text = f"{headline.of_seeds(one, 'reference')}"
  assert text.startswith("mine is not shown to differ from random: its held")
  assert text.endswith(
    "0.1250 higher, over 2 seeds of 8 steps in compare/x and 90 held-out rows)."
  )
  assert headline.of_seeds(one, "random") is None
  assert headline.of_seeds(one, "-reference") is None


def test_a_report_that_is_refused_leaves_the_last_one(tmp_path):
  config = tiny_config.get_config()
  (one,) = Stages(typed(config), Workdir(epath.Path(tmp_path))).report()
  made = chain()
  files = {n: p for n, p in one.inputs.items() if isinstance(p, epath.Path)}
  for name, path in files.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    found = made.get(name) or made["teacher scores"]
    dataclasses.replace(found, path=path, weights=name).write()
  (tmp_path / "report.html").write_text("the last one")
  with pytest.raises(UserError, match=r"inputs\.teacher"):
    execute.execute([one], force=True)
  assert (tmp_path / "report.html").read_text() == "the last one"


@pytest.mark.parametrize(
  ("made_by", "what"),
  [
    ({"definition": "random"}, "rows by random there, .* mean_diff here"),
    ({"kd": {}}, "objective soft_labels there, but method miniplm has next"),
    ({"minillm": {}}, "objective minillm there"),
  ],
)
def test_a_student_of_another_method_is_not_shown(made_by, what):
  with pytest.raises(UserError, match=what):
    report_step.check(methods_of(tiny_config.get_config()), chain(**made_by))


def test_a_table_of_tasks_is_of_the_models_as_they_are(tmp_path):
  path = epath.Path(tmp_path, "manifest.json")
  model = manifest.Manifest(path, "train", {}, {}, weights="w")
  (tmp_path / "tasks").mkdir()
  prints = {"model": model.fingerprint}
  path = tmp_path / "tasks/piqa.json"
  task = manifest.Manifest(path, "", {"documents": 0}, prints)
  task.write()
  table = manifest.Manifest(
    epath.Path("tasks.json"),
    "evaluate",
    {"models": ["miniplm"], "tasks": ["piqa"]},
    {"miniplm piqa": task.fingerprint},
  )
  tasks_report_step.check(table, {"miniplm": model})
  other = dataclasses.replace(model, weights="another")
  with pytest.raises(UserError, match=r"inputs\.model"):
    tasks_report_step.check(table, {"miniplm": other})
  with pytest.raises(UserError, match="has miniplm, which is not"):
    tasks_report_step.check(table, {})
  dataclasses.replace(task, weights="anew").write()
  with pytest.raises(UserError, match=r"inputs\.miniplm piqa"):
    tasks_report_step.check(table, {"miniplm": model})
  # An earlier version's table of a part of the documents does not say so.
  few = dataclasses.replace(task, settings={"documents": 2})
  few.write()
  inputs = {"miniplm piqa": few.fingerprint}
  table = dataclasses.replace(table, inputs=inputs)
  with pytest.raises(UserError, match="first 2 documents, which"):
    tasks_report_step.check(table, {"miniplm": model})
  said = dataclasses.replace(table, settings=table.settings | {"documents": 2})
  tasks_report_step.check(said, {"miniplm": model})


@pytest.mark.parametrize(
  ("settings", "wanted"),
  [
    ({}, "`next_token`, the next-token loss;"),
    (
      {"kd": {"weight": 0.25, "dtype": "float32"}},
      r"soft labels \(weight 0.25",
    ),
    ({"minillm": {"lm_weight": 1.0}}, r"reverse KL .* \(lm_weight 1.0\)"),
    ({"sparse_kd": {"ids": 8}}, r"`sparse_kd`, .* \(ids 8\)"),
    ({"token_selection": {"model": "teacher"}}, r"\(model teacher\)"),
  ],
)
def test_a_student_s_card_says_how_and_from_what_it_was_made(settings, wanted):
  """By its objective, all inputs, and what its losses are of."""
  path = epath.Path("manifest.json")
  train = {"batch_size": 8, "learning_rate": 0.1, "dtype": "float32"}
  inputs = {name: name[::-1] for name in ("teacher_weights", "logits", "more")}
  trained = manifest.Manifest(
    path,
    "train",
    {"model": {"hidden_size": 16}, "train": train, **settings},
    inputs,
    counts={"parameters": 9, "steps": 8, "tokens": 64},
    details={"train_flops": 1.0},
  )
  selection = manifest.Manifest(
    path,
    "select",
    {"definition": "random", "scores": {}},
    {},
    counts={"kept": 1, "rows": 2},
  )
  loss = {"rows": 3, "instance_mean": 1.0, "token_mean": 2.0}
  measured = evaluated({"all": loss, "b": loss, "c": loss}, "c")
  text = model_card.write("mine", trained, selection, measured)
  assert re.search(wanted, text)
  for name, value in inputs.items():
    assert f"`{value}`" in text, name
  assert "teacher that took part in each step" in text and "| more |" in text
  assert "Not counted in “all”: c." in text and "| all | 3 |" in text
  assert "Evaluation" not in model_card.write("a", trained, selection, None)
  train["domain_weights"], trained.counts["rows"] = ["b=0", "c=2"], 1
  text = model_card.write("a", trained, selection, None)
  assert "Weights of domains b=0, c=2: trained on 1 rows." in text
  assert "before it offline not known" in text


@pytest.mark.parametrize("most", [5_000_000, 500])
def test_duplicates_equal_a_count_by_hash(made_up, most, tmp_path):
  corpus, kept = made_up
  ids = corpus.rows_of("train")
  found = copies.find(corpus.written(tmp_path), ids[kept], most)
  assert found.every == (1 if most > 2000 else 4)
  hashes = corpus.index["hash"].to_numpy()[ids]
  looked = hashes % np.uint64(found.every) == 0
  count = collections.Counter(hashes[looked].tolist())
  kept_count = collections.Counter(hashes[looked & kept].tolist())
  assert found.rows == looked.sum()
  assert found.groups == sum(n > 1 for n in count.values()) > 10
  assert found.surplus == sum(n - 1 for n in count.values())
  assert found.kept_surplus == sum(n - 1 for n in kept_count.values())
  assert found.left_out == sum(count[h] - n for h, n in kept_count.items())
  figures = summary.summarize(corpus, corpus.scored(), ids[kept])
  made = types.SimpleNamespace(
    path=epath.Path("x/manifest.json"),
    settings={"definition": "new"},
    details={},
    counts={},
  )
  shown = tables.SelectionReport.of(made, figures, duplicates=found)
  tiles = card._tiles(shown)
  (note,) = (t.note for t in tiles if t.label == "Duplicates kept")
  assert ("one of every 4 hashes" in note) == (found.every > 1)
  largest = found.largest[0]
  assert largest.rows == max(count.values())
  assert largest.kept == kept_count[int(hashes[ids == largest.row_id][0])]


def test_ngrams_are_of_thirteen_words_or_of_a_short_text_whole():
  words = [f"w{i}" for i in range(15)]
  (text,) = [" ".join(words)]
  wanted = {tuple(words[i : i + 13]) for i in range(3)}
  assert eval_items.ngrams([text]) == wanted
  assert eval_items.ngrams(["It's, A;  b c d. E f G!"]) == {
    ("its", "a", "b", "c", "d", "e", "f", "g")
  }
  assert not eval_items.ngrams(["one two three four five six seven"])
  # Two short texts are looked for together.
  assert eval_items.ngrams(["a b c d", "e f g h"]) == {tuple("abcdefgh")}


def corpus_of(folder) -> Corpus:
  return Corpus(manifest.read(folder / "run/corpus/manifest.json"))


def kept_of(folder, name="miniplm"):
  return np.load(folder / f"run/selection/{name}/rows.npy")


def items(corpus, row_id):
  """A row's words in other letters, as an item would have them."""
  text = corpus.tokenizer().decode(corpus.read([row_id])[0].ids)
  return ", ".join(eval_items.words(text)).upper()


def long_rows(corpus, ids):
  """Some of these rows with enough words."""
  read = zip(ids, corpus.read(ids))
  text = corpus.tokenizer()
  enough = (
    i
    for i, row in read
    if len(eval_items.words(text.decode(row.ids))) >= eval_items.WORDS
  )
  return list(enough)[:3]


def test_planted_items_are_found_and_no_others(finished, tmp_path):
  corpus, kept = corpus_of(finished), kept_of(finished)
  every = corpus.rows_of("train")
  inside = long_rows(corpus, kept)
  outside = long_rows(corpus, np.setdiff1d(every, kept))
  assert len(inside) == len(outside) == 3
  records = [{"question": items(corpus, i), "gold": 3} for i in inside]
  records += [{"q": {"text": [items(corpus, i)]}} for i in outside]
  records += [
    {"question": "no row of the corpus can have these very words in it"},
    {"question": "too short"},
  ]
  path = tmp_path / "quiz.jsonl"
  path.write_text("\n".join(map(json.dumps, records)))
  (tmp_path / "list.json").write_text(json.dumps(records[-2:]))
  sets = eval_items.paths([str(tmp_path / "quiz.jsonl"), str(tmp_path / "l*")])
  read = []
  quiz, other = overlap.measure(corpus, kept, sets, every, read.append)
  assert sum(read) == quiz.rows_read == len(every)
  assert quiz.kept_read == len(kept)
  assert (quiz.items, quiz.too_short, quiz.found) == (8, 1, 6)
  # A copy of a row that was left out may have been kept: not in this text.
  assert quiz.found_kept == quiz.kept_rows == 3
  assert quiz.rows == 6
  assert [m.share for m in quiz.worst] == [1.0] * 3
  assert [m.row_id for m in quiz.worst] == inside
  row = "Not this; " + corpus.tokenizer().decode(corpus.read(inside)[0].ids)
  assert eval_items.locate(quiz.worst[0].texts, row) in range(10, 16)
  assert (other.items, other.found, other.rows, other.worst) == (2, 0, 0, [])


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("broken.jsonl", b'{"a":'),
    ("broken.parquet", b"PAR1"),
    ("torn.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-12]),
    ("torn.gz", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20),
    ("empty.jsonl", b"\n"),
    ("empty.json", b"[]"),
  ],
)
def test_an_unreadable_evaluation_set_is_refused(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=name):
    list(eval_items.read_texts(*eval_items.paths([str(tmp_path / name)])))
  with pytest.raises(UserError, match="no file of evaluation items"):
    eval_items.paths([str(tmp_path / "none*")])


def test_sets_with_one_file_name_are_told_apart(finished, tmp_path):
  paths = [f"{a}/{b}/test.jsonl" for a in "xy" for b in ("arc", "boolq")]
  paths += ["x/other/plain.jsonl", "mmlu/test.jsonl"]
  sets = [epath.Path("/data") / path for path in paths]
  assert eval_items.names_of(sets) == [
    *paths[:4],
    "plain.jsonl",
    "mmlu/test.jsonl",
  ]


def test_every_k_th_row_is_read(made_up, tmp_path):
  corpus, _ = made_up
  ids = corpus.rows_of("train")
  for most in (200, 700, 10_000):
    every = -(-len(ids) // most)
    found = overlap.rows_to_read(corpus.written(tmp_path), most)
    np.testing.assert_array_equal(found, ids[::every])


def test_agreement_is_that_of_sets(finished):
  corpus = corpus_of(finished)
  ours, theirs = kept_of(finished), kept_of(finished, "pretrain")
  other = manifest.read(finished / "run/selection/pretrain/manifest.json")
  found = agreement.compare(corpus, ours, "pretrain", "random", theirs)
  a, b = set(ours.tolist()), set(theirs.tolist())
  assert found.total.jaccard == len(a & b) / len(a | b) < 1
  assert (found.name, found.definition) == ("pretrain", "random")
  assert sum(s.both for s in found.domains) == len(a & b)
  assert found.chance == pytest.approx(1 / 3, abs=0.01)  # two halves
  same = agreement.compare(corpus, ours, "same", "random", ours)
  assert same.total.jaccard == 1
  agreement.check(other, corpus.manifest)
  elsewhere = types.SimpleNamespace(fingerprint="0" * 64)
  with pytest.raises(UserError, match="is of corpus"):
    agreement.check(other, elsewhere)


class Page(html.parser.HTMLParser):
  """Tags that must be closed, addresses, and what a reader sees."""

  void = ("meta", "img", "br")

  def __init__(self, content: str):
    super().__init__()
    self.open, self.addresses, self.text = [], [], ""
    self.feed(content)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    assert tag != "script"
    self.addresses += [v for k, v in attrs if k in ("src", "href")]
    if tag not in self.void:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_a_page_is_one_file_and_shows_texts_as_they_are(tmp_path):
  text = "\n  <script>alert('x')</script> & </pre>\n\ttab"
  body = [
    page.Section("One <b>", ["a & b"], tiles=[page.Tile("kept", "12")]),
    page.Section(
      "Two",
      table=Table(
        ("x", ("y", "d")),
        [("<i>", Bar(0.25, "25%", 0.5)), ("all", 3)],
        has_total=True,
      ),
    ),
    page.Section("Three", folds=[page.Fold("f", [("where", text)])]),
    page.Section("Four"),
  ]
  page.write(tmp_path / "page.html", "A title", ["Lead."], body)
  content = (tmp_path / "page.html").read_text()
  found = Page(content)
  assert found.addresses == ["#s1", "#s2", "#s3", "#s4"]
  assert f"\n{text}" in found.text and "<i>" in found.text
  assert "width:25.0%" in content and "left:50.0%" in content


def test_a_table_is_the_same_on_a_page_in_markdown_and_on_a_terminal():
  table = Table(
    ("a|b", ("c", ",.1f"), ("d", ">")),
    [("x\ny", 1234.56, Bar(1, "1")), ("z", None, "4 ±")],
  )
  assert table.cells()[1] == ["z", "–", "4 ±"]
  assert table.is_words == [True, False, False]
  assert table.markdown() == (
    "| a\\|b | c | d |\n| --- | --- | --- |\n"
    "| x y | 1,234.6 | 1 |\n| z | – | 4 ± |"
  )
  rows = dataclasses.replace(table, rows=[("z", None, "4 ±")])
  assert rows.text() == "a|b  c    d\n───────────\nz    –  4 ±"


def test_the_report_of_a_run_has_all_its_parts(finished):
  for name in ("selection/miniplm/", "selection/pretrain/", ""):
    found = Page((finished / f"run/{name}report.html").read_text())
    for address in found.addresses:
      assert address.startswith(("#s", "data:image/png;base64,")), address
    for words in ("What was kept", "By domain", "By length", "lowest score"):
      assert words in found.text, (name, words)
    assert ("Duplicates" in found.text) == bool(name)
    kept, rows = (
      len(kept_of(finished)),
      len(corpus_of(finished).rows_of("train")),
    )
    assert f"{kept:,} of {rows:,} rows" in found.text


def test_the_report_shows_its_config_and_every_student(copy):
  folder = copy / "run"
  config = json.loads((folder / "config.json").read_text())
  assert config["corpus"]["vocab_size"] == 512
  assert config["student"]["model"]["family"] == "transformer"
  text = (folder / "report.html").read_text()
  for words in ("corpus.vocab_size", ">1024</td>", "what came of it"):
    assert words in text
  alone = "--config.baselines=()", "--stages=report"
  assert "Other students" not in text
  run(copy, *alone, LONG)
  assert json.loads((folder / "config.json").read_text()) == config
  text = (folder / "report.html").read_text()
  (shown,) = re.findall(
    "<h2[^>]*>Other students</h2>(.*?)</section>", text, re.S
  )
  assert "pretrain" in shown and "miniplm" not in shown


def test_the_card_is_a_dataset_card(finished):
  import huggingface_hub

  folder = finished / "run/selection/miniplm"
  text = (folder / "card.md").read_text()
  data = huggingface_hub.DatasetCard(text).data
  assert data.pretty_name == "MiniPLM selection miniplm"
  assert data.size_categories == ["n<1K"]
  assert {"difference-sampling", "miniplm"} <= set(data.tags)
  made = manifest.read(folder / "manifest.json")
  for fingerprint in (made.inputs["corpus"], made.inputs["teacher"]):
    assert fingerprint in text
  for words in (
    "mean_diff",
    "2410.17215",
    "| odd |",
    "Not measured",
    "miniplm",
  ):
    assert words in text, words
  code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  for block in code:
    compile(block, "card", "exec")
  assert len(code) == 2


@pytest.mark.parametrize(
  ("rows", "wanted"),
  [
    (999, "n<1K"),
    (1000, "1K<n<10K"),
    (10**6 - 1, "100K<n<1M"),
    (48_800_000, "10M<n<100M"),
    (10**12, "n>1T"),
  ],
)
def test_size_categories_are_those_of_the_hub(rows, wanted):
  assert dataset_card.size_category(rows) == wanted


def test_what_the_report_cannot_have_is_refused_before_rows_are(copy):
  """A selection that the same run makes may be missing so far."""
  folder, quiz = copy / "run/selection", copy / "quiz.jsonl"
  quiz.write_text("{")
  for name, value in (
    ("compare_with", "other"),
    ("evaluation_sets", "('nowhere',)"),
    ("evaluation_sets", f"('{quiz}',)"),
  ):
    given = "--config.select.name=new", f"--config.select.{name}={value}"
    refused(copy, "--stages=select", *given)
    assert not (folder / "new").exists() or not list((folder / "new").iterdir())
  run(
    copy,
    "--stages=select",
    "--config.baselines=('pretrain',)",
    "--config.select.name=new_{method}",
    "--config.select.compare_with=new_pretrain",
  )
  assert "Jaccard" in (folder / "new_miniplm/report.html").read_text()
  body = json.loads((folder / "new_miniplm/report.json").read_text())
  assert body["counts"]["duplicates_every"] == 1


def test_another_view_remakes_the_report_alone(copy):
  folder = copy / "run/selection"
  before = (folder / "miniplm/rows.npy").stat().st_mtime_ns
  stages = "--stages=select,train"
  error = refused(copy, stages, LONG, "--config.select.compare_with=other")
  assert "no such selection" in error and "compare_with" in error
  assert "no file of evaluation" in refused(
    copy, stages, LONG, "--config.select.evaluation_sets=('nowhere',)"
  )
  quiz = copy / "quiz.jsonl"
  quiz.write_text(json.dumps({"question": "far too short"}))
  arguments = (
    "--config.select.compare_with=pretrain",
    f"--config.select.evaluation_sets=('{quiz}',)",
  )
  done = run(copy, stages, LONG, *arguments)
  assert done.stdout.count("skipped") == 2  # the rows and the student
  assert (folder / "miniplm/rows.npy").stat().st_mtime_ns == before
  found = Page((folder / "miniplm/report.html").read_text())
  for words in ("Jaccard", "quiz.jsonl", "beside pretrain"):
    assert words in found.text, words
  assert "Jaccard" in (folder / "miniplm/card.md").read_text()
  assert run(copy, stages, LONG, *arguments).stdout.count("skipped") == 2


def test_what_is_shown_follows_losses_and_curves(copy):
  """Also where only details say them, as after a training on other rows."""
  stages = "--stages=analyze,report"
  arguments = stages, LONG, "--config.baselines=('pretrain',)"
  said = run(copy, *arguments).stdout
  assert said.count("skipped, nothing") == 2 and "as it was made" not in said
  edits = "--stages=report", *arguments[1:], "--config.select.ratio=0.4"
  words = "shown as it was made: stage select was run otherwise: settings.ratio"
  assert words in run(copy, *edits).stdout
  with edited(copy / "run/students/pretrain/manifest.json") as body:
    body["details"]["curve_rows"] = "others"
  done = run(copy, *arguments)
  assert "skipped, nothing" not in done.stdout
  assert run(copy, *arguments).stdout.count("skipped, nothing") == 2
