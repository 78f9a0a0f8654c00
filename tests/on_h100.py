"""Compiles programs for H100s that are not here; prints JSON.

XLA needs no GPU to compile for one, only its description and CUDA's
assembler. Kernels are not timed, so those of matrix products are not what an
H100 would choose; and cuDNN's working memory is taken to be none.
"""

import json
import re
import sys

import jax
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies

from miniplm_jax import config as config_lib
from miniplm_jax.models import sharding
from miniplm_jax.models.architecture import Transformer
from miniplm_jax.plan import programs
from miniplm_jax.trainer.objective import NextToken

# An H100 SXM, from its data sheet and what CUDA says of it.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: 3352000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""
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


def facts(lowered: jax.stages.Lowered, is_deterministic=False) -> dict:
  """What the compiled program calls, holds, and reads."""
  options = {
    # As autotuning does on a GPU, for products of this size.
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_deterministic_ops": is_deterministic,
  }
  compiled = lowered.compile(compiler_options=options)
  memory, text = compiled.memory_analysis(), compiled.as_text()
  # Kernels that read the logits of a tile: not products, nor what they fuse.
  logits = f"f32[{ARCH.vocab_size},4096]"
  reads = 0
  for body in re.split(r"\n(?=%|ENTRY)", text):
    if body.startswith("%fused"):
      reads += logits in body.partition(")")[0]
  return {
    "attention": [
      text.count('custom_call_target="__cudnn$fmhaSoftmax"'),
      text.count('custom_call_target="__cudnn$fmhaSoftmaxBackward"'),
    ],
    "products": text.count('custom_call_target="__cublas'),
    "reads_of_logits": reads,
    "scatters": text.count(" scatter("),
    "sorts": text.count(" sort("),
    "shapes": sorted(set(re.findall(r"\w+\[[\d,]+\]", text))),
    "aliased": memory.alias_size_in_bytes,
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "collectives": sorted(
      set(re.findall(r" (all-\w+|reduce-scatter|collective-permute)", text))
    ),
  }


def main(devices: int):
  """Scoring and training on so many GPUs of one machine."""
  fused_attention_stablehlo.check_cudnn_version = lambda: 91_200
  here = topologies.get_topology_desc(
    platform="cuda", target_config=H100, topology=f"1x1x{devices}"
  )
  mesh = sharding.make_mesh(1, devices, 1, devices=here.devices)
  train = config_lib.default().train
  train.batch_size = ROWS * devices
  objective = NextToken(train, 0, "dots")
  rows = ROWS * devices
  scoring = programs.scoring(ARCH, mesh, rows, LENGTH)
  training = programs.training(ARCH, mesh, train, objective, ROWS, LENGTH)
  found = {
    "scoring": facts(scoring),
    "training": facts(training),
    "deterministic": facts(training, is_deterministic=True),
  }
  print(json.dumps(found))


if __name__ == "__main__":
  main(int(sys.argv[1]))
