"""Our side: the package's own programs, as its stages run them."""

import functools
from typing import Any

import numpy as np
from etils import epath

from benchmarks.accelerator import contest, models
from benchmarks.accelerator.contest import Entrant
from benchmarks.accelerator.settings import Variant


def memory() -> dict[str, Any]:
  """The most that was in use at a time, of a device or of this process.

  On a device with what the compiler took to try kernels.
  """
  import jax

  stats = [d.memory_stats() for d in jax.local_devices()]
  if all(stats):
    peak = max(s["peak_bytes_in_use"] for s in stats)
    return {"gib": peak / 2**30, "of": "device"}
  return {"gib": contest.process_gib("VmHWM"), "of": "process"}


def section(rows: int, dtype: str = "bfloat16"):
  """The train section of the config: of both sides."""
  from miniplm_jax import config

  found = config.default().train
  with found.unlocked():
    found.update(
      batch_size=rows,
      steps=10**6,
      learning_rate=1e-4,
      warmup_steps=0,
      final_learning_rate_ratio=1.0,
      dtype=dtype,
    )
  return found


def started(decoder, train, objective, mesh, turns: int):
  """The training loop's state before its first step, abstract, and its step.

  The step donates the state, and with it the decoder's arrays.
  """
  import jax

  from miniplm_jax.training import loop, optimizer

  with jax.set_mesh(mesh):
    abstract = loop.abstract_state(decoder.arch, train, mesh)
    where = jax.tree.map(lambda s: s.sharding, abstract)
    init = jax.jit(optimizer.make(train).init, out_shardings=where.opt_state)
    first = jax.device_put(np.int32(0), where.step)
    state = loop.State(first, decoder, init(decoder))
    step = loop.step_function(abstract, train, objective, mesh, turns)
  return state, abstract, step


def scorer(model: str, corpus: str, length: int, rows: int, variant: Variant):
  """Scores all rows of a corpus in a turn, `rows` of all devices at a time."""
  import jax
  import jax.numpy as jnp

  from miniplm_jax.config import ScoreConfig
  from miniplm_jax.core import manifest
  from miniplm_jax.corpus.store import Corpus
  from miniplm_jax.models import huggingface, sharding
  from miniplm_jax.scoring.scorer import Scorer

  variant.apply()
  found = Corpus(manifest.require(epath.Path(corpus) / "manifest.json"))
  ids = np.arange(len(found))
  mesh = sharding.make_mesh(1, -1, 1)
  decoder = huggingface.load(epath.Path(model), mesh, jnp.bfloat16)
  jax.block_until_ready(decoder)

  def prepare():
    def attempt(rows):
      how = ScoreConfig(lengths=(length,), batch_tokens=rows * length)
      score = Scorer(how, {"model": decoder}, found, mesh)
      nll, tokens, _ = score(ids)
      score(ids)
      return score, nll["model"] / tokens

    fitted, (score, nll) = contest.fitting(rows, attempt)

    def run():
      score(ids)

    return Entrant({"nll": nll, "rows": fitted}, run, memory)

  return prepare


def trainer(
  model: str,
  rows: tuple[int, int],
  length: int,
  steps: int,
  remat: str,
  dtype: str,
  variant: Variant,
):
  """Steps of the training loop's own program; `rows`: of a step, at a time."""
  import jax

  from miniplm_jax.models import huggingface, placement, sharding
  from miniplm_jax.training.objective import NextToken

  variant.apply()
  train, mesh = section(rows[0], dtype), sharding.make_mesh(1, -1, 1)
  devices = mesh.size
  objective = NextToken(train, models.EOS, remat)

  def attempt(of_a_device):
    turns = rows[0] // (of_a_device * devices)
    decoder = huggingface.load(epath.Path(model), mesh)
    state, abstract, step = started(decoder, train, objective, mesh, turns)
    vocabulary = decoder.arch.vocab_size
    del decoder  # or it would be held beside the state that replaces it
    stream = models.batches(vocabulary, rows[0], length)
    counts = np.full(rows[0], length + 1, np.int32)

    def batch():
      return placement.put({"tokens": next(stream), "length": counts}, mesh)

    with jax.set_mesh(mesh):
      compiled = step.lower(abstract, batch()).compile().memory_analysis()
    stream = models.batches(vocabulary, rows[0], length)

    def run(steps):
      nonlocal state
      losses = []
      with jax.set_mesh(mesh):
        for _ in range(steps):
          state, found = step(state, batch())
          losses.append(found["train/loss"])
      jax.block_until_ready(state)
      return [float(loss) for loss in losses]

    return run, compiled, run(2)

  def prepare():
    most, whole = max(rows[1] // devices, 1), rows[0] // devices
    fitted, made = contest.fitting(min(most, whole), attempt, whole)
    run, compiled, losses = made
    first = {"losses": losses, "rows": fitted * devices}
    if peak := getattr(compiled, "peak_memory_in_bytes", 0):
      first["program_gib"] = peak / 2**30
    return Entrant(first, functools.partial(run, steps), memory)

  return prepare
