r"""What XLA compiles for H100s that are not here: kernels and memory.

  PYTHONPATH=.venv/cuda JAX_PLATFORMS=cpu python -m benchmarks.h100
    [--devices=8] [--students=qwen-500m] [--remat=dots] [--rows=16,32]

`make .venv/installed-dev` brings XLA's compiler for GPUs and CUDA's assembler
into .venv/cuda; no GPU and no driver is needed. **Nothing is run or timed**:
so kernels of matrix products are not those that an H100 would choose by timing
them, and cuDNN's working memory is taken to be none (59 MB, asked of cuDNN
itself for a backward pass of 8 rows of 1,024 tokens and 14 heads).
"""

import re

import jax
from absl import app, flags
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies

from miniplm_jax import config as config_lib
from miniplm_jax.forecast import programs
from miniplm_jax.models import architecture, sharding
from miniplm_jax.training.objective import NextToken

_DEVICES = flags.DEFINE_integer("devices", 1, "GPUs of a node.", 1)
_STUDENTS = flags.DEFINE_list(
  "students", ["qwen-200m", "qwen-500m", "qwen-1.2b"], "Presets to train."
)
_TEACHERS = flags.DEFINE_list(
  "teachers", ["qwen-500m", "qwen1.5-1.8b"], "Presets to score with."
)
_REMAT = flags.DEFINE_list("remat", ["none", "dots", "full"], "What is kept.")
_ROWS = flags.DEFINE_list("rows", ["32"], "Rows of a GPU at a time.")
_LENGTH = flags.DEFINE_integer("length", 1024, "Inputs of a row.", 2)

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


def mesh(devices: int, tensor: int = 1) -> jax.sharding.Mesh:
  """So many H100s of a node: the batch is not split over `tensor` of them."""
  # JAX asks the cuDNN of this machine, which has none, for its version.
  fused_attention_stablehlo.check_cudnn_version = lambda: 91_200
  here = topologies.get_topology_desc(
    platform="cuda", target_config=H100, topology=f"1x1x{devices}"
  )
  return sharding.make_mesh(1, -1, tensor, devices=here.devices)


def training(arch, mesh, remat: str, rows: int, length: int):
  """A step of so many rows of each shard of the batch, lowered."""
  train = config_lib.default().train
  train.batch_size = rows * sharding.batch_shards(mesh)
  objective = NextToken(train, 0, remat)
  return programs.training(arch, mesh, train, objective, rows, length)


def compiled(lowered: jax.stages.Lowered, is_deterministic: bool = False):
  """The program, with cuBLAS for large products, as autotuning has it."""
  options = {
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_deterministic_ops": is_deterministic,
  }
  return lowered.compile(compiler_options=options)


def kernels(text: str) -> dict[str, int]:
  """How often a program's text has cuBLAS and cuDNN, by their names."""
  names = re.findall(r'custom_call_target="__(\w+\$[\w$]+)"', text)
  return {name: names.count(name) for name in sorted(set(names))}


def main(argv):
  """Prints a line for each program."""
  del argv
  here, length = mesh(_DEVICES.value), _LENGTH.value
  programs = []
  for rows in map(int, _ROWS.value):
    for name in _TEACHERS.value:
      arch = architecture.SHAPES[name]
      lowered = programs.scoring(arch, here, rows * here.size, length)
      programs.append((f"scoring {name}, {rows} rows", lowered))
    for name in _STUDENTS.value:
      arch = architecture.SHAPES[name]
      for remat in _REMAT.value:
        lowered = training(arch, here, remat, rows, length)
        programs.append(
          (f"training {name}, {rows} rows, remat {remat}", lowered)
        )
  print(f"{_DEVICES.value} × H100, jax {jax.__version__}, compiled, not run")
  for what, lowered in programs:
    made = compiled(lowered)
    memory = made.memory_analysis()
    held, needed = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    print(
      f"{what}: {(held + needed) / 2**30:.1f} GiB, of which weights and state "
      f"{held / 2**30:.1f}; {kernels(made.as_text())}",
      flush=True,
    )


if __name__ == "__main__":
  app.run(main)
