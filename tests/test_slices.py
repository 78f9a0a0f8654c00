"""Scoring, selection, training and evaluation on the hosts of real slices.

Real processes, each with the devices of a host, in the order that libtpu gives
for the slice. From the same corpus, teacher and reference they must give what
the same mesh gives in one process that adds up by the same library (gloo): the
same bits of every score, the same kept rows, the same held-out losses of
teacher and reference; and of the student, which sums over all devices, to 1e-6.
tests/test_distributed.py runs the whole pipeline.
"""

import json
import math
import pathlib
import shutil

import helpers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm_jax.training import metrics

# (slice, (data, fsdp, tensor), hosts). Minutes each; the first is the fastest.
CASES = (
  ("v4:2x2x2", (1, 1, 8), 2),  # the whole batch on both
  ("v4:2x2x2", (1, 8, 1), 2),
  ("v5e:4x4", (1, 16, 1), 4),
  ("v5e:4x4", (1, 4, 4), 4),  # each shard of a batch on two hosts
)
# Minutes each; --all_slices.
MORE = (
  ("v5p:2x2x4", (2, 8, 1), 4),
  ("v6e:4x4", (2, 2, 4), 4),
  ("v5e:4x8", (2, 4, 4), 8),
  ("2*v5e:4x4", (2, 16, 1), 8),
)
MODELS = "teacher", "reference", "student"
MODELED = "--stages=tokenize,teacher,reference"
REST = "--stages=score,select,train,evaluate"
ARGUMENTS = (
  *(f"--config.{m}.model.num_attention_heads=8" for m in MODELS),
  *(f"--config.{m}.model.num_key_value_heads=8" for m in MODELS),
  "--config.train.batch_size=32",
  "--config.train.steps=4",
  "--config.score.batch_tokens=2048",
  "--config.evaluate.max_rows=64",
)


def make(folder: pathlib.Path, name: str, sizes, hosts: int):
  """Runs it on so many hosts."""
  axes = zip(("data", "fsdp", "tensor"), sizes)
  mesh = [f"--config.run.{axis}={size}" for axis, size in axes]
  devices = math.prod(sizes) // hosts
  processes = helpers.together(
    folder,
    REST,
    *ARGUMENTS,
    *mesh,
    processes=hosts,
    devices=devices,
    slice_name=name,
  )
  helpers.ended(processes, code=0)


def exact(run: pathlib.Path) -> dict:
  """What does not depend on the order of a sum over devices, by name."""
  found = {"rows.npy": helpers.rows(run.parent)}
  for model in ("teacher", "reference"):
    folder = run / "scores" / model
    parts = sorted(folder.glob("part-*"))
    table = pa.concat_tables(map(pq.read_table, parts))
    found[f"{model}'s scores"] = table.to_pylist()
    rows = pa.ipc.open_file(folder / "evaluation.arrow").read_all()
    found[f"{model}'s held-out rows"] = rows.to_pylist()
    manifest = json.loads((folder / "manifest.json").read_text())
    check = manifest["details"]["self_check"]
    assert check["rows"] == 64 and check["devices_reordered"]
  return found


def summed(run: pathlib.Path) -> dict:
  """What the student's training decides, by name."""
  student = run / "students" / "miniplm"
  rows = pa.ipc.open_file(student / "evaluation.arrow").read_all()
  found = {name: rows[name].to_numpy() for name in rows.column_names}
  lines = metrics.read(student / "metrics")
  for key in ("train/loss", "train/grad_norm", "eval/loss"):
    found[key] = np.array(metrics.curve(lines, key)[1])
  assert len(found["train/loss"]) == 4 and len(found["eval/loss"])
  return found


@pytest.fixture(scope="module")
def modeled(tmp_path_factory):
  """A corpus, a teacher and a reference."""
  folder = tmp_path_factory.mktemp("modeled")
  helpers.write_corpus(folder / "text.jsonl", 20)
  helpers.run(folder, MODELED, *ARGUMENTS)
  return folder


def pytest_generate_tests(metafunc):
  """More of them if asked for."""
  if "hosts" in metafunc.fixturenames:
    more = CASES[1:] + MORE * metafunc.config.getoption("all_slices")
    long = [pytest.param(*case, marks=pytest.mark.long) for case in more]
    cases = CASES[:1] + tuple(long)
    metafunc.parametrize(("name", "sizes", "hosts"), cases)


@pytest.mark.bits
def test_hosts_make_what_one_makes(modeled, name, sizes, hosts, tmp_path):
  one, several = tmp_path / "one", tmp_path / "several"
  for folder, processes in ((one, 1), (several, hosts)):
    shutil.copytree(modeled, folder)
    make(folder, name, sizes, processes)
  found, wanted = exact(several / "run"), exact(one / "run")
  for what in wanted:
    assert found[what] == wanted[what], what
  found, wanted = summed(several / "run"), summed(one / "run")
  for what in wanted:
    close = np.testing.assert_allclose
    close(found[what], wanted[what], rtol=1e-6, atol=1e-6, err_msg=what)
