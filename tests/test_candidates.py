"""Selections from tables on disk, in any number of shards."""

import collections
import dataclasses
import functools
import itertools
import json
import math
from pydoc_data import topics

import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from helpers import refused, rows, run

from miniplm_jax.config import SelectConfig
from miniplm_jax.core import noise
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.fields import FieldError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.corpus import store
from miniplm_jax.criteria import CRITERIA, criterion
from miniplm_jax.report import selection_summary as summary
from miniplm_jax.scoring import table
from miniplm_jax.scoring.units import units_of
from miniplm_jax.selection import cutoff as cutoff_lib
from miniplm_jax.selection import redundancy, selection
from miniplm_jax.selection.scored import ScoredRows

SHARDS = (1, 7, 64)


@functools.cache
def content():
  """Rows of real text (a byte is an id), some of them copies, and scores."""
  rng = np.random.default_rng(0)
  texts = [topics.topics[k].encode() for k in sorted(topics.topics)]
  pieces = [t[i : i + 64] for t in texts for i in range(0, len(t), 64)][:1000]
  pieces = [p for p in pieces if len(p) > 1]
  ids = [np.frombuffer(p, np.uint8).astype(np.int32) for p in pieces]
  for _ in range(300):  # copies, and copies with another last id
    one = ids[rng.integers(len(pieces) // 3)].copy()
    one[-1] = rng.choice([one[-1], 255])
    ids.insert(int(rng.integers(len(ids))), one)
  n = len(ids)
  return {
    "ids": ids,
    "domain": rng.choice(["code", "mail", "web=1"], n, p=[0.2, 0.1, 0.7]),
    "split": rng.choice(["train", "heldout"], n, p=[0.9, 0.1]),
    # few decimals: ties
    "teacher": np.round(rng.normal(30, 9, n), 1).astype(np.float32),
    "reference": np.round(rng.normal(33, 9, n), 1).astype(np.float32),
    "n_tokens": np.array([len(x) - 1 for x in ids], np.int32),
    "n_bytes": np.array([len(x) - 1 for x in ids], np.int32),
  }


def build(folder, shards):
  """A corpus and two score tables: what a run leaves."""
  c = content()
  n = len(c["ids"])
  ends = np.linspace(0, n, shards + 1).astype(int)
  for part, (first, end) in enumerate(itertools.pairwise(ends)):
    instances = [
      store.StoredRow(
        ids=c["ids"][i],
        domain=str(c["domain"][i]),
        split=str(c["split"][i]),
        part=part,
        documents=(0,),
        offset=0,
        n_bytes=int(c["n_bytes"][i]),
        hash=store.hash_of(c["ids"][i], 0),
      )
      for i in range(first, end)
    ]
    names = store.shard_names(part, shards)
    store.write_shard(folder / "corpus", names, instances, {})
    if shards == 7:  # several row groups, as large shards have
      index = folder / "corpus" / names[1]
      pq.write_table(pq.read_table(index), index, row_group_size=50)
  counts = {
    "rows": n,
    "parts": shards,
    "rows_by_part": np.diff(ends).tolist(),
    "split train": int((c["split"] == "train").sum()),
  }
  corpus = Manifest(
    folder / "corpus/manifest.json",
    "tokenize",
    {"max_length": 63},
    {},
    counts=counts,
    files={
      name: table.files.describe(folder / "corpus" / name)
      for part in range(shards)
      for name in store.shard_names(part, shards)
    },
  )
  opened = store.Corpus(corpus)
  tables = {}
  # cut elsewhere: tables need not have the same parts
  for role, size in (("teacher", 100), ("reference", 70)):
    described = {}
    (folder / role).mkdir()
    for unit in units_of(opened, size):
      made = table.encode(
        unit, c[role][unit.rows], c["n_tokens"][unit.rows], {}
      )
      (folder / role / unit.name).write_bytes(made)
      described[unit.name] = table.files.describe(folder / role / unit.name)
    tables[role] = Manifest(
      folder / role / "manifest.json",
      "score",
      {},
      {"corpus": corpus.fingerprint},
      counts={
        "rows": counts["split train"],
        "parts": len(described),
      },
      files=described,
    )
  return opened, tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
  found = {}
  for shards in SHARDS:
    folder = epath.Path(tmp_path_factory.mktemp(f"shards_{shards}"))
    found[shards] = build(folder, shards)
  return found


@dataclasses.dataclass
class Selected:
  content: bytes
  rows: np.ndarray
  dropped: dict
  cutoff: cutoff_lib.Cutoff
  kept: selection.Kept
  shortfalls: tuple


def select(made, folder, **settings):
  corpus, tables = made
  criterion = settings.pop("definition", "mean_diff")
  options = SelectConfig(**settings)
  folder.mkdir(parents=True)
  path = folder / "rows.npy"
  done = selection.select(corpus, tables, criterion, options, path)
  ids = np.load(path)
  return Selected(
    path.read_bytes(),
    ids,
    done.dropped,
    done.cutoff,
    done.counts,
    done.shortfalls,
  )


def scores(definition="mean_diff"):
  """Float64 scores of all rows, by plain formulas."""
  c = {k: v for k, v in content().items() if k != "ids"}
  train = c["split"] == "train"
  c = {k: np.float64(v) if v.dtype.kind in "fi" else v for k, v in c.items()}
  difference = (c["reference"] - c["teacher"]) / c["n_tokens"]
  if definition == "zscore_by_domain":
    found = np.zeros_like(difference)
    for domain in set(c["domain"]):
      here = c["domain"] == domain
      over = difference[here & train]
      found[here] = (difference[here] - over.mean()) / over.std()
    return found
  return {
    "mean_diff": difference,
    "sum_diff": c["reference"] - c["teacher"],
    "bits_per_byte_diff": (c["reference"] - c["teacher"])
    / (c["n_bytes"] * math.log(2)),
    "difficulty": c["reference"] / c["n_tokens"],
    "teacher_preference": -c["teacher"] / c["n_tokens"],
  }[definition]


# What is a formula of the two models' scores.
FORMULAS = tuple(d for d in CRITERIA if d not in ("proxy", "color_filter"))


@pytest.mark.parametrize("definition", ["difficulty", "mean_diff"])
def test_scores_of_a_part_of_d_are_not_selected_from(tables, definition):
  corpus, manifests = tables[SHARDS[0]]
  part = {
    role: dataclasses.replace(made, counts=made.counts | {"rows": 5})
    for role, made in manifests.items()
  }
  size = len(train_rows())
  with pytest.raises(UserError, match=f"scored 5 of D's {size:,} rows"):
    ScoredRows(part, definition, 10, corpus)


@pytest.mark.parametrize("definition", FORMULAS)
def test_scores_equal_plain_formulas_whatever_the_shards(tables, definition):
  found = []
  for corpus, manifests in tables.values():
    read = {role: manifests[role] for role in criterion(definition).reads}
    scored = ScoredRows(read or manifests, definition, 10, corpus)
    parts = list(scored.columns())
    columns = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    names = np.array(scored.domains)[columns["domain"]]
    found.append((columns["row_id"], columns["score"], names))
  for other in found[1:]:
    for a, b in zip(found[0], other):
      np.testing.assert_array_equal(a, b)
  row_id, score, names = found[0]
  c = content()
  np.testing.assert_array_equal(row_id, np.flatnonzero(c["split"] == "train"))
  np.testing.assert_array_equal(names, c["domain"][row_id])
  np.testing.assert_array_equal(
    columns["corpus_tokens"], [len(c["ids"][i]) for i in row_id]
  )
  if definition != "random":
    wanted = scores(definition)[row_id]
    np.testing.assert_allclose(score, wanted, rtol=1e-5, atol=2e-6)


OPTIONS = {
  "plain": {},
  "rows": {"ratio": 0.0, "rows": 17},
  "tokens": {"ratio": 0.0, "tokens": 9_999},
  "drawn": {"temperature": 0.5},
  "random": {"definition": "random", "seed": 3},
  "zscore": {"definition": "zscore_by_domain"},
  "quotas": {"quotas": ["code=0.5:0.6", "web=1=:0.3"]},
  "quotas in tokens": {
    "ratio": 0.0,
    "tokens": 20_000,
    "quotas": ["code=0.5:", "mail=:0.05"],
    "temperature": 0.1,
  },
  "copies": {"max_copies": 1, "min_length": 40},
  "near": {"max_copies": 2, "near_duplicates": 0.7},
  "share": {"share": 0.4, "max_copies": 1, "temperature": 0.2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_any_number_of_shards_gives_the_same_bytes(tables, tmp_path, name):
  found = [
    select(made, tmp_path / str(shards), **OPTIONS[name])
    for shards, made in tables.items()
  ]
  for other in found[1:]:
    assert other.content == found[0].content
    assert other.dropped == found[0].dropped
    assert other.cutoff == found[0].cutoff
    assert other.kept == found[0].kept
  np.save(tmp_path / "again.npy", found[0].rows)
  assert (tmp_path / "again.npy").read_bytes() == found[0].content
  assert json.loads(json.dumps(dataclasses.asdict(found[0].cutoff)))
  assert np.all(np.diff(found[0].rows) > 0)


def best_first(candidates, value):
  return candidates[np.lexsort((candidates, -value[candidates]))]


def train_rows():
  return np.flatnonzero(content()["split"] == "train")


def float32_scores():
  c = content()
  means = (
    c[k] / c["n_tokens"].astype(np.float32) for k in ("reference", "teacher")
  )
  return np.subtract(*means)


def test_budgets(tables, tmp_path):
  everything, lengths = (
    train_rows(),
    np.array([len(i) for i in content()["ids"]]),
  )
  ordered = best_first(everything, float32_scores())
  for name, wanted in {
    "plain": ordered[: len(ordered) // 2],
    "rows": ordered[:17],
    "tokens": ordered[np.cumsum(lengths[ordered]) <= 9_999],
  }.items():
    found = select(tables[7], tmp_path / name, **OPTIONS[name])
    np.testing.assert_array_equal(found.rows, np.sort(wanted))
    assert found.kept.tokens == lengths[wanted].sum()
  value = float32_scores() + 0.5 * noise.gumbel(np.arange(len(lengths)), 10)
  wanted = best_first(everything, value.astype(np.float32))
  found = select(tables[7], tmp_path / "drawn", **OPTIONS["drawn"])
  other = select(tables[7], tmp_path / "a", **OPTIONS["drawn"], seed=11)
  assert other.content != found.content
  np.testing.assert_array_equal(
    found.rows, np.sort(wanted[: len(ordered) // 2])
  )


def test_quotas_hold_for_the_kept_rows(tables, tmp_path):
  found = select(tables[7], tmp_path / "a", **OPTIONS["quotas"])
  total = len(train_rows()) // 2
  counts = collections.Counter(content()["domain"][found.rows])
  there = collections.Counter(content()["domain"][train_rows()])
  # code has too few rows: all are kept, and it is said
  assert counts["code"] == there["code"] < int(0.5 * total)
  assert counts["web=1"] == int(0.3 * total)
  said = list(found.shortfalls)
  assert "domain code has only" in said[-1]
  with pytest.raises(UserError) as error:
    select(tables[1], tmp_path / "b", quotas=["x=0.1:"])
  assert "domain x" in str(error.value) and "mail" in str(error.value)


def test_of_equal_rows_the_best_are_kept(tables, tmp_path):
  c, score = content(), float32_scores()
  for copies, least in ((1, 40), (2, 0)):
    by_content = collections.defaultdict(list)
    long = [i for i in train_rows() if len(c["ids"][i]) >= least]
    for i in long:
      by_content[c["ids"][i].tobytes()].append(i)
    kept = np.sort(
      [
        i
        for group in by_content.values()
        for i in best_first(np.array(group), score)[:copies]
      ]
    )
    found = select(
      tables[7],
      tmp_path / str(copies),
      max_copies=copies,
      min_length=least,
      ratio=1.0,
    )
    np.testing.assert_array_equal(found.rows, kept)
    assert found.dropped == {
      "too_short": len(train_rows()) - len(long),
      "without_text": 0,
      "duplicate": len(long) - len(kept),
      "near_duplicate": 0,
      "without_field": 0,
      "contaminated": 0,
      "not_drawn": 0,
    }
    assert found.dropped["duplicate"] > 20
    said = list(found.shortfalls)
    assert "fewer than the budget" in said[0]


def shingles(ids):
  return {tuple(ids[i : i + 5]) for i in range(len(ids) - 4)} or {tuple(ids)}


def drawn_of(candidates, seed, share):
  """SplitMix64 of id, seed and stream 2, in Python's integers."""

  def mix(x):
    for shift, factor in (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB):
      x = (x ^ x >> shift) * factor % 2**64
    return x ^ x >> 31

  golden = 0x9E3779B97F4A7C15
  start = mix(mix(seed * golden % 2**64) + 2)
  points = [
    mix(((i + 1) * golden + start) % 2**64) for i in candidates.tolist()
  ]
  return candidates[np.array(points) / 2**64 < share]


@pytest.mark.parametrize("seed", [10, 11])
def test_a_share_of_d_is_drawn_and_selected_from(tables, tmp_path, seed):
  c, score, n = content(), float32_scores(), len(content()["ids"])
  drawn = drawn_of(train_rows(), seed, 0.4)
  assert abs(len(drawn) / len(train_rows()) - 0.4) < 0.05
  options = {"share": 0.4, "seed": seed, "ratio": 0.5}
  total = len(drawn) // 2
  found = select(tables[7], tmp_path / "plain", **options)
  wanted = np.sort(best_first(drawn, score)[:total])
  np.testing.assert_array_equal(found.rows, wanted)
  assert found.dropped["not_drawn"] == len(train_rows()) - len(drawn)
  assert sum(found.dropped.values()) == found.dropped["not_drawn"]
  # What is random in a criterion is another draw, uniform over these rows.
  random = noise.uniform(np.arange(n), seed, 0)
  assert abs(random[drawn].mean() - 0.5) < 0.05
  assert len(drawn_of(drawn, seed + 1, 0.4)) / len(drawn) < 0.5
  found = select(tables[7], tmp_path / "r", **options, definition="random")
  wanted = best_first(drawn, random.astype(np.float32))[:total]
  np.testing.assert_array_equal(found.rows, np.sort(wanted))
  # Scores are over all of D: by z the rows of one domain are in their order.
  found = select(
    tables[7], tmp_path / "z", **options, definition="zscore_by_domain"
  )
  wanted = best_first(drawn, scores("zscore_by_domain"))[:total]
  assert len(np.setdiff1d(found.rows, wanted)) <= 1
  # With noise, quotas and copies: of equal rows that are drawn the best.
  noisy = (score + 0.2 * noise.gumbel(np.arange(n), seed)).astype(np.float32)
  by_content = {}
  for i in best_first(drawn, score):
    by_content.setdefault(c["ids"][i].tobytes(), i)
  left = np.sort([*by_content.values()])
  mails = best_first(left[c["domain"][left] == "mail"], noisy)[: total // 20]
  others = left[c["domain"][left] != "mail"]
  wanted = best_first(np.concatenate([others, mails]), noisy)[:total]
  options |= {"max_copies": 1, "temperature": 0.2, "quotas": ["mail=:0.05"]}
  found = select(tables[7], tmp_path / "copies", **options)
  np.testing.assert_array_equal(found.rows, np.sort(wanted))
  assert found.dropped["duplicate"] == len(drawn) - len(left) > 0
  assert found.dropped["not_drawn"] == len(train_rows()) - len(drawn)
  # And with a penalty on what is kept already.
  options = {"share": 0.4, "seed": seed, "ratio": 0.5, "redundancy": 1.0}
  found = select(tables[7], tmp_path / "greedy", **options)
  wanted = relevance(score, 1.0, drawn, budget=total)
  np.testing.assert_array_equal(found.rows, np.sort(wanted))


def test_near_duplicates_of_real_text(tables, tmp_path):
  """Against all pairs: nothing unlike is left out, few copies are missed."""
  found = select(tables[7], tmp_path / "near", near_duplicates=0.7, ratio=1.0)
  sets = [shingles(ids.tolist()) for ids in content()["ids"]]
  kept, dropped = [], []
  for i in best_first(train_rows(), float32_scores()):
    near = (
      len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= 0.7 for j in kept
    )
    (dropped if any(near) else kept).append(i)
  assert len(dropped) > 150
  assert found.dropped["near_duplicate"] == pytest.approx(
    len(dropped), abs=0.02 * len(dropped)
  )
  different = set(found.rows) ^ set(kept)
  assert len(different) <= 0.04 * len(dropped)


def changed(folder, column, row, value):
  """`build` with another value of one row."""
  c = content()
  old = c[column]
  c[column] = old.astype(object)
  c[column][row] = value
  folder.mkdir()
  try:
    return build(epath.Path(folder), 3)
  finally:
    c[column] = old


def test_rows_that_are_all_too_short_are_said_to_be(tables, tmp_path):
  n = len(train_rows())
  words = f"all {n} rows are left out: {n} too short"
  with pytest.raises(UserError, match=words):
    select(tables[7], tmp_path / "out", min_length=10_000)


def test_a_row_without_text_has_no_bits_per_byte_and_is_left_out(tmp_path):
  """It is counted; so it is if min_length leaves it out as well."""
  lengths = np.array([len(ids) for ids in content()["ids"]])
  row = int(next(i for i in train_rows() if lengths[i] < 40))
  made = changed(tmp_path / "in", "n_bytes", row, 0)
  of = {"definition": "bits_per_byte_diff", "ratio": 1.0}
  found = select(made, tmp_path / "out", **of)
  assert found.dropped["without_text"] == 1 and row not in found.rows
  assert len(found.rows) == len(train_rows()) - 1
  assert row in select(made, tmp_path / "other", ratio=1.0).rows
  least = int(lengths[row]) + 1
  short = select(made, tmp_path / "short", **of, min_length=least).dropped
  assert short["too_short"] == (lengths[train_rows()] < least).sum()
  assert short["without_text"] == 0
  corpus, manifests = made
  scored = ScoredRows(manifests, of["definition"], 10, corpus)
  figures = summary.summarize(corpus, scored, found.rows)
  assert figures.total.scored == figures.total.rows - 1
  assert math.isfinite(figures.total.score)
  assert np.all(np.isfinite(figures.sample.score))


def test_a_row_without_a_score_is_refused_by_name(tables):
  """Also by a definition that leaves out rows without text."""
  corpus, manifests = tables[SHARDS[0]]
  row = int(train_rows()[3])
  definition = f"bytes / (reference.sum - {content()['reference'][row]})"
  scored = ScoredRows(manifests, definition, 10, corpus)
  with pytest.raises(UserError, match=f"row {row} of domain .* no finite"):
    list(scored.columns())


def test_a_domain_of_one_row_is_at_its_mean(tmp_path):
  row = int(train_rows()[5])
  corpus, manifests = changed(tmp_path / "in", "domain", row, "alone")
  scored = ScoredRows(manifests, "zscore_by_domain", 10, corpus)
  found = {}
  for c in scored.columns():
    found |= dict(zip(c["row_id"].tolist(), c["score"].tolist()))
  assert found[row] == 0
  assert np.std(list(found.values())) == pytest.approx(1, abs=0.01)


def test_every_option_selects_again_without_a_model(copy):
  """On a finished run, through the command line; one line of error if bad."""
  for folder in ("reference", "teacher"):
    for path in (copy / "run" / folder).rglob("*.safetensors"):
      path.unlink()
  seen = {}
  for name, options in {
    **{d: (f"definition={d}",) for d in FORMULAS},
    "rows": ("ratio=0.0", "rows=30"),
    "tokens": ("ratio=0.0", "tokens=999", "temperature=0.5"),
    "quotas": ("quotas=('odd=0.6:','even=:0.3')", "ratio=0.25"),
    "copies": ("max_copies=1", "near_duplicates=0.8", "min_length=20"),
    "share": ("share=0.5",),
    "share-11": ("share=0.5", "seed=11"),
  }.items():
    arguments = [f"--config.select.{o}" for o in (f"name={name}", *options)]
    run(copy, "--stages=select", *arguments)
    seen[name] = rows(copy, name)
  assert len(set(seen.values())) == len(seen)
  assert seen["mean_diff"] == rows(copy)
  folder = copy / "run/selection"
  found = json.loads((folder / "tokens/manifest.json").read_text())
  assert 950 < found["counts"]["tokens"] <= 999
  found = json.loads((folder / "quotas/manifest.json").read_text())
  domains, kept = found["counts"]["domains"], found["counts"]["kept"]
  assert domains["odd"]["kept"] >= 0.6 * kept - 1
  found = json.loads((folder / "copies/manifest.json").read_text())
  assert found["counts"]["dropped"]["too_short"]


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("rows=5", "select.ratio, rows, tokens"),
    ("ratio=0.0", "select.ratio, rows, tokens"),
    ("temperature=-1.0", "select.temperature"),
    ("temperature=nan", "select.temperature"),
    ("share=0.0", "select.share"),
    ("seed=-1", "select.seed"),
    ("seed=9223372036854775808", "select.seed"),
    ("near_duplicates=1.5", "select.near_duplicates"),
    ("max_copies=-1", "select.max_copies"),
    ("quotas=('odd=0.5',)", "select.quotas"),
    ("quotas=('odd=0.5:0.1',)", "select.quotas"),
    ("quotas=('odd=1/0:',)", "select.quotas"),
    ("quotas=('odd=0.6:','even=0.5:')", "more than 1"),
    ("quotas=('odd=0.6:','odd=0.1:')", "select.quotas"),
    ("quotas=('odd=nan:',)", "select.quotas"),
  ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, argument, words):
  assert words in refused(tmp_path, f"--config.select.{argument}", "--dry_run")


# Selections that follow one another, and a penalty on what is kept already.


def in_portions(made, folder, ends, **settings):
  """The rows of each stage, by one criterion."""
  corpus, tables = made
  folder.mkdir(parents=True)
  options, found = SelectConfig(**settings), []
  for k in range(len(ends)):
    path = folder / f"{k}.npy"
    steps = (0, *ends)[k], ends[k], ends[-1]
    selection.select(corpus, tables, "mean_diff", options, path, steps, found)
    found.append(np.load(path))
  return found


@pytest.mark.parametrize(
  "settings",
  [
    {"ratio": 0.37},
    {"ratio": 0, "tokens": 9_001},
    {"ratio": 0.3, "max_copies": 1},
    {"ratio": 0.3, "near_duplicates": 0.8},
    {"ratio": 0.3, "redundancy": 2.0},
    {"ratio": 0.3, "temperature": 0.1},
    {"ratio": 0.8, "share": 0.3},
  ],
  ids=str,
)
def test_stages_by_one_criterion_keep_what_one_does(tables, tmp_path, settings):
  """The best first, no row twice; copies of a row in no other stage."""
  whole = select(tables[7], tmp_path / "whole", **settings)
  parts = in_portions(tables[7], tmp_path / "parts", (1, 4, 7), **settings)
  found = np.sort(np.concatenate(parts))
  assert all(len(part) for part in parts)
  if "tokens" not in settings:
    np.testing.assert_array_equal(found, whole.rows)
    assert len(parts[0]) == len(found) // 7
  else:  # each stage is the longest prefix that fits
    assert 0 <= len(whole.rows) - len(found) < len(parts)
    assert set(found) <= set(whole.rows)
  (one,) = in_portions(tables[7], tmp_path / "one", (5,), **settings)
  np.testing.assert_array_equal(one, whole.rows)


def test_a_stage_that_would_have_no_rows_is_refused_before(tables, tmp_path):
  with pytest.raises(UserError, match="no row is in two of them"):
    in_portions(
      tables[1], tmp_path / "x", (1, 2), ratio=1, min_length=20, rows=0
    )


def relevance(score, weight, rows, cost=None, budget=0, seen=()):
  """Greedy maximal marginal relevance by its definition, with exact runs.

  Every value is computed anew for every row that is kept.
  """
  ids = content()["ids"]
  runs = {
    i: [tuple(ids[i][j : j + 5]) for j in range(max(len(ids[i]) - 4, 1))]
    for i in rows
  }
  names = {
    run: n
    for n, run in enumerate(dict.fromkeys(itertools.chain(*runs.values())))
  }
  width = max(map(len, runs.values()))
  matrix = np.full((len(rows), width), len(names))
  for k, i in enumerate(rows):
    matrix[k, : len(runs[i])] = [names[run] for run in runs[i]]
  lengths = np.array([len(runs[i]) for i in rows])
  have = np.zeros(len(names) + 1, bool)
  for i in seen:
    have[[names[run] for run in runs[i]]] = True
  left = ~np.isin(rows, list(seen))
  kept = []
  while left.any():
    value = (score[rows] - weight * have[matrix].sum(1) / lengths).astype("f4")
    best = int(np.argmax(np.where(left, value, -np.inf)))
    price = cost[rows[best]] if cost is not None else 1
    if price > budget:
      break
    budget -= price
    left[best] = False
    have[matrix[best, : lengths[best]]] = True
    kept.append(rows[best])
  return kept


@pytest.mark.parametrize("weight", [0.05, 1.0, 30.0])
def test_redundancy_is_the_greedy_of_its_definition(
  tables, tmp_path, monkeypatch, weight
):
  score = float32_scores().astype(np.float64)
  rows = np.array(train_rows())
  wanted = relevance(score, weight, rows, budget=len(rows) // 5)
  assert len(wanted) == len(rows) // 5
  for block in (1 << 13, 50):  # all compete at once, or few
    monkeypatch.setattr(redundancy, "_BLOCK", block)
    for shards in SHARDS[:2]:
      folder = tmp_path / f"{block} {shards}"
      made = select(tables[shards], folder, ratio=0.2, redundancy=weight)
      np.testing.assert_array_equal(made.rows, sorted(wanted))
  plain = select(tables[1], tmp_path / "plain", ratio=0.2)
  assert set(plain.rows) != set(wanted)


def test_redundancy_with_other_options(tables, tmp_path):
  """Budgets in tokens, rows that are too short, copies, an earlier stage."""
  score = float32_scores().astype(np.float64)
  rows = np.array(train_rows())
  lengths = np.array([len(x) for x in content()["ids"]])
  wanted = relevance(score, 1.0, rows, lengths, 9_001)
  made = select(
    tables[1], tmp_path / "tokens", ratio=0, tokens=9_001, redundancy=1.0
  )
  np.testing.assert_array_equal(made.rows, sorted(wanted))
  long = rows[lengths[rows] >= 40]
  made = select(
    tables[1],
    tmp_path / "long",
    ratio=0,
    rows=200,
    min_length=40,
    redundancy=1.0,
  )
  np.testing.assert_array_equal(
    made.rows, sorted(relevance(score, 1.0, long, budget=200))
  )
  first, second = in_portions(
    tables[7], tmp_path / "two", (1, 2), ratio=0, rows=300, redundancy=1.0
  )
  assert sorted(first) == sorted(relevance(score, 1.0, rows, budget=150))
  then = relevance(score, 1.0, rows, budget=150, seen=first)
  np.testing.assert_array_equal(second, sorted(then))
  with pytest.raises(FieldError):
    SelectConfig(redundancy=1.0, quotas=("code=0.1:",))


def test_redundancy_of_planted_copies(tables, tmp_path):
  """A copy of a row that is kept loses; what was dropped does not count."""
  ids = content()["ids"]
  known = [set(shingles(x)) for x in ids]

  def copies(rows):
    pairs = itertools.combinations(rows, 2)
    return sum(len(known[a] & known[b]) > 0.8 * len(known[a]) for a, b in pairs)

  plain = select(tables[1], tmp_path / "plain", ratio=0.5)
  made = select(tables[1], tmp_path / "new", ratio=0.5, redundancy=5.0)
  assert copies(plain.rows) > 50 and not copies(made.rows)
  assert len(plain.rows) == len(made.rows)


def test_few_of_many_runs_stand_for_all(tables, monkeypatch):
  """As in corpora that are too large for the table."""
  corpus, _ = tables[1]
  rows = np.arange(len(corpus))
  whole = redundancy._Seen(corpus)
  monkeypatch.setattr(redundancy, "_MOST", 20_000)
  some = redundancy._Seen(corpus)
  assert some._zeros == 3  # 1,300 × 63 runs, a quarter of them
  shares = []
  for seen in (whole, some):
    found = dict(enumerate(runs for _, runs in seen.read(rows)))
    for row in rows[::2]:
      seen.add(found[row])
    shares.append([seen.share(found[row]) for row in rows[1::2]])
    assert all(seen.share(found[row]) in (0, 1) for row in rows[::2])
  n = [sum(len(runs) for _, runs in seen.read(rows)) for seen in (whole, some)]
  assert n[1] == pytest.approx(n[0] / 4, rel=0.1)
  assert np.mean(shares[0]) == pytest.approx(np.mean(shares[1]), abs=0.02)
  assert np.corrcoef(*shares)[0, 1] > 0.8
