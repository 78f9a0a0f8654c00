"""Training runs of seconds, in process, on a small packed corpus."""

import os
import pathlib
import runpy
import signal

import helpers
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from helpers import CONFIG

from miniplm_jax.core import manifest, signals
from miniplm_jax.corpus.store import Corpus
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.training import batches, loop
from miniplm_jax.training import metrics as metrics_lib
from miniplm_jax.training.objective import NextToken
from miniplm_jax.training.spec import TrainSpec

ARCH = Transformer(
  vocab_size=512,
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=2,
)


class Hooked(NextToken):
  """Hears of every batch in the loop's thread, before its step."""

  def begins(self, batch):
    """The batch that the step gets."""
    return batch


def _heard(*arguments, **settings):
  """`batches.stream`, whose objective is asked where the loop takes a batch.

  `with_rows` is called by the threads that read ahead.
  """
  asked = getattr(settings.get("with_rows"), "__self__", None)
  for batch in _stream(*arguments, **settings):
    yield asked.begins(batch) if isinstance(asked, Hooked) else batch


_stream, batches.stream = batches.stream, _heard


class Watched(Hooked):
  """Notes the rows of every step; may stop or spoil one."""

  def __init__(self, train, eos_id, stop_at=0, spoilt=0):
    super().__init__(train, eos_id, "none")
    self._stop_at, self._spoilt = stop_at, spoilt
    self.row_ids = []

  def begins(self, batch):
    row_ids = batch["row_id"]
    self.row_ids.append(row_ids.tolist())
    step = len(self.row_ids)  # of this process
    if step == self._stop_at:
      os.kill(os.getpid(), signal.SIGTERM)
    factor = np.float32(np.nan if step == self._spoilt else 1)
    return batch | {"factor": np.full(len(row_ids), factor)}

  def loss_inputs(self, batch, *more):
    (inputs, targets, weights), total = super().loss_inputs(batch, *more)
    return (inputs, targets, weights * batch["factor"][:, None]), total


def corpus_of(folder: pathlib.Path) -> Corpus:
  return Corpus(manifest.require(folder / "run" / "corpus" / "manifest.json"))


def spec(corpus, directory, objective=None, run=None, **train) -> loop.Training:
  """A run over D of `corpus`; `objective` are arguments of `Watched`."""
  config = runpy.run_path(str(CONFIG))["get_config"]()
  config.train.update(train)
  config.run.update(run or {})
  config = helpers.typed(config)
  return loop.Training(
    spec=TrainSpec(
      stage="run",
      folder=epath.Path(directory),
      shape=ARCH,
      train=config.train,
      run=config.run,
      max_length=corpus.max_length,
    ),
    corpus=corpus,
    row_ids=corpus.rows_of("train"),
    curve_ids=np.zeros(0, np.int64),
    objective=Watched(config.train, corpus.eos_id, **(objective or {})),
  )


def stopped(made: loop.Training, mesh):
  """Runs until the objective stops it."""
  with helpers.signals_handled():
    try:
      loop.train(made, mesh)
    except signals.Stopped:
      return
  raise AssertionError("it was not stopped")


def saved(directory) -> list[int]:
  """Steps of the checkpoints."""
  folder = pathlib.Path(directory) / "checkpoints"
  return sorted(int(p.name) for p in folder.glob("[0-9]*"))


def arrays(directory, step: int) -> dict[str, np.ndarray]:
  """Everything that a checkpoint holds, by name."""
  path = pathlib.Path(directory).resolve() / "checkpoints" / str(step)
  leaves = jax.tree_util.tree_leaves_with_path(content(path / "default"))
  return {jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves}


def content(folder: pathlib.Path):
  """Nested dicts of a checkpoint's arrays."""
  with ocp.StandardCheckpointer() as reader:
    return reader.restore(folder)


def put_content(folder: pathlib.Path, new):
  """Stores others in their place."""
  with ocp.StandardCheckpointer() as writer:
    writer.save(folder, new, force=True)


def lines(directory) -> list[dict[str, float]]:
  """The metrics, without what the clock says."""
  found = metrics_lib.read(epath.Path(directory) / "metrics")
  clock = helpers.OF_THE_CLOCK
  return [{k: v for k, v in m.items() if k not in clock} for m in found]


def assert_same_run(one, two, step: int):
  """Weights, optimizer state and metrics are the same bits."""
  a, b = arrays(one, step), arrays(two, step)
  assert a.keys() == b.keys() and any("opt_state" in k for k in a)
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  assert lines(one) == lines(two)
  assert [m["step"] for m in lines(one) if "train/loss" in m] == list(
    range(1, step + 1)
  )
