"""What of the config decides a score table, for steps that make or read one."""

from typing import Any

from miniplm_jax.config import ScoreConfig

# How a table is computed and cut: by rounding apart, its readers find the same.
LAYOUT = ("rows_per_part", "lengths", "batch_tokens")


def of_table(score: ScoreConfig) -> dict[str, Any]:
  """How rows are scored, by whatever model."""
  return {
    "dtype": score.dtype,
    "rows_per_part": score.rows_per_part,
    "lengths": list(score.lengths),
    "batch_tokens": score.batch_tokens,
  }


def rows_in_words(score: ScoreConfig) -> str:
  """Which rows of D are scored."""
  share = score.share
  return "every row of D" if share >= 1 else f"{share:.4g} of the rows of D"
