import numpy as np
import pytest

from miniplm_jax import config as config_lib
from miniplm_jax.models import decoder
from miniplm_jax.select import cutoff, definitions


@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("decimals", [0, 1, 7])
def test_top_k_equals_a_stable_sort(ratio, decimals):
  """Few decimals make many ties; also signs, zeros and large values."""
  rng = np.random.default_rng(decimals)
  score = np.round(rng.normal(size=10_007) * 3, decimals).astype(np.float32)
  score[:4] = 0.0, -0.0, 3e38, -3e38
  row_id = np.cumsum(rng.integers(1, 5, len(score)))
  order = np.lexsort((row_id, -(score + 0)))
  wanted = np.sort(row_id[order[: int(ratio * len(score))]])

  def chunks():
    for i in range(0, len(score), 999):
      yield row_id[i : i + 999], score[i : i + 999]

  found = cutoff.find(chunks, ratio)
  assert (found.kept, found.rows) == (len(wanted), len(score))
  np.testing.assert_array_equal(found.kept_of(row_id, score), wanted)


def test_a_share_of_less_than_a_row_keeps_none():
  found = cutoff.find(lambda: [(np.arange(3), np.ones(3, np.float32))], 0.3)
  assert found.kept == 0


COLUMNS = {
  "row_id": np.arange(3),
  "teacher_nll": np.array([10, 20, 30], np.float32),
  "teacher_tokens": np.array([10, 10, 10], np.int32),
  "reference_nll": np.array([30, 20, 60], np.float32),
  "reference_tokens": np.array([10, 10, 20], np.int32),
}


def test_the_config_knows_every_definition():
  assert set(config_lib.DEFINITIONS) == set(definitions.DEFINITIONS)
  assert set(config_lib.REMAT) == set(decoder.REMAT)


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("mean_diff", [2, 0, 0]),
    ("sum_diff", [20, 0, 30]),
    ("difficulty", [3, 2, 3]),
    ("teacher_preference", [-1, -2, -3]),
  ],
)
def test_definitions(name, wanted):
  found = definitions.DEFINITIONS[name].score(COLUMNS, 0)
  np.testing.assert_allclose(found, wanted)


def test_random_rows_depend_on_id_and_seed_alone():
  ids = {"row_id": np.arange(4000)}
  one, two = (definitions.random(ids, seed) for seed in (1, 2))
  np.testing.assert_array_equal(
    one[100:], definitions.random({"row_id": np.arange(100, 4000)}, 1)
  )
  assert abs(np.corrcoef(one, two)[0, 1]) < 0.05
  assert abs(one.mean() - 0.5) < 0.02 and one.min() >= 0 and one.max() < 1
