r"""A training step against transformers: the same weights, the same batches.

  python -m benchmarks.training [--vocab=8192,151936] [--turns=4]

A Qwen2 with random weights, hidden 512, 8 layers, 8 heads of 64, FFN 1,408,
tied head, 2 rows of 512 tokens, float32. Ours is the jitted step of the
trainer with the next-token loss and AdamW as configured. Theirs is
Qwen2ForCausalLM with sdpa attention, F.cross_entropy in float32, foreach
clipping and fused AdamW. They keep all activations; ours keeps what --remat
says, by default results of matrix products and of attention.

Either side has a process of its own with as many threads as there are cores,
takes two steps to warm up, and then --steps steps a turn, in turns and in both
orders. What is quoted is the ratio within a turn. CPU seconds are of all
threads, with those that spin while they wait. Peak memory is VmHWM of the
whole process, with its imports, loading and compiling, and less what it holds
after loading its libraries. The losses of all steps are compared, so both
sides must have the same gradients and the same updates. Needs the `parity`
extra.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile

import numpy as np
from absl import app, flags
from etils import epath

from benchmarks.accelerator import contest, models, ours, theirs

_VOCAB = flags.DEFINE_list("vocab", ["8192", "151936"], "Vocabularies.")
_TURNS = flags.DEFINE_integer("turns", 4, "Turns of either side.", 1)
_STEPS = flags.DEFINE_integer("steps", 2, "Steps of a turn.", 1)
_REMAT = flags.DEFINE_string("remat", "dots", "What our backward pass keeps.")
_ROWS, _LENGTH, _WARM_UP = 2, 512, 2
_SHAPE = {
  "hidden_size": 512,
  "num_hidden_layers": 8,
  "num_attention_heads": 8,
  "num_key_value_heads": 8,
  "intermediate_size": 1408,
  "tie_word_embeddings": True,
}
# Weights of this size give a loss well above log V, so that it falls.
_STD = 0.05


def _ours(model: str):
  import jax

  from miniplm_jax.models import huggingface, placement, sharding
  from miniplm_jax.training.objective import NextToken

  section = ours.section(_ROWS, "float32")
  mesh = sharding.make_mesh(1, 1, 1)
  objective = NextToken(section, 0, _REMAT.value)
  decoder = huggingface.load(epath.Path(model), mesh)
  state, _, step_fn = ours.started(decoder, section, objective, mesh, 1)
  del decoder  # or it would be held beside the state that replaces it

  def run(tokens) -> float:
    nonlocal state
    batch = {"tokens": tokens, "length": np.full(_ROWS, _LENGTH + 1, np.int32)}
    with jax.set_mesh(mesh):
      state, found = step_fn(state, placement.put(batch, mesh))
    jax.block_until_ready(state)
    return float(found["train/loss"])

  return run


def _theirs(model: str):
  import torch
  from torch.nn import functional

  section = ours.section(_ROWS, "float32")
  torch.set_num_threads(multiprocessing.cpu_count())
  decoder = theirs.load(model, torch.device("cpu"), "float32").train()
  adamw = theirs.adamw(decoder, section)

  def run(tokens) -> float:
    tokens = torch.from_numpy(tokens).long()
    logits = decoder(tokens[:, :-1], use_cache=False).logits
    loss = functional.cross_entropy(
      logits.flatten(0, 1).float(), tokens[:, 1:].flatten()
    )
    del logits
    loss.backward()
    torch.nn.utils.clip_grad_norm_(
      decoder.parameters(), section.clip_norm, foreach=True
    )
    adamw.step()
    adamw.zero_grad(set_to_none=True)
    return loss.item()

  return run


def _make(command_line, side, model, vocab_size):
  """One side, in its own process: takes steps when it is told to."""
  flags.FLAGS(command_line)
  if side is _ours:
    import jax

    jax.devices()
  else:
    import torch  # noqa: F401
    import transformers  # noqa: F401
  before = contest.process_gib("VmRSS")
  run, batches = side(model), models.batches(vocab_size, _ROWS, _LENGTH)

  def steps(count):
    return [run(next(batches)) for _ in range(count)]

  def memory():
    peak = contest.process_gib("VmHWM")
    return peak, peak - before

  return lambda: contest.Entrant(
    steps(_WARM_UP), lambda: steps(_STEPS.value), memory
  )


def main(argv: list[str]):
  """Prints what both sides take for each vocabulary."""
  del argv
  import transformers

  print(f"{multiprocessing.cpu_count()} cores, {_TURNS.value} turns")
  for vocab_size in map(int, _VOCAB.value):
    with tempfile.TemporaryDirectory() as model:
      config = transformers.Qwen2Config(
        vocab_size=vocab_size, initializer_range=_STD, **_SHAPE
      )
      transformers.Qwen2ForCausalLM(config).save_pretrained(model)
      _compare(model, vocab_size)


def _compare(model: str, vocab_size: int):
  load = os.getloadavg()[0]
  found = contest.hold(
    [
      contest.Contender(name, _make, (sys.argv, side, model, vocab_size))
      for name, side in (("ours", _ours), ("torch", _theirs))
    ],
    _TURNS.value,
  )
  if found.failed:
    raise RuntimeError(found.failed)
  losses = {}
  for name, turns in found.turns.items():
    walls = found.seconds(name)
    busy = [turn.cpu_seconds / _STEPS.value for turn in turns]
    walls = [seconds / _STEPS.value for seconds in walls]
    losses[name] = sum((turn.value for turn in turns), found.first[name])
    print(
      f"vocabulary {vocab_size:,}, {name:5}: "
      f"{statistics.median(walls):.2f} s a step "
      f"({min(walls):.2f} to {max(walls):.2f}), "
      f"{statistics.median(busy):.2f} CPU s, peak "
      f"{found.ended[name][0]:.2f} GiB, "
      f"{found.ended[name][1]:.2f} without libraries"
    )
  ratio, least, most = found.ratio("ours", "torch")
  off = np.abs(np.subtract(losses["ours"], losses["torch"]))
  whole, own = np.divide(found.ended["ours"], found.ended["torch"])
  print(
    f"vocabulary {vocab_size:,}: ours is {ratio:.2f} × as "
    f"fast ({least:.2f} to {most:.2f}) in {whole:.2f} × the "
    f"memory ({own:.2f} × without libraries); loss from "
    f"{losses['torch'][0]:.4f} to {losses['torch'][-1]:.4f}, differs by "
    f"{off[0]:.1e} at step 1 and {off.max():.1e} at most; load before "
    f"{load:.1f}",
    flush=True,
  )


if __name__ == "__main__":
  app.run(main)
