"""Programs compiled for every generation of TPU, beside what they were.

What they take is predicted, and beside closed forms in test_tpu_times.py.

With `--rewrite_goldens`, that of this JAX in tests/goldens/ is written anew:
look at what changed before committing it.
"""

import json

import jax
import pytest
from helpers import ROOT
from test_tpu import (
  ARCH,
  logits_shape,
  needs_libtpu,
  scoring,
  training,
)

from miniplm_jax.config import TrainConfig
from miniplm_jax.forecast import (
  hlo,
  prediction,
  topology,
)
from miniplm_jax.models import architecture, sharding

# Each version of JAX comes with its own libtpu, which compiles otherwise.
PATH = ROOT / "tests" / "goldens" / f"tpu-jax-{jax.__version__}.json"
ROWS = 2
SLICES = (
  "v5e:2x2",
  *(
    pytest.param(name, marks=pytest.mark.long)
    for name in ("v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "2*v5e:2x2")
  ),
)


def summary(name: str) -> dict:
  """Of a training step, weights and batch over four chips."""
  mesh = topology.mesh(name, 1, 4, 1)
  train = TrainConfig(batch_size=ROWS * sharding.batch_shards(mesh))
  program = training(train)
  compiled = program.lower(mesh, ROWS, "dots").compile()
  found = prediction.of_compiled(compiled, program, name, mesh, ROWS)
  return {
    "peak_bytes": found.peak_bytes,
    "flops": found.flops,
    "collectives": {k: list(v) for k, v in sorted(found.collectives.items())},
    "loops": sorted(hlo.Schedule(compiled.as_text()).loops.values()),
  }


@needs_libtpu
@pytest.mark.parametrize("name", SLICES)
def test_a_training_step_is_what_it_was(name, request):
  found = summary(name)
  # What crosses the network is a shard of the gradient, in bfloat16 where it
  # was formed so: less than all weights in float32 by the four of a slice.
  _, nbytes = found["collectives"].get("between slices", (0, 0))
  weights = ARCH.parameters() / 4
  assert (2 * weights <= nbytes <= 4.1 * weights) == name.startswith("2*")
  # v6e adds up gradients along a ring in pieces of 24 columns; a shard has 64,
  # so the edges are sent once more. None of it is ours.
  permutes, _ = found["collectives"].get("collective-permute", (0, 0))
  assert permutes <= name.startswith("v6e")
  goldens = json.loads(PATH.read_text()) if PATH.exists() else {}
  if request.config.getoption("--rewrite_goldens"):
    goldens[name] = found
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(goldens, indent=1, sort_keys=True) + "\n")
    return
  if name not in goldens:
    pytest.skip(f"no golden of JAX {jax.__version__}: see the docstring")
  wanted = goldens[name]
  peak_bytes = found.pop("peak_bytes")
  assert peak_bytes == pytest.approx(wanted.pop("peak_bytes"), rel=0.02)
  assert found == wanted


@pytest.mark.long
@needs_libtpu
def test_the_teacher_of_the_paper_on_one_chip():
  """1.8B at 16 × 1,024: fits, no logits of all tokens."""
  arch = architecture.SHAPES["qwen1.5-1.8b"]
  mesh = topology.mesh("v5e:1x1", 1, 1, 1)
  found = prediction.predict(scoring(arch, 1024), "v5e:1x1", mesh, 16)
  assert found.peak_bytes < 4.2 * 2**30
  assert found.flops == pytest.approx(found.model_flops, rel=0.02)
  assert sorted(logits_shape(found)) == [1024, arch.table_rows]
  assert not found.collectives
  assert 0 < found.optimistic <= found.seconds <= found.pessimistic
