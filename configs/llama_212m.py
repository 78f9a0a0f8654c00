r"""MiniPLM-Llama3.1-212M: 211,766,016 parameters, not of Qwen's family.

  python -m miniplm_jax.main --config=configs/llama_212m.py \
    --config.workdir=runs/pile --config.corpus.source='data/pile/*.jsonl.zst'

Paper:   MiniPLM (arXiv 2410.17215), Section 3.3; average of nine zero-shot
         tasks 41.8 (41.0 without distillation).
Corpus:  105B tokens of the Pile: 5B D_ref, 100B scored, 50B kept; their text
         once more in Llama 3.1's 128,256 ids, every row after a BOS.
Tokens:  100,000 steps × 512 × 1024 = 52.4B.
Slice:   not chosen yet. Time: not yet run.

The tokenizer's repository is gated: accept its license and set HF_TOKEN, or
give a folder that has it.
"""

from miniplm_jax import config as config_lib
from miniplm_jax.models.architecture import PRESETS


def get_config():
  """The paper's constants are the defaults; this is what differs."""
  config = config_lib.default()
  config.workdir = "runs/pile"
  config.corpus.source = "data/pile/*.jsonl.zst"
  config.corpus.domain_field = "meta.pile_set_name"
  config.reference.model.update(PRESETS["qwen-104m"])
  config.reference.train.steps = 9_537  # 5B tokens
  student = config.student
  student.name = "llama-212m-{method}"
  student.model.update(PRESETS["llama3.1-212m"])
  student.tokenizer = "meta-llama/Llama-3.1-8B"
  student.bos_token = "<|begin_of_text|>"
  student.eos_token = "<|end_of_text|>"
  config.train.learning_rate = 6e-4
  return config
