"""How well a reference ranks rows as the student would, by what it has learned.

The paper's Table 11 (45M to 200M parameters), extended downward: references of
several sizes and of several numbers of steps beside models of the student's
shape that were trained on rows of D, on other rows of D, from losses alone.
"""

from typing import Any

import numpy as np

import miniplm_jax as mp
from miniplm_jax.report.analyses import ranking

# Layers, width, steps of each reference; the last is as the study's own.
REFERENCES = (
  *((2, 32, 400), (2, 64, 400), (4, 128, 400)),
  *((4, 128, 100), (4, 128, 200), (4, 128, 600)),
)
STUDENTS = ((4, 128, 480, 1), (4, 128, 480, 2))  # and a seed
ROWS = 2000
ALPHA = 0.5  # as in the paper's table


def _shape(layers: int, width: int) -> Any:
  return mp.presets["qwen-45m"].replace(
    vocab_size=49_152,
    hidden_size=width,
    intermediate_size=3 * width,
    num_hidden_layers=layers,
    num_attention_heads=max(width // 32, 2),
    num_key_value_heads=max(width // 32, 2),
    rope_theta=1e4,
    max_position_embeddings=128,
  )


def _means(model: Any, rows: Any) -> np.ndarray:
  """Mean NLL of each row in nats, float64, in the order of their ids."""
  of_rows = mp.evaluate(model, rows).rows
  mean = of_rows["nll_sum"].astype(float) / of_rows["n_tokens"]
  assert np.array_equal(of_rows["row_id"], rows.ids)
  return mean


def measure(study: Any):
  """Trains them, and notes how far each ranks as the students do."""
  config = study.config("planted")
  corpus = mp.open_artifact(str(study.workdir / "corpus"))
  table = mp.open_artifact(str(study.workdir / "scores" / "teacher")).to_arrow()
  row_id = table["row_id"].to_numpy()
  teacher = table["nll_sum"].to_numpy() / table["n_tokens"].to_numpy()
  rng = np.random.default_rng(10)
  drawn = rng.permutation(len(row_id))
  ids = np.sort(row_id[drawn[: min(ROWS, len(row_id) // 3)]])
  held = corpus.rows(ids)
  learned = corpus.rows(np.sort(row_id[drawn[len(row_id) // 2 :]]))
  p = teacher[np.searchsorted(row_id, ids)]
  index = corpus.to_arrow()
  clean = index["clean"].to_numpy()[ids] == 1
  recipe = {"batch_size": 8, "shuffle": True, "dtype": "float32"}

  def trained(kind: str, layers: int, width: int, steps: int, rows, seed=10):
    steps = max(round(steps * config.train.steps / 480), 20)
    name = f"{kind}-{layers}x{width}-{steps}-s{seed}"
    model = mp.train(
      _shape(layers, width),
      rows,
      to=str(study.workdir / "agreement" / name),
      steps=steps,
      warmup_steps=steps // 10,
      learning_rate=2e-3,
      seed=seed,
      **recipe,
    )
    return model, _means(model, held) - p

  students = [
    trained("student", layers, width, steps, learned, seed)[1]
    for layers, width, steps, seed in STUDENTS
  ]
  kept = len(ids) // 3

  def line(name: str, model: Any, score: np.ndarray) -> dict[str, Any]:
    of = [ranking.compare(score, q, ALPHA) for q in students]
    top = np.argsort(-score, kind="stable")[:kept]
    return {
      "name": name,
      "parameters": model.manifest.counts["parameters"],
      "tokens": model.manifest.counts["tokens"],
      "clean_kept": float(clean[top].sum() / min(clean.sum(), kept)),
      **{k: float(np.mean([one[k] for one in of])) for k in of[0]},
    }

  split = corpus.split("reference")
  lines = []
  for layers, width, steps in REFERENCES:
    model, score = trained("reference", layers, width, steps, split)
    lines.append(line(f"{layers}×{width}, {steps} steps", model, score))
  of_students = ranking.compare(*students, ALPHA)
  study.note(agreement={"references": lines, "students": of_students})
