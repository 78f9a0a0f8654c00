r"""Greedy decoding beside transformers: the same text, and how fast.

  python -m benchmarks.generate --model=DIRECTORY_OR_HUB_ID [--batch=2]

Both continue the same prompts in float32 on this machine, in turn; what is
quoted is the ratio of their speeds, without compilation. Needs the `parity`
extra.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from miniplm_jax.corpus import tokenizer
from miniplm_jax.models import generation, hub, huggingface, sharding

_MODEL = flags.DEFINE_string("model", None, "A directory.", required=True)
_BATCH = flags.DEFINE_integer("batch", 2, "Prompts at a time.", 1)
_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "New tokens.", 1)
_RUNS = flags.DEFINE_integer("runs", 5, "Paired runs.", 1)
PROMPTS = (
  "Once upon a time, in a small village,",
  "The three laws of thermodynamics are",
  "def fibonacci(n):",
  "Dear Sir or Madam,",
)


def main(argv):
  """Prints the ratio, the text and whether it is the same."""
  del argv
  import torch
  import transformers

  directory = hub.resolve(_MODEL.value)
  engine = tokenizer.load_engine(directory)
  texts = [PROMPTS[i % len(PROMPTS)] for i in range(_BATCH.value)]
  batch = generation.pad_left(
    [engine.encode(text).ids for text in texts], len(texts)
  )
  rows, first = batch["tokens"], batch["first"]
  mesh = sharding.make_mesh(1, 1, jax.device_count())
  model = huggingface.load(directory, mesh)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    str(directory), dtype=torch.float32
  ).eval()
  mask = np.arange(rows.shape[1])[None] >= first[:, None]

  def run_theirs():
    made = theirs.generate(
      torch.as_tensor(rows).long(),
      attention_mask=torch.as_tensor(mask).long(),
      do_sample=False,
      max_new_tokens=_TOKENS.value,
      min_new_tokens=_TOKENS.value,
      pad_token_id=0,
    )
    return made[:, rows.shape[1] :].numpy()

  with jax.set_mesh(mesh):
    program = generation.compiled(
      mesh,
      sampling=generation.Sampling(_TOKENS.value, temperature=0),
      seed=0,
      # Nothing ends a row, so that both do the same work. transformers bars
      # its end tokens for that, so rows are compared up to our first.
      eos_ids=(),
      vocabulary=min(tokenizer.vocab_size(engine), model.arch.vocab_size),
      dtype=jnp.float32,
    )

    def run_ours():
      return np.asarray(program(model, batch).values.tokens)

    ours, wanted = run_ours(), run_theirs()
    pairs = []
    for _ in range(_RUNS.value):
      start = time.perf_counter()
      run_ours()
      middle = time.perf_counter()
      run_theirs()
      pairs.append((middle - start, time.perf_counter() - middle))
  ends = hub.eos_ids(directory)
  same = total = 0
  for row, other in zip(ours, wanted):
    stop = next((i for i, x in enumerate(row) if x in ends), len(row))
    same += int((row[:stop] == other[:stop]).sum())
    total += stop
  tokens = _BATCH.value * _TOKENS.value
  rates = [tokens / statistics.median(seconds) for seconds in zip(*pairs)]
  ratios = [theirs / ours for ours, theirs in pairs]
  print(engine.decode([*rows[0, first[0] :], *ours[0].tolist()]))
  print(
    f"batch {_BATCH.value}, {_TOKENS.value} new tokens, float32, "
    f"{_RUNS.value} paired runs: ours {rates[0]:.1f} tokens/s, transformers "
    f"{rates[1]:.1f}, ours × {statistics.median(ratios):.2f} "
    f"({min(ratios):.2f} to {max(ratios):.2f}); {same} of {total} tokens equal"
  )


if __name__ == "__main__":
  app.run(main)
