"""The recipes of docs/data.md run as they stand."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import documented, execute


def columns(folder, pattern="*.parquet"):
  table = pq.read_table(sorted(folder.glob(pattern)))
  return {name: table[name].to_numpy() for name in table.column_names}


@pytest.fixture
def scores(demo):
  """Both tables and the index's columns of the rows of D, by plain numpy."""
  teacher = columns(demo / "scores" / "teacher")
  reference = columns(demo / "scores" / "reference")
  index = columns(demo / "corpus", "index-*.parquet")
  found = {k: v[teacher["row_id"]] for k, v in index.items()}
  for role, table in (("teacher", teacher), ("reference", reference)):
    np.testing.assert_array_equal(table["row_id"], teacher["row_id"])
    found |= {role: table["nll_sum"], f"{role}_n": table["n_tokens"]}
  score = found["reference"] / found["reference_n"]
  score -= found["teacher"] / found["teacher_n"]
  return found | {"row_id": teacher["row_id"], "score": score}


def recipe(heading):
  (code,) = documented("data.md", heading)
  return code


def test_duckdb(scores):
  pytest.importorskip("duckdb")
  code = recipe("DuckDB: bits per byte of both models, by domain")
  rows = execute(code)["table"].fetchall()
  assert len(rows) == 2
  for domain, n, *found in rows:
    here = scores["domain"] == domain
    assert n == here.sum()
    bits = [scores[m][here].sum(dtype=float) for m in ("teacher", "reference")]
    wanted = np.array(bits) / np.log(2) / scores["n_bytes"][here].sum()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_polars(scores):
  pytest.importorskip("polars")
  code = recipe("Polars: the score by domain, with quantiles")
  table = execute(code)["table"]
  assert table["domain"].to_list() == ["even", "odd"]
  for row in table.iter_rows(named=True):
    score = scores["score"][scores["domain"] == row["domain"]]
    assert row["rows"] == len(score)
    np.testing.assert_allclose(row["mean"], score.mean(), rtol=1e-5)
    for q in (0.1, 0.5, 0.9):
      wanted = np.quantile(score, q, method="nearest")
      np.testing.assert_allclose(row[f"q{q:.0%}"], wanted, rtol=0.02)


def test_datasets(scores, monkeypatch, tmp_path):
  datasets = pytest.importorskip("datasets")
  heading = "Hugging Face datasets: the rows that the teacher values most"
  code = recipe(heading)
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
  best = execute(code)["best"]
  order = np.argsort(-scores["score"], kind="stable")
  found = np.array(best["score"])
  np.testing.assert_allclose(found, scores["score"][order], rtol=1e-5)
  assert set(best["row_id"][:10]) == set(scores["row_id"][order[:10]])
