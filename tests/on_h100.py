"""Compiles programs for H100s that are not here; prints JSON."""

import json
import re
import sys

from benchmarks import h100
from miniplm_jax.forecast import programs
from miniplm_jax.models.architecture import Transformer

# Two tiles of 4,096 tokens on each device.
ROWS, LENGTH = 8, 1024
ARCH = Transformer(
  vocab_size=64_000,
  hidden_size=512,
  intermediate_size=1408,
  num_hidden_layers=3,
  num_attention_heads=8,
  num_key_value_heads=4,
)


def facts(lowered, rows: int, is_deterministic=False) -> dict:
  """What the program calls, holds, and reads; `rows`: of a GPU's head."""
  compiled = h100.compiled(lowered, is_deterministic)
  memory, text = compiled.memory_analysis(), compiled.as_text()
  # Kernels that read the logits of a tile: not products, nor what they fuse.
  logits = f"f32[{rows},4096]"
  reads = 0
  for body in re.split(r"\n(?=%|ENTRY)", text):
    if body.startswith("%fused"):
      reads += logits in body.partition(")")[0]
  return {
    "kernels": h100.kernels(text),
    # Rows, heads, tokens and head size of cuDNN's forward pass.
    "attention": sorted(
      {
        re.search(r" = \(?bf16\[([\d,]+)\]", line)[1]
        for line in text.splitlines()
        if '"__cudnn$fmhaSoftmax"' in line
      }
    ),
    "reads_of_logits": reads,
    "scatters": text.count(" scatter("),
    "sorts": text.count(" sort("),
    "shapes": sorted(set(re.findall(r"\w+\[[\d,]+\]", text))),
    "aliased": memory.alias_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "collectives": sorted(
      set(re.findall(r" (all-\w+|reduce-scatter|collective-permute)", text))
    ),
  }


def main(devices: int, tensor: int):
  """Scoring and training on so many GPUs of one machine."""
  mesh = h100.mesh(devices, tensor)
  shards, rows = devices // tensor, ARCH.vocab_size // tensor
  scoring = programs.scoring(ARCH, mesh, ROWS * shards, LENGTH)
  training = h100.training(ARCH, mesh, "dots", ROWS, LENGTH)
  found = {
    "scoring": facts(scoring, rows),
    "training": facts(training, rows),
    "deterministic": facts(training, rows, is_deterministic=True),
  }
  print(json.dumps(found))


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
